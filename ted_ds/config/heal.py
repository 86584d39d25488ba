"""The recipe's ``student.heal``: a student cut out of its teacher is brought to its states, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ted_ds.config.section import Section, rule

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


class Heal(Section):
    """Block by block from the first, the last linear map of each is solved by ridge regression.

    On ``student.calibration``, with the student's own states, so that what the block puts out is close to a state of
    the teacher's. A map stays near what it was (:mod:`ted_ds.numerics.normal_equations`).
    """

    towards: Literal["cut", "layer_map"] = "cut"
    """Which state: that before the next block that was kept (behind the last one: the teacher's last), or that of the
    layer that ``layer_map`` gives a block, where it gives one."""
    strengths: list[Annotated[float, Field(ge=0)]] = Field(default=list(STRENGTHS), min_length=1)
    """How much a map is held back, as shares of the mean square of its inputs: of these, the best on held-out tokens
    is taken for each block; none, where the map does better as it was."""

    @rule
    def _distinct(self) -> Iterator[str]:
        if len(set(self.strengths)) != len(self.strengths):
            yield f"strengths: {self.strengths} has one twice; name each once"

    def deciding_values(self) -> dict[str, Any]:
        """What decides the result."""
        return self.model_dump(mode="json")
