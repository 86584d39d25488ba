"""Predictions of a teacher that another tool kept in the rows of ``data.train``: no teacher runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ted_ds.config.distill import Distill
from ted_ds.config.section import Section, rule
from ted_ds.config.tasks import Task

OF_THE_NEXT = ("distillkit",)
"""Formats whose predictions are always of the token behind."""
WITHOUT_REST = ("axolotl",)
"""Formats that say nothing of the ids that were not kept."""


class KeptRows(Section):
    """How they stand there; the teacher's model never runs, and of its folder config and tokenizer alone count."""

    format: Literal["distillkit", "axolotl"]
    """``distillkit``: columns ``compressed_logprobs`` and ``bytepacked_indices``; ``axolotl``: ``target_token_ids``,
    ``target_logprobs`` and maybe ``target_mask``."""
    compression: Path | None = None
    """``distillkit``: the file that says how they are packed; unset: ``compression_config.yaml`` in the folder of the
    data files, or in the one above."""
    temperature: float = Field(default=1.0, gt=0)
    """At which the probabilities were kept."""
    rest: Literal["outcome", "unknown"] | None = None
    """Of the ids that were not kept: ``outcome``: together they have what is left of 1, and are compared as one outcome
    more; ``unknown``: both models' predictions are compared among the kept ids alone, each made to add up to 1 there.
    Unset: ``outcome`` of distillkit, ``unknown`` of axolotl."""
    row_is_of: Literal["next", "own"] = "next"
    """Which token the prediction at a place is of: the one behind, or, as in older data of axolotl, the one
    that stands there."""

    @property
    def rest_is_known(self) -> bool:
        """Whether the rest is one outcome more."""
        return (self.rest or ("unknown" if self.format in WITHOUT_REST else "outcome")) == "outcome"

    @rule
    def _as_the_format_is(self) -> Iterator[str]:
        if self.compression is not None and self.format != "distillkit":
            yield f"compression: goes with format: distillkit, not {self.format}; remove it"
        if self.rest == "outcome" and self.format in WITHOUT_REST:
            yield (
                f"rest: outcome: {self.format} makes what was kept of a prediction add up to 1, and what the rest had "
                "is lost; use rest: unknown"
            )
        if self.row_is_of == "own" and self.format in OF_THE_NEXT:
            yield f"row_is_of: own: {self.format}'s predictions are of the token behind; remove it"

    def deciding_values(self) -> dict[str, Any]:
        """What of it decides what is learned, as JSON; the file of ``compression`` may be anywhere."""
        return {**self.model_dump(mode="json", exclude={"compression"}), "rest": self.rest_is_known}

    def mistakes_beside(self, task: Task, distill: Distill) -> Iterator[str]:
        """What other sections say that does not go with it."""
        place = "teacher.cache.rows"
        if not task.reads_tokens:
            yield f"{place}: predictions stand beside tokens; use task: {{kind: chat, form: tokens}}, or remove it"
        elif task.isolates_documents:
            yield f"{place}: they are of single rows, which {task.place_of_isolation} puts together; remove one of them"
        if distill.needs.states:
            yield f"{place}: other tools keep no states of layers; use distill.method: kd, or remove it"
        if self.rest_is_known and distill.temperature != self.temperature:
            yield (
                f"{place}: distill.temperature: {distill.temperature:g}: predictions were kept at "
                f"{self.temperature:g}, and what all other ids have at another temperature is not known; use "
                f"distill.temperature: {self.temperature:g}, or {place}.rest: unknown"
            )
