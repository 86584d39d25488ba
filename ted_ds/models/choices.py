"""Models that say of each row how well a choice fits: those of a text's choices stand side by side, as its logits."""

from __future__ import annotations

import functools
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ted_ds.models.heads import FilterProbes
from ted_ds.numerics.filters import FilterBank, PooledClassifier


def choose_among_rows(model: PreTrainedModel, num_choices: int) -> None:
    """Let a model for multiple choice take the rows of all choices, ``[batch * choices, seq]``.

    Transformers wants them as ``[batch, choices, seq]`` and makes such rows of them itself. Its logits stay
    ``[batch, choices]``.
    """
    plain: Any = model.forward
    model.forward = functools.partial(_grouped, plain, num_choices)  # type: ignore[method-assign]


def _grouped(plain: Any, num_choices: int, **arguments: Any) -> Any:
    grouped = {
        name: value.unflatten(0, (-1, num_choices)) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    return plain(**grouped)


class ChoiceClassifier(PooledClassifier):
    """Stage I's head for multiple choice: the classifier of one output, over the rows of a text's choices."""

    def __init__(self, dim: int, num_choices: int) -> None:
        super().__init__(dim, 1)
        self._num_choices = num_choices

    def forward(self, pooled: Float[Tensor, "rows dim"]) -> Float[Tensor, "batch choices"]:
        """Logits of the choices."""
        return super().forward(pooled).view(-1, self._num_choices)


def choice_probes(bank: FilterBank, *, dim: int, num_choices: int, pooling: str) -> FilterProbes:
    """Probes for multiple choice: a classifier per filter on its ``first``, ``last`` or ``mean`` feature."""
    return FilterProbes(bank, [ChoiceClassifier(dim, num_choices) for _ in bank.layers], pooling=pooling)
