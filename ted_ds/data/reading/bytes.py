"""Bytes out of files on any file system fsspec knows, from a position on, decompressed where need be."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fsspec
import zstandard

CHUNK_BYTES = 2**18
COMPRESSED_CHUNK_BYTES = 2**16  # expands many times over
LONGEST_ZSTD_WINDOW = 2**31


class Chunk(NamedTuple):
    """Consecutive bytes of a file."""

    block: int
    """The byte at which their member or frame starts in a compressed file; else 0."""
    offset: int
    """How many bytes lie between there and them."""
    data: bytes


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL or local path, and the path on it."""
    return fsspec.core.url_to_fs(url)


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end`` (not included), or to the end of the file; nothing more is fetched."""
    filesystem, path = open_filesystem(url)
    return filesystem.cat_file(path, start=start, end=end) if end > start else b""


def plain_chunks(url: str, start: int, size: int, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A file's bytes from ``start`` to its ``size``."""
    for begin in range(start, size, chunk_bytes):
        data = read_range(url, begin, min(begin + chunk_bytes, size))
        if not data:
            raise EOFError(f"the file ends at byte {begin}; it had {size} bytes when the run started")
        yield Chunk(0, begin, data)


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


def compression_of(url: str) -> str | None:
    """The compression ending of a file's name; None where it has none."""
    return next((ending for ending in DECOMPRESSORS if url.endswith(ending)), None)


def decompressed_chunks(url: str, compression: str, *, block: int, skip: int) -> Iterator[Chunk]:
    """A compressed file's bytes from ``skip`` bytes into the member or frame that starts at byte ``block``.

    Raises:
        EOFError: The file is truncated.
    """
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb", block_size=CHUNK_BYTES) as file:
        file.seek(block)
        data = file.read(COMPRESSED_CHUNK_BYTES)
        while data:
            decompressor, offset, read = DECOMPRESSORS[compression](), 0, len(data)
            while not decompressor.eof:
                if not data:
                    raise EOFError(f"truncated: the {compression} data starting at byte {block} has no end")
                out = decompressor.decompress(data)
                if offset + len(out) > skip:
                    yield Chunk(block, max(offset, skip), out[max(skip - offset, 0) :])
                offset += len(out)
                data = b"" if decompressor.eof else file.read(COMPRESSED_CHUNK_BYTES)
                read += len(data)
            rest = decompressor.unused_data
            block += read - len(rest)
            skip = max(skip - offset, 0)
            data = rest or file.read(COMPRESSED_CHUNK_BYTES)
