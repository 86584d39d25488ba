"""The verb ``predict``: what a run's student, or the model of any phase, says of a text, beside the teacher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.tasks import Chat
from ted_ds.errors import DataError, counted
from ted_ds.models.files import read_model_facts
from ted_ds.tasks.kind import kind_of, task_of_head
from ted_ds.verbs.asked_models import Asked, asked_models
from ted_ds.verbs.speakers import Writer, architecture_of, is_for, load, load_config, load_tokenizer, outputs_of

SEQUENCE_CLASSIFICATION = "SequenceClassification"
MOST_LABELS = 3
"""Shown of each prediction, the likeliest."""
NAME_WIDTH = 14
"""Characters that the name of a model has at least."""
PAIR = "\t"
"""Stands between the two texts of a pair."""

Say = Callable[[str], str]
"""What a model makes of a text, in words."""


def predict(folder: Path, texts: Sequence[str], teacher: Path | None, *, max_new_tokens: int) -> None:
    """Print what teacher and student make of texts, or of the lines of the standard input where none are given.

    Args:
        folder: A run's, of one of its phases, or a model's.
        texts: None of them is empty.
        teacher: A model folder; None for that of the run.
        max_new_tokens: A language model writes at most.

    Raises:
        TedError: There is no model, it is elsewhere, or there is no single prediction of a text; a text is empty.
    """
    empty = next((number for number, text in enumerate(texts, start=1) if not text.strip()), None)
    if empty is not None:
        raise DataError(f"text {empty} of {len(texts)} is empty, and says nothing; give it words, or leave it out")
    asked = asked_models(folder, teacher)
    task = _task_of(asked)
    _refuse_unshown(folder, task)
    say = {name: _sayer(path, task, max_new_tokens) for name, path in asked.paths.items()}
    width = max(NAME_WIDTH, *map(len, say))
    has_labels = not task.has_lm_head and task.softened
    for text in texts or _typed():
        print(f"\n{text}")
        said = {name: one(text) for name, one in say.items()}
        for name, words in said.items():
            print(f"  {name:{width}} {words}")
        if has_labels and len({_likeliest(words) for words in said.values()}) > 1:
            print("  they differ")


def _likeliest(prediction: str) -> str:
    """The label that is said first."""
    return prediction.split(",")[0].rsplit(" ", 1)[0]


def _typed() -> Iterator[str]:
    """Lines of the standard input; a person is told what to do."""
    if sys.stdin.isatty():
        print("type a text and press Enter; Ctrl-D ends", file=sys.stderr)
    yield from (line.rstrip("\n") for line in sys.stdin if line.strip())


def can_be_predicted(task: Any) -> bool:
    """Whether there is a single prediction of a text: labels, numbers, or how it goes on."""
    return _labels_texts(task) or _writes(task)


def _labels_texts(task: Any) -> bool:
    return task.pooled and task.architecture == SEQUENCE_CLASSIFICATION


def _writes(task: Any) -> bool:
    return task.has_lm_head and task.predicts_next_token


def _task_of(asked: Asked) -> Any:
    """That of the run, or of the student's own head where it is in none that knows."""
    task = None if asked.run is None else asked.run.known_task
    if task is not None:
        return task
    *_, student = asked.paths.values()
    if is_for(student, Chat.architecture):
        return Chat.model_construct()
    config, tokenizer = load_config(student), load_tokenizer(student)
    longest = min(read_model_facts(student).max_positions, tokenizer.model_max_length)
    found = None
    if is_for(student, SEQUENCE_CLASSIFICATION):
        found = task_of_head(config.problem_type, outputs_of(config), longest)
    if found is None:
        raise DataError(
            f"{student}: {architecture_of(student)} has no single prediction for a text; predict is for labels and "
            "numbers of texts, and for language models"
        )
    return found


def _refuse_unshown(folder: Path, task: Any) -> None:
    if not can_be_predicted(task):
        raise DataError(
            f"{folder}: its task is {task.kind}, of which no single prediction for a text can be shown; predict is for "
            "labels and numbers of texts, and for language models"
        )


def _sayer(path: Path, task: Any, max_new_tokens: int) -> Say:
    return _classifier(path, task) if _labels_texts(task) else _writer(path, task, max_new_tokens)


def _classifier(path: Path, task: Any) -> Say:
    import torch

    from ted_ds.numerics.task_terms import Law

    model, tokenizer = load(path, task.architecture)
    law, names = kind_of(task).terms.law, _names_of(model.config, task, path)

    @torch.no_grad()
    def say(text: str) -> str:
        parts = text.split(PAIR, 1)
        given = tokenizer(*parts, truncation=True, max_length=task.sequence_length, return_tensors="pt")
        logits = model(**given).logits[0]
        if law is Law.NUMBER:
            return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, logits.tolist(), strict=True))
        shares = logits.sigmoid() if law is Law.BERNOULLI else logits.softmax(0)
        likeliest = sorted(zip(names, shares.tolist(), strict=True), key=lambda one: -one[1])
        return ", ".join(f"{name} {share:.3f}" for name, share in likeliest[:MOST_LABELS])

    return say


def _names_of(config: Any, task: Any, path: Path) -> list[str]:
    """Of a model's outputs, in their order: its own names where they are the task's.

    Raises:
        DataError: It has another number of outputs, as another task's teacher has.
    """
    own, wanted = outputs_of(config), task.output_names
    if len(own) != len(wanted):
        raise DataError(
            f"{path}: has {counted(len(own), 'output')}, the task has {len(wanted)} ({', '.join(wanted)}); give another"
        )
    return own if {*own} == {*wanted} else wanted


def _writer(path: Path, task: Any, max_new_tokens: int) -> Say:
    writer = Writer.at(path, max_new_tokens)

    def say(text: str) -> str:
        if task.has_template and writer.answers:
            return writer.answer([{"role": "user", "content": text}])[0]
        return writer.go_on(text)

    return say
