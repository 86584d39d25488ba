"""Which module knows a kind of task: the one place that asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def task_of_head(problem_type: str | None, names: Sequence[str], max_length: int) -> sections.TaskSection | None:
    """A task that reads a text as a classifier of transformers does, as far as its predictions hang on it.

    Args:
        problem_type: What its config says; None for what transformers takes it for then, by the number of outputs.
        names: Of its outputs.
        max_length: The longest text in tokens.

    Returns:
        None where no task has such a head.
    """
    if problem_type is None:
        problem_type = "regression" if len(names) == 1 else "single_label_classification"
    for section, kind in KINDS.items():
        if section.architecture == "SequenceClassification" and getattr(kind, "problem_type", None) == problem_type:
            return section.model_construct(**{section.outputs_key: [*names], "max_length": max_length})
    return None
