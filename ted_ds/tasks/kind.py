"""Which module knows a kind of task: the one place that asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ted_ds.config import tasks as sections
from ted_ds.tasks.base import TaskKind
from ted_ds.tasks.causal_lm import CausalLmKind
from ted_ds.tasks.chat import ChatKind
from ted_ds.tasks.masked_lm import MaskedLmKind
from ted_ds.tasks.multi_label_classification import MultiLabelClassificationKind
from ted_ds.tasks.multiple_choice import MultipleChoiceKind
from ted_ds.tasks.question_answering import QuestionAnsweringKind
from ted_ds.tasks.regression import RegressionKind
from ted_ds.tasks.seq2seq import Seq2SeqKind
from ted_ds.tasks.sequence_classification import SequenceClassificationKind
from ted_ds.tasks.soft_label_classification import SoftLabelClassificationKind
from ted_ds.tasks.token_classification import TokenClassificationKind

AnyKind = TaskKind[Any]
KINDS: Mapping[type[sections.TaskSection], type[AnyKind]] = {
    sections.CausalLm: CausalLmKind,
    sections.MaskedLm: MaskedLmKind,
    sections.Chat: ChatKind,
    sections.Seq2Seq: Seq2SeqKind,
    sections.SequenceClassification: SequenceClassificationKind,
    sections.SoftLabelClassification: SoftLabelClassificationKind,
    sections.MultiLabelClassification: MultiLabelClassificationKind,
    sections.Regression: RegressionKind,
    sections.TokenClassification: TokenClassificationKind,
    sections.MultipleChoice: MultipleChoiceKind,
    sections.QuestionAnswering: QuestionAnsweringKind,
}


def kind_of(task: sections.Task) -> AnyKind:
    """All there is to know of a recipe's task."""
    return KINDS[type(task)](task)
