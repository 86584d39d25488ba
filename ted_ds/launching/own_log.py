"""Where this rank prints: into a file of its own, and rank 0 on the screen, too."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from ted_ds.launching.lasting_output import say_at_once
from ted_ds.launching.records import OwnRecord, log_file, log_folder

SHOW_EVERY_S = 0.1
MOST_AT_ONCE = 1 << 20

_record: OwnRecord | None = None


def open_log() -> OwnLog | None:
    """Print into the file of this rank from now on, also what libraries print; None where nobody asked for it.

    Raises:
        OSError: The folder cannot be written.
    """
    global _record
    folder = log_folder(os.environ)
    if folder is None:
        return None
    _record = OwnRecord(folder)
    return OwnLog(log_file(folder, _record.rank), _record)


def note_request(signal_name: str) -> None:
    """Write down that this rank was asked to stop, if it keeps a record."""
    if _record is not None:
        _record.asked(signal_name)


def note_fault(text: str) -> None:
    """Write down that hardware of this rank failed, if it keeps a record."""
    if _record is not None:
        _record.failed(text)


def end_at_once(text: str, code: int) -> NoReturn:
    """Say why, write it down, and end this process, from whichever thread, whatever the main one waits for."""
    say_at_once(text)
    if _record is not None:
        _record.ended(code)
    os._exit(code)


class OwnLog:
    """Standard output and error of this process in a file; rank 0's is shown as it grows."""

    def __init__(self, file: Path, record: OwnRecord) -> None:
        self._record = record
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._over = threading.Event()
        self._show: threading.Thread | None = None
        if record.rank == 0:
            screen, start = os.dup(1), os.fstat(descriptor).st_size
            # not a pipe: what was printed before a crash is in the file
            self._show = threading.Thread(target=self._follow, args=(file, start, screen), name="screen", daemon=True)
            self._show.start()
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def close(self, code: int) -> None:
        """Say how this rank ends."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._record.ended(code)
        self._over.set()
        if self._show is not None:
            self._show.join(10)

    def _follow(self, file: Path, start: int, screen: int) -> None:
        with file.open("rb") as log:
            log.seek(start)
            while True:
                is_over = self._over.wait(SHOW_EVERY_S)
                while text := log.read(MOST_AT_ONCE):
                    try:
                        while text:
                            text = text[os.write(screen, text) :]
                    except OSError:  # whoever looked on has gone
                        return
                if is_over:
                    return
