"""What a data file is, told from its size and ends when a run starts: how it divides, and what it says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ted_ds.config.redaction import without_secrets
from ted_ds.data.class_names import ClassNames, names_in_schema, say_nothing
from ted_ds.data.reading.bytes import (
    DamagedData,
    compression_of,
    decompressed_chunks,
    open_filesystem,
    read_range,
)
from ted_ds.data.reading.extents import DataFile
from ted_ds.data.reading.tables import arrow_file, arrow_schema, parquet_metadata
from ted_ds.data.sources import WEB, is_remote, uncompressed_name
from ted_ds.errors import DataError
from ted_ds.models.lfs import WHAT_TO_DO, is_lfs_pointer

END_BYTES = 2**14
"""Of each end of a file, to know it again wherever it is."""
MOST_ENDS = 256
"""Files of a source whose ends are read: of more, as many that lie evenly among them."""
LARGEST_POINTER_BYTES = 2**10
"""Of Git LFS; they are smaller by its specification."""
FORMATS_OF_LINES = ("json", "csv", "text")
MARKS_OF_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def with_ends(num_files: int) -> Sequence[int]:
    """Which files of a source have their ends read."""
    if num_files <= MOST_ENDS:
        return range(num_files)
    return [number * (num_files - 1) // (MOST_ENDS - 1) for number in range(MOST_ENDS)]


def described(
    url: str,
    kind: str,
    documents: str,
    declared: ClassNames,
    *,
    is_array: bool = False,
    has_ends: bool = True,
    whole: bool = True,
) -> DataFile:
    """A file as it is now.

    Args:
        url: Its path or URL.
        kind: Its format.
        documents: Of text, what a document is.
        declared: The names that the dataset it is of declares for the ids in its columns.
        is_array: Whether it is known to hold a JSON array, whatever it begins with.
        has_ends: Whether to hash its ends.
        whole: Whether all of it will be read, and not only its first rows.

    Raises:
        DataError: It cannot be read, or not as what it is said to be.
    """
    try:
        return _describe(url, kind, documents, declared, is_array=is_array, has_ends=has_ends, whole=whole)
    except Exception as error:  # file systems, Parquet and Arrow raise their own types
        where = without_secrets(url)
        raise DataError(f"{where}: cannot be read: {' '.join(str(error).split())[:400]}") from error


def _describe(
    url: str, kind: str, documents: str, declared: ClassNames, *, is_array: bool, has_ends: bool, whole: bool
) -> DataFile:
    filesystem, path = open_filesystem(url)
    size = filesystem.size(path)
    if size is None:
        raise DataError("its server does not tell its size")
    has_ends = has_ends and not url.startswith(WEB)  # some servers would send all of a file in the place of its ends
    if size == 0:
        return DataFile(url, 0)
    if size <= LARGEST_POINTER_BYTES and is_lfs_pointer(read_range(url, 0, size)):
        raise DataError(f"it is {WHAT_TO_DO}")
    is_of_lines = kind in FORMATS_OF_LINES
    head = read_range(url, 0, min(size, END_BYTES)) if has_ends or (is_of_lines and not is_remote(url)) else b""
    ends = hash_of_ends(url, size, head) if has_ends and whole else ""
    if kind == "parquet":
        metadata = parquet_metadata(url)
        names = _agreed(declared, names_in_schema(metadata.metadata))
        return DataFile(url, size, "row_groups", metadata.num_row_groups, ends_sha256=ends, class_names=names)
    if kind == "arrow":
        names = _agreed(declared, names_in_schema(arrow_schema(url).metadata))
        if is_remote(url) or not whole:
            return DataFile(url, size, "file", ends_sha256=ends, class_names=names)
        return DataFile(url, size, "rows", len(arrow_file(url)), ends_sha256=ends, class_names=names)
    compression = compression_of(url)
    may_be_array = kind == "json" and uncompressed_name(url).endswith(".json")
    if compression is not None:
        head = _decompressed(url, compression, size) if head or may_be_array else b""
    elif may_be_array and not head:
        head = read_range(url, 0, min(size, 64))
    if head.startswith(MARKS_OF_OTHER_ENCODINGS):
        raise DataError("it is text in UTF-16 or UTF-32; save it as UTF-8, such as with iconv -f UTF-16 -t UTF-8")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if may_be_array and not is_array and text.startswith((b"{\n", b"{\r")):
        raise DataError(
            "it is one JSON object over several lines; if its rows are a list in it, name the key of that list, such "
            "as field: data"
        )
    is_array = is_array or (may_be_array and text.startswith(b"["))
    from_start = compression is not None or kind == "csv" or (kind == "text" and documents == "file")
    return DataFile(
        url,
        size,
        "file" if from_start or is_array else "bytes",
        is_array=is_array,
        line_end=b"\r" if b"\r" in head and b"\n" not in head else b"\n",
        ends_sha256=ends,
        class_names=tuple(declared.items()),
    )


def hash_of_ends(url: str, size: int, head: bytes | None = None) -> str:
    """A hash of the first and last ``END_BYTES`` of a file, the first of which may be known."""
    head = read_range(url, 0, min(size, END_BYTES)) if head is None else head
    digest = hashlib.sha256(head)
    digest.update(read_range(url, max(size - END_BYTES, len(head)), size))
    return digest.hexdigest()[:16]


def _decompressed(url: str, compression: str, size: int) -> bytes:
    try:
        first = next(decompressed_chunks(url, compression, size, block=0, skip=0), None)
    except DamagedData:
        return b""  # a fault once it is read
    return first.data if first else b""


def _agreed(of_dataset: ClassNames, of_file: ClassNames) -> tuple[tuple[str, tuple[str, ...]], ...]:
    for column in of_dataset.keys() & of_file.keys():
        own, others = of_file[column], of_dataset[column]
        if own != others and not (say_nothing(own) or say_nothing(others)):
            raise DataError(
                f"column {column!r}: its own label names are {list(own)}, those of its dataset {list(others)}; write "
                "it anew, or mend what its folder's README.md or dataset_infos.json declare"
            )
    telling = {column: names for column, names in of_file.items() if not say_nothing(names)}
    return tuple({**of_file, **of_dataset, **telling}.items())
