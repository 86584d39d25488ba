"""The verb ``predict``: what a run's student says of a text, beside its teacher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError
from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.reports.reading import RunRecord, read_run_record
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.speakers import Writer, load

MOST_LABELS = 3
"""Shown of each prediction, the likeliest."""
PAIR = "\t"
"""Stands between the two texts of a pair."""

Say = Callable[[str], str]
"""What a model makes of a text, in words."""


def predict(folder: Path, texts: Sequence[str], *, max_new_tokens: int) -> None:
    """Print what teacher and student make of texts, or of the lines of the standard input where none are given.

    Raises:
        TedError: The folder is no complete run's, its models are elsewhere, or its task has no single prediction.
    """
    run = read_run_record(folder)
    paths = models_of(run)
    say = {name: _sayer(run, path, max_new_tokens) for name, path in paths.items()}
    has_labels = not run.task.has_lm_head and run.task.softened
    for text in texts or _typed():
        print(f"\n{text}")
        said = {name: one(text) for name, one in say.items()}
        for name, words in said.items():
            print(f"  {name:14} {words}")
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


def models_of(run: RunRecord) -> dict[str, Path]:
    """The folders of the teacher and the student that came out, by name, as far as they were scored.

    Raises:
        DataError: The run is not complete, or they are elsewhere.
    """
    done = run.finished("evaluate")
    if done is None:
        raise DataError(f"{run.folder}: its models are not scored yet; start its run again, which goes on to the end")
    found = {}
    for name in (TEACHER, STUDENT):
        if name in done.inputs["models"]:
            path = Path(done.inputs["models"][name]["path"])
            if not path.is_dir():
                raise DataError(
                    f"{run.folder}: its {name} was at {path}, where it is not seen from here; start this in the folder "
                    "that the run was started in"
                )
            found[name] = path
    return found


def can_be_predicted(task: Any) -> bool:
    """Whether there is a single prediction of a text: labels, numbers, or how it goes on."""
    return _labels_texts(task) or _writes(task)


def _labels_texts(task: Any) -> bool:
    return task.pooled and task.architecture == "SequenceClassification"


def _writes(task: Any) -> bool:
    return task.has_lm_head and task.predicts_next_token


def _sayer(run: RunRecord, path: Path, max_new_tokens: int) -> Say:
    task = run.task
    if _labels_texts(task):
        return _classifier(path, task)
    if _writes(task):
        return _writer(path, task, max_new_tokens)
    raise DataError(
        f"{run.folder}: its task is {task.kind}, of which no single prediction for a text can be shown; predict is for "
        "labels and numbers of texts, and for language models"
    )


def _classifier(path: Path, task: Any) -> Say:
    import torch

    from ted_ds.numerics.task_terms import Law

    model, tokenizer = load(path, task.architecture)
    law, names = kind_of(task).terms.law, task.output_names

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


def _writer(path: Path, task: Any, max_new_tokens: int) -> Say:
    writer = Writer.at(path, max_new_tokens)

    def say(text: str) -> str:
        if task.has_template and writer.answers:
            return writer.answer([{"role": "user", "content": text}])[0]
        return writer.go_on(text)

    return say
