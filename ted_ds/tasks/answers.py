"""From logits of starts and ends to answers, and how good these are by SQuAD's own definitions."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ted_ds.config.tasks import QuestionAnswering
from ted_ds.tasks.outcomes import ONE, Outcomes
from ted_ds.tasks.windows import Passage

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms

ARTICLES = re.compile(r"\b(a|an|the)\b")
CERTAIN = 1e9
"""By how much no answer exceeds another where there is none: JSON has no infinity."""
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """An answer in lower case, without ASCII punctuation and English articles, with one space between words.

    As the official scripts of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) compare answers.
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


class Marks(NamedTuple):
    """How good an answer is: by the right one that it is most like."""

    exact: float
    f1: float


def marks_of(answer: str, right: Sequence[str], *, no_answer: bool) -> Marks:
    """An answer beside the right ones.

    Args:
        answer: What a model says; nothing where it finds none.
        right: The texts of all right answers; none where nothing is one.
        no_answer: Whether that may be (SQuAD 2.0): then right answers without a word do not count, and no words agree
            with no words. In SQuAD 1.1 they are exact, but have an F1 of 0.
    """
    texts = [normalised(one) for one in right]
    if no_answer:
        texts = [one for one in texts if one] or [""]
    given = normalised(answer)
    exact = max((float(one == given) for one in texts), default=0.0)
    return Marks(exact, max((_f1(given.split(), one.split(), no_answer=no_answer) for one in texts), default=0.0))


def _f1(given: Sequence[str], right: Sequence[str], *, no_answer: bool) -> float:
    if no_answer and not (given and right):
        return float(given == right)
    common = sum((Counter(given) & Counter(right)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(right)
    return 2 * precision * recall / (precision + recall)


class Best(NamedTuple):
    """Of some threshold of no answer, the best there is, the mean that it gives and where it is."""

    mean: float
    threshold: float


def best_threshold(
    marks: Sequence[float], surplus: Sequence[float], *, answered: Sequence[bool], given: Sequence[bool]
) -> Best:
    """The threshold by which answers would have been right most often, as the official script of SQuAD 2.0 finds it.

    Args:
        marks: What the answer to each question would be worth, were it given.
        surplus: By how much the score of no answer exceeds that of the answer.
        answered: Which questions have an answer.
        given: To which a model finds one.
    """
    order = np.argsort(np.asarray(surplus), kind="stable")
    has_answer = np.asarray(answered)[order]
    gains = np.where(has_answer, np.asarray(marks)[order], np.where(np.asarray(given)[order], -1.0, 0.0))
    totals = (~has_answer).sum() + np.concatenate([[0.0], np.cumsum(gains)])
    best = int(np.argmax(totals))
    return Best(float(totals[best]) / len(order), float(np.asarray(surplus)[order][best - 1]) if best else 0.0)


class Found(NamedTuple):
    """What a model finds in one window."""

    number: int
    """Of the question."""
    right: Sequence[str]
    """The texts of all right answers."""
    null_score: float
    """Of no answer."""
    score: float
    """Of the answer; -inf where there is none."""
    answer: str
    name: str | None = None
    """What the data call the question."""


Observation = tuple[list[Found], float, int]
"""Of a batch: what is found in its windows, the summed loss, and how many starts and ends it is a sum over."""


class Answers:
    """F1 and exact match of answers; the loss is cross-entropy per start and per end.

    The answer to a question is the best of all its windows. No answer is given where the score of none exceeds its
    score by more than the threshold; of the scores of none, the window's counts that is surest of an answer.
    """

    headline = "f1"
    higher_is_better = True

    def __init__(self, terms: TaskTerms, task: QuestionAnswering) -> None:
        self._terms, self._task = terms, task

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """What is found in each window of a question whose right answers are known."""
        loss, count = float(self._terms.loss_sum(outputs, batch.labels)), int(self._terms.kept(batch.labels).sum())
        logits = outputs.float().cpu().numpy()
        begins = batch.kept_tokens.int().argmax(-1).tolist()
        found = [
            self._look(logits[row, :, begins[row] :], facts)
            for row, facts in enumerate(batch.facts)
            if facts is not None and facts.answers is not None
        ]
        return found, loss, count

    def _look(self, logits: np.ndarray, passage: Passage) -> Found:
        """The best answer in a window, of ``logits [2, tokens]``."""
        stop = passage.first + len(passage.spans)
        null_score = float(logits[:, passage.null].sum())
        score, answer = -np.inf, ""
        starts, ends = logits[:, passage.first : stop]
        best = best_span(starts, ends, passage.spans, self._task)
        if best is not None:
            score, start, end = best
            answer = passage.context[passage.spans[start, 0] : passage.spans[end, 1]]
        return Found(passage.number, passage.answers or (), null_score, score, answer, passage.name)

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        found = [one for windows, *_ in observations for one in windows]
        loss, count = (
            sum(numbers) for numbers in zip(*((loss, count) for _, loss, count in observations), strict=True)
        )
        questions = joined(found)
        marks = [self._marks(one, self.choose(one)) for one in questions]
        metrics = {
            "f1": _mean(one.f1 for one in marks),
            "exact_match": _mean(one.exact for one in marks),
            "loss": loss / count,
        }
        if self._task.no_answer:
            metrics |= self._of_no_answers(questions, marks)
        return {**metrics, "num_examples": len(questions), "num_windows": len(found)}

    def files(self, observations: Sequence[Observation]) -> dict[str, dict[str, Any]]:
        """What the scripts of SQuAD read: the answer to each question by its id and, in 2.0, how much none exceeds it.

        A question whose id the data do not say is called by its number. Of several with one id, the last is there.
        """
        questions = joined(one for windows, *_ in observations for one in windows)
        named = {str(number) if one.name is None else one.name: one for number, one in enumerate(questions)}
        files: dict[str, dict[str, Any]] = {"predictions.json": {name: self.choose(one) for name, one in named.items()}}
        if self._task.no_answer:
            odds = {name: min(one.null_score - one.score, CERTAIN) for name, one in named.items()}
            files["null_odds.json"] = odds
        return files

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:
        """How good the answer to each question is, in the order of their numbers."""
        questions = joined(one for windows, *_ in observations for one in windows)
        marks = [self._marks(one, self.choose(one)) for one in questions]
        names = [str(one.number) if one.name is None else one.name for one in questions]
        columns = {"answer_f1": [one.f1 for one in marks], "exact": [one.exact for one in marks]}
        metrics = {"f1": ["ratio", "answer_f1", ONE], "exact_match": ["ratio", "exact", ONE]}
        return Outcomes(columns, metrics, names)

    def choose(self, one: Found) -> str:
        """The answer that is given to a question; nothing for none."""
        surplus = one.null_score - one.score
        return "" if self._task.no_answer and surplus > self._task.null_threshold else one.answer

    def _marks(self, one: Found, answer: str) -> Marks:
        return marks_of(answer, one.right, no_answer=self._task.no_answer)

    def _of_no_answers(self, questions: Sequence[Found], marks: Sequence[Marks]) -> dict[str, float]:
        """The same apart for questions with an answer and without, and what another threshold would give."""
        answered = [bool(one.right) for one in questions]
        metrics: dict[str, float] = {}
        for name, has in (("has_answer", True), ("no_answer", False)):
            chosen = [one for one, is_answered in zip(marks, answered, strict=True) if is_answered is has]
            if chosen:
                metrics[f"{name}_f1"] = _mean(one.f1 for one in chosen)
                metrics[f"{name}_exact_match"] = _mean(one.exact for one in chosen)
        bold = [self._marks(one, one.answer) for one in questions]
        given = [bool(one.answer) for one in questions]
        surplus = [one.null_score - one.score for one in questions]
        for name, each in (("f1", [one.f1 for one in bold]), ("exact_match", [one.exact for one in bold])):
            best = best_threshold(each, surplus, answered=answered, given=given)
            metrics |= {f"best_{name}": best.mean, f"best_{name}_threshold": best.threshold}
        return metrics


def best_span(
    starts: np.ndarray, ends: np.ndarray, spans: np.ndarray, task: QuestionAnswering
) -> tuple[float, int, int] | None:
    """The likeliest answer in a window: its score, its first and its last token; None where there is none.

    Args:
        starts: Logits of a context's tokens.
        ends: The same of ends.
        spans: See :attr:`ted_ds.tasks.windows.Passage.spans`.
        task: Says how many are tried, and how long an answer may be.
    """
    likely_starts, likely_ends = (np.argsort(-logits, kind="stable")[: task.n_best] for logits in (starts, ends))
    lengths = likely_ends[None, :] - likely_starts[:, None] + 1
    has_text = spans[likely_ends, 1][None, :] > spans[likely_starts, 0][:, None]
    scores = starts[likely_starts][:, None] + ends[likely_ends][None, :]
    scores = np.where((lengths >= 1) & (lengths <= task.max_answer_length) & has_text, scores, -np.inf)
    best = np.unravel_index(int(scores.argmax()), scores.shape)
    if scores[best] == -np.inf:
        return None
    return float(scores[best]), int(likely_starts[best[0]]), int(likely_ends[best[1]])


def joined(found: Iterable[Found]) -> list[Found]:
    """One for each question, of what is found in all its windows, in the order of their numbers."""
    by_number: dict[int, Found] = {}
    for one in found:
        other = by_number.get(one.number, one)
        better = max(other, one, key=lambda window: (window.score, window.answer))
        null_score = min(other.null_score, one.null_score)
        by_number[one.number] = better._replace(null_score=null_score)
    return [by_number[number] for number in sorted(by_number)]


def _mean(numbers: Iterable[float]) -> float:
    values = [*numbers]
    return sum(values) / len(values)
