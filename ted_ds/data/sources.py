"""Where a source's files are and in what format. Imports neither torch nor datasets, so that ``check`` is instant."""

from __future__ import annotations

import functools
import glob
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.data import Source
from ted_ds.data.class_names import ClassNames, names_around_files, names_in_features, names_of_folder
from ted_ds.data.splits import splits_of_folder
from ted_ds.errors import DataError

FORMAT_OF_ENDING = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
SAVE_IT = "save it as CSV, JSON lines or Parquet"
UNPACK_IT = "unpack it"
OTHER_ENDINGS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".npy", ".npz", ".pt"), SAVE_IT),
    **dict.fromkeys((".h5", ".hdf5", ".db", ".sqlite", ".avro", ".orc", ".xml", ".yaml", ".yml", ".html"), SAVE_IT),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf"), "save its text as .txt, or as JSON lines"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), UNPACK_IT),
}
"""Of what is no data file here, and what to do with it."""
NOTES_OF_DATASETS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "config.json")
WEB = ("http://", "https://")
COMPRESSION_ENDINGS = (".gz", ".zst", ".bz2", ".xz")
HUB_NAME = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$")
FORMAT_OF_BUILDER = {"json": "json", "csv": "csv", "parquet": "parquet", "text": "text", "arrow": "arrow"}
"""Builders of the datasets library whose files are read here, and what they read."""


def is_remote(path: str) -> bool:
    """Whether a path is a URL of another file system than the local one."""
    return "://" in path and not path.startswith("file://")


def without_query(url: str) -> str:
    """A path, or a URL up to what ends its file's name: that of an archive it is in, or a query."""
    if "://" not in url:
        return url
    url = next(part for part in url.split("::") if "://" in part)
    return re.split(r"[?#]", url)[0] if url.startswith(WEB) else url


def uncompressed_name(url: str) -> str:
    """A file's name in small letters, without a query and the ending of its compression."""
    name = without_query(url).lower()
    return next((name.removesuffix(ending) for ending in COMPRESSION_ENDINGS if name.endswith(ending)), name)


def locate(source: Source) -> tuple[str, list[str]]:
    """The format of a source, and its files in a fixed order.

    A hub name and a URL are looked up over the network.

    Raises:
        DataError: Nothing is there, a folder holds no data files, or the format cannot be told.
    """
    if names_hub(source):
        return _hub_files(source)
    if is_remote(source.path):
        return _format(source, _remote_files(source))
    try:
        return _format(source, _local_files(source))
    except OSError as error:
        raise DataError(f"{source.path}: cannot be listed: {error.strerror or error}") from error


def _local_files(source: Source) -> list[str]:
    path = Path(source.path.removeprefix("file://"))
    if path.is_dir():
        files = [str(file) for file in path.rglob("*") if file.is_file()]
        return _of_folder(source, str(path), files, lambda file: _text_of(path / file))
    if path.is_file():
        files = [str(path)]
    else:
        files = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    if not files:
        raise DataError(f"{path}: no such data file or folder")
    return _without_splits(source, files)


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else None


def _without_splits(source: Source, files: list[str]) -> list[str]:
    """Files that the recipe names itself: of no configuration, and of the one split ``train``."""
    for key, value, usual in (("split", source.split, "train"), ("name", source.name, None)):
        if value != usual:
            raise DataError(
                f"{source.path}: {key}: {value!r} would have no effect, as these are files and no dataset's folder; "
                f"leave {key} out, or give the folder"
            )
    return files


def splits_here(source: Source) -> list[str]:
    """The splits of a local folder that have files; none of files that are named one by one.

    Raises:
        DataError: The folder holds no data files, or its card says what is not understood.
    """
    path = Path(source.path.removeprefix("file://"))
    if not path.is_dir():
        return []
    files = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    if "dataset_dict.json" in files:
        return sorted({name.partition("/")[0] for name in files if name.count("/") == 1 and _is_data(name)})
    if "state.json" in files:
        return []
    data = sorted(filter(_is_data, files))
    found = splits_of_folder(source.path, data, lambda name: _text_of(path / name), name=source.name)
    return [split for split, of_split in found.items() if of_split]


def _is_data(name: str) -> bool:
    """Whether a file of a folder holds data: no hidden one, none in ``__pycache__``, no note of ``datasets``."""
    return (
        _format_of(name) is not None
        and name.rpartition("/")[2] not in NOTES_OF_DATASETS
        and not any(part.startswith(".") for part in name.split("/"))
        and not any(part.startswith("__") for part in name.split("/")[:-1])
    )


def _of_folder(source: Source, folder: str, files: Sequence[str], read: Callable[[str], str | None]) -> list[str]:
    """The data files of the source's split, among all files of a folder."""
    inside = {file.removeprefix(folder).lstrip("/"): file for file in files}
    is_saved = "dataset_dict.json" in inside  # each split in a folder of its own
    within = f"{source.split}/" if is_saved else ""
    data = sorted(name for name in inside if name.startswith(within) and _is_data(name))
    if is_saved and not data:
        folders = sorted({name.partition("/")[0] for name in inside if name.endswith("/state.json")})
        raise DataError(_no_split(source, folders))
    if not data:
        raise DataError(f"{folder}: this folder holds no data files; known endings: {', '.join(FORMAT_OF_ENDING)}")
    if is_saved or "state.json" in inside:
        _check_saved(source, None if is_saved else read("state.json"))
    else:
        splits = splits_of_folder(source.path, data, read, name=source.name)
        if source.split not in splits:
            raise DataError(_no_split(source, list(splits)))
        data = splits[source.split]
        if not data:
            raise DataError(f"{source.path}: split {source.split!r}: none of its files is there; fetch them anew")
    return sorted(inside[name] for name in data)


def _check_saved(source: Source, state: str | None) -> None:
    """Make sure that what ``save_to_disk`` wrote is what the recipe names; ``state`` is that of a single split."""
    if source.name is not None:
        raise DataError(f"{source.path}: name: {source.name!r}: a saved dataset has no configurations; leave name out")
    if state is None:
        return
    try:
        own = json.loads(state).get("_split") or "train"
    except (ValueError, AttributeError) as error:
        raise DataError(f"{source.path}/state.json: damaged ({error}); save the dataset again") from error
    if source.split not in ("train", own):  # the recipe need not know what its one split is called
        raise DataError(_no_split(source, [own]))


def _no_split(source: Source, splits: Sequence[str]) -> str:
    part = "; a part of a split cannot be named" if re.search(r"[\[+]", source.split) else ""
    return f"{source.path}: no split {source.split!r}; it has {', '.join(splits) or 'none'}{part}"


def names_hub(source: Source) -> bool:
    """Whether a source is a Hugging Face dataset: it says so, or nothing local has its name.

    (A local folder with ``format: hub`` is read as a dataset repository is: by its splits.)
    """
    if source.format == "hub":
        return True
    return (
        source.format == "auto"
        and HUB_NAME.match(source.path) is not None
        and _format_of(source.path) is None
        and not Path(source.path).exists()
        and not glob.glob(source.path, recursive=True)
    )


def _remote_files(source: Source) -> list[str]:
    import fsspec

    url = source.path
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if url.startswith(WEB) and not glob.has_magic(without_query(url)) and not path.endswith("/"):
            filesystem.info(path)  # to ask whether it is a folder, or just exists, would fetch it
            found = _without_splits(source, [path])
        elif filesystem.isdir(path):
            inside = filesystem.find(path)
            found = _of_folder(
                source,
                path,
                inside,
                lambda name: _remote_text(filesystem, f"{path.rstrip('/')}/{name}", inside),
            )
        elif glob.has_magic(path):
            matches = filesystem.glob(path, detail=True).items()
            found = [file for file, facts in matches if facts["type"] == "file" and "/." not in file]
            found = _without_splits(source, found)
        else:
            found = _without_splits(source, [path]) if filesystem.exists(path) else []
        files = sorted(filesystem.unstrip_protocol(name) for name in found)
    except DataError:
        raise
    except FileNotFoundError:
        files = []
    except Exception as error:  # file systems raise their own types; ImportError says what to install
        raise DataError(f"{url}: cannot be listed: {error}") from error
    if not files:
        raise DataError(f"{url}: no such data file or folder")
    return files


def _remote_text(filesystem: Any, file: str, files: Sequence[str]) -> str | None:
    return filesystem.cat_file(file).decode("utf-8-sig", errors="replace") if file in files else None


def declared_names(source: Source, files: Sequence[str]) -> list[ClassNames]:
    """For each of a source's files, the names that its dataset declares for the ids in its columns.

    The files may declare more. What a folder does not declare, the one it is in may: datasets keep their data in
    folders ``data``, or one for each split.

    Raises:
        DataError: A dataset on the hub cannot be looked up, or notes such as a README.md not be understood.
    """
    if names_hub(source):
        features = _hub_builder(source.path, source.name).info.features
        return [names_in_features(None if features is None else features.to_dict())] * len(files)
    if is_remote(source.path):
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(source.path)
        if source.path.startswith(WEB):
            return [{}] * len(files)
        if filesystem.isdir(path):
            inside, root = filesystem.find(path), path.rstrip("/")
            found = _names_of_folder(source, lambda name: _remote_text(filesystem, f"{root}/{name}", inside))
            return [found] * len(files)

        def read_remote(folder: str, name: str) -> str | None:
            file = f"{folder}/{name}"
            return _remote_text(filesystem, file, [file] if filesystem.isfile(file) else [])

        return _names_around([filesystem._strip_protocol(file) for file in files], read_remote)
    path_here = Path(source.path.removeprefix("file://"))
    if path_here.is_dir():
        found = _names_of_folder(source, lambda name: _text_of(path_here / name))
        if not found and source.name is None:
            above = path_here.parent
            found = names_around_files(str(above), lambda name: _text_of(above / name))
        return [found] * len(files)
    return _names_around(files, lambda folder, name: _text_of(Path(folder) / name))


def _names_around(files: Sequence[str], read: Callable[[str, str], str | None]) -> list[ClassNames]:
    known: dict[str, ClassNames] = {}

    def around(folder: str) -> ClassNames:
        if folder not in known:
            known[folder] = names_around_files(folder, functools.partial(read, folder))
        return known[folder]

    folders = [_parent(file) for file in files]
    return [around(folder) or around(_parent(folder)) for folder in folders]


def _parent(path: str) -> str:
    return posixpath.dirname(path) or "."


def _names_of_folder(source: Source, read: Callable[[str], str | None]) -> ClassNames:
    if read("dataset_dict.json") is not None:
        return names_of_folder(source.path, lambda name: read(f"{source.split}/{name}"), name=None)
    return names_of_folder(source.path, read, name=source.name)


@functools.lru_cache(maxsize=16)
def _hub_builder(path: str, name: str | None) -> Any:
    from datasets import load_dataset_builder
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    try:
        return load_dataset_builder(path, name)
    except Exception as error:  # the hub client and datasets raise their own types
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error


def _hub_files(source: Source) -> tuple[str, list[str]]:
    builder = _hub_builder(source.path, source.name)
    kind = FORMAT_OF_BUILDER.get(type(builder).__module__.rpartition(".")[2])
    if kind is None:
        raise DataError(
            f"{source.path}: this dataset is made of files ted_ds cannot read (datasets' builder "
            f"{type(builder).__name__}); use one of {', '.join(FORMAT_OF_BUILDER)}"
        )
    splits: Any = builder.config.data_files or {}
    if source.split not in splits:
        raise DataError(_no_split(source, [*map(str, splits)]))
    return kind, [str(file) for file in splits[source.split]]


def _format(source: Source, files: Sequence[str]) -> tuple[str, list[str]]:
    formats = {_format_of(file) for file in files}
    if source.format != "auto":
        return source.format, [*files]
    other = sorted({Path(uncompressed_name(file)).suffix for file in files} & OTHER_ENDINGS.keys())
    if other:
        raise DataError(
            f"{source.path}: {', '.join(other)} files cannot be read here; {OTHER_ENDINGS[other[0]]}, and give what "
            "comes of it as path"
        )
    if None in formats or len(formats) > 1:
        raise DataError(
            f"{source.path}: cannot tell one format from the endings of its files; set format: json, csv, parquet, "
            "text or arrow"
        )
    return str(formats.pop()), [*files]


def _format_of(file: str) -> str | None:
    return FORMAT_OF_ENDING.get(Path(uncompressed_name(file)).suffix)
