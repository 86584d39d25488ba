"""What a layer-wise term measures between the filtered states of a token, or of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ted_ds.numerics.alignment import feature_cka_sum
from ted_ds.numerics.losses import feature_cosine_sum, feature_mse_sum

SUMS: dict[str, Callable[..., Any]] = {"mse": feature_mse_sum, "cosine": feature_cosine_sum, "cka": feature_cka_sum}
"""By the name in a recipe and in the metric."""


@dataclass(frozen=True)
class FeatureDistance:
    """One of them."""

    kind: str = "mse"
    normalise: bool = False
    """Bring each token's features to mean 0 and variance 1 first."""

    @property
    def is_plain_mse(self) -> bool:
        """Whether it is a mean square of nothing but the difference."""
        return self.kind == "mse" and not self.normalise

    @property
    def is_of_texts(self) -> bool:
        """Whether it is of all kept tokens of a text together, not of each token by itself."""
        return self.kind == "cka"

    def sum(
        self,
        student_features: Float[Tensor, "batch seq dim"],
        teacher_features: Float[Tensor, "batch seq dim"],
        *,
        keep: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, ""]:
        """Over kept tokens, or texts, which then are the rows; only ``student_features`` receive gradient."""
        return SUMS[self.kind](student_features, teacher_features, keep=keep, normalise=self.normalise)


MSE = FeatureDistance()
