"""Rows of sources in file order, with the list of those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from ted_ds.config.data import Data, Source
from ted_ds.data.bad_records import too_many
from ted_ds.data.cleaning import Cleaner, is_heldout
from ted_ds.data.reading.listing import Listing, Record, empty_files, read_in_order
from ted_ds.data.reading.records import BadRecord
from ted_ds.errors import DataError

Part = Literal["train", "heldout", "all"]
"""Of a source: what a hash of each text leaves to train on, or keeps apart."""


class RowReader:
    """Reads sources whole and in order: labelled sets, held-out documents, the text a tokenizer is trained on."""

    def __init__(
        self,
        data: Data,
        columns: Sequence[str],
        *,
        by_number: bool = True,
        of_words: bool = False,
        num_texts: int = 1,
    ) -> None:
        """Read ``columns``, the first ``num_texts`` of which hold texts or, ``of_words``, the first a list of them.

        ``by_number`` names the bad rows of a single file by their numbers; else all are named as a stream names them.
        """
        self._data, self._columns, self._by_number = data, columns, by_number
        self._of_words, self._num_texts = of_words, num_texts
        self._num_good = 0
        self.bad: list[BadRecord] = []

    def rows(self, source: Listing, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Rows of a source, with other ``columns`` than those of all where it has its own.

        Raises:
            DataError: The first row lacks a column, or more rows are bad than may be.
        """
        self.bad += [record for record in empty_files(source) if record not in self.bad]
        max_bytes = int(self._data.cleaning.max_document_mib * 2**20)
        for record in read_in_order(
            source,
            self._columns if columns is None else columns,
            max_bytes=max_bytes,
            report=self._skip,
            by_number=self._by_number,
            of_words=self._of_words,
            num_texts=self._num_texts,
        ):
            self._num_good += 1
            yield record

    def count_more(self, number: int) -> None:
        """Count so many more: a row held several."""
        self._num_good += number

    def skip(self, record: Record, fault: str) -> None:
        """Count a row, or one of those that it held, among the bad ones after all.

        Raises:
            DataError: More rows are bad than may be.
        """
        self._num_good -= 1
        self._skip(record.bad(fault))

    def texts(self, source: Listing, split: Part) -> Iterator[str]:
        """Documents of a source that are long enough; copies are not left out.

        Raises:
            DataError: As :meth:`rows`.
        """
        cleaner = Cleaner(self._data.cleaning.model_copy(update={"deduplicate": False}), heldout_fraction=0)
        for record in self.rows(source):
            text = record.row[self._columns[0]]
            if cleaner.keeps(text) and (
                split == "all" or is_heldout(text, self._data.heldout_fraction) == (split == "heldout")
            ):
                yield text

    def _skip(self, record: BadRecord) -> None:
        self.bad.append(record)
        if len(self.bad) > self._data.bad_records.max_count:
            self.judge(is_complete=False)

    def judge(self, *, is_complete: bool) -> None:
        """Make sure that not too many rows are bad; ``is_complete`` once all there are have been read.

        Raises:
            DataError: They are.
        """
        num_read = self._num_good + len(self.bad)
        reason = too_many(len(self.bad), num_read, self.bad, self._data.bad_records, is_complete=is_complete)
        if reason is not None:
            raise DataError(reason)


def names_of(sources: Sequence[Source]) -> str:
    """What sources are called in messages."""
    return ", ".join(source.path for source in sources)


def refuse_without_labels(data: Data, phases: Sequence[str], *, has_labels: bool) -> None:
    """Make sure that there is a label to learn from, where ``phases`` of the recipe learn from labels.

    Raises:
        DataError: No row has any.
    """
    if phases and not has_labels:
        raise DataError(
            f"{names_of(data.train)}: no row has a label, and {', '.join(phases)} would learn from labels; give some "
            "rows theirs, or leave these phases out and set distill.task_weight: 0"
        )


def refuse_empty(data: Data, train: Sequence[object], heldout: Sequence[object]) -> None:
    """Make sure that there is something to train on and to score on.

    Raises:
        DataError: There is not.
    """
    where = names_of(data.train)
    if not train:
        raise DataError(f"{where}: no training rows; the files are empty or all is held out")
    if not heldout:
        own = data.heldout_sources is not None
        remedy = f"fill data.{data.heldout_key}" if own else "raise data.heldout_fraction"
        raise DataError(f"{where}: no held-out rows to evaluate on; {remedy}")


def refuse_empty_beside(data: Data, beside: Mapping[str, Sequence[object]]) -> None:
    """Make sure that there is something in each set that is scored beside the held-out data, by its name.

    Raises:
        DataError: There is not.
    """
    for name, samples in beside.items():
        if not samples:
            place, sources, _ = data.beside[name]
            raise DataError(f"{names_of(sources)}: no rows to evaluate on; fill data.{place}, or remove it")


def refuse_empty_transfer(data: Data, transfer: Sequence[object], *, num_heldout: int) -> None:
    """Make sure that there is something in ``data.transfer``, where a recipe has it; ``num_heldout`` were left out.

    Raises:
        DataError: There is not.
    """
    if data.transfer is not None and not transfer:
        why = f"all {num_heldout:,} are held out" if num_heldout else "none of its rows can be used"
        raise DataError(f"{names_of(data.transfer)}: no texts to learn from, {why}; fill data.transfer, or remove it")
