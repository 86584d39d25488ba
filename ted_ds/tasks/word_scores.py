"""How good labels of words are: whole entities by seqeval's reading, and each word."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ted_ds.config.tasks.words import SPAN_LABEL
from ted_ds.tasks.outcomes import Outcomes

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms


class Entity(NamedTuple):
    """Words of a sentence that are one thing."""

    kind: str
    start: int
    end: int
    """The last word, itself in it."""


def entities(labels: Sequence[str]) -> set[Entity]:
    """The entities that the labels of one sentence mark, by seqeval's lenient reading, whatever the scheme.

    An entity goes on as long as its type does. It ends before ``B`` and ``S`` and behind ``E`` and ``S``; so ``I``
    without a ``B`` begins one, too. (https://github.com/chakki-works/seqeval, its default mode, which reads labels as
    conlleval does.)
    """
    found: set[Entity] = set()
    start, kind, ended = 0, None, True
    for place, label in enumerate([*labels, "O"]):
        match = SPAN_LABEL.fullmatch(label)
        assert match is not None, f"{label} marks no entity"
        prefix, own = match[1], None if match[1] is None else match[2] or "_"
        if own is None or own != kind or ended or prefix in "BS":
            if kind is not None:
                found.add(Entity(kind, start, place - 1))
            start, kind = place, own
        ended = own is None or prefix in "ES"
    return found


WordObservation = tuple[list[list[int]], list[list[int]], float, int]
"""Of each sentence, the predicted and given ids of its words; and the summed loss, and of how many labels."""


class WordLabels:
    """F1, precision and recall of whole entities, and accuracy per word; the loss is cross-entropy per label.

    A word is what is predicted at its first token, whichever of its tokens have its label.
    An entity counts as found where its type, its first and its last word are right. Labels that mark no entities, such
    as parts of speech, have accuracy alone.
    """

    higher_is_better = True

    def __init__(self, terms: TaskTerms, labels: Sequence[str]) -> None:
        self._terms, self._labels = terms, labels
        self._mark_entities = all(map(SPAN_LABEL.fullmatch, labels))
        self.headline = "f1" if self._mark_entities else "accuracy"

    def observe(self, outputs: Tensor, batch: Batch) -> WordObservation:
        """Predicted and given class ids, sentence by sentence."""
        labels = batch.labels
        kept = self._terms.kept(labels)
        count = int(kept.sum())
        of_words = kept & _first_ones(batch)
        rows = [row for row, has_labels in enumerate(of_words.any(-1).tolist()) if has_labels]
        predictions = [outputs[row][of_words[row]].argmax(-1).tolist() for row in rows]
        given = [labels[row][of_words[row]].tolist() for row in rows]
        return predictions, given, float(self._terms.loss_sum(outputs, labels)), count

    def score(self, observations: Sequence[WordObservation]) -> dict[str, float]:
        """Metrics over everything observed."""
        pairs = [pair for mine, theirs, *_ in observations for pair in zip(mine, theirs, strict=True)]
        num_words = sum(len(given) for _, given in pairs)
        right = sum(mine == theirs for pair in pairs for mine, theirs in zip(*pair, strict=True))
        loss, num_labels = sum(one[2] for one in observations), sum(one[3] for one in observations)
        return {
            **(self._of_entities(pairs) if self._mark_entities else {}),
            "accuracy": right / num_words,
            "loss": loss / num_labels,
            "num_examples": len(pairs),
            "num_words": num_words,
        }

    def outcomes(self, observations: Sequence[WordObservation]) -> Outcomes:
        """How many words and entities of each sentence are right."""
        pairs = [pair for mine, theirs, *_ in observations for pair in zip(mine, theirs, strict=True)]
        columns = {
            "right_words": [sum(map(operator.eq, *pair)) for pair in pairs],
            "words": [len(given) for _, given in pairs],
        }
        metrics: dict[str, list[str]] = {"accuracy": ["ratio", "right_words", "words"]}
        if self._mark_entities:
            counts = [self._count_entities(*pair) for pair in pairs]
            columns |= {name: [one[name] for one in counts] for name in ("right", "found", "there")}
            metrics |= {"f1": ["f1", "right", "found", "there"], "precision": ["ratio", "right", "found"]}
            metrics["recall"] = ["ratio", "right", "there"]
        return Outcomes(columns, metrics)

    def _count_entities(self, predicted: Sequence[int], given: Sequence[int]) -> dict[str, int]:
        mine, theirs = (entities([self._labels[one] for one in ids]) for ids in (predicted, given))
        return {"found": len(mine), "there": len(theirs), "right": len(mine & theirs)}

    def _of_entities(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for pair in pairs:
            counts.update(self._count_entities(*pair))
        precision = counts["right"] / max(counts["found"], 1)
        recall = counts["right"] / max(counts["there"], 1)
        f1 = 2 * counts["right"] / max(counts["found"] + counts["there"], 1)
        return {"f1": f1, "precision": precision, "recall": recall}


def _first_ones(batch: Batch) -> Tensor:
    """True for the first tokens of words, and in rows whose facts do not say which they are."""
    firsts = batch.kept_tokens.clone()
    begins = batch.kept_tokens.int().argmax(-1).tolist()
    for row, places in enumerate(batch.facts):
        if places is not None:
            firsts[row] = False
            firsts[row, [begins[row] + place for place in places]] = True
    return firsts
