"""The recipe's section on where numbers go, and what its words need installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ted_ds.config.section import Section, rule
from ted_ds.config.wandb import refuse_bad_project
from ted_ds.errors import raise_all

BackendName = Literal["wandb", "tensorboard", "trackio"]
EXTRAS: Mapping[str, str] = {"tensorboard": "tensorboard", "trackio": "trackio"}
"""The package that a backend needs beside those of ted_ds itself, which is also the extra that installs it."""


class Tracking(Section):
    """Where numbers go. A JSONL of them is always written."""

    to: list[BackendName] | None = None
    """Where else; null: to W&B, as ``wandb`` says. An empty list: nowhere else."""
    project: Annotated[str, AfterValidator(refuse_bad_project)] = "ted_ds"
    """Of W&B and Trackio."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: as ``$WANDB_DISABLED`` and ``$WANDB_MODE`` say, else online with an account and offline without one."""
    log_every_steps: int = Field(default=10, gt=0)
    """How often numbers are taken together, and go wherever ``to`` says."""
    log_every_seconds: float = Field(default=10.0, ge=0)
    """Where the output is no terminal, a report is a line of it at most so often, but for the first and the last of a
    phase; everything else a report goes to has them all."""
    compare_with_teacher: bool = True
    """In the step of each report, and in the first: how far each matched layer is from the teacher's (relative error,
    CKA), and what the teacher's own task loss is on the same labels. That step takes a few percent longer; with reports
    of every step, leave it out."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What a rank's device computes at best in this precision, in 10^12 operations a second, by its data sheet; what
    share of it is reached is then reported, too (MFU)."""

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """Where numbers go beside the JSONL."""
        return ("wandb",) if self.to is None else tuple(self.to)

    @rule
    def _backends_agree(self) -> Iterator[str]:
        twice = sorted({name for name in self.backends if self.backends.count(name) > 1})
        if twice:
            yield f"to has {' and '.join(twice)} more than once; name each once"
        given = f"[{', '.join(self.backends)}]"
        if "wandb" not in self.backends and self.wandb in ("online", "offline"):
            yield f"wandb is {self.wandb}, but to is {given}; add wandb to it, or leave wandb: {self.wandb} out"
        if self.to is not None and "wandb" in self.to and self.wandb == "disabled":
            yield f"to is {given}, but wandb is disabled; take it off the list, or leave wandb: disabled out"


def refuse_missing_packages(tracking: Tracking) -> None:
    """Make sure that what the backends need is installed.

    Raises:
        ConfigError: Some of it is not; lists all.
    """
    missing = [name for name in tracking.backends if name in EXTRAS and not _is_installed(EXTRAS[name])]
    raise_all(
        [
            f"tracking.to: {name} needs the package {EXTRAS[name]}, which is not installed here: pip install "
            f"'ted_ds[{EXTRAS[name]}]'; or take {name} off the list"
            for name in missing
        ]
    )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
