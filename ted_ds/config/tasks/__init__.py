"""The recipe's ``task`` section: what goes into the models and what they predict, by kind.

A section says, without torch, what planning, data and models ask of a kind of task; all else about it is in
``ted_ds/tasks/``, in a module of its name. Nobody outside of these two asks which kind a task is.
"""

from __future__ import annotations

from ted_ds.config.tasks.base import BosSetting, OneOfLabels, TaskSection
from ted_ds.config.tasks.chat import Chat
from ted_ds.config.tasks.choices import MultipleChoice
from ted_ds.config.tasks.language import CausalLm, DocumentTask, MaskedLm, Packing
from ted_ds.config.tasks.masking import Masking
from ted_ds.config.tasks.spans import QuestionAnswering
from ted_ds.config.tasks.targets import Seq2Seq
from ted_ds.config.tasks.texts import (
    MultiLabelClassification,
    Regression,
    SequenceClassification,
    SoftLabelClassification,
    TextTask,
)
from ted_ds.config.tasks.words import TokenClassification

HeadTask = (
    SequenceClassification
    | SoftLabelClassification
    | MultiLabelClassification
    | Regression
    | TokenClassification
    | MultipleChoice
    | QuestionAnswering
)
"""Tasks whose models end in a head of their own, in place of the LM head."""
Task = HeadTask | CausalLm | MaskedLm | Chat | Seq2Seq

__all__ = [
    "BosSetting",
    "CausalLm",
    "Chat",
    "DocumentTask",
    "HeadTask",
    "MaskedLm",
    "Masking",
    "MultiLabelClassification",
    "MultipleChoice",
    "OneOfLabels",
    "Packing",
    "QuestionAnswering",
    "Regression",
    "Seq2Seq",
    "SequenceClassification",
    "SoftLabelClassification",
    "Task",
    "TaskSection",
    "TextTask",
    "TokenClassification",
]
