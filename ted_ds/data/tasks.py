"""Tokenised samples of every kind of task, for training and held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.schema import Data, Source
from ted_ds.config.tasks import CausalLm, HeadTask, Task
from ted_ds.data.corpora import documents, is_heldout, read_rows
from ted_ds.data.labels import Label, label_columns, read_label
from ted_ds.data.packing import pack
from ted_ds.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One sequence."""

    input_ids: list[int]
    label: Label | None = None
    """None where the labels are the tokens themselves."""
    document_lengths: Sequence[int] = ()
    """Tokens of each document in a packed sequence."""


class LabelledData:
    """A labelled set, held in memory."""

    def __init__(self, data: Data, task: HeadTask, tokenizer: PreTrainedTokenizerBase, *, max_heldout: int) -> None:
        """Read, check and tokenise every row.

        Raises:
            DataError: A row is wrong, or a split is empty.
        """
        rows = [row for source in data.train for row in _labelled_rows(source, task)]
        if data.evaluation is None:
            kept = [row for row in rows if not is_heldout(row[0], data.heldout_fraction)]
            heldout = [row for row in rows if is_heldout(row[0], data.heldout_fraction)]
        else:
            kept, heldout = rows, [row for source in data.evaluation for row in _labelled_rows(source, task)]
        _refuse_empty(data, kept, heldout)
        self.train = _tokenise(kept, task, tokenizer)
        self.heldout = _tokenise(heldout[:max_heldout], task, tokenizer)


class CausalLmData:
    """Documents, streamed and packed."""

    def __init__(self, data: Data, task: CausalLm, tokenizer: PreTrainedTokenizerBase, *, max_heldout: int) -> None:
        """Open the sources and pack the held-out sequences.

        Raises:
            DataError: A source is wrong, or a split is empty.
        """
        self._data, self._task, self._tokenizer = data, task, tokenizer
        sources = data.train if data.evaluation is None else data.evaluation
        # order does not matter here, but one source must not crowd out the others: take as many from each
        per_source = -(-max_heldout // len(sources))
        self.heldout = [s for source in sources for s in itertools.islice(self._heldout(source), per_source)]
        _refuse_empty(data, [None], self.heldout)
        self.heldout = self.heldout[:max_heldout]
        next(self.train_samples(seed=0))  # a wrong source fails here, before anything is written

    def train_samples(self, seed: int) -> Iterator[Sample]:
        """An endless stream of packed sequences."""
        texts = documents(
            self._data.train,
            text_column=self._task.text_column,
            keep=self._is_train,
            seed=seed,
            shuffle_buffer=self._data.shuffle_buffer,
        )
        return self._packed(texts)

    def _is_train(self, text: str) -> bool:
        return self._data.evaluation is not None or not is_heldout(text, self._data.heldout_fraction)

    def _heldout(self, source: Source) -> Iterator[Sample]:
        rows = read_rows(source, [self._task.text_column])
        texts = (row[self._task.text_column] for row in rows)
        wanted: Callable[[str], bool] = (lambda _: True) if self._data.evaluation is not None else self._is_heldout
        return self._packed(text for text in texts if text.strip() and wanted(text))

    def _is_heldout(self, text: str) -> bool:
        return is_heldout(text, self._data.heldout_fraction)

    def _packed(self, texts: Iterator[str]) -> Iterator[Sample]:
        tokenizer = self._tokenizer
        separator: Any = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
        tokens = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
        for ids, document_lengths in pack(tokens, length=self._task.sequence_length, separator=separator):
            if max(document_lengths) > 1 or not self._task.packing.isolate_documents:  # else nothing to predict
                yield Sample(ids, document_lengths=document_lengths)


TaskData = LabelledData | CausalLmData


def open_task_data(data: Data, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_heldout: int) -> TaskData:
    """The task's data, checked as far as it can be before training.

    Raises:
        DataError: A source or a row is wrong, or a split is empty.
    """
    if isinstance(task, CausalLm):
        return CausalLmData(data, task, tokenizer, max_heldout=max_heldout)
    return LabelledData(data, task, tokenizer, max_heldout=max_heldout)


def _labelled_rows(source: Source, task: HeadTask) -> Iterator[tuple[str, Label]]:
    for number, row in enumerate(read_rows(source, [task.text_column, *label_columns(task)]), start=1):
        yield row[task.text_column], read_label(task, row, where=f"{source.path}: row {number}")


def _tokenise(rows: Sequence[tuple[str, Label]], task: HeadTask, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=task.max_length)["input_ids"]
    empty = next((text for ids, (text, _) in zip(encoded, rows, strict=True) if not ids), None)
    if empty is not None:
        raise DataError(
            f"column {task.text_column!r}: {empty!r} has no tokens to predict anything from; remove its row"
        )
    return [Sample(ids, label) for ids, (_, label) in zip(encoded, rows, strict=True)]


def _refuse_empty(data: Data, train: Sequence[object], heldout: Sequence[object]) -> None:
    where = ", ".join(source.path for source in data.train)
    if not train:
        raise DataError(f"{where}: no training rows; the files are empty or all is held out")
    if not heldout:
        remedy = "raise data.heldout_fraction" if data.evaluation is None else "fill data.evaluation"
        raise DataError(f"{where}: no held-out rows to evaluate on; {remedy}")
