"""A term of Stage II that a user writes: a value of each token, or of each text, from a pair of matched layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from ted_ds.errors import OwnCodeError, TedError
from ted_ds.numerics.layer_map import Layer

NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = re.compile(r"task|balance|(text_)?feature_.*|.*_(teacher_student|student_teacher)|mse|total")
"""Names of terms of ted_ds itself."""


@dataclass(frozen=True)
class Taps:
    """What student and teacher make of a microbatch at one pair of the layer map."""

    layer: Layer
    """The student's: a block's number from 1, or that in a stack of two."""
    student: Float[Tensor, "batch seq student_hidden"]
    """The student's states, through which gradient flows."""
    teacher: Float[Tensor, "batch seq teacher_hidden"]
    """The teacher's, without gradient."""
    kept: Bool[Tensor, "batch seq"]
    """True for tokens whose states are compared: not for padding, nor what a recipe leaves out."""
    filter_student: Callable[[], Tensor]
    filter_teacher: Callable[[], Tensor]

    @property
    def filtered_student(self) -> Float[Tensor, "batch seq dim"]:
        """The student's states through its filter, with gradient for both."""
        return self.filter_student()

    @property
    def filtered_teacher(self) -> Float[Tensor, "batch seq dim"]:
        """The teacher's states through its filter (with ``lwd``: as they are), without gradient."""
        return self.filter_teacher()


@dataclass(frozen=True)
class OwnTerm:
    """A term of your own, beside those that the recipe switches on.

    Its values are summed over what is kept and divided by how many these are in the whole global batch: over all ranks
    and microbatches, once. Of several pairs of layers the mean counts. So ``function`` gives a value for each token or
    text, and neither sums nor divides.
    """

    name: str
    """Its metrics are ``loss/NAME/layer_07``."""
    function: Callable[[Taps], Tensor]
    """Gives ``[batch, seq]``, or ``[batch]`` where values are ``per`` text."""
    weight: float = 1.0
    per: Literal["token", "text"] = "token"
    """What each value is of, and what is counted."""
    version: int = 1
    """To be raised when ``function`` is changed: a phase begun with another is not gone on with."""

    def mistakes(self) -> list[str]:
        """What is wrong with it by itself."""
        found = []
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name) or TAKEN.fullmatch(self.name):
            found.append(
                f"terms: name {self.name!r}: use small letters, digits and _, beginning with a letter, and no name "
                "that a term of ted_ds has"
            )
        if not callable(self.function):
            found.append(f"terms: {self.name}: function {self.function!r}: use a function of ted_ds.Taps")
        if not _is_positive(self.weight):
            found.append(f"terms: {self.name}: weight {self.weight!r}: use a number above 0")
        if self.per not in ("token", "text"):
            found.append(f"terms: {self.name}: per {self.per!r}: use 'token' or 'text'")
        return found

    def identity(self) -> dict[str, Any]:
        """By this a phase knows that it learns something else."""
        return {"name": self.name, "weight": self.weight, "per": self.per, "version": self.version}

    def count(self, kept: Bool[Tensor, "batch seq"]) -> Tensor:
        """How many values count."""
        return (kept if self.per == "token" else kept.any(-1)).sum()

    def sum(self, taps: Taps) -> Float[Tensor, ""]:
        """The fp32 sum over what is kept.

        Raises:
            OwnCodeError: The function failed, or gave something else.
        """
        kept = taps.kept if self.per == "token" else taps.kept.any(-1)
        try:
            values = self.function(taps)
        except TedError:
            raise
        except Exception as error:  # whatever it is: it is not ours
            raise OwnCodeError(f"term {self.name}: {type(error).__name__}: {error}") from error
        if not isinstance(values, Tensor) or values.shape != kept.shape or not values.is_floating_point():
            given = f"{values.dtype} {[*values.shape]}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise OwnCodeError(
                f"term {self.name}: its function gave {given}: use a floating-point tensor {[*kept.shape]}, a value of "
                f"each {self.per}"
            )
        # chosen, not multiplied: what padding gave may be no number
        return values.float().masked_fill(~kept, 0.0).sum()


def own_mistakes(terms: Sequence[OwnTerm]) -> list[str]:
    """What is wrong with terms by themselves, and among them."""
    found = [line for one in terms if isinstance(one, OwnTerm) for line in one.mistakes()]
    found += [f"terms: {one!r}: use a ted_ds.OwnTerm" for one in terms if not isinstance(one, OwnTerm)]
    names = [one.name for one in terms if isinstance(one, OwnTerm)]
    found += [
        f"terms: {name}: given twice; use a name for each" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return found


def identities(terms: Sequence[OwnTerm]) -> list[Mapping[str, Any]]:
    """Of several, by name: their order does not matter."""
    return [one.identity() for one in sorted(terms, key=lambda term: term.name)]


def _is_positive(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")
