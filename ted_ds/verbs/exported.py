"""Where an exported model is, for verbs that do something with it."""

from __future__ import annotations

from pathlib import Path

from ted_ds.errors import DataError
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE
from ted_ds.output.run_folder import RUN_FILE
from ted_ds.planning.phase import EXPORT


def export_in(folder: Path) -> Path:
    """The exported model in a run's folder, or the folder itself.

    Raises:
        DataError: There is no such folder, or no export.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the output_dir of a run that is complete, or its export")
    place = folder / EXPORT.name if (folder / RUN_FILE).is_file() else folder
    if not any((place / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE)):
        raise DataError(
            f"{place}: no exported model is in it (no {CONFIG_FILE} and no {ADAPTER_FILE}); give the output_dir of "
            "a run that is complete, or its export"
        )
    return place
