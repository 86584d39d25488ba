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

The task loss counts what has a label, the prediction term what has tokens: an example without a label (or, of several
targets, without that one) still learns from the teacher. In ``causal_lm`` both count the tokens that have a next one.

A regression output is a number, not a logit: there is no distribution to take a KL of (a softmax over it, as in the
reference, compares the examples of a batch with each other). Two Gaussians of equal variance have a KL proportional
to the squared difference of their means, which is the term used here.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """What has a label, of the labels: the entries that the task loss runs over."""
    predicted: Callable[[Tensor, Tensor], Tensor] = lambda _labels, kept_tokens: kept_tokens.any(-1)
    """Of labels and of which tokens are data: the entries that the prediction term runs over."""
    counts_apart: bool = True
    """Whether these may be others than ``kept``."""

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


def _of_rows_with_tokens(labels: Tensor, kept_tokens: Tensor) -> Tensor:
    """All outputs of an example that has tokens."""
    return kept_tokens.any(-1, keepdim=True).expand_as(labels)


CAUSAL_LM = TaskTerms(
    cross_entropy_sum,
    "loss/kl_teacher_student",
    _kl,
    predicted=lambda labels, _kept_tokens: kept_labels(labels),
    counts_apart=False,
)
SEQUENCE_CLASSIFICATION = TaskTerms(cross_entropy_sum, "loss/kl_teacher_student", _kl)
SOFT_LABEL_CLASSIFICATION = TaskTerms(
    soft_cross_entropy_sum, "loss/kl_teacher_student", _kl, kept=lambda labels: kept_labels(labels).all(-1)
)
MULTI_LABEL_CLASSIFICATION = TaskTerms(
    binary_cross_entropy_sum, "loss/bernoulli_kl_teacher_student", _bernoulli_kl, predicted=_of_rows_with_tokens
)
REGRESSION = TaskTerms(
    _squared_error,
    "loss/squared_teacher_student",
    _squared_difference,
    softened=False,
    predicted=_of_rows_with_tokens,
)
