"""A label for each word of a text: words and their labels, and where these stand among tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import TokenClassification
from ted_ds.data.samples import UNLABELLED, Example, Label, Sample
from ted_ds.errors import DataError, counted
from ted_ds.models.tokenizer_traits import refuse_without_places
from ted_ds.tasks.base import HeadKind, outputs_by_name
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.label_values import is_nothing, label_id, list_of
from ted_ds.tasks.shown import shown_tokens
from ted_ds.tasks.weighing import weighed, weights_in_words, with_balance
from ted_ds.tasks.word_scores import WordLabels

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.layers import Filters
    from ted_ds.data.loader import Batch
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms

TEXT_COLUMN = "text"
"""Of a block of lines, as readers of text call it."""
BLANKS = " \t\r"
BETWEEN_DOCUMENTS = "-DOCSTART-"
"""The word that stands alone between the documents of CoNLL 2003."""


@dataclass(frozen=True)
class Words(Example):
    """A text of words, each with a label or none."""

    words: Sequence[str] = ()


class TokenClassificationKind(HeadKind[Any]):
    """See :class:`ted_ds.config.tasks.TokenClassification`."""

    collated_as = "token_classes"
    task: TokenClassification

    def __init__(self, task: TokenClassification) -> None:
        super().__init__(task)
        self.of_words = task.rows == "lists"

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def text_columns(self) -> list[str]:
        """That of words, or that of blocks of lines."""
        return [self.task.words_column if self.of_words else TEXT_COLUMN]

    @property
    def label_columns(self) -> list[str]:
        """That of labels; none of blocks of lines, which have them within."""
        return [self.task.label_column] if self.of_words else []

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> Sequence[Words]:
        """The words of a row and their labels; nothing for a mark between documents."""
        if self.of_words:
            words: Sequence[str] = row[self.task.words_column]
        else:
            words = [line[0] for line in _lines(row[TEXT_COLUMN], where)]
            if words[0] == BETWEEN_DOCUMENTS:
                return []
        return [Words(" ".join(words), self.read_label(row, where=where, declared=declared), words=words)]

    def read_label(
        self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]] = {}
    ) -> list[int] | None:
        """An id for each word, -100 for one without a label; None where no word has any."""
        if self.of_words:
            given, num_words = row[self.task.label_column], len(row[self.task.words_column])
            given = list_of(given) if isinstance(given, str) else given
            if is_nothing(given):
                return None
            if not isinstance(given, Sequence) or isinstance(given, str):
                raise DataError(
                    f"{where}: label {given!r:.200}: {self.task.kind} needs a list in column {self.task.label_column!r}"
                )
        else:
            lines = _lines(row[TEXT_COLUMN], where)
            num_words, given = len(lines), [line[-1] for line in lines if len(line) > 1]
            if not given:  # a file of words alone
                return None
        if len(given) != num_words:
            raise DataError(
                f"{where}: {counted(num_words, 'word')} and {counted(len(given), 'label')}; give a label for each word"
            )
        names, theirs = self.task.data_labels or self.task.labels, declared.get(self.task.label_column, ())
        ids = [label_id(one, names, where, theirs) for one in given]
        return None if set(ids) <= {None} else [UNLABELLED if one is None else one for one in ids]

    def counted(self, label: Label | None) -> list[str]:
        """The label of each word."""
        ids = label if isinstance(label, list) else []
        return ["none" if one == UNLABELLED else self.task.labels[int(one)] for one in ids]

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Sequence[Sequence[Sample] | str]:
        """The words with a space between, and each label at the first token that has something of its word, or at all.

        The first is the convention of transformers' own examples: other tokens of a word, and those that are of none,
        have no label, so that a word counts once however it is split. Where all have one, a scorer is told which are
        the first.

        Raises:
            CheckpointError: The tokenizer does not say where its tokens come from.
        """
        refuse_without_places(tokenizer, self.task.kind)
        texts = [example.text for example in examples]
        settings = {"truncation": True, "max_length": self.task.max_length, "return_offsets_mapping": True}
        encoded = tokenizer(texts, **settings) if texts else {"input_ids": [], "offset_mapping": []}
        samples: list[list[Sample]] = []
        for example, ids, spans in zip(examples, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            assert isinstance(example, Words)
            given = example.label
            if given is None or isinstance(given, int):
                samples.append([Sample(ids)])
                continue
            firsts = first_tokens(example.words, spans)
            num_read = sum(word is not None and given[word] != UNLABELLED for word in firsts)
            num_cut = sum(one != UNLABELLED for one in given) - num_read
            words = words_of_tokens(example.words, spans) if self.task.label_on == "all" else firsts
            label = [UNLABELLED if word is None else int(given[word]) for word in words]
            facts = [place for place, word in enumerate(firsts) if word is not None] if words is not firsts else None
            samples.append([Sample(ids, label if num_read else None, num_cut=num_cut, facts=facts)])
        return samples

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text, with the label of each word behind its first token, or behind all that have it."""
        names = {
            place: self.task.labels[one] for place, one in enumerate(batch.labels[row].tolist()) if one != UNLABELLED
        }
        predicted = [place in names for place in range(batch.labels.shape[1])]
        return shown_tokens(batch, row, tokenizer, predicted, names)

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def head_config(self) -> dict[str, Any]:
        """The names of labels; transformers has one kind of such heads."""
        return outputs_by_name(self.task.labels)

    def probes(
        self,
        bank: FilterBank,
        filters: Filters,  # noqa: ARG002 - as others do
        *,
        dim: int,
        model_path: Path,  # noqa: ARG002 - as others do
        tapped: TappedModel,  # noqa: ARG002 - as others do
        dtype: torch.dtype,  # noqa: ARG002 - as others do
    ) -> FilterProbes:
        """A linear head on each token's feature."""
        from torch import nn

        from ted_ds.models.heads import FilterProbes
        from ted_ds.numerics.filters import INITIAL_STD

        heads = [nn.Linear(dim, self.task.num_outputs) for _ in bank.layers]
        for head in heads:
            nn.init.normal_(head.weight, std=INITIAL_STD)
            nn.init.zeros_(head.bias)
        return FilterProbes(bank, heads, pooling=None)

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the labels, per token with a label: one for each word, or all of them."""
        from ted_ds.numerics.task_terms import TOKEN_CLASSIFICATION

        return TOKEN_CLASSIFICATION

    @property
    def training_terms(self) -> TaskTerms:
        """With class weights and label smoothing, where the recipe has them."""
        return weighed(self.terms, self.task)

    def settled(self, train: Sequence[Sample]) -> TokenClassification:
        """With class weights that are balanced as numbers."""
        labels = (sample.label for sample in train if isinstance(sample.label, Sequence))
        return with_balance(self.task, [int(one) for label in labels for one in label if one != UNLABELLED])

    @property
    def weights_in_words(self) -> str | None:
        """The class weights."""
        return weights_in_words(self.task)

    @property
    def scorer(self) -> WordLabels:
        """By F1 of entities, or accuracy where labels are of no entities."""
        return WordLabels(self.terms, self.task.labels)

    def guess(self, labels: Sequence[Sequence[int]], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the labels."""
        ids = np.asarray([one for label in labels for one in label if one != UNLABELLED])
        count = self.task.num_outputs
        return one_of(count, np.bincount(ids, minlength=count) / max(len(ids), 1))


def _lines(block: str, where: str) -> list[list[str]]:
    """The columns of each line, as CoNLL has them: the word first, its label last.

    Raises:
        DataError: It has no lines, or some with a word alone beside others.
    """
    lines = [re.split(f"[{BLANKS}]+", text) for line in block.split("\n") if (text := line.strip(BLANKS))]
    if not lines:
        raise DataError(
            f"{where}: a blank line, where a word and its label are wanted; sentences with blank lines between are "
            "read with documents: block"
        )
    alone = next((line for line in lines if len(line) == 1), None)
    if alone is not None and any(len(line) > 1 for line in lines):
        raise DataError(
            f"{where}: {alone[0]!r:.40} stands alone on its line, where others have a label behind the word; give each "
            "word one, with white space between"
        )
    return lines


def first_tokens(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each token, the word whose first token it is; None for others.

    Args:
        words: Of a text that has one space between them.
        spans: Of its tokens: the first character and that behind the last; nothing is between them where a token
            stands for no text.
    """
    found: list[int | None] = []
    begun: set[int] = set()
    for inside in _words_inside(words, spans):
        found.append(next((one for one in inside if one not in begun), None))
        begun.update(inside)
    return found


def words_of_tokens(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each token, the word whose first token it is, or else the one that it goes on with; None where it is of none.

    Arguments are those of :func:`first_tokens`.
    """
    firsts = first_tokens(words, spans)
    return [
        next(iter(inside), None) if first is None else first
        for first, inside in zip(firsts, _words_inside(words, spans), strict=True)
    ]


def _words_inside(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Of each token, the word of each of its characters that is no space between words."""
    ends = list(itertools.accumulate(len(word) + 1 for word in words))  # behind the space that follows
    of_character = np.repeat(np.arange(len(words)), np.diff([0, *ends]))
    is_space = np.zeros(len(of_character), dtype=bool)
    is_space[np.asarray(ends, dtype=int) - 1] = True
    return (of_character[start:stop][~is_space[start:stop]].tolist() for start, stop in spans)
