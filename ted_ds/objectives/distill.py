"""Stage II: the student learns from the labels, the teacher's predictions and the teacher's filtered layers.

The baselines are this same code: ``sft`` has no teacher, ``kd`` no filters, ``lwd`` the identity as teacher filter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ted_ds.config.distill import PLUG_INS, WEIGHTS, Distill, Weights
from ted_ds.data.loader import Batch
from ted_ds.models.family import DECODER
from ted_ds.models.plug_ins import load_plug_in
from ted_ds.models.predictions import LossWeights, Predictions, Taught, predicted_of
from ted_ds.models.student import Matcher
from ted_ds.numerics.divergences import DIVERGENCES, Divergence, make_divergence
from ted_ds.numerics.feature_distances import FeatureDistance
from ted_ds.numerics.filters import FilterBank, Match, OfTexts
from ted_ds.numerics.layer_map import Layer, layer_names, stack_of
from ted_ds.numerics.likeness import Gauge
from ted_ds.numerics.objective import combine
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.objectives.finetune import BALANCE, TASK, balance_terms, label_counter
from ted_ds.objectives.gradient_balance import GradientBalance
from ted_ds.objectives.own_term import OwnTerm, Taps
from ted_ds.objectives.relations import Relations
from ted_ds.objectives.teacher_view import TeacherView
from ted_ds.objectives.term import Term, Terms
from ted_ds.output.step_parts import FORWARD, LOSSES, TEACHER
from ted_ds.runtime.step_clock import timed
from ted_ds.runtime.teacher import Teacher


def _count_tokens(batch: Batch) -> Tensor:
    """Those whose states are compared: not the padding, and not what an empty row attends to."""
    return batch.matched_tokens.sum()


def _count_targets(batch: Batch) -> Tensor:
    """The same of a decoder's states."""
    assert batch.kept_targets is not None
    return batch.kept_targets.sum()


RELATION = "loss/relation_kl"


def _divergence_of(plan: Distill) -> Divergence:
    """That of a plan: one of ted_ds, or of an installed package.

    Raises:
        OwnCodeError: The package's cannot be loaded.
    """
    if plan.divergence not in DIVERGENCES:
        more = load_plug_in(PLUG_INS, plan.divergence, Divergence)
        assert more is not None, "a recipe has no other names"
        return more
    return make_divergence(plan.divergence, plan.divergence_parameter)


def _count_own(batch: Batch, *, layer: Layer, own: OwnTerm) -> Tensor:
    return own.count(batch.compared(layer))


@dataclass(frozen=True)
class StageLoss:
    """What of the loss is found on one pipeline stage."""

    places: Sequence[int]
    """Which places in the layer map are compared here."""
    has_output: bool
    """Whether the predictions are made here."""


class DistillObjective(Terms):
    """``task + kl_weight * T^2 * D(teacher, student; T) + feature_weight * mean over pairs of MSE``.

    The task loss is a mean over kept labels, the divergence D over what the teacher predicts (examples without a label,
    too), and each pair's MSE over unpadded tokens, or those of them that a batch names. What stands for D in tasks
    without a distribution over classes is said in :mod:`ted_ds.numerics.task_terms`.
    """

    compared: ClassVar[str] = "feature"
    """Begins the name of each pair's term, behind ``loss/`` and before the distance."""

    def __init__(
        self,
        task: TaskTerms,
        plan: Distill,
        *,
        teacher: Teacher,
        teacher_filters: FilterBank | None,
        student_layers: Sequence[Layer],
        num_shared_ids: int | None = None,
        here: StageLoss | None = None,
    ) -> None:
        """Make the terms that the plan switches on.

        Args:
            task: What the task loss and the prediction term are, but for its divergence.
            plan: Which terms there are, with which divergence, and how they weigh.
            teacher: Gives states at the teacher's side of the layer map.
            teacher_filters: What those still have to go through, in the order of the layer map; None for ``kd``.
            student_layers: The student's side of the layer map, for the names of the terms.
            num_shared_ids: For causal LM, the number of ids the tokenizer has. The prediction term is over these
                alone: vocabularies of one family are padded to different sizes, and no token has a padded id.
            here: What of the loss this pipeline stage finds; None for all of it.
        """
        task = replace(task, divergence=_divergence_of(plan))
        self._task, self._teacher, self._teacher_filters = task, teacher, teacher_filters
        self._plan = plan
        self._distance = FeatureDistance(plan.feature_distance, plan.normalise_features)
        self._student_layers = student_layers
        self._feature_names = [
            f"loss/{self.compared}_{plan.feature_distance}/{name}" for name in layer_names(student_layers)
        ]
        needs = plan.needs_of_terms
        terms = [Term(TASK, 1.0, label_counter(task), needs["task"]), *balance_terms(task)]
        if "prediction" in needs:
            terms.append(Term(task.prediction_name, 1.0, self._count_predicted, needs["prediction"]))
        if "features" in needs:
            compared_by = zip(self._feature_names, map(self._counter_of, student_layers), strict=True)
            terms += [Term(name, 1.0, count, needs["features"]) for name, count in compared_by]
        if "relations" in needs:
            terms.append(Term(RELATION, 1.0, _count_tokens, needs["relations"]))
        super().__init__(terms)
        self.relations: Relations | None = None
        """Whose attention relations are compared, where the plan wants that; given before the first loss."""
        self._loss_weights = LossWeights(1.0, 1.0, plan.temperature, num_shared_ids, kernels=plan.kernels)
        with_output = [TASK, *([task.prediction_name] if self.needs.predictions and not task.in_one_pass else [])]
        compared = self._feature_names if self.needs.states else []
        if here is not None:
            compared = [name for place, name in enumerate(compared) if place in here.places]
            with_output = with_output if here.has_output else []
        self._compared_here = compared
        related = [RELATION] if self.needs.relations else []
        self._weights_of_sums = dict.fromkeys([*with_output, *compared, *related], 1.0)
        self._has_balance = task.balance_weight != 0 and bool(with_output)
        names = layer_names(student_layers)
        self._view = TeacherView(names if self.needs.states else (), with_task=self.needs.predictions)
        self._layer_names = names
        self._own: list[dict[str, OwnTerm]] = [{} for _ in student_layers]
        """Terms of the user's by their names, at each place in the layer map."""
        self.begin_step(0)

    def watch(self, wanted: bool) -> None:
        """See :class:`~ted_ds.objectives.term.Terms`: how near the student is to its teacher."""
        self._view.is_open = wanted

    def seen(self, device: torch.device) -> Tensor:
        """See :class:`~ted_ds.objectives.term.Terms`."""
        return self._view.take(device)

    def told(self, sums: Sequence[float]) -> dict[str, float]:
        """See :class:`~ted_ds.objectives.teacher_view.TeacherView`."""
        return self._view.told(sums)

    def balance_on(self, parameters: Sequence[nn.Parameter]) -> None:
        """Measure terms' gradients on these parameters, and let weights be shares of them where the plan wants that."""
        self.balance = GradientBalance(self._plan, parameters, weigh=self._weigh)

    def add_own(self, own: Sequence[OwnTerm]) -> None:
        """Learn from terms of the user's, too, wherever layers are compared."""
        terms: list[Term] = []
        for place, name in enumerate(layer_names(self._student_layers)):
            self._own[place] = {f"loss/{one.name}/{name}": one for one in own}
            share = 1 / len(self._student_layers)
            counter = functools.partial(_count_own, layer=self._student_layers[place])
            terms += [
                Term(whole, one.weight * share, functools.partial(counter, own=one))
                for whole, one in self._own[place].items()
            ]
            if self._feature_names[place] in self._compared_here:
                self._weights_of_sums |= {whole: one.weight * share for whole, one in self._own[place].items()}
        self.terms = (*self.terms, *terms)

    @property
    def changing_weights(self) -> dict[str, float]:
        """See :class:`~ted_ds.objectives.term.Terms`."""
        balanced = None if self.balance is None or not self.balance.weighs else self.balance.terms
        changing = self._plan.changing_weights if balanced is None else balanced
        weights = {f"train/{name}": one for name, one in zip(WEIGHTS, self._used, strict=True) if name in changing}
        return weights if self.balance is None else {**weights, **self.balance.reported}

    def begin_step(self, step: int | None) -> None:
        """See :class:`~ted_ds.objectives.term.Terms`."""
        self._begun = self._plan.weights_at(step)
        if self.balance is not None:
            self.balance.begin_step(step)
        self._weigh()

    def _weigh(self, alone: str | None = None) -> None:
        """Weigh terms as at the step that was begun, or one of the plan's weights by 1 and all others by 0."""
        self._used = weights = self._begun
        self._is_alone = alone is not None
        if alone is not None:
            weights = Weights(*(float(name == alone) for name in WEIGHTS))
        elif self.balance is not None:
            factors = (self.balance.factor(name) if name in self.balance.terms else 1.0 for name in WEIGHTS)
            self._used = weights = Weights(*(w * factor for w, factor in zip(self._begun, factors, strict=True)))
        num_pairs = max(len(self._student_layers), 1) if self._plan.feature_reduction == "mean" else 1
        per_pair = weights.features / num_pairs
        of_prediction = weights.prediction * self._task.prediction_scale(self._plan.temperature)
        of_terms = {TASK: weights.task, self._task.prediction_name: of_prediction}
        of_terms |= {**dict.fromkeys(self._feature_names, per_pair), RELATION: weights.relations}
        self.terms = tuple(replace(term, weight=of_terms.get(term.name, term.weight)) for term in self.terms)
        self._loss_weights = replace(self._loss_weights, task=weights.task, prediction=of_prediction)
        self._weights_of_sums.update(dict.fromkeys(self._compared_here, per_pair))
        if self.needs.relations:
            self._weights_of_sums[RELATION] = weights.relations
        if self._has_balance:
            self._weights_of_sums[BALANCE] = self._task.balance_weight if alone is None else 0.0

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """See :class:`~ted_ds.objectives.term.Terms`."""
        if self.needs.relations:
            batch.text_sizes(0)
        if self._distance.is_of_texts:
            for layer in self._student_layers:  # on the host, which would wait for a device later
                batch.text_sizes(layer)
        return super().counts(batch)

    def _counter_of(self, layer: Layer) -> Callable[[Batch], Tensor]:
        """Counts what of a layer is compared."""
        return _count_targets if stack_of(layer) == DECODER else _count_tokens

    def _texts_of(self, batch: Batch) -> OfTexts | None:  # noqa: ARG002 - where tokens do not pair
        """Of which texts of a batch one state each is compared; None where states of tokens are."""
        return None

    @property
    def _is_watched(self) -> bool:
        """Whether what passes is looked at: it is the step's own, and the step is one that is looked at."""
        return self._view.is_open and not self._is_alone

    def _gauge_of(self, place: int, batch: Batch, rows: Tensor | None) -> Gauge | None:
        """What looks at a pair's filtered states; None in passes that are not looked at."""
        if not self._is_watched:
            return None
        keep = batch.compared(self._student_layers[place])
        return Gauge(self._view.of_layer(self._layer_names[place]), keep, rows)

    def _count_predicted(self, batch: Batch) -> Tensor:
        """Of what the teacher predicts."""
        return predicted_of(self._task, batch).sum()

    def _weights_by(self, counts: Mapping[str, Tensor]) -> LossWeights:
        """What is computed in one pass is one sum, of which all is divided by the task's count."""
        weights, task = self._loss_weights, self._task
        if not (self.needs.predictions and task.in_one_pass and task.counts_apart):
            return weights
        of_task, of_prediction = (counts[name].clamp(min=1) for name in (TASK, task.prediction_name))
        return replace(weights, prediction=weights.prediction * of_task / of_prediction)

    def _taps(self, place: int, batch: Batch, state: Tensor, match: Matcher) -> Taps:
        assert self._teacher_filters is not None
        layer, teacher_filter = self._student_layers[place], self._teacher_filters.filters[place]
        return Taps(
            layer,
            match.state(place),
            state,
            batch.compared(layer),
            filter_student=functools.partial(match.filtered, place),
            filter_teacher=functools.partial(teacher_filter, state),
        )

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A microbatch's share of the step's loss, and each term's sum; ``forward`` is the filtered student's.

        The student goes first, as its states stay for its backward pass anyway: each of the teacher's is compared as
        soon as it exists, and freed.
        """
        totals: dict[str, Tensor] = {}
        texts = self._texts_of(batch)

        if self.relations is not None:
            self.relations.student.listen()

        @timed(LOSSES)
        def learn(student: Predictions | None, match: Matcher) -> Tensor:
            sums: dict[str, Tensor] = {}
            of_teacher: list[Tensor] = []
            related = None if self.relations is None else self.relations.begin()

            @timed(LOSSES)
            def compare_states(place: int, state: Tensor) -> None:
                assert self._teacher_filters is not None
                teacher_filter: Any = self._teacher_filters.filters[place]
                name = self._feature_names[place]
                layer = self._student_layers[place]
                rows = batch.compared_rows(layer) if texts is None else None
                sizes = batch.text_sizes(layer) if self._distance.is_of_texts else None
                gauge = self._gauge_of(place, batch, rows)
                compared = Match(state, teacher_filter, rows, self._distance, sizes, texts, gauge)
                sums[name] = match(place, compared)
                totals[name] = sums[name].detach()
                for whole, own in self._own[place].items():
                    sums[whole] = own.sum(self._taps(place, batch, state, match))
                    totals[whole] = sums[whole].detach()

            @timed(LOSSES)
            def compare_predictions(teacher: Taught | None) -> None:
                if self.relations is not None and related is not None:
                    sums[RELATION] = self.relations.sum(related, batch)
                    totals[RELATION] = sums[RELATION].detach()
                if student is None:  # they are made on the last stage of a pipeline
                    return
                weights = replace(
                    self._weights_by(counts), on_teacher_task=of_teacher.append if self._is_watched else None
                )
                losses = student.losses(self._task, batch, weights, teacher)
                sums[TASK] = losses.weighted
                totals[TASK] = losses.task
                if self._has_balance:
                    sums[BALANCE] = student.balance(batch)
                    totals[BALANCE] = sums[BALANCE].detach()
                if losses.weighted_prediction is not None:
                    sums[self._task.prediction_name] = losses.weighted_prediction
                if losses.prediction is not None:
                    totals[self._task.prediction_name] = losses.prediction
                for task_loss in of_teacher:
                    self._view.add_task(losses.task, task_loss, self._task.kept(batch.labels).sum())

            with timed(TEACHER):
                self._teacher.teach(
                    batch,
                    compare_predictions,
                    with_predictions=self.needs.predictions and student is not None,
                    on_state=compare_states if self.needs.states else None,
                )
            own_counts = {name: counts[name] for name in self._weights_of_sums}
            return combine(sums, own_counts, self._weights_of_sums)

        with timed(FORWARD):
            loss = forward(batch.inputs, learn)
        return loss, {name: totals[name] for name in self.weights if name in totals}
