"""Bytes out of files on any file system fsspec knows, from a position on, decompressed where need be."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fsspec
import zstandard

from ted_ds.data.sources import without_query

CHUNK_BYTES = 2**18
COMPRESSED_CHUNK_BYTES = 2**16
SLICE_BYTES = {".gz": 2**12, ".bz2": 2**12, ".xz": 2**12, ".zst": 2**8}
"""Decompressed at a time: of these, gzip makes 4 MiB at the most, and zstd 8."""
DECOMPRESSED_CHUNK_BYTES = 2**20
"""What bzip2 and xz, which can be told, make at a time."""
LONGEST_ZSTD_WINDOW = 2**31


class DamagedData(Exception):
    """Compressed data that is none, or has no end."""


class Chunk(NamedTuple):
    """Consecutive bytes of a file."""

    block: int
    """The byte at which their member or frame starts in a compressed file; else 0."""
    offset: int
    """How many bytes lie between there and them."""
    data: bytes


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL or local path, and the path on it."""
    if "://" not in url:
        return fsspec.filesystem("file"), url  # in a URL, "::" would join several
    return fsspec.core.url_to_fs(url)


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end`` (not included), fewer where the file ends before; nothing more is fetched.

    Raises:
        OSError: The server sends what it was not asked for.
    """
    if end <= start:
        return b""
    filesystem, path = open_filesystem(url)
    data = filesystem.cat_file(path, start=start, end=end)
    if len(data) > end - start:
        raise OSError(f"{len(data)} bytes came instead of bytes {start} to {end}; the server must support ranges")
    return data


def plain_chunks(url: str, start: int, end: int, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A file's bytes from ``start`` to ``end``.

    Raises:
        EOFError: The file ends before; what there is of it has been given.
    """
    for begin in range(start, end, chunk_bytes):
        wanted = min(chunk_bytes, end - begin)
        data = read_range(url, begin, begin + wanted)
        if data:
            yield Chunk(0, begin, data)
        if len(data) < wanted:
            raise EOFError(f"the file ends at byte {begin + len(data)}; it was longer when the run started")


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=LONGEST_ZSTD_WINDOW).decompressobj()


# Each makes decompressors of one member or frame that know where it ended.
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": _gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": _zstd,
}
PADDED = (".gz", ".xz")
"""Zeros may follow a member."""


def compression_of(url: str) -> str | None:
    """The compression ending of a file's name; None where it has none."""
    name = without_query(url).lower()
    return next((ending for ending in DECOMPRESSORS if name.endswith(ending)), None)


class _Compressed:
    """What is left of a compressed file, some bytes at a time."""

    def __init__(self, file: Any, at: int, slice_bytes: int) -> None:
        file.seek(at)
        self._file, self._slice_bytes, self._data, self._place = file, slice_bytes, b"", 0
        self.at = at

    def take(self) -> bytes:
        """The next bytes; none at the end."""
        if self._place == len(self._data):
            self._data, self._place = self._file.read(COMPRESSED_CHUNK_BYTES), 0
        taken = self._data[self._place : self._place + self._slice_bytes]
        self._place += len(taken)
        self.at += len(taken)
        return taken

    def give_back(self, count: int) -> None:
        """Have the last ``count`` bytes of those just taken come again."""
        self._place -= count
        self.at -= count


def decompressed_chunks(url: str, compression: str, size: int, *, block: int, skip: int) -> Iterator[Chunk]:
    """A compressed file's bytes from ``skip`` bytes into the member or frame that starts at byte ``block``.

    Raises:
        DamagedData: It cannot be decompressed from here on.
        EOFError: The file has become shorter than ``size`` bytes.
    """
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb", block_size=CHUNK_BYTES) as file:
        source = _Compressed(file, block, SLICE_BYTES[compression])
        while taken := source.take():
            if compression in PADDED and source.at > len(taken):
                source.give_back(len(taken.lstrip(b"\0")))
                if not (taken := taken.lstrip(b"\0") and source.take()):
                    continue
            block, offset = source.at - len(taken), 0
            decompressor = DECOMPRESSORS[compression]()
            while not decompressor.eof:
                if not taken:
                    raise DamagedData(f"truncated: the {compression} data starting at byte {block} has no end")
                for data in _decompressed(decompressor, taken):
                    if offset + len(data) > skip:
                        yield Chunk(block, max(offset, skip), data[max(skip - offset, 0) :])
                    offset += len(data)
                taken = b"" if decompressor.eof else source.take()
            source.give_back(len(decompressor.unused_data))
            skip = max(skip - offset, 0)
        if source.at < size:
            raise EOFError(f"the file ends at byte {source.at}; it was longer when the run started")


def _decompressed(decompressor: Any, data: bytes) -> Iterator[bytes]:
    try:
        if not hasattr(decompressor, "needs_input"):
            yield decompressor.decompress(data)
            return
        yield decompressor.decompress(data, DECOMPRESSED_CHUNK_BYTES)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", DECOMPRESSED_CHUNK_BYTES)
    except (OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:  # OSError: bz2
        raise DamagedData(str(error)) from error
