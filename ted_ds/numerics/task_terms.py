"""What the task loss and the prediction term are, for each kind of task.

================================  =====================================  ==========================================
task                              task loss                              prediction term, teacher to student
================================  =====================================  ==========================================
``causal_lm``                     cross-entropy per kept token           KL over the vocabulary, per kept token
``sequence_classification``       cross-entropy per kept example         KL over the labels, per kept example
``soft_label_classification``     cross-entropy to the given             the same
                                  distribution, per kept example
``multi_label_classification``    binary cross-entropy per kept          Bernoulli KL per kept example and label
                                  example and label
``regression``                    squared error per kept target          squared difference per kept target
================================  =====================================  ==========================================

A regression output is a number, not a logit: there is no distribution to take a KL of (a softmax over it, as in the
reference, compares the examples of a batch with each other). Two Gaussians of equal variance have a KL proportional
to the squared difference of their means, which is the term used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ted_ds.numerics.losses import (
    bernoulli_kl_sum,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    kept_labels,
    kl_divergence_sum,
    soft_cross_entropy_sum,
    squared_error_sum,
)


@dataclass(frozen=True)
class TaskTerms:
    """The terms of a task, each an fp32 sum over what is kept."""

    loss_sum: Callable[[Tensor, Tensor], Tensor]
    """Of logits and labels."""
    prediction_name: str
    """The prediction term's name among the metrics: its formula."""
    prediction_sum: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """Of student logits, teacher logits, what is kept, and the temperature."""
    softened: bool = True
    """Whether a temperature softens the predictions. The gradient of such a term shrinks with its square."""
    kept: Callable[[Tensor], Tensor] = kept_labels
    """What counts, of the labels: the entries that the two sums run over."""

    def prediction_scale(self, temperature: float) -> float:
        """``T^2`` keeps the gradient's scale independent of ``T`` (Hinton et al. 2015, section 2)."""
        return temperature**2 if self.softened else 1.0


def _kl(student: Tensor, teacher: Tensor, keep: Tensor, temperature: float) -> Tensor:
    return kl_divergence_sum(student, teacher, keep=keep, temperature=temperature)


def _bernoulli_kl(student: Tensor, teacher: Tensor, keep: Tensor, temperature: float) -> Tensor:
    return bernoulli_kl_sum(student, teacher, keep=keep, temperature=temperature)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return squared_error_sum(outputs, targets, keep=kept_labels(targets))


def _squared_difference(student: Tensor, teacher: Tensor, keep: Tensor, _temperature: float) -> Tensor:
    return squared_error_sum(student, teacher, keep=keep)


_CATEGORICAL = TaskTerms(cross_entropy_sum, "loss/kl_teacher_student", _kl)
TASK_TERMS: Mapping[str, TaskTerms] = {
    "causal_lm": _CATEGORICAL,
    "sequence_classification": _CATEGORICAL,
    "soft_label_classification": TaskTerms(
        soft_cross_entropy_sum, "loss/kl_teacher_student", _kl, kept=lambda labels: kept_labels(labels).all(-1)
    ),
    "multi_label_classification": TaskTerms(
        binary_cross_entropy_sum, "loss/bernoulli_kl_teacher_student", _bernoulli_kl
    ),
    "regression": TaskTerms(_squared_error, "loss/squared_teacher_student", _squared_difference, softened=False),
}
