"""The verb ``report``: one page of what a run came to, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ted_ds.reports.page import write_report
from ted_ds.reports.reading import read_run_record

FILE = "report.html"


def report(folders: Sequence[Path], file: Path | None) -> None:
    """Write the page, of one run into its own folder where no other place is given, and say where it is.

    Raises:
        TedError: A folder is no run's, matplotlib is missing, or the page cannot be written.
    """
    runs = [read_run_record(folder) for folder in folders]
    place = file or (folders[0] / FILE if len(folders) == 1 else Path(FILE))
    files = write_report(runs, place)
    print(f"report      {files[0]}")
    if len(files) > 1:
        print(f"figures     {len(files) - 1} in {files[1].parent if len(runs) == 1 else files[1].parent.parent}")
