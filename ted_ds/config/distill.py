"""Stage II: the method, its terms and their weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ted_ds.config.phase_plan import PhasePlan


class Distill(PhasePlan):
    """Stage II, and which method it is."""

    method: Literal["sft", "kd", "lwd", "ted"] = "ted"
    """``sft``: task loss only; ``kd``: and KL; ``lwd``: and unfiltered layer matching; ``ted``: and filtered."""
    task_weight: float = Field(default=1.0, ge=0)
    kl_weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions of the KL term, whose gradient is scaled by its square; unused by regression."""
    feature_weight: float = Field(default=1.0, ge=0)
    feature_reduction: Literal["mean", "sum"] = "mean"
    """Over matched layers: the mean (released code), or the sum (the paper's notation)."""
    normalise_features: bool = False
    """Bring each token's features to mean 0 and variance 1 before comparing; for decoders, whose states have outliers.
    Not in the paper."""
