"""A run's ``metrics.jsonl`` at its store: as it was with the newest checkpoint there, or the newest phase."""

from __future__ import annotations

import threading
from pathlib import Path

from ted_ds.errors import StoreError
from ted_ds.output.phase_folder import sync
from ted_ds.output.store import Patience, Store, here
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE

_one_at_a_time = threading.Lock()
"""What one thread read before another must not arrive after it."""


def put_numbers(store: Store, output_dir: Path, patience: Patience) -> None:
    """Copy the file there, as it is now.

    Raises:
        StoreError: It cannot be put there.
        CheckpointError: It cannot be read here.
    """
    file = output_dir / METRICS_FILE
    with _one_at_a_time:
        if file.is_file():
            with here(file, "read"):
                text = file.read_text(encoding="utf-8")
            patience.persist(METRICS_FILE, lambda: store.put_text(METRICS_FILE, text))


def fetch_numbers(store: Store, output_dir: Path, patience: Patience) -> None:
    """Copy the file here, where there is none: a phase that goes on removes what it repeats.

    Raises:
        StoreError: It cannot be read.
        CheckpointError: The disk here refuses.
    """
    file = output_dir / METRICS_FILE
    if file.exists():
        return

    def read() -> str | None:
        one, other = store.text(METRICS_FILE), store.text(METRICS_FILE)
        if one != other:  # it has no checksum, and this run will put there what it goes on with
            raise StoreError("two answers in a row are not the same")
        return one

    text = patience.persist(METRICS_FILE, read)
    if text is not None:
        beside = file.with_name(f".{METRICS_FILE}")
        with here(file, "written"):
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(file)
