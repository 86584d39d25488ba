"""What DeepSpeed prints by itself as its engines start goes into a file of each rank, beside what a person reads."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOGS = "logs"
"""The folder of a run with a file of each rank."""
LOGGER = "DeepSpeed"

_file: Path | None = None


@contextlib.contextmanager
def chatter_kept_in(file: Path) -> Iterator[None]:
    """In the block, :func:`aside` writes to ``file``, behind what is there; outside it, nothing is put aside."""
    global _file
    _file = file
    try:
        yield
    finally:
        _file = None


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Put aside what is printed in the block, also by C libraries.

    What DeepSpeed's logger says, which is warnings and errors, is shown all the same, and so is all of it where the
    block raises.
    """
    log = _opened()
    if log is None:
        yield
        return
    sys.stdout.flush()
    start = log.tell()
    with log, os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace") as screen, _logging_to(screen):
        os.dup2(log.fileno(), 1)
        try:
            # not the descriptor of standard error: other threads say there why they end the process
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        except BaseException:
            _flush(log)
            log.seek(start)
            sys.stderr.write(log.read())
            raise
        finally:
            _flush(log)
            os.dup2(screen.fileno(), 1)


def _opened() -> TextIO | None:
    if _file is None:
        return None
    try:
        _file.parent.mkdir(exist_ok=True)
        return _file.open("a+", encoding="utf-8", errors="replace", buffering=1)
    except OSError:  # of no weight: it is shown then
        return None


def _flush(log: TextIO) -> None:
    ctypes.CDLL(None).fflush(None)  # what C libraries still hold for descriptor 1
    sys.stdout.flush()
    log.flush()


@contextlib.contextmanager
def _logging_to(screen: TextIO) -> Iterator[None]:
    handlers = [one for one in logging.getLogger(LOGGER).handlers if isinstance(one, logging.StreamHandler)]
    before = [(handler, handler.setStream(screen)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)
