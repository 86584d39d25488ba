"""Stage II: the student learns from the labels, the teacher's predictions and the teacher's filtered layers.

The baselines are this same code: ``sft`` has no teacher, ``kd`` no filters, ``lwd`` the identity as teacher filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ted_ds.data.loader import Batch
from ted_ds.numerics.layer_map import layer_names
from ted_ds.numerics.losses import feature_mse_sum
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.runtime.frozen import FrozenModel

TASK = "loss/task"


class DistillObjective:
    """``task + kl_weight * T^2 * KL(teacher || student; T) + feature_weight * mean over pairs of MSE``.

    Task and KL are means over kept labels; each pair's MSE is a mean over unpadded tokens. What stands for the KL in
    tasks without a distribution over classes is said in :mod:`ted_ds.numerics.task_terms`.
    """

    def __init__(
        self,
        terms: TaskTerms,
        *,
        teacher: FrozenModel,
        teacher_filters: nn.Module | None,
        student_layers: Sequence[int],
        task_weight: float,
        kl_weight: float,
        temperature: float,
        feature_weight: float,
        feature_reduction: str,
        normalise_features: bool,
        num_shared_ids: int | None = None,
    ) -> None:
        """Weigh the terms.

        Args:
            terms: What the task loss and the prediction term are.
            teacher: Tapped at the teacher's side of the layer map.
            teacher_filters: In the order of the layer map; None for ``kd``.
            student_layers: The student's side of the layer map, for the names of the terms.
            task_weight: Weight of the task loss.
            kl_weight: Weight of the KL term.
            temperature: Softens both predictions of the KL term.
            feature_weight: Weight of the layer-wise term.
            feature_reduction: ``mean`` or ``sum`` over pairs.
            normalise_features: Compare features after normalising each token's.
            num_shared_ids: For causal LM, the number of ids the tokenizer has. The prediction term is over these
                alone: vocabularies of one family are padded to different sizes, and no token has a padded id.
        """
        self._terms = terms
        self._teacher = teacher
        self._teacher_filters = teacher_filters
        self._temperature = temperature
        self._normalise_features = normalise_features
        self._num_shared_ids = num_shared_ids
        self._needs_predictions = kl_weight > 0
        layers = student_layers if teacher_filters is not None else ()
        self._feature_names = [f"loss/feature_mse/{name}" for name in layer_names(layers)]
        per_pair = feature_weight / (len(layers) if feature_reduction == "mean" and layers else 1)
        prediction_weight = kl_weight * terms.prediction_scale(temperature)
        self.weights: Mapping[str, float] = {
            TASK: task_weight,
            **({terms.prediction_name: prediction_weight} if self._needs_predictions else {}),
            **dict.fromkeys(self._feature_names, per_pair),
        }

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Kept labels for task and predictions, unpadded tokens for the layers."""
        kept, tokens = self._terms.kept(batch.labels).sum(), batch.kept_tokens.sum()
        return {name: tokens if name in self._feature_names else kept for name in self.weights}

    def totals(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """All terms of a microbatch; ``forward`` is the filtered student's."""
        teacher_logits, teacher_states = self._teacher(batch.inputs, with_logits=self._needs_predictions)
        student_logits, student_features = forward(batch.inputs)
        totals = {TASK: self._terms.loss_sum(student_logits, batch.labels)}
        if teacher_logits is not None:
            shared = slice(self._num_shared_ids)
            totals[self._terms.prediction_name] = self._terms.prediction_sum(
                student_logits[..., shared],
                teacher_logits[..., shared],
                self._terms.kept(batch.labels),
                self._temperature,
            )
        if self._teacher_filters is not None:
            with torch.no_grad():
                teacher_features = self._teacher_filters(teacher_states)
            for name, student, teacher in zip(self._feature_names, student_features, teacher_features, strict=True):
                totals[name] = feature_mse_sum(
                    student, teacher, keep=batch.kept_tokens, normalise=self._normalise_features
                )
        return totals
