"""Keeping on a disk what the teacher says, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ted_ds.config.distill import Distill
from ted_ds.config.kept_rows import KeptRows
from ted_ds.config.section import Section, rule
from ted_ds.config.tasks import Task

MOST_PROBABLE = 64
"""Ids that are kept of a prediction, where a recipe does not say."""


class TeacherCache(Section):
    """Keep what the teacher says of each example of a task, or sequence of a corpus, so that it runs over them once."""

    max_gib: float = Field(gt=0)
    """The most it may take on disk; a larger one is refused before anything starts."""
    precision: Literal["bf16", "int8"] = "bf16"
    """Of the filtered states; ``int8`` has a scale per token. Predictions of a head of the task's own are kept in
    fp32."""
    top_k: int | None = Field(default=None, gt=0)
    """Of each token's prediction by an LM head: so many ids are kept, those most probable, with their probabilities and
    what all others come to; unset: 64."""
    sampled: int | None = Field(default=None, gt=0, le=65535)
    """In their place: so many ids are drawn from each prediction, and how often each was drawn is kept; of the KL
    alone, which is learned without bias."""
    dir: Path | None = None
    """A folder that all nodes share, in which runs find each other's caches; unset: in ``output_dir``, until Stage II
    is complete."""
    rows: KeptRows | None = None
    """Fill it from what another tool kept of a teacher's predictions, and run no teacher."""

    @property
    def num_kept(self) -> int:
        """Ids that are kept of a prediction by an LM head, or drawn from it."""
        return self.sampled or self.top_k or MOST_PROBABLE

    @rule
    def _rows_hold_the_most_probable(self) -> Iterator[str]:
        if self.rows is not None and self.sampled is not None:
            yield "sampled: what rows hold of a prediction are its most probable ids; use top_k"
        if self.rows is not None and "precision" in self.model_fields_set:
            yield f"precision: {self.precision}: is of filtered states, which rows do not hold; remove it"

    @rule
    def _kept_in_one_way(self) -> Iterator[str]:
        if self.top_k is not None and self.sampled is not None:
            yield "top_k and sampled: a prediction is kept in one of the two ways; remove one of them"

    def deciding_values(self, task: Task, distill: Distill) -> Any:
        """What of it decides the result of Stage II, as JSON."""
        if self.rows is not None:
            return {"top_k": self.num_kept, "rows": self.rows.deciding_values()}
        if task.has_lm_head and distill.needs.predictions:
            return {"precision": self.precision, "sampled" if self.sampled else "top_k": self.num_kept}
        return self.precision

    def mistakes_beside(self, task: Task, distill: Distill) -> Iterator[str]:
        """What other sections say that no cache does."""
        if self.rows is not None:
            yield from self.rows.mistakes_beside(task, distill)
        if task.why_not_cached is not None:
            yield f"teacher.cache: {task.why_not_cached}"
        if not distill.needs.teacher:
            yield "teacher.cache: distill.method: sft has no teacher; remove it"
        for key in ("top_k", "sampled"):
            number: int | None = getattr(self, key)
            if number is not None and not task.has_lm_head:
                yield (
                    f"teacher.cache.{key}: {number}: a {task.kind} has no LM head, and all that its own puts out is "
                    "kept; remove it"
                )
            elif number is not None and distill.needs.teacher and not distill.needs.predictions:
                yield (
                    f"teacher.cache.{key}: {number}: distill.kl_weight is 0, and no prediction is kept; remove it, or "
                    "raise the weight"
                )
        if self.sampled is not None and distill.needs.predictions and distill.divergence != "kl":
            yield (
                f"teacher.cache.sampled: {self.sampled}: distill.divergence: {distill.divergence} needs more of a "
                "prediction than what was drawn says without bias; use divergence: kl, or top_k in its place"
            )
            return
        if task.has_lm_head and distill.needs.predictions and distill.divergence_is_of_a_package:
            yield (
                f"distill.divergence: {distill.divergence}: a cache keeps the most probable ids of a prediction, and "
                "what a package's divergence makes of the rest as one outcome is not known; use one of ted_ds, or "
                "remove teacher.cache"
            )
