"""Kinds of tasks by their names, as tests choose them, and the functions that are told of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.data.samples import Example, Sample
from ted_ds.planning import plan
from ted_ds.tasks.guess import Guess
from ted_ds.tasks.kind import KINDS, AnyKind, kind_of
from tests.tiny import task_dict

SECTIONS: dict[str, Any] = {get_args(section.model_fields["kind"].annotation)[0]: section for section in KINDS}
OF_NAME: dict[str, AnyKind] = {name: kind_of(section(**task_dict(name))) for name, section in SECTIONS.items()}
MASKED_ON_ALL = "masked_lm on all"
"""A masked LM whose predictions are compared at all tokens."""
OF_NAME[MASKED_ON_ALL] = kind_of(SECTIONS["masked_lm"](**task_dict("masked_lm"), kl_on="all"))
TASK_TERMS = {name: kind.terms for name, kind in OF_NAME.items()}
SCORERS = {name: OF_NAME[name].scorer for name in SECTIONS}
make_plan = functools.partial(plan.make_plan, rows_of=kind_of)
plan_recipe = functools.partial(plan.plan_recipe, rows_of=kind_of)


def labelled(labels: Tensor) -> Batch:
    """A batch of which nothing but the labels counts."""
    tokens = torch.zeros(len(labels), 1, dtype=torch.long)
    return Batch(tokens, tokens + 1, labels, tokens == 0)


def samples_of(kind: Any, tokenizer: Any, examples: Sequence[Example]) -> list[Sample]:
    """What a kind makes of examples that are right."""
    return [sample for samples in kind.encode(tokenizer, examples) for sample in samples]


def read_label(task: Any, row: dict[str, Any], *, where: str, **declared: Any) -> Any:
    """What a row says of its text."""
    kind: Any = kind_of(task)
    return kind.read_label(row, where=where, **declared)


def make_guess(name: str, *, num_outputs: int, labels: Sequence[Any] = ()) -> Guess:
    """The guess of a kind of task with so many outputs."""
    return with_outputs(name, num_outputs).guess(labels, vocab_size=num_outputs)


def with_outputs(name: str, number: int) -> AnyKind:
    """A kind of task with so many outputs, where it has a head of its own."""
    section = OF_NAME[name].task
    changes = {section.outputs_key: [f"name {index}" for index in range(number)]} if section.num_outputs else {}
    if section.rows_per_example > 1:
        changes = {"choice_columns": None, "num_choices": number}
    return kind_of(section.model_copy(update=changes))
