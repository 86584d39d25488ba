"""Stage II: the method, its terms and their weights."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from ted_ds.config.finite_number import is_finite_number
from ted_ds.config.needs import NOTHING, Needs
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.section import rule
from ted_ds.config.weights import Weight, highest, points_of, weight_at

PARAMETERS = {
    "divergence_beta": (("jsd",), 0.5),
    "divergence_alpha": (("skew_kl", "skew_reverse_kl"), 0.1),
}
"""Of divergences: which have it, and what it is where a recipe does not say: the middle, and that of DistiLLM."""


WEIGHTS = ("task_weight", "kl_weight", "feature_weight", "relation_weight")
OF_RELATIONS = ("relation_heads", "relation_layers")
"""Settings that go with a ``relation_weight``."""
OF_BALANCE = {"balance_every_steps": 100, "balance_average": 0.9, "balance_max_factor": 10_000.0}
"""Settings that go with ``balance``, and what they are where a recipe does not say."""


PLUG_INS = "ted_ds.divergences"
"""The entry points by which installed packages have divergences."""


def _or_of_a_package(name: Any, of_ted_ds: ValidatorFunctionWrapHandler) -> Any:
    """A name that is one of ours, or of a package that is installed: the package is loaded where it computes."""
    try:
        return of_ted_ds(name)
    except ValidationError:
        if isinstance(name, str) and name in entry_points(group=PLUG_INS).names:
            return name
        raise


OfTedDs = Literal["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tv"]
"""The divergences of :mod:`ted_ds.numerics.divergences`."""


class Weights(NamedTuple):
    """Of the terms at a step."""

    task: float
    prediction: float
    features: float
    relations: float


class Distill(PhasePlan):
    """Stage II, and which method it is."""

    takes_transfer: ClassVar[bool] = True

    method: Literal["sft", "kd", "lwd", "ted"] = "ted"
    """``sft``: task loss only; ``kd``: and predictions; ``lwd``: and matching of layers; ``ted``: filtered ones."""
    task_weight: Weight = 1.0
    """This and the others are numbers, or ``[[step, weight], ...]``: from one of these steps to the next, counted
    from 0, the weight changes linearly, and it stays at the first before them and at the last behind them."""
    kl_weight: Weight = 1.0
    """Of the prediction term, whichever divergence that is."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions of the prediction term, which is scaled by its square; unused by regression."""
    divergence: Annotated[
        OfTedDs,
        WrapValidator(_or_of_a_package),
        PlainSerializer(str),
    ] = "kl"
    """How far the student's predictions are from the teacher's (:mod:`ted_ds.numerics.divergences`); regression, whose
    predictions are numbers, has the squared difference alone."""
    divergence_beta: float | None = Field(default=None, gt=0, lt=1)
    """``jsd``: the teacher's share of the mixture; unset: 0.5."""
    divergence_alpha: float | None = Field(default=None, gt=0, lt=1)
    """``skew_kl`` and ``skew_reverse_kl``: the share in the mixture of what is compared with it; unset: 0.1."""
    kernels: Literal["torch", "triton"] = "torch"
    """What computes cross-entropy, divergence and gradient from a language model's logits: torch's operations, or
    kernels of Triton on a GPU."""
    feature_weight: Weight = 1.0
    """Of the layer-wise terms together."""
    feature_reduction: Literal["mean", "sum"] = "mean"
    """Over matched layers: the mean (released code), or the sum (the paper's notation)."""
    feature_distance: Literal["mse", "cosine", "cka"] = "mse"
    """Of each token's filtered states: the mean squared difference, or one less the cosine of their angle; or of all
    tokens of a text: one less their linear CKA."""
    normalise_features: bool = False
    """Bring each token's features to mean 0 and variance 1 before comparing; for decoders, whose states have outliers.
    Not in the paper."""

    relation_weight: Weight = 0.0
    """Of how the tokens of a text relate to each other by queries, by keys and by values of a block (MiniLMv2)."""
    relation_heads: int = Field(default=16, gt=0)
    """Into how many heads both models' are cut for it, whatever heads they have."""
    relation_layers: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """The student's block and the teacher's, counted from 1; unset: the last of both."""
    balance: Literal["gradient_norm", "measure"] | None = None
    """``measure``: the norms of the terms' gradients are reported. ``gradient_norm``: the weights are shares, too. Each
    term is scaled so that these norms, on the last block that all terms reach, are to each other as the weights are."""
    balance_every_steps: int = Field(default=OF_BALANCE["balance_every_steps"], gt=0)
    """How often these norms are measured: at step 0 and after every so many."""
    balance_average: float = Field(default=OF_BALANCE["balance_average"], ge=0, lt=1)
    """How much of its moving average a norm keeps at each measurement."""
    balance_max_factor: float = Field(default=OF_BALANCE["balance_max_factor"], ge=1)
    """The most a weight is multiplied by: the gradient of a term that is all but solved is noise, and stays small."""

    @field_validator(*WEIGHTS, mode="before")
    @classmethod
    def _is_a_number_or_points(cls, weight: Any) -> Any:
        """One rule in words, where a union would give a message per member."""
        points = points_of(weight)
        if points is None and not (is_finite_number(weight) and weight >= 0):
            raise ValueError("use a number of at least 0, or [[step, weight], ...] with ascending steps, not all 0")
        return weight if points is None else points

    @rule
    def _some_term_is_learned_at_each_step(self) -> Iterator[str]:
        if self.method == "sft":
            if "task_weight" in self.changing_weights:
                yield "method: sft has one term, whose weight cannot change; give task_weight as a number"
            return
        changing = [getattr(self, name) for name in self.changing_weights]
        switched = {"feature_weight": self.method != "kd", "relation_weight": highest(self.relation_weight) > 0}
        used = [name for name in WEIGHTS if switched.get(name, True)]
        taken = math.inf if self.max_steps is None else self.max_steps
        for step in sorted({step for points in changing for step, _ in points if step < taken}):
            if not any(weight_at(getattr(self, name), step) for name in used):
                yield f"at step {step} {' and '.join(used)} are 0, so that nothing is learned; keep one of them above 0"
                return

    @rule
    def _several_terms_are_balanced(self) -> Iterator[str]:
        given = [name for name in OF_BALANCE if name in self.model_fields_set]
        if self.balance is None and given:
            yield f"{_together(given)} with balance: gradient_norm; give that, or remove what goes with it"
        if self.balance == "measure" and "balance_max_factor" in given:
            yield "balance_max_factor goes with balance: gradient_norm, as measure multiplies no weight; remove it"
        if self.balance == "gradient_norm" and self.method != "sft" and len(self.weighed) < 2:
            yield (
                f"balance: {self.balance}: {', '.join(self.weighed)} alone has a weight above 0, and nothing to be "
                "balanced with; remove it, or raise another weight"
            )

    @rule
    def _relations_have_a_weight(self) -> Iterator[str]:
        given = [name for name in OF_RELATIONS if name in self.model_fields_set]
        if given and not highest(self.relation_weight):
            yield f"{_together(given)} with a relation_weight above 0; give one, or remove what goes with it"

    @rule
    def _parameter_of_divergence(self) -> Iterator[str]:
        for name, (kinds, _) in PARAMETERS.items():
            if getattr(self, name) is not None and self.divergence not in kinds:
                yield f"{name} goes with divergence: {' or '.join(kinds)}, not {self.divergence}; remove it"

    @property
    def needs_of_terms(self) -> dict[str, Needs]:
        """What each term that the method and the weights switch on needs; the task's is always there."""
        terms = {"task": NOTHING}
        relations = self.method != "sft" and highest(self.relation_weight) > 0
        if (self.method == "kd" and not relations) or (self.method != "sft" and highest(self.kl_weight) > 0):
            terms["prediction"] = Needs(predictions=True)
        if self.method in ("lwd", "ted"):
            terms["features"] = Needs(states=True, filters=self.method == "ted")
        if relations:
            terms["relations"] = Needs(relations=True)
        return terms

    @property
    def needs(self) -> Needs:
        """What Stage II needs in all."""
        return functools.reduce(operator.or_, self.needs_of_terms.values())

    @property
    def weighed(self) -> list[str]:
        """Weights of terms that count at some step."""
        used = [name for name in WEIGHTS if name != "feature_weight" or self.method in ("lwd", "ted")]
        used = used if self.method != "sft" else ["task_weight"]
        return [name for name in used if highest(getattr(self, name)) > 0]

    @property
    def changing_weights(self) -> list[str]:
        """Those that are not the same at all steps."""
        return [name for name in WEIGHTS if not isinstance(getattr(self, name), int | float)]

    def weights_at(self, step: int | None) -> Weights:
        """Those of a step, counted from 0; None: what each comes to at most."""
        weights = [getattr(self, name) for name in WEIGHTS]
        return Weights(*(highest(one) if step is None else weight_at(one, step) for one in weights))

    @property
    def divergence_is_of_a_package(self) -> bool:
        """Whether it is none of ted_ds."""
        return self.divergence not in get_args(OfTedDs)

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
        values.pop("kernels")  # the same losses, but for their last bits
        for name in ("divergence", *PARAMETERS):
            values.pop(name)
        if self.feature_distance == "mse":
            values.pop("feature_distance")
        if not highest(self.relation_weight):
            for name in ("relation_weight", *OF_RELATIONS):
                values.pop(name)
        if self.balance != "gradient_norm":  # what is measured alone decides nothing
            for name in ("balance", *OF_BALANCE):
                values.pop(name)
        if self.divergence != "kl":
            values["divergence"] = self.divergence
        for name, (kinds, _) in PARAMETERS.items():
            if self.divergence in kinds:
                values[name] = self.divergence_parameter
        return values


def _together(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'go' if len(names) > 1 else 'goes'}"
