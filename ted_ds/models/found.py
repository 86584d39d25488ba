"""The family of a ``config.json``: the one that has a record, or what is found of it by its structure. Without torch.

Finding needs torch and transformers, so it is done in a process of its own (``python -m ted_ds.models.structure``).
What it says is kept in the user's cache under everything it hangs on: the config, the versions of the libraries, and
the code that looks. The first process on a host looks; others wait for it and read.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess  # nosec - it starts this very package
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.families import FAMILY_OF, KNOWN_TYPES
from ted_ds.models.family import Family
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.model_file import read_json

FINDER = "ted_ds.models.structure"
"""The module that is started."""
TIME_LIMIT_S = 900.0
"""For looking at one config: it takes seconds on an idle core."""
PACKAGES = ("torch", "transformers", "safetensors")
"""Whose versions may change what is found."""
OF_A_TASK = (
    *("id2label", "label2id", "num_labels", "problem_type", "architectures", "finetuning_task", "task_specific_params"),
    *("torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path", "use_cache", "auto_map"),
    *("quantization_config", "compression_config"),
)
"""Entries of a config that say nothing of a family."""
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def family_of_config(config: Mapping[str, Any], file: Path) -> Family:
    """The family of what a ``config.json``, ``file``, holds.

    Raises:
        CheckpointError: It has no record, and none was found.
    """
    if config["model_type"] in FAMILY_OF:
        return FAMILY_OF[config["model_type"]].as_configured(config)
    try:
        return _found(_canonical({key: value for key, value in config.items() if key not in OF_A_TASK}))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def family_of_folder(folder: Path) -> Family:
    """The family of the model in a folder.

    Raises:
        CheckpointError: As :func:`family_of_config`.
    """
    return family_of_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


@functools.cache
def _found(config: str) -> Family:
    """What is found of a config, once for each process."""
    key = hashlib.sha256(f"{config}\n{_made_by()}".encode()).hexdigest()
    folder = cache_folder()
    answer = _read(folder / f"{key}.json")
    if answer is None:
        with _alone(folder / f"{key}.lock"):
            answer = _read(folder / f"{key}.json")
            if answer is None:
                answer = _look(config)
                _write(folder / f"{key}.json", answer)
    if "refused" in answer:
        raise CheckpointError(answer["refused"])
    return family_from_json(answer["family"])


def cache_folder() -> Path:
    """Where what was found is kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "ted_ds" / "families"


def family_as_json(family: Family) -> dict[str, Any]:
    """A record as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(family)))
    return found


def family_from_json(content: Mapping[str, Any]) -> Family:
    """The record again.

    Raises:
        ValueError: It is none.
    """
    names = {one.name for one in fields(Family)}
    if {*content} != names:
        raise ValueError(f"no record of a family: {sorted({*content} ^ names)}")
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in content.items()}
    return Family(**values)


def refusal(model_type: str, why: str) -> str:
    """What to say of a type whose family could not be found."""
    known = ", ".join(KNOWN_TYPES)
    return (
        f"model type {model_type!r} has no record here, and no family that can be used was found by its structure: "
        f"{why}. Use a model of another type (ted_ds knows {known}, and finds others)"
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


@functools.cache
def _made_by() -> str:
    """The code that looks, and what it looks with."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.parent.glob("*/**/*.py")):
        if file.parts[-2] in ("models", "structure", "numerics"):
            digest.update(file.read_bytes())
    versions = [f"{name} {_version_of(name)}" for name in PACKAGES]
    return f"{digest.hexdigest()} {versions}"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _look(config: str) -> dict[str, Any]:
    """Start the finder.

    Raises:
        CheckpointError: It does not come to an end, or says nothing.
    """
    model_type = json.loads(config)["model_type"]
    # it is no rank, and needs no GPU
    environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", FINDER]
    try:
        done = subprocess.run(  # noqa: S603 - its own module
            command, input=config, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        why = f"looking for it took longer than {TIME_LIMIT_S:g} s; start again, with less to do on this machine"
        raise CheckpointError(refusal(model_type, why)) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "family" in answer:
            family_from_json(answer["family"])
            return {"family": answer["family"]}
        return {"refused": refusal(model_type, str(answer["refused"]))}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        last = " ".join(done.stderr.split())[-300:]
        why = f"the process that looks ({FINDER}) ended with code {done.returncode}: {last}"
        raise CheckpointError(refusal(model_type, why)) from error


def _read(file: Path) -> dict[str, Any] | None:
    """What a file of the cache says; None where it is none, or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        answer = content["answer"]
        if content["sha256"] != hashlib.sha256(_canonical(answer).encode()).hexdigest():
            return None
        if "family" in answer:
            family_from_json(answer["family"])
        elif not isinstance(answer["refused"], str):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer


def _write(file: Path, answer: Mapping[str, Any]) -> None:
    """Keep an answer, whole or not at all; where the folder cannot be written, it is found again next time."""
    digest = hashlib.sha256(_canonical(answer).encode()).hexdigest()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".new")
        with os.fdopen(handle, "w", encoding="utf-8") as written:
            json.dump({"answer": answer, "sha256": digest}, written, indent=1)
        Path(name).replace(file)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """While others of this host wait; without it where the folder cannot be written, or knows no locks."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(file.open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
