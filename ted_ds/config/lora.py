"""The recipe's ``student.lora`` section: what trains of a student whose own weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ted_ds.config.section import Section, rule


class Lora(Section):
    """Low-rank adapters beside linear maps of the student's blocks (LoRA, Hu et al. 2021, arXiv:2106.09685), by peft.

    They train, and filters and a head of labels with them; all else of the student is frozen.
    """

    rank: int = Field(gt=0)
    """Of each adapter: numbers between its two maps."""
    alpha: int | None = Field(default=None, gt=0)
    """What an adapter puts out is multiplied by ``alpha / rank``; unset: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what an adapter reads, while it trains."""
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """Names of linear maps in a block (``q_proj``, or ``self_attn.q_proj``); unset: all of them."""
    export: Literal["merged", "adapter"] = "merged"
    """What is exported: the student with its adapters merged in, a plain model; or they alone, as peft loads them."""

    @rule
    def _targets_are_distinct(self) -> Iterator[str]:
        if self.targets is not None and len(set(self.targets)) != len(self.targets):
            yield f"targets must be distinct, got {self.targets}"

    @property
    def scaled_by(self) -> int:
        """``alpha``, given or not."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def deciding_values(self) -> dict[str, Any]:
        """What decides the results of training."""
        return {"rank": self.rank, "alpha": self.scaled_by, "dropout": self.dropout, "targets": self.targets}
