"""Steps that are computed twice."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ted_ds.config.section import Section


class Replay(Section):
    """Computes some steps' gradients a second time, to notice a machine that computes wrongly without an error."""

    every_steps: int | None = Field(default=None, gt=0)
    """Of every so many steps, from the first on; unset: none."""

    def mistakes_beside(self, *, deterministic: bool, num_stages: int) -> Iterator[str]:
        """What the rest of a recipe says that does not go with it."""
        if self.every_steps is None:
            return
        if not deterministic:
            yield (
                f"replay.every_steps: {self.every_steps}: without deterministic: true a sound GPU, too, may come to "
                "other bits the second time; set it, or remove replay"
            )
        if num_stages > 1:
            yield (
                f"replay.every_steps: {self.every_steps}: a pipeline's step cannot be computed a second time; remove "
                "it, or use pipeline.stages: 1 (ZeRO 0-3)"
            )
