"""How one phase trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import Section, open_value, rule

ALL = Fraction(1)


class PhasePlan(Section):
    """How one phase trains: its steps, batch and optimizer values.

    These values are the recipe's: the DeepSpeed JSON takes them where it says ``"auto"``.
    """

    takes_transfer: ClassVar[bool] = False
    """Whether it learns from ``data.transfer``, too."""

    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Instead, for task data: how often each training row is seen; the steps follow from their number and the batch (in
    Stage II with ``data.transfer``, from the rows of a step that are training rows; where these are by ``size``, each
    text is seen so often). Where neither is given: once, and three times in fine-tuning."""
    learning_rate: float = Field(default_factory=open_value, gt=0)
    """Peak learning rate; unset: what is usual for the phase and task (``docs/recipes.md``)."""
    global_batch_size: int = Field(default_factory=open_value, gt=0)
    """Sequences or examples per optimizer step, over all ranks and microbatches; unset: 32, or as in ``distill``."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences or examples per rank and forward pass; unset: as in ``distill``, or at most 4."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """Instead: most tokens per rank and forward pass, padding included; for tasks whose texts differ in length."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0 to ``learning_rate``."""
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "deepspeed"] = "linear"
    """Shape after warm-up; ``deepspeed`` leaves it to the ``scheduler`` block of the DeepSpeed JSON, as does a recipe
    that does not set it."""
    num_cycles: int | None = Field(default=None, gt=0)
    """``cosine_with_restarts``: how often it falls from the peak to 0."""
    power: float | None = Field(default=None, gt=0)
    """``polynomial``: the rate is the share of steps that are left to this power, from the peak down; 1 is linear."""
    end_learning_rate: float | None = Field(default=None, ge=0)
    """``polynomial``: what it falls to; unset: 0."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of parameters with two or more dimensions; biases and norms are not decayed."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam's: how slowly the means of gradients, and of their squares, forget."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's: what is added to the root of the mean square."""

    @property
    def leaves_open(self) -> bool:
        """As of any section; and steps and microbatches follow, too."""
        followers = ((self.max_steps, self.epochs), (self.micro_batch_size, self.micro_batch_tokens))
        return super().leaves_open or (None, None) in followers

    @property
    def steps(self) -> int:
        """Optimizer steps, once they are known: where ``epochs`` is given, with :meth:`with_rows`."""
        assert self.max_steps is not None, "epochs come to steps once the rows are counted"
        return self.max_steps

    def with_rows(self, num_rows: int, *, share: Fraction = ALL) -> PhasePlan:
        """The same with its steps known, for so many training rows: the fewest in which each is seen so often.

        ``share`` is that of the rows of a step which are training rows: all steps up to one have what it makes of
        theirs, rounded up.
        """
        if self.epochs is None:
            return self
        wanted = math.ceil(Fraction(str(self.epochs)) * num_rows)  # 0.1 is a tenth
        # the first step by which more than wanted - 1 rows were seen
        steps = math.floor((wanted - 1) / (share * self.global_batch_size)) + 1
        return self.model_copy(update={"max_steps": steps})

    def deciding_values(self) -> dict[str, Any]:
        """What decides the result: not how the global batch is cut up, which a run that goes on may change.

        Epochs decide by the steps they come to.
        """
        return self.model_dump(mode="json", exclude={"micro_batch_size", "micro_batch_tokens", "epochs"})

    @property
    def schedule_parameters(self) -> dict[str, float]:
        """What a schedule of transformers' takes beside steps, by transformers' names."""
        if self.schedule == "polynomial":
            return {"power": self.power or 1.0, "lr_end": self.end_learning_rate or 0.0}
        return {"num_cycles": self.num_cycles} if self.num_cycles is not None else {}

    def step_mistakes(self) -> Iterator[str]:
        """What of the schedule does not fit into the steps, as far as these are known."""
        if not self.max_steps:  # of none, there is no schedule
            return
        steps = "max_steps" if self.epochs is None else f"the steps of epochs: {self.epochs:g}"
        left = self.max_steps - self.warmup_steps
        if left <= 0:
            yield f"warmup_steps ({self.warmup_steps}) must be smaller than {steps} ({self.max_steps})"
        elif self.num_cycles is not None and self.num_cycles > left:
            yield f"num_cycles ({self.num_cycles}) must not be above the steps after warm-up, {left} of {steps}"

    @rule
    def _schedule_has_its_parameters(self) -> Iterator[str]:
        for key, schedule in {
            "num_cycles": "cosine_with_restarts",
            "power": "polynomial",
            "end_learning_rate": "polynomial",
        }.items():
            if getattr(self, key) is not None and self.schedule != schedule:
                yield f"{key} goes with schedule: {schedule}, not {self.schedule}; remove it"
        if self.schedule == "cosine_with_restarts" and self.num_cycles is None:
            yield "schedule: cosine_with_restarts needs num_cycles; with 1 it is cosine"
        if self.schedule == "polynomial" and self.power is None:
            yield "schedule: polynomial needs a power; with 1 it is linear"
        if self.end_learning_rate is not None and self.end_learning_rate >= self.learning_rate:
            yield f"end_learning_rate ({self.end_learning_rate:g}) must be below learning_rate ({self.learning_rate:g})"

    @rule
    def _steps_and_batches_fit(self) -> Iterator[str]:
        if self.max_steps is not None and self.epochs is not None:
            yield "give exactly one of max_steps (optimizer steps) and epochs (passes over the rows of task data)"
        yield from self.step_mistakes()
        if (self.micro_batch_size is None) == (self.micro_batch_tokens is None):
            yield "give exactly one of micro_batch_size (examples) and micro_batch_tokens (padded tokens)"
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            yield (
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
