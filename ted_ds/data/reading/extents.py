"""The pieces of a data file that can be read independently of each other."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataFile:
    """A data file as it was when the run started."""

    url: str
    """Its path, or URL on a remote file system."""
    size: int
    """In bytes."""
    division: Literal["bytes", "file", "row_groups", "rows"] = "bytes"
    """Where reading can begin: at any byte, only at the file's start, at each Parquet row group, at any Arrow row."""
    num_pieces: int = 0
    """Of row groups or rows."""
    is_array: bool = False
    """Whether it is a JSON array, which is held whole while it is read."""
    line_end: bytes = b"\n"
    """What ends its lines; with or without a carriage return before it."""
    ends_sha256: str = ""
    """Of the bytes at its beginning and end; empty where they were not looked at."""
    class_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Columns whose ids the data declare names for, and these."""


@dataclass(frozen=True)
class Extent:
    """A piece of a data file."""

    file: DataFile
    start: int
    """First byte, row group or row."""
    end: int
    """And the one after its last."""

    @property
    def url(self) -> str:
        """The file's path or URL."""
        return self.file.url

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.file.size


class ExtentTable:
    """All extents of a source, by number; holds a number per file, not per extent."""

    def __init__(self, files: Sequence[DataFile], *, extent_bytes: int, extent_rows: int) -> None:
        """Divide the files that can be into ``extent_bytes``, ``extent_rows``, or single row groups."""
        self._files = files
        # of each file: where its last extent ends, and the length of its extents, in what it is divided by
        self._sizes = [file.size if file.division in ("bytes", "file") else file.num_pieces for file in files]
        lengths = {"bytes": extent_bytes, "row_groups": 1, "rows": extent_rows}
        self._lengths = [lengths.get(file.division, max(file.size, 1)) for file in files]
        counts = [-(-size // length) for size, length in zip(self._sizes, self._lengths, strict=True)]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Extent:
        """The extent of a number from 0, in the order of files and places in them."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        index = bisect.bisect_right(self._ends, number)
        within = number - (self._ends[index - 1] if index else 0)
        start = within * self._lengths[index]
        return Extent(self._files[index], start, min(start + self._lengths[index], self._sizes[index]))
