"""Stage II where each model reads by a tokenizer of its own: layers are compared by one state of each text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ted_ds.config.distill import Distill
from ted_ds.data.loader import Batch
from ted_ds.numerics.filters import FilterBank, OfTexts, Pooling
from ted_ds.numerics.layer_map import Layer
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.teacher import Teacher


@dataclass(frozen=True)
class ReadAt:
    """Where in a text its features are read, as in Stage I (:func:`ted_ds.numerics.filters.pool`)."""

    how: str
    unread_id: int | None = None
    """See :attr:`ted_ds.models.taps.TappedModel.unread_id`."""

    def of(self, batch: Batch) -> Pooling:
        """That place in each text of a batch in the model's own tokens."""
        unread = None if self.unread_id is None else batch.input_ids == self.unread_id
        return Pooling(self.how, batch.attention_mask, unread)


def _count_texts(batch: Batch) -> Tensor:
    return batch.texts.sum()


class TextDistillObjective(DistillObjective):
    """Stage II whose layer-wise terms are over texts, not over tokens: those of two tokenizers do not pair.

    Each pair's MSE is that of one filtered state of each text: of the one that Stage I reads, by which the model says
    what it predicts (its first token, its last, or the mean of all). Both terms of predictions are as ever.
    """

    compared: ClassVar[str] = "text_feature"

    def __init__(
        self,
        task: TaskTerms,
        plan: Distill,
        *,
        teacher: Teacher,
        teacher_filters: FilterBank | None,
        student_layers: Sequence[Layer],
        read_at: Mapping[str, ReadAt | None],
    ) -> None:
        """See :class:`DistillObjective`; ``read_at`` says where each side reads a text.

        None stands for a teacher that hands over states of texts.
        """
        super().__init__(task, plan, teacher=teacher, teacher_filters=teacher_filters, student_layers=student_layers)
        self._read_at = read_at

    def _counter_of(self, layer: Layer) -> Callable[[Batch], Tensor]:  # noqa: ARG002 - of all layers alike
        return _count_texts

    def _texts_of(self, batch: Batch) -> OfTexts:
        student, teacher = self._read_at["student"], self._read_at["teacher"]
        assert student is not None
        of_teacher = None if teacher is None else teacher.of(batch.read_by("teacher"))
        return OfTexts(student.of(batch), of_teacher, batch.texts)
