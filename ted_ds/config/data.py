"""The recipe's ``data`` section: what is trained and evaluated on, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from ted_ds.config.finite_number import is_finite_number
from ted_ds.config.glue import GlueName
from ted_ds.config.section import Section, open_value, rule
from ted_ds.config.weights import WeightPoint, points_of, weight_at

TEST = "test"
"""What the metrics of ``data.test`` are called by."""
APART_NAME = re.compile(r"[\w.-]+")
KIND_OF_SETTING = {"delimiter": "csv", "quoting": "csv", "columns": "csv", "field": "json"}
"""Settings of a source that say how rows stand in files of one format, and which."""


class Source(Section):
    """Where documents or examples come from."""

    column_key: ClassVar[str | None] = None
    """The key that names its columns; None where the task does."""

    path: str = Field(min_length=1)
    """A local file, folder or glob, a URL (``s3://``, ``gs://``, ``hf://``, ...), or the name of a Hugging Face
    dataset."""
    format: Literal["auto", "json", "csv", "parquet", "text", "arrow", "hub"] = "auto"
    """``auto`` goes by the file's ending, or takes ``path`` as a hub name where nothing local has it."""
    documents: Literal["line", "block", "file"] = "line"
    """Text files: what one document is; a ``block`` ends at a blank line."""
    delimiter: str | None = None
    """CSV files: the one character between values; unset: a comma, in a ``.tsv`` file a tab, or what else is usual and
    fits."""
    quoting: Literal["minimal", "none"] | None = None
    """CSV files: ``none`` takes quotation marks for characters like any other, as official TSV files (GLUE's) mean
    them; unset or ``minimal``: a value that begins with one goes on to the next."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """CSV files without a first row of names: the names of all values of a row, in their order."""
    field: str | None = Field(default=None, min_length=1)
    """JSON files that are one object: the key, or dotted path of keys, under which the list of rows stands."""
    name: str | None = None
    """Configuration of a Hugging Face dataset, or of a folder whose README.md names some."""
    split: str = "train"
    """Split of a Hugging Face dataset, of a folder laid out like one, or of what ``save_to_disk`` wrote."""
    weight: float | str | tuple[WeightPoint, ...] = 1.0
    """Corpora: relative share of the tokens; ``size``: the bytes of its files; or ``[[step, weight], ...]``, between
    which it changes linearly. Task data is used whole."""
    epochs: int | None = Field(default=None, gt=0)
    """Corpora: how often it is read at most."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Corpora: after about how many tokens it ends (each place in the global batch counts its share)."""

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ValueError(
                'must be one character, and no quotation mark or line end; a tab is "\\t" in double quotes'
            )
        return delimiter

    @rule
    def _columns_are_distinct(self) -> Iterator[str]:
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            yield f"columns must be distinct, got {self.columns}"

    @rule
    def _form_goes_with_format(self) -> Iterator[str]:
        if self.format in ("auto", "hub"):
            return  # known once its files are
        for key, kind in KIND_OF_SETTING.items():
            if kind != self.format and getattr(self, key) is not None:
                yield f"{key} goes with format: {kind}, not {self.format}; leave one of them out"

    @field_validator("weight", mode="before")
    @classmethod
    def _weight_is_one_of_three(cls, weight: Any) -> Any:
        """One rule in words, where a union would give a message per member."""
        points = points_of(weight)
        if points is not None:
            return points
        if weight == "size" or (is_finite_number(weight) and weight > 0):
            return weight
        raise ValueError("must be a number above 0, size, or [[step, weight], ...] with ascending steps")


class TransferSource(Source):
    """Where texts come from that are learned from without labels."""

    column_key: ClassVar[str | None] = "text_column of this source of data.transfer"
    text_column: str | tuple[str, ...] | None = None
    """Column with the text, or ``[first, second]`` with those of pairs; unset: ``task.text_column``."""

    @field_validator("text_column", mode="before")
    @classmethod
    def _is_one_or_more(cls, column: Any) -> Any:
        """One rule in words, where a union would give a message per member."""
        names = column if isinstance(column, list) else [column]
        if column is not None and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError("must be a column, or [first, second] with two columns for texts that come in pairs")
        return tuple(names) if column is names else column

    def text_columns(self, of_task: Sequence[str]) -> tuple[str, ...]:
        """The columns with its texts, where the task names its own ``of_task``."""
        if self.text_column is None:
            return tuple(of_task)
        return (self.text_column,) if isinstance(self.text_column, str) else self.text_column


class Padding(Section):
    """How sequences of a batch are brought to one length. Losses and gradients do not depend on it."""

    side: Literal["right", "left"] = "right"
    """Where a sequence is filled up."""
    multiple_of: int = Field(default=1, gt=0)
    """Pad to the longest sequence's length, rounded up to a multiple of this; 8 suits tensor cores."""


class LengthGrouping(Section):
    """Steps of texts of similar length, so that little is padded. Each step keeps its number of examples."""

    window_steps: int = Field(default=1, gt=0)
    """The examples of this many consecutive steps are sorted by length and cut into steps, whose order is shuffled; 1
    leaves every step as it is."""


class Cleaning(Section):
    """Which documents of a corpus are left out."""

    min_characters: int = Field(default=1, gt=0)
    """Shortest document, without white space around it."""
    deduplicate: bool = False
    """Leave out exact copies of a document within a shuffle window (neighbours in a file usually are in one)."""
    max_document_mib: float = Field(default=16, gt=0)
    """A longer record counts as a bad one."""


class BadRecords(Section):
    """How many records that cannot be read, or lack a value, may be skipped before the run stops."""

    max_fraction: float = Field(default=0.001, ge=0, le=1)
    """Of all records read; corpora: judged once 1,000 have been."""
    max_count: int = Field(default=1000, ge=0)
    """The most records that may be bad."""


class ScoredBeside(NamedTuple):
    """A set that is scored by itself at the end."""

    place: str
    """Of its sources in the section."""
    sources: list[Source]
    is_test: bool = False
    """Whether it decides nothing but its scores, and is scored whole; else as much of it as of the held-out data."""

    def most(self, max_examples: int) -> int | None:
        """How many examples of it are scored, where so many of the held-out data are; None for all."""
        return None if self.is_test else max_examples


class Data(Section):
    """What is trained and evaluated on."""

    glue: GlueName | None = None
    """A task of GLUE: sources, columns, labels, headline and how much is scored follow from it, and need not be given
    (:mod:`ted_ds.config.glue`)."""
    glue_folder: str | None = Field(default=None, min_length=1)
    """Where it is: a folder with its official files, or with a copy of the hub's dataset; unset: on the hub."""
    train: list[Source] = Field(default_factory=open_value, min_length=1)
    """What is learned from; it must be given, unless ``glue`` is."""
    validation: list[Source] | None = Field(default=None, min_length=1)
    """Held-out data: scored during training, where it chooses the best checkpoint, and at the end; unset:
    ``heldout_fraction`` of ``train`` is kept apart by a hash of the text."""
    evaluation: list[Source] | None = None
    """The same by its older name."""
    apart: dict[str, list[Source]] | None = None
    """Further held-out data by a name of your own: scored at the end, each by itself, as ``name/metric``, as much of it
    as of ``validation``."""
    test: list[Source] | None = Field(default=None, min_length=1)
    """Data that decides nothing: scored at the end, as ``test/metric``. Unlike ``apart`` it is scored whole, and may
    change without any phase being trained anew."""
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of ``train`` that is never trained on, but scored, where no other held-out data are given."""
    transfer: list[TransferSource] | None = Field(default=None, min_length=1)
    """Further texts for Stage II, whose labels are not read: they have no task term and all others. Those that are held
    out are left out here, too."""
    transfer_share: float | str = 0.5
    """Of each step of Stage II, the share of texts that come from ``transfer``; ``size``: as many as there are of them
    among all texts."""
    mixture_temperature: float = Field(default=1.0, gt=0)
    """Corpora: shares are weight^(1/temperature); above 1 brings small sources up."""
    shuffle_mib: float = Field(default=16, gt=0)
    """Corpora: text that is held to shuffle, for the whole global batch. Task data is shuffled whole."""
    workers: int = Field(default=1, ge=0)
    """Corpora: processes per rank that read and tokenise ahead; 0: the training process does it."""
    order_seed: int | None = Field(default=None, ge=0)
    """Decides what a step holds, in the place of ``seed``: with one value, runs of several seeds read the same, and can
    share a ``teacher.cache`` of a corpus."""
    cleaning: Cleaning = Cleaning()
    bad_records: BadRecords = BadRecords()
    padding: Padding = Padding()
    length_grouping: LengthGrouping = LengthGrouping()

    @property
    def heldout_sources(self) -> list[Source] | None:
        """Of held-out data; None where it is split off."""
        return self.evaluation if self.validation is None else self.validation

    @property
    def heldout_key(self) -> str:
        """The key they stand under, or would."""
        return "validation" if self.evaluation is None else "evaluation"

    @property
    def beside(self) -> dict[str, ScoredBeside]:
        """What is scored beside the held-out data, each by itself at the end, by what its metrics are called."""
        found = {name: ScoredBeside(f"apart.{name}", sources) for name, sources in (self.apart or {}).items()}
        return found | ({} if self.test is None else {TEST: ScoredBeside(TEST, self.test, is_test=True)})

    @property
    def parts(self) -> dict[str, list[Source]]:
        """All sources, by the place of their list in this section."""
        given = {"train": self.train, self.heldout_key: self.heldout_sources}
        given |= {one.place: one.sources for one in self.beside.values()} | {"transfer": self.transfer}
        return {place: sources for place, sources in given.items() if sources is not None}

    @property
    def sources(self) -> Iterator[tuple[str, Source]]:
        """Every source, with its place in this section."""
        return ((f"{part}[{i}]", one) for part, sources in self.parts.items() for i, one in enumerate(sources))

    @rule
    def _heldout_data_has_one_name(self) -> Iterator[str]:
        if self.validation is not None and self.evaluation is not None:
            yield "evaluation is the older name of validation; give one of them"

    @field_validator("transfer_share", mode="before")
    @classmethod
    def _share_is_one_of_two(cls, share: Any) -> Any:
        """One rule in words, as there."""
        if share == "size" or (is_finite_number(share) and 0 < share < 1):
            return share
        raise ValueError("must be a number above 0 and below 1, or size")

    @rule
    def _apart_has_names_and_sources(self) -> Iterator[str]:
        for name, sources in (self.apart or {}).items():
            if not APART_NAME.fullmatch(name):
                yield f"apart: {name!r}: use letters, digits, '_', '.' and '-'; metrics are called by it"
            if not sources:
                yield f"apart.{name}: no source; give at least one"
        if TEST in (self.apart or {}):
            yield "apart.test: metrics called test/... are those of data.test; give it there, or another name"

    @rule
    def _glue_is_somewhere(self) -> Iterator[str]:
        if self.glue_folder is not None and self.glue is None:
            yield f"glue_folder: {self.glue_folder} has no effect without glue; name a task there, or remove it"

    @rule
    def _some_source_has_weight(self) -> Iterator[str]:
        points = {step for one in self.train if isinstance(one.weight, tuple) for step, _ in one.weight}
        for step in sorted({0, *points}):
            if not any(weight_at(one.weight, step) for one in self.train):
                yield f"train: at step {step} every source has weight 0"


def by_older_name(data: dict[str, Any]) -> dict[str, Any]:
    """The values of this section with held-out data by its older name: manifests know it by that."""
    values = {**data}
    validation = values.pop("validation", None)
    return values if validation is None else {**values, "evaluation": validation}
