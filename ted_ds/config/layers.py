"""Which layers are matched with which, and the filters that they are matched through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.section import Section, rule

LAYER_NAME = r"^(encoder|decoder)\.\d+$"
"""Of a layer of an encoder-decoder."""


def _is_layer(value: Any) -> Any:
    """One rule in words, where a union would give a message per member."""
    is_number = type(value) is int and value >= 0
    if not is_number and not (isinstance(value, str) and re.fullmatch(LAYER_NAME, value)):
        raise ValueError("use a whole number, 0 or more, or a layer of an encoder-decoder such as encoder.3")
    return value


Layer = Annotated[Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=LAYER_NAME)], BeforeValidator(_is_layer)]
LayerPair = tuple[Layer, Layer]


class LayerMap(Section):
    """Which student layer is matched with which teacher layer (see :mod:`ted_ds.numerics.layer_map`)."""

    kind: Literal["uniform", "distilgpt2", "last", "explicit"] = "uniform"
    num_pairs: int | None = Field(default=None, gt=0)
    """For ``uniform``: how many pairs (of each stack, in an encoder-decoder), spread evenly; unset: one per student
    block."""
    pairs: list[LayerPair] | None = None
    """For ``explicit``: ``[student_layer, teacher_layer]``, counted 1..L (0 is the embedding output); of an
    encoder-decoder ``[encoder.2, encoder.4]`` or ``[decoder.2, decoder.6]``."""

    @rule
    def _options_of_kind(self) -> Iterator[str]:
        if (self.kind == "explicit") != (self.pairs is not None):
            yield "pairs goes with kind: explicit, and only with it"
        if self.num_pairs is not None and self.kind != "uniform":
            yield f"num_pairs goes with kind: uniform, not {self.kind}"


class FilterPlan(PhasePlan):
    """How filters are trained; with no step at all where they are solved."""

    max_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps; 0 leaves filters as they were solved (``initialisation: ridge``)."""


class Ridge(Section):
    """How filters are solved, on the texts of ``student.calibration``."""

    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        default=[10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], min_length=1
    )
    """How strongly a filter is held back, as shares of the mean square of what it reads; of each filter's, that with
    the least error on held-out tokens is taken."""
    student: Literal["teacher", "itself"] = "teacher"
    """What the student's filters are solved towards: the ``teacher``'s filtered states, which Stage II compares with
    and its head reads (the widths of the models may differ), or the last state of the student ``itself``."""


class Filters(Section):
    """Stage I: the filters and how each side's are trained."""

    dim: int | None = Field(default=None, gt=0)
    """Width of a filter's output; unset: the teacher's hidden size."""
    kind: Literal["linear", "mlp"] = "linear"
    initialisation: Literal["normal", "identity", "ridge"] = "normal"
    """``normal``: N(0, 0.02) as in the reference; ``identity``: start as the unfiltered state; ``ridge``: start as the
    linear map from the layer's state to that which the model's head reads, solved (the last two for ``linear``)."""
    ridge: Ridge = Ridge()
    """For ``initialisation: ridge``."""
    lm_head: Literal["frozen", "new"] = "frozen"
    """Causal LM: read a filter through the model's own frozen final norm and LM head, or through a new linear head."""
    pooling: Literal["model", "mean"] = "model"
    """Classification: what a filter's head reads: the token the model itself classifies by (the reference), or the mean
    over tokens. In lower layers that one token may hold nothing yet: the run prints each filter's score."""
    teacher: FilterPlan | None = None
    student: FilterPlan | None = None
    both: FilterPlan | None = None
    """Instead of the two: the filters of both models in one pass over the data."""

    @property
    def leaves_open(self) -> bool:
        """As of any section; and which are trained follows, too."""
        return super().leaves_open or not self.plans

    @rule
    def _each_side_once(self) -> Iterator[str]:
        given = [*self.plans]
        if given not in (["teacher", "student"], ["both"]):
            yield (
                f"give both (teacher and student learn in one pass), or teacher and student (a phase each); given: "
                f"{' and '.join(given) or 'none of them'}"
            )

    @property
    def plans(self) -> dict[str, FilterPlan]:
        """What is trained, by its key here."""
        plans = {"teacher": self.teacher, "student": self.student, "both": self.both}
        return {name: plan for name, plan in plans.items() if plan is not None}

    @property
    def are_solved(self) -> bool:
        """Whether they start as the solution of a ridge regression."""
        return self.initialisation == "ridge"

    @property
    def read_by_teacher(self) -> bool:
        """Whether the student's filters put out what the teacher's head reads."""
        return self.are_solved and self.ridge.student == "teacher"

    @rule
    def _identity_is_linear(self) -> Iterator[str]:
        if self.initialisation == "identity" and self.kind != "linear":
            yield "initialisation: identity goes with kind: linear"
        if self.are_solved and self.kind != "linear":
            yield f"initialisation: ridge solves a linear map; kind: {self.kind} has none, use linear"

    @rule
    def _solved_ones_are_read_as_they_are(self) -> Iterator[str]:
        if self.are_solved and self.lm_head == "new":
            yield (
                "lm_head: new: initialisation: ridge solves filters for the head that the model has, and a new one "
                "reads nothing yet; use frozen"
            )
        if not self.are_solved and "ridge" in self.model_fields_set:
            yield f"ridge goes with initialisation: ridge, not {self.initialisation}; remove it"
        for name, plan in self.plans.items():
            if plan.max_steps == 0 and not self.are_solved:
                yield (
                    f"{name}.max_steps: 0: no filter would be learned; use 1 or more, or initialisation: ridge, which "
                    "solves them first"
                )
