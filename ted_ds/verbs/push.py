"""The verb ``push``: an exported model goes to the Hugging Face Hub, after asking."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ted_ds.errors import ConfigError, DataError, counted
from ted_ds.models.companions import CARD
from ted_ds.models.licence import licence_of
from ted_ds.output.phase_folder import MANIFEST
from ted_ds.output.screen import Screen
from ted_ds.verbs.exported import export_in

LEFT_HERE = (MANIFEST,)
"""Files of an export that are of its run and of this machine."""


def push(folder: Path, name: str, *, public: bool, is_sure: bool, dry_run: bool) -> None:
    """Upload the export in ``folder``, of a run or by itself, as the model ``name``.

    Args:
        folder: A run's, or an exported model's.
        name: ``ORG/NAME``.
        public: Whether everybody may see it, where there is no such model yet; one that is there stays as it is.
        is_sure: Whether it is not asked for.
        dry_run: Whether only what would be uploaded is said.

    Raises:
        ConfigError: The name is none, nobody can be asked, or the Hub refuses.
        DataError: There is no export.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if "/" not in name:
            raise HFValidationError("it has no /")
    except HFValidationError as error:
        raise ConfigError(f"--to {name}: no name of a model on the Hub ({error}); use ORG/NAME") from error
    place = export_in(folder)
    if not (place / CARD).is_file():
        raise DataError(f"{place}: the model has no card ({CARD}); give an export, which has one, or write one")
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and file.name not in LEFT_HERE]
    screen = Screen(shown=True)
    sizes = [(str(file.relative_to(place)), _size(file.stat().st_size)) for file in files]
    total = _size(sum(file.stat().st_size for file in files))
    screen.table(f"{place} -> {name}", ("file", "size"), [*sizes, ("together", total)])
    doubt = licence_of(place).doubt("what it was made from")
    if doubt is not None:
        screen.say(f"WARN {doubt}")
    if dry_run:
        screen.say("a dry run: nothing is uploaded")
        return
    seen_by = "public, if it is new" if public else "private, if it is new"
    if not is_sure and not _agrees(f"upload {counted(len(files), 'file')} as {name} ({seen_by})?"):
        screen.say("nothing is uploaded")
        return
    screen.say(f"uploaded    {_upload(place, name, files, public=public)}")


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("the standard input is no terminal, so that nobody can be asked; give --yes to upload")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _upload(place: Path, name: str, files: Sequence[Path], *, public: bool) -> str:
    """One commit with all files; returns the model's address.

    Raises:
        ConfigError: The Hub refuses, or is not reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=place,
            allow_patterns=[str(file.relative_to(place)) for file in files],
            commit_message="Distilled with ted_ds",
        )
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"--to {name}: $HF_HUB_OFFLINE keeps this offline; unset it to upload") from error
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"--to {name}: nobody is logged in to the Hub; log in with: hf auth login") from error
    except (HfHubHTTPError, httpx.HTTPError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"--to {name}: the Hub refuses, or is not reached: {said}; what is there stays") from error
    return str(address)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"
