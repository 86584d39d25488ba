"""What a model predicts, as losses and scores read it: logits where they are few, else what its LM head would take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Union, overload

import torch
from torch import Tensor, nn

from ted_ds.models.cached_predictions import CachedPredictions
from ted_ds.numerics.balance import balance_sum
from ted_ds.numerics.chunks import KeptRows
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.losses import among_candidates, kept_labels
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses, vocabulary_scores
from ted_ds.numerics.vocabulary_job import Kernels


class VocabularyHead(nn.Linear):
    """An LM head that lends its weights to whoever computes with them, instead of computing all logits.

    They are lent within its forward call, where an engine that shards them has them whole.
    """

    rule: LogitRule = PLAIN
    """What the model around it makes of its products."""
    added: Tensor | None = None
    """What that adds to them, ``[vocab]``, where it has a bias that is not the head's."""

    @classmethod
    def of(cls, linear: nn.Linear, rule: LogitRule = PLAIN) -> VocabularyHead:
        """The same head; the weights are shared."""
        with torch.device("meta"):
            head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        head.weight, head.bias = linear.weight, linear.bias
        head.rule = rule
        return head

    @overload
    def forward(self, input: Tensor) -> Tensor: ...

    @overload
    def forward(
        self, input: Tensor, use: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]: ...

    def forward(
        self,
        input: Tensor,
        use: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The products of states, which the rule makes logits of; or what ``use`` makes of weight and bias."""
        if use is None:
            return super().forward(input)
        return use(self.weight, self.bias if self.added is None else self.added.to(self.weight.dtype))


@dataclass(frozen=True)
class LossWeights:
    """How a student's predictions are weighed."""

    task: float = 1.0
    prediction: float | Tensor = 0.0
    """With the square of the temperature in it, where that belongs; a tensor where it hangs on the counts of a step."""
    temperature: float = 1.0
    num_shared_ids: int | None = None
    """Of a vocabulary, the first so many that both models have."""
    on_teacher_task: Callable[[Tensor], None] | None = None
    """Gets the sum of the teacher's own task loss; None: it is not computed."""
    kernels: Kernels = "torch"
    """What computes the losses of a language model."""


@dataclass(frozen=True)
class PredictionLosses:
    """Sums: of the task loss over what has a label, of the prediction term over what the teacher predicts."""

    weighted: Tensor
    """With graph: of the task loss, and of all that is divided by its count."""
    task: Tensor
    prediction: Tensor | None = None
    """None without a teacher."""
    weighted_prediction: Tensor | None = None
    """With graph, where the prediction term has a count of its own."""


class Labelled(Protocol):
    """What a batch says of the predictions that are wanted (:class:`ted_ds.data.loader.Batch`)."""

    @property
    def labels(self) -> Tensor:
        """They stand where the logits that predict them stand."""
        ...

    @property
    def kept_tokens(self) -> Tensor:
        """Which tokens are data: of examples without any, a teacher predicts nothing."""
        ...

    @property
    def label_rows(self) -> Tensor | None:
        """Which of the flattened labels are kept; None for all."""
        ...

    @property
    def predicted(self) -> Tensor | None:
        """Where predictions are compared with the teacher's; None where the task says it."""
        ...

    @property
    def candidates(self) -> Tensor | None:
        """Which positions have a probability, where positions are predicted; else None."""
        ...

    @property
    def output_rows(self) -> Tensor | None:
        """Which of the flattened labels are kept, or stand where predictions are compared; None for all."""
        ...


Taught = Union["Predictions", CachedPredictions]
"""What a teacher hands over."""


def predicted_of(terms: TaskTerms, batch: Labelled) -> Tensor:
    """What the prediction term runs over."""
    return terms.predicted(batch.labels, batch.kept_tokens) if batch.predicted is None else batch.predicted


class Predictions(Protocol):
    """What a model predicts of a batch."""

    def losses(
        self,
        terms: TaskTerms,
        batch: Labelled,
        weights: LossWeights,
        teacher: Taught | None = None,
    ) -> PredictionLosses:
        """The task loss, and the prediction term where there is a teacher (with predictions of the same class).

        Those of an LM head may also be what was kept of a teacher's.
        """
        ...

    def balance(self, batch: Labelled) -> Tensor:
        """The auxiliary loss of the routers, of a model that has such a loss."""
        ...

    def outputs(self, batch: Labelled) -> Tensor:
        """What scores are computed from."""
        ...

    def task_sums(self, terms: TaskTerms, batch: Labelled) -> list[float]:
        """The task loss of each row."""
        ...


@dataclass(frozen=True)
class DensePredictions(Predictions):
    """A logit or number per label."""

    logits: Tensor

    def losses(
        self,
        terms: TaskTerms,
        batch: Labelled,
        weights: LossWeights,
        teacher: Taught | None = None,
    ) -> PredictionLosses:
        """See :class:`Predictions`."""
        logits = self.outputs(batch)
        task = terms.loss_sum(logits, batch.labels)
        if teacher is None:
            return PredictionLosses(weights.task * task, task.detach())
        assert isinstance(teacher, DensePredictions)
        if weights.on_teacher_task is not None:
            weights.on_teacher_task(terms.loss_sum(teacher.outputs(batch), batch.labels))
        predicted = predicted_of(terms, batch)
        prediction = terms.prediction_sum(logits, teacher.outputs(batch), predicted, weights.temperature)
        return PredictionLosses(
            weights.task * task, task.detach(), prediction.detach(), weights.prediction * prediction
        )

    def balance(self, batch: Labelled) -> Tensor:  # noqa: ARG002 - as the others
        """None: only language models add such a loss to their own."""
        raise AssertionError(f"a model of {self.logits.shape[-1]} outputs has no routers to balance")

    def outputs(self, batch: Labelled) -> Tensor:
        """The logits; of positions, ``[batch, outputs, seq]``, those that are no candidates have no probability."""
        return self.logits if batch.candidates is None else among_candidates(self.logits, batch.candidates)

    def task_sums(self, terms: TaskTerms, batch: Labelled) -> list[float]:
        """The task loss of each row."""
        rows = zip(self.outputs(batch).split(1), batch.labels.split(1), strict=True)
        return [float(terms.loss_sum(*of_row)) for of_row in rows]


@dataclass(frozen=True)
class VocabularyPredictions(Predictions):
    """What the head of a language model takes, and that head; logits never exist all at once."""

    hidden: Tensor
    head: VocabularyHead
    router_logits: Sequence[Tensor] = ()
    """Of each block with experts, ``[batch * seq, experts]``; none where routers are not balanced."""
    num_chosen: int = 0
    """How many experts a token goes through."""

    def losses(
        self,
        terms: TaskTerms,
        batch: Labelled,
        weights: LossWeights,
        teacher: Taught | None = None,
    ) -> PredictionLosses:
        """Cross-entropy, and the divergence where there is a teacher: the terms of a language model."""
        if teacher is None:
            weighted, task, _ = self._read(
                VocabularyTargets(batch.labels, weights.task, kept=KeptRows(batch.label_rows), kernels=weights.kernels)
            )
            return PredictionLosses(weighted, task)
        own = VocabularyTargets(
            batch.labels,
            weights.task,
            predicted=batch.predicted,
            kept=KeptRows(batch.output_rows),
            kernels=weights.kernels,
        )
        if isinstance(teacher, CachedPredictions):
            if weights.on_teacher_task is not None and teacher.task_loss is not None:
                weights.on_teacher_task(teacher.task_loss)
            of_cache = teacher.targets(
                terms.divergence,
                weight=weights.prediction,
                temperature=weights.temperature,
                num_shared_ids=weights.num_shared_ids,
            )
            return PredictionLosses(*self._read(replace(own, teacher=of_cache)))
        assert isinstance(teacher, VocabularyPredictions)
        found: list[PredictionLosses] = []

        def with_both(teacher_weight: Tensor, teacher_bias: Tensor | None) -> tuple[Tensor, ...]:
            targets = TeacherPredictions(
                teacher.hidden,
                teacher_weight,
                teacher_bias,
                weights.temperature,
                weights.prediction,
                weights.num_shared_ids,
                terms.divergence,
                teacher.head.rule,
                weights.on_teacher_task,
            )
            found.append(PredictionLosses(*self._read(replace(own, teacher=targets))))
            # what a sharded teacher's module returns with a graph, its engine would fetch weights for in backward
            return ()

        teacher.head(teacher.hidden, with_both)
        return found[0]

    def balance(self, batch: Labelled) -> Tensor:
        """The auxiliary loss of the routers, summed over tokens (:func:`~ted_ds.numerics.balance.balance_sum`)."""
        return balance_sum(self.router_logits, batch.kept_tokens, self.num_chosen)

    def outputs(self, batch: Labelled) -> Tensor:
        """The sum of the cross-entropies, and how many labels have the largest logit."""

        def scored(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            return (vocabulary_scores(self.hidden, weight, bias, batch.labels, self.head.rule),)

        return self.head(self.hidden, scored)[0]

    def task_sums(self, terms: TaskTerms, batch: Labelled) -> list[float]:  # noqa: ARG002 - as the others
        """The cross-entropy of each row."""

        def by_row(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            return tuple(
                vocabulary_losses(hidden, weight, bias, VocabularyTargets(row), self.head.rule)[1]
                for hidden, row in zip(self.hidden, batch.labels, strict=True)
            )

        return [float(one) for one in self.head(self.hidden, by_row)]

    def row_scores(self, labels: Tensor) -> Tensor:
        """Of each row, ``[rows, 2]``: the cross-entropy, and 1 where each label has the largest logit, else 0."""

        def by_row(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            found = []
            for hidden, row in zip(self.hidden, labels, strict=True):
                loss = vocabulary_losses(hidden, weight, bias, VocabularyTargets(row), self.head.rule)[1]
                right = (self._is_largest(state, label, weight, bias) for state, label in _kept(hidden, row))
                found.append(torch.stack((loss, loss.new_tensor(float(all(right))))))
            return (torch.stack(found),)

        return self.head(self.hidden, by_row)[0]

    def next_tokens(self, num_ids: int | None = None) -> list[int]:
        """The most probable token, of the first ``num_ids``, behind the last one of each row."""

        def largest(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            products = nn.functional.linear(self.hidden[:, -1].to(weight.dtype), weight, bias)
            return (products[:, :num_ids].argmax(-1),)  # a rule changes no order

        return self.head(self.hidden, largest)[0].tolist()

    @staticmethod
    def _is_largest(state: Tensor, label: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        # a rule changes no order
        products = nn.functional.linear(state.to(weight.dtype), weight, bias)
        return bool(products.argmax() == label)

    def _read(self, targets: VocabularyTargets) -> tuple[Tensor, Tensor, Tensor]:
        weighted, cross_entropy, divergence = self.head(
            self.hidden, lambda weight, bias: vocabulary_losses(self.hidden, weight, bias, targets, self.head.rule)
        )
        return weighted, cross_entropy, divergence


def _kept(hidden: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each state that has a label, and that."""
    rows = kept_labels(labels)
    return zip(hidden[rows], labels[rows], strict=True)
