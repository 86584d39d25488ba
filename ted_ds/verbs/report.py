"""The verb ``report``: one page of what a run or a study came to, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ted_ds.reports.page import write_report
from ted_ds.reports.reading import read_run_record, told_apart
from ted_ds.reports.section import section_of_run
from ted_ds.reports.study import is_study, section_of_study

FILE = "report.html"


def report(folders: Sequence[Path], file: Path | None) -> None:
    """Write the page, of one run into its own folder where no other place is given, and say where it is.

    Raises:
        TedError: A folder is no run's and no study's, matplotlib is missing, or the page cannot be written.
    """
    names = told_apart(folders)
    sections = [
        section_of_study(folder) if is_study(folder) else section_of_run(read_run_record(folder, name))
        for folder, name in zip(folders, names, strict=True)
    ]
    if len({one.name for one in sections}) < len(sections):  # studies are called by their recipes
        sections = [replace(one, name=name) for one, name in zip(sections, names, strict=True)]
    place = file or (folders[0] / FILE if len(folders) == 1 else Path(FILE))
    files = write_report(sections, place)
    print(f"report      {files[0]}")
    if len(files) > 1:
        print(f"figures     {len(files) - 1} in {files[1].parent if len(sections) == 1 else files[1].parent.parent}")
