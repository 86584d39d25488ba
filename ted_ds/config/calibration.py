"""The recipe's ``student.calibration``: the texts by which a student is made in closed form, without a gradient."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ted_ds.config.section import Section


class Calibration(Section):
    """How much of the training data is read where blocks are chosen, healed, or filters solved.

    Where nothing is said and task data have fewer tokens, all of them.
    """

    tokens: int = Field(default=32_768, gt=0)
    """Tokens from the beginning of the training data, in the order of ``seed``, by whole samples."""
    heldout_tokens: int = Field(default=4096, gt=0)
    """Of the samples behind them, by which what was solved is judged and the strengths of ridges are chosen."""
    micro_batch_size: int = Field(default=8, gt=0)
    """Samples per rank and forward pass; it decides no result."""

    @property
    def are_given(self) -> bool:
        """Whether the recipe says how many tokens."""
        return bool(self.model_fields_set & {"tokens", "heldout_tokens"})

    def deciding_values(self) -> dict[str, Any]:
        """What decides what is solved."""
        return self.model_dump(mode="json", exclude={"micro_batch_size"})
