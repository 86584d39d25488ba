"""How tests of language models are read, put into batches and scored (``evaluation.perplexity`` and ``last_word``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ted_ds.config.data import Data
from ted_ds.config.evaluation import LanguageTest, StridedPerplexity
from ted_ds.config.schema import Recipe
from ted_ds.data.document_ends import own_ends
from ted_ds.data.language_tests import DETOKENIZERS, EndSample, last_word, num_words, strided
from ted_ds.data.reading.listing import list_source
from ted_ds.data.rows import RowReader, names_of
from ted_ds.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.loader import Batch, Collator
    from ted_ds.data.samples import Sample

Observation = tuple[int, float, float]
"""Of a row: how many tokens are scored, their cross-entropy, and whether all of them have the largest logit."""


@dataclass(frozen=True)
class OpenedTest:
    """A test, ready to be run."""

    name: str
    samples: Sequence[EndSample]
    scorer: Any


def open_test(
    recipe: Recipe, name: str, test: LanguageTest, tokenizer: PreTrainedTokenizerBase, start: Sequence[int] | None
) -> OpenedTest:
    """Read a test's texts.

    Args:
        recipe: The recipe.
        name: Of the test.
        test: The test.
        tokenizer: Of the models.
        start: The ids that a document begins with; None where the task has no documents, and they begin as the
            tokenizer's own encode has them.

    Raises:
        DataError: A source is wrong, or there is nothing to score.
    """
    from ted_ds.data.tokenizers import DocumentEncoder, traits_of

    encoder = DocumentEncoder(tokenizer)
    start = own_ends(traits_of(tokenizer))[0] if start is None else start
    window = test.window or recipe.task.sequence_length
    samples: list[EndSample] = []
    words = 0
    for text in _texts(recipe.data, recipe.task.document_column or "text", test):
        if isinstance(test, StridedPerplexity):
            words += num_words(text)
            (tokens,) = encoder([DETOKENIZERS[test.detokenizer](text)])
            samples += strided(
                [*start, *tokens], num_given=max(len(start), 1), window=window, stride=test.stride or window // 2
            )
        else:
            sample = last_word(text, lambda one: encoder([one])[0], start=start, window=window)
            samples += [] if sample is None else [sample]
    if not samples:
        raise DataError(f"{names_of(test.sources)}: no text to score as {name}; each needs two words or more")
    return OpenedTest(name, samples, Perplexity(words) if isinstance(test, StridedPerplexity) else LastWordScorer())


def _texts(data: Data, column: str, test: LanguageTest) -> Iterator[str]:
    reader = RowReader(data, [column])
    for source in test.sources:
        for record in reader.rows(list_source(source)):
            if record.row[column].strip():
                yield record.row[column]
    reader.judge(is_complete=True)


class EndCollator:
    """Makes batches in which only the ends of sequences have labels."""

    def __init__(self, collate: Collator) -> None:
        """Take one of whole token sequences, padded on the right."""
        self._collate = collate

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Pad, and take away the labels before the ends."""
        from ted_ds.numerics.losses import IGNORED_LABEL

        batch = self._collate(samples)
        labels = batch.labels.clone()
        for row, sample in enumerate(samples):
            if isinstance(sample, EndSample):
                labels[row, : len(sample.input_ids) - 1 - sample.num_scored] = IGNORED_LABEL
        return replace(batch, labels=labels)


class _OfRows:
    """What both tests observe."""

    def observe(self, outputs: Tensor, batch: Batch) -> list[Observation]:
        """Of each row that has something to score (:meth:`VocabularyPredictions.row_scores`)."""
        from ted_ds.numerics.losses import kept_labels

        counts = kept_labels(batch.labels).sum(-1).tolist()
        return [(count, *values) for count, values in zip(counts, outputs.tolist(), strict=True) if count]


class Perplexity(_OfRows):
    """By token, and by word of the texts as they are: the same sum of cross-entropies over another count."""

    def __init__(self, words: int) -> None:
        """Take the number of words in all texts."""
        self._num_words = words

    def score(self, observations: Sequence[Sequence[Observation]]) -> dict[str, float]:
        """Of everything observed."""
        rows = [row for batch in observations for row in batch]
        total, num_tokens = sum(loss for _, loss, _ in rows), sum(count for count, _, _ in rows)
        return {
            "token_perplexity": _exp(total / num_tokens),
            "word_perplexity": _exp(total / self._num_words),
            "num_tokens": num_tokens,
            "num_words": self._num_words,
        }


class LastWordScorer(_OfRows):
    """The share of texts whose last word is the model's own choice, token by token, and the perplexity of that word."""

    def score(self, observations: Sequence[Sequence[Observation]]) -> dict[str, float]:
        """Of everything observed."""
        rows = [row for batch in observations for row in batch]
        return {
            "accuracy": sum(right for _, _, right in rows) / len(rows),
            "perplexity": _exp(sum(loss for _, loss, _ in rows) / len(rows)),
            "num_examples": len(rows),
        }


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
