"""What the task loss and the prediction term are, for each kind of task.

================================  =====================================  ==========================================
task                              task loss                              prediction term, teacher to student
================================  =====================================  ==========================================
``causal_lm``                     cross-entropy per kept token           divergence over the vocabulary, per kept
                                                                         token
``masked_lm``                     cross-entropy per masked token         divergence over the vocabulary, per masked
                                                                         or per kept token
``sequence_classification``       cross-entropy per kept example         divergence over the labels, per kept
                                                                         example
``soft_label_classification``     cross-entropy to the given             the same
                                  distribution, per kept example
``multi_label_classification``    binary cross-entropy per kept          divergence over yes and no, per kept example
                                  example and label                      and label
``regression``                    squared error per kept target          squared difference per kept target
``token_classification``          cross-entropy per word with a label,   divergence over the labels, per word with a
                                  or per token of such words             label, or per token of such words
``multiple_choice``               cross-entropy over the choices, per    divergence over the choices, per kept
                                  kept question                          question
``chat``                          cross-entropy per token of a           divergence over the vocabulary, the same or
                                  completion, or per kept token          the other of these
``question_answering``            cross-entropy per start and per end    divergence over the candidates, for start
                                  of an answer                           and end of each part of a text
================================  =====================================  ==========================================

The task loss counts what has a label, the prediction term what has tokens: an example without a label (or, of several
targets, without that one) still learns from the teacher. In ``causal_lm`` both count the tokens that have a next one,
in ``masked_lm`` those that are to be found out.

With class weights or label smoothing, the cross-entropy to one label is :class:`WeighedCrossEntropy` in training;
scores and guesses have the plain one.

The divergence is the KL, or another of :mod:`ted_ds.numerics.divergences`.

A regression output is a number, not a logit: there is no distribution to take a divergence of (a softmax over it, as in
the reference, compares the examples of a batch with each other). Two Gaussians of equal variance have a KL proportional
to the squared difference of their means, which is the term used here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from ted_ds.numerics.divergences import KL, Divergence
from ted_ds.numerics.losses import (
    bernoulli_divergence_sum,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    divergence_sum,
    kept_labels,
    soft_cross_entropy_sum,
    squared_error_sum,
    weighed_cross_entropy_sum,
)


class Law(Enum):
    """How what a model puts out is distributed."""

    CATEGORICAL = "categorical"
    """Logits: one of several outcomes."""
    BERNOULLI = "bernoulli"
    """Logits: a yes or no each."""
    NUMBER = "number"
    """As they are: nothing to soften."""


@dataclass(frozen=True)
class TaskTerms:
    """The terms of a task, each an fp32 sum over what is kept."""

    loss_sum: Callable[[Tensor, Tensor], Tensor]
    """Of logits and labels."""
    law: Law = Law.CATEGORICAL
    """Of the outputs, which decides the prediction term."""
    kept: Callable[[Tensor], Tensor] = kept_labels
    """What has a label, of the labels: the entries that the task loss runs over."""
    predicted: Callable[[Tensor, Tensor], Tensor] = lambda _labels, kept_tokens: kept_tokens.any(-1)
    """Of labels and of which tokens are data: the entries that the prediction term runs over."""
    counts_apart: bool = True
    """Whether these may be others than ``kept``."""
    in_one_pass: bool = False
    """Whether both are computed together, from what an LM head takes, and divided together."""
    divergence: Divergence = KL
    """Of the prediction term, but for numbers, which have none."""
    balance_weight: float = 0.0
    """Of the auxiliary loss of the trained model's routers, which is added to all else; 0 without."""

    @property
    def prediction_name(self) -> str:
        """The prediction term's name among the metrics: its formula."""
        if self.law is Law.NUMBER:
            return "loss/squared_teacher_student"
        return f"loss/{'bernoulli_' if self.law is Law.BERNOULLI else ''}{self.divergence.name}"

    def prediction_sum(self, student: Tensor, teacher: Tensor, keep: Tensor, temperature: float) -> Tensor:
        """The prediction term of the logits, or numbers, of both models. Gradient flows to the student's alone."""
        if self.law is Law.NUMBER:
            return squared_error_sum(student, teacher, keep=keep)
        of_logits = bernoulli_divergence_sum if self.law is Law.BERNOULLI else divergence_sum
        return of_logits(student, teacher, keep=keep, temperature=temperature, divergence=self.divergence)

    def prediction_scale(self, temperature: float) -> float:
        """``T^2`` keeps the gradient's scale independent of ``T`` (Hinton et al. 2015, section 2).

        With a high temperature the gradient of each divergence is that of the KL times a constant, and shrinks with
        ``1 / T^2``. But for ``tv``: its gradient shrinks with ``1 / T`` alone, and so grows with ``T`` here; one rule
        for all, that of the implementations beside this one.
        """
        return 1.0 if self.law is Law.NUMBER else temperature**2


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return squared_error_sum(outputs, targets, keep=kept_labels(targets))


def _of_rows_with_tokens(labels: Tensor, kept_tokens: Tensor) -> Tensor:
    """All outputs of an example that has tokens."""
    return kept_tokens.any(-1, keepdim=True).expand_as(labels)


def _of_questions_with_tokens(labels: Tensor, kept_tokens: Tensor) -> Tensor:
    """Questions, of which each choice has a row of tokens."""
    return kept_tokens.any(-1).unflatten(0, (len(labels), -1)).any(-1)


@dataclass(frozen=True)
class WeighedCrossEntropy:
    """Cross-entropy with class weights and label smoothing, of logits and labels."""

    class_weights: tuple[float, ...]
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :func:`~ted_ds.numerics.losses.weighed_cross_entropy_sum`."""
        weights = _on_device(self.class_weights, logits.device)
        return weighed_cross_entropy_sum(logits, labels, class_weights=weights, smoothing=self.smoothing)


@functools.lru_cache(maxsize=16)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Brought there once: to wait for it in every microbatch would cost more than the loss."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


CAUSAL_LM = TaskTerms(
    cross_entropy_sum,
    predicted=lambda labels, _kept_tokens: kept_labels(labels),
    counts_apart=False,
    in_one_pass=True,
)
MASKED_LM = CAUSAL_LM
MASKED_LM_ON_ALL = replace(MASKED_LM, predicted=lambda _labels, kept_tokens: kept_tokens, counts_apart=True)
SEQUENCE_CLASSIFICATION = TaskTerms(cross_entropy_sum)
SOFT_LABEL_CLASSIFICATION = TaskTerms(soft_cross_entropy_sum, kept=lambda labels: kept_labels(labels).all(-1))
MULTI_LABEL_CLASSIFICATION = TaskTerms(binary_cross_entropy_sum, Law.BERNOULLI, predicted=_of_rows_with_tokens)
REGRESSION = TaskTerms(_squared_error, Law.NUMBER, predicted=_of_rows_with_tokens)
MULTIPLE_CHOICE = replace(SEQUENCE_CLASSIFICATION, predicted=_of_questions_with_tokens)
QUESTION_ANSWERING = TaskTerms(cross_entropy_sum, predicted=_of_rows_with_tokens)
TOKEN_CLASSIFICATION = replace(SEQUENCE_CLASSIFICATION, predicted=CAUSAL_LM.predicted)
