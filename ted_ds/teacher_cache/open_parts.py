"""The few files of a cache that are open at a time, however many it has."""

from __future__ import annotations

import os
import resource
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

MOST_OPEN = 128
"""Where ranks fill a cache, each step has records in a file of each of them."""
FEWEST_OPEN = 4
SHARE_OF_LIMIT = 8
"""One descriptor in so many of those that the system grants the process."""


def most_open() -> int:
    """How many files of a cache this process may have open."""
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if granted == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(FEWEST_OPEN, min(MOST_OPEN, granted // SHARE_OF_LIMIT))


class OpenParts:
    """Reads files that it opens when they are read, and closes when others have been read since.

    They are read and not mapped: of a file that a disk or a server fails to give, a map would end the process.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._most = files, most_open()
        self._open: OrderedDict[int, int] = OrderedDict()  # descriptors, those first that were not read for longest
        weakref.finalize(self, _close_all, self._open)

    def read(self, number: int, start: int, size: int) -> bytes:
        """So many bytes of a file from one on; fewer where it ends before.

        Raises:
            OSError: It cannot be read; with its path.
        """
        found = bytearray()
        try:
            descriptor = self._descriptor(number)
            while len(found) < size and (more := os.pread(descriptor, size - len(found), start + len(found))):
                found += more
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._files[number])) from error
        return bytes(found)

    def expect(self, number: int, start: int, size: int) -> None:
        """Let the system fetch so many bytes meanwhile, as far as it does.

        Raises:
            OSError: The file cannot be opened; with its path.
        """
        try:
            os.posix_fadvise(self._descriptor(number), start, size, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._files[number])) from error

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            while len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            self._open[number] = os.open(self._files[number], os.O_RDONLY)
        self._open.move_to_end(number)
        return self._open[number]


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
