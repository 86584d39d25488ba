"""Stage II: the method, its terms and their weights."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from ted_ds.config.needs import NOTHING, Needs
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.section import rule

PARAMETERS = {
    "divergence_beta": (("jsd",), 0.5),
    "divergence_alpha": (("skew_kl", "skew_reverse_kl"), 0.1),
}
"""Of divergences: which have it, and what it is where a recipe does not say: the middle, and that of DistiLLM."""


class Distill(PhasePlan):
    """Stage II, and which method it is."""

    takes_transfer: ClassVar[bool] = True

    method: Literal["sft", "kd", "lwd", "ted"] = "ted"
    """``sft``: task loss only; ``kd``: and predictions; ``lwd``: and matching of layers; ``ted``: filtered ones."""
    task_weight: float = Field(default=1.0, ge=0)
    kl_weight: float = Field(default=1.0, ge=0)
    """Of the prediction term, whichever divergence that is."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions of the prediction term, which is scaled by its square; unused by regression."""
    divergence: Literal["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tv"] = "kl"
    """How far the student's predictions are from the teacher's (:mod:`ted_ds.numerics.divergences`); regression, whose
    predictions are numbers, has the squared difference alone."""
    divergence_beta: float | None = Field(default=None, gt=0, lt=1)
    """``jsd``: the teacher's share of the mixture; unset: 0.5."""
    divergence_alpha: float | None = Field(default=None, gt=0, lt=1)
    """``skew_kl`` and ``skew_reverse_kl``: the share in the mixture of what is compared with it; unset: 0.1."""
    feature_weight: float = Field(default=1.0, ge=0)
    feature_reduction: Literal["mean", "sum"] = "mean"
    """Over matched layers: the mean (released code), or the sum (the paper's notation)."""
    normalise_features: bool = False
    """Bring each token's features to mean 0 and variance 1 before comparing; for decoders, whose states have outliers.
    Not in the paper."""

    @rule
    def _parameter_of_divergence(self) -> Iterator[str]:
        for name, (kinds, _) in PARAMETERS.items():
            if getattr(self, name) is not None and self.divergence not in kinds:
                yield f"{name} goes with divergence: {' or '.join(kinds)}, not {self.divergence}; remove it"

    @property
    def needs_of_terms(self) -> dict[str, Needs]:
        """What each term that the method and the weights switch on needs; the task's is always there."""
        terms = {"task": NOTHING}
        if self.method == "kd" or (self.method != "sft" and self.kl_weight > 0):
            terms["prediction"] = Needs(predictions=True)
        if self.method in ("lwd", "ted"):
            terms["features"] = Needs(states=True, filters=self.method == "ted")
        return terms

    @property
    def needs(self) -> Needs:
        """What Stage II needs in all."""
        return functools.reduce(operator.or_, self.needs_of_terms.values())

    @property
    def divergence_parameter(self) -> float | None:
        """Of the divergence, given or not; None where it has none."""
        for name, (kinds, default) in PARAMETERS.items():
            if self.divergence in kinds:
                given: float | None = getattr(self, name)
                return default if given is None else given
        return None

    def deciding_values(self) -> dict[str, Any]:
        """See :class:`~ted_ds.config.phase_plan.PhasePlan`. The KL is said by silence, as before there were others."""
        values = super().deciding_values()
        for name in ("divergence", *PARAMETERS):
            values.pop(name)
        if self.divergence != "kl":
            values["divergence"] = self.divergence
        for name, (kinds, _) in PARAMETERS.items():
            if self.divergence in kinds:
                values[name] = self.divergence_parameter
        return values
