"""The recipe's section on checkpoints, and on the place beside the local disk where they are kept, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from ted_ds.config.redaction import without_secrets
from ted_ds.config.section import Section, rule
from ted_ds.errors import ConfigError

PACKAGE_OF_SCHEME: Mapping[str, str | None] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "file": None,
}
"""What fsspec needs for the URLs that checkpoints can be put at."""
EXTRA_OF_PACKAGE = {"s3fs": "s3"}
"""Extras of ted_ds that install one."""


def refuse_bad_place(url: str) -> str:
    """A URL under which objects can be written.

    Raises:
        ValueError: It is none.
    """
    known = ", ".join(f"{scheme}://" for scheme in PACKAGE_OF_SCHEME)
    shown = without_secrets(url)
    parts = urlsplit(url)
    if parts.scheme not in PACKAGE_OF_SCHEME or "://" not in url:
        raise ValueError(f"{shown!r}: checkpoints are put at one of {known}; give such a URL, as s3://bucket/folder")
    if "@" in parts.netloc and parts.scheme != "abfs":
        raise ValueError(
            f"{shown!r}: a user or a password has no place in it; give them as the package that reaches the store "
            "takes them (docs/checkpoints.md)"
        )
    if "::" in url or parts.query or parts.fragment:
        raise ValueError(f"{shown!r}: has '::', '?' or '#', which a folder of objects has not; leave it out")
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise ValueError(f"{shown!r}: names no folder of this machine; use file:///path/to/folder")
    if parts.scheme != "file" and not parts.netloc:
        raise ValueError(f"{shown!r}: names no bucket; use {parts.scheme}://bucket/folder")
    if not parts.path.strip("/"):
        raise ValueError(f"{shown!r}: is a whole bucket; name a folder in it, for this run alone")
    return url.rstrip("/")


class Upload(Section):
    """A second place for what a run leaves to go on from: each run has one of its own."""

    to: Annotated[str, AfterValidator(refuse_bad_place)]
    """A URL (``s3://bucket/folder``, ``gs://``, ``az://``, or ``file:///folder``): checkpoints and complete phases are
    copied there beside training, and a run whose folder has lost them goes on from there."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """How long one upload is tried before it is given up with a warning, and how long the end of a phase and of the
    run waits for the last one; likewise of fetching."""


class Checkpoint(Section):
    """When the state of a phase is saved, so that a run that was stopped goes on, and what is kept."""

    every_steps: int | None = Field(default=None, gt=0)
    """After every so many optimizer steps."""
    every_minutes: float | None = Field(default=30.0, gt=0)
    """And when so much time has passed since the last one; null: not by time."""
    keep_last: int = Field(default=2, gt=0)
    """How many of the newest to keep while the phase runs; a finished phase needs none."""
    keep_every_steps: int | None = Field(default=None, gt=0)
    """Also keep those whose step is a multiple of this, for good."""
    keep_best: bool = True
    """Also keep that with the best held-out score, for good; needs ``evaluation.every_steps``."""
    asynchronous: bool = True
    """Write while training goes on; it needs host memory for a copy of this rank's part."""
    upload: Upload | None = None
    """Where checkpoints are kept, too, by the same rules: an object store, which outlives the machine."""

    @rule
    def _archived_ones_are_saved(self) -> Iterator[str]:
        if self.keep_every_steps is not None and (self.every_steps is None or self.keep_every_steps % self.every_steps):
            yield (
                f"keep_every_steps ({self.keep_every_steps}) must be a multiple of every_steps ({self.every_steps}): "
                "only what is saved can be kept"
            )


def refuse_missing_package(upload: Upload | None) -> None:
    """Make sure that what reaches the store is installed.

    Raises:
        ConfigError: It is not.
    """
    if upload is None:
        return
    import fsspec

    scheme = urlsplit(upload.to).scheme
    package = PACKAGE_OF_SCHEME[scheme]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        wanted = f"'ted_ds[{EXTRA_OF_PACKAGE[package]}]'" if package in EXTRA_OF_PACKAGE else package
        raise ConfigError(
            f"checkpoint.upload.to: {without_secrets(upload.to)}: {scheme}:// needs the package {package}, which "
            f"cannot be imported here ({error}): pip install {wanted}; or remove checkpoint.upload"
        ) from error
