"""How one phase trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import Section, rule


class PhasePlan(Section):
    """How one phase trains: its steps, batch and optimizer values.

    These values are the recipe's: the DeepSpeed JSON takes them where it says ``"auto"``.
    """

    takes_transfer: ClassVar[bool] = False
    """Whether it learns from ``data.transfer``, too."""

    max_steps: int = Field(gt=0)
    """Optimizer steps."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    global_batch_size: int = Field(gt=0)
    """Sequences or examples per optimizer step, over all ranks and microbatches."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences or examples per rank and forward pass."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """Instead: most tokens per rank and forward pass, padding included; for tasks whose texts differ in length."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0 to ``learning_rate``."""
    schedule: Literal["linear", "cosine", "constant", "deepspeed"] = "linear"
    """Shape after warm-up; ``deepspeed`` leaves it to the ``scheduler`` block of the DeepSpeed JSON, as does a recipe
    that does not set it."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of parameters with two or more dimensions; biases and norms are not decayed."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def deciding_values(self) -> dict[str, Any]:
        """What decides the result: not how the global batch is cut up, which a run that goes on may change."""
        return self.model_dump(mode="json", exclude={"micro_batch_size", "micro_batch_tokens"})

    @rule
    def _steps_and_batches_fit(self) -> Iterator[str]:
        if self.warmup_steps >= self.max_steps:
            yield f"warmup_steps ({self.warmup_steps}) must be smaller than max_steps ({self.max_steps})"
        if (self.micro_batch_size is None) == (self.micro_batch_tokens is None):
            yield "give exactly one of micro_batch_size (examples) and micro_batch_tokens (padded tokens)"
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            yield (
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
