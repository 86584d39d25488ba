"""A few held-out examples for a person to read: predictions that training has changed, and texts that models write."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.loader import Batch
from ted_ds.models.predictions import Predictions, VocabularyPredictions
from ted_ds.numerics.losses import IGNORED_LABEL
from ted_ds.output.results import BEGUN, STUDENT, TEACHER
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.outcomes import Columns

MOST_CHARACTERS = 400
"""Of a text."""
WRITTEN_TOKENS = 32
CHANGES: Mapping[str, tuple[tuple[str, bool], tuple[str, bool]]] = {
    "wrong before training, right after it": ((BEGUN, False), (STUDENT, True)),
    "right before training, wrong after it": ((BEGUN, True), (STUDENT, False)),
    "right by the teacher, wrong by the student": ((TEACHER, True), (STUDENT, False)),
}
"""Which models must be right, and which wrong."""


def changed_examples(build: Assembly, columns: Mapping[str, Columns | None]) -> list[dict[str, Any]]:
    """Examples whose prediction has changed, with their texts; nothing where a text has no single label.

    Args:
        build: The run's.
        columns: What each example came to (:class:`ted_ds.tasks.outcomes.Outcomes`), by model.
    """
    known = {model: of_model for model, of_model in columns.items() if of_model is not None and "right" in of_model}
    heldout = build.readers.of("student").data.heldout
    labelled = [one for one in heldout if isinstance(one.label, int) and one.label != IGNORED_LABEL]
    if build.recipe.task.rows_per_example > 1 or any(len(one["right"]) != len(labelled) for one in known.values()):
        return []
    found = changed_rows(known, names=build.recipe.task.output_names, most=build.recipe.evaluation.samples)
    decode: Any = build.tokenizers["student"].decode
    return [
        {**about, "text": _cut(str(decode(list(labelled[row].input_ids), skip_special_tokens=True)))}
        for row, about in found
    ]


def changed_rows(
    columns: Mapping[str, Columns], *, names: Sequence[str], most: int
) -> list[tuple[int, dict[str, Any]]]:
    """Of each of the :data:`CHANGES`, the first examples of which it is true, each of them once.

    Args:
        columns: ``right``, ``prediction`` and ``label`` of each example, by model.
        names: Of labels, by their ids.
        most: Of each change.

    Returns:
        The number of each example, and what is said of it.
    """
    found: dict[int, dict[str, Any]] = {}
    for change, both in CHANGES.items():
        if not all(model in columns for model, _ in both):
            continue
        rows = (
            row
            for row in range(len(columns[STUDENT]["right"]))
            if row not in found and all(bool(columns[model]["right"][row]) is wanted for model, wanted in both)
        )
        for row in list(itertools.islice(rows, most)):
            said = {model: names[int(of_model["prediction"][row])] for model, of_model in columns.items()}
            found[row] = {"change": change, "label": names[int(columns[STUDENT]["label"][row])], "predictions": said}
    return [*found.items()]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


class Writer:
    """Lets models go on from the beginnings of held-out texts, each time with the most probable token."""

    def __init__(self, build: Assembly) -> None:
        """Take the first texts that have a beginning to go on from."""
        self._build = build
        begin = build.kind.beginning
        known = filter(None, map(begin, build.readers.of("student").data.heldout))
        self._beginnings = [list(one) for one in itertools.islice(known, build.recipe.evaluation.samples)]
        self._written: list[dict[str, str]] = [{} for _ in self._beginnings]

    def write(self, name: str, model: FrozenModel) -> None:
        """Let a model write. Every rank must call it: they may share a sharded one."""
        tokenizer: Any = self._build.tokenizers["student"]
        rows = [list(ids) for ids in self._beginnings]
        for _ in range(WRITTEN_TOKENS if rows else 0):
            self._build.stop_if_asked()
            for ids, token in zip(rows, self._next(model, rows), strict=True):
                ids.append(token)
        for ids, beginning, written in zip(rows, self._beginnings, self._written, strict=True):
            own = ids[len(beginning) :]
            end = own.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in own else len(own)
            written[name] = _cut(str(tokenizer.decode(own[:end], skip_special_tokens=True)))

    def texts(self) -> list[dict[str, Any]]:
        """Each beginning, and how each model went on."""
        decode: Any = self._build.tokenizers["student"].decode
        return [
            {"beginning": _cut(str(decode(ids, skip_special_tokens=True))), "written": written}
            for ids, written in zip(self._beginnings, self._written, strict=True)
        ]

    def _next(self, model: FrozenModel, rows: Sequence[Sequence[int]]) -> list[int]:
        """The most probable token behind each row, of one pass."""
        longest = max(map(len, rows))
        pad_id = self._build.collate.pad_id
        ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        batch = Batch(ids, mask, torch.full_like(ids, IGNORED_LABEL), mask.bool())
        found: list[int] = []

        def read(predictions: Predictions | None) -> None:
            assert isinstance(predictions, VocabularyPredictions)
            found.extend(predictions.next_tokens(self._build.num_shared_ids))

        model(batch.to(self._build.world.device).inputs, read)
        return found
