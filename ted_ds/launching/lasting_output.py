"""Standard output and error that outlast whoever reads them: ``| head``, a pager that is left, a terminal that closes.

What nobody reads, or a full disk does not take, is dropped: a run's result does not depend on its spectators.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)
"""Of a reader that will not come back; another error, such as of a full disk, may pass."""
PATIENCE_S = 10.0
"""With a reader that takes nothing; then what there is to say is dropped, until it takes something again."""


class _Lasting(io.FileIO):
    """A descriptor for writing that never fails."""

    _stands_still = False

    def write(self, text: Any) -> int:
        try:
            while (num_written := super().write(text)) is None:  # a terminal's other user made it non-blocking
                patience_s = 0.0 if self._stands_still else PATIENCE_S
                if not select.select([], [self.fileno()], [], patience_s)[1]:  # a terminal that was stopped (Ctrl-S)
                    self._stands_still = True
                    return len(text)
            self._stands_still = False
            return num_written
        except OSError as error:
            if error.errno in GONE:  # for what C libraries print, too
                _open_nothing(self.fileno(), os.O_WRONLY)
            return len(text)


def outlast_readers() -> None:
    """Replace standard output and error by such ones; where one is closed, nothing else may get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_nothing(descriptor, os.O_WRONLY if descriptor else os.O_RDONLY)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before: Any = getattr(sys, name)
        is_text = isinstance(before, io.TextIOWrapper)
        if is_text:
            with contextlib.suppress(OSError):
                before.flush()
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_Lasting(descriptor, "w", closefd=False)),
            encoding=before.encoding if is_text else "utf-8",
            errors=before.errors if is_text else "backslashreplace",
            line_buffering=before.line_buffering if is_text else True,
            write_through=is_text and before.write_through,
        )
        setattr(sys, name, lasting)


def say_at_once(text: str) -> None:
    """Print a line to standard error past Python's buffers, for who ends the process or is not its main thread."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))


def _open_nothing(descriptor: int, how: int) -> None:
    opened = os.open(os.devnull, how)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
