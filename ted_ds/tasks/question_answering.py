"""The words of a context that answer a question: rows, labels, heads and the guess to beat."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import QuestionAnswering
from ted_ds.data.samples import Example, Label, Sample
from ted_ds.errors import DataError
from ted_ds.models.tokenizer_traits import refuse_without_places
from ted_ds.tasks.answers import Answers
from ted_ds.tasks.base import HeadKind, outputs_by_name
from ted_ds.tasks.guess import Guess, entropy_terms
from ted_ds.tasks.label_values import UNLABELLED, is_nothing, whole_number
from ted_ds.tasks.shown import shown_tokens
from ted_ds.tasks.windows import Question, Windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.schema import Filters
    from ted_ds.data.loader import Batch
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms

PARAGRAPHS = "paragraphs"
"""Of an article of SQuAD's own files."""
FORM = "{text: [...], answer_start: [...]}, or a list of such answers"


class QuestionAnsweringKind(HeadKind[Any]):
    """See :class:`ted_ds.config.tasks.QuestionAnswering`."""

    collated_as = "spans"
    task: QuestionAnswering

    def __init__(self, task: QuestionAnswering) -> None:
        super().__init__(task)
        self._numbers = itertools.count()

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def text_columns(self) -> list[str]:
        """Those of questions and contexts; none of articles, in which both stand deeper."""
        return [] if self.task.rows == "articles" else [self.task.question_column, self.task.context_column]

    @property
    def label_columns(self) -> list[str]:
        """That of answers, or that of all there is in an article."""
        return [PARAGRAPHS if self.task.rows == "articles" else self.task.answers_column]

    @property
    def columns(self) -> list[str]:
        """Those of texts, of answers and, where the task names one, of ids."""
        of_ids = [] if self.task.id_column is None else [self.task.id_column]
        return [*super().columns, *of_ids]

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> list[Question]:
        """The question of a row, or all of an article; one that cannot be used says why."""
        if self.task.rows == "articles":
            return [self._question(*parts, where) for parts in _of_article(row[PARAGRAPHS], where)]
        label = self.read_label(row, where=where, declared=declared)
        question, context = (row[column] for column in self.text_columns)
        name = None if self.task.id_column is None else row[self.task.id_column]
        return [self._question(question, context, label, name, where)]

    def read_label(
        self,
        row: Mapping[str, Any],
        *,
        where: str,  # noqa: ARG002 - as others do
        declared: Mapping[str, Sequence[str]] = {},  # noqa: ARG002 - as others do
    ) -> Any:
        """What stands in the column of answers; text that is JSON, as in CSV files, is what it says."""
        value = row[self.task.answers_column]
        try:
            return json.loads(value) if isinstance(value, str) and value.strip() else value
        except (ValueError, RecursionError):
            return value

    def _question(self, question: Any, context: Any, answers: Any, name: Any, where: str) -> Question:
        """A question with its answers.

        Raises:
            DataError: The answers are of another form.
        """
        for what, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
                return Question("", None, wrong=f"its {what} is {text!r:.40}; it must be text that is not empty")
        found = None if is_nothing(answers) else _answers(answers, f"{where}: question {question!r:.60}")
        if not found and not self.task.no_answer:
            found = None
        label: list[int] | None = None if found is None else []
        texts = None if found is None else [text for _, text in found]
        for start, text in reversed(found or []):
            there = context[start : start + len(text)] if start >= 0 else ""
            if there != text:
                return Question(
                    question,
                    None,
                    context,
                    wrong=f"question {question!r:.60}: answer {text!r:.40} is not at character {start} of its "
                    f"context, where {there!r:.40} is; correct answer_start",
                )
            begin = start + len(text) - len(text.lstrip())
            label = [begin, start + len(text.rstrip())]
        called = None if is_nothing(name) else str(name)
        return Question(question.strip(), label, context, answers=texts, name=called)

    def counted(self, label: Label | None) -> list[str]:
        """Whether there is an answer."""
        return ["unknown" if label is None else "answered" if isinstance(label, list) and label else "without answer"]

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> list[list[Sample] | str]:
        """Each question with the parts of its context.

        Raises:
            CheckpointError: The tokenizer does not say where its tokens come from.
        """
        refuse_without_places(tokenizer, self.task.kind)
        questions = [example for example in examples if isinstance(example, Question)]
        return Windows(self.task.max_length, self.task.stride).cut(tokenizer, questions, self._numbers)

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """The question and the context, with marks where the answer starts and ends, and the answer."""
        assert batch.candidates is not None
        start, end = batch.labels[row].tolist()
        names, said = {start: "start", end: "end"} if start != end else {start: "start and end"}, "without a label"
        if start != UNLABELLED:
            first_of_context = int(batch.candidates[row].nonzero()[1])
            ids = batch.input_ids[row, start : end + 1].tolist()
            said = "no answer here" if start < first_of_context else repr(str(tokenizer.decode(ids)))
        return f"{shown_tokens(batch, row, tokenizer, batch.candidates[row].tolist(), names)}  -> {said}"

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def head_config(self) -> dict[str, Any]:
        """Two outputs, by the names that transformers gives where it knows none: those of a classifier must go."""
        return outputs_by_name([f"LABEL_{index}" for index in range(self.task.num_outputs)])

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
        """A linear head on each token's feature, as the models' own."""
        from ted_ds.models.heads import span_probes

        return span_probes(bank, dim=dim)

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over where an answer may start and end."""
        from ted_ds.numerics.task_terms import QUESTION_ANSWERING

        return QUESTION_ANSWERING

    @property
    def scorer(self) -> Answers:
        """By F1."""
        return Answers(self.terms, self.task)

    def files_of(self, observations: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Answers, and the odds of none, as the scripts of SQuAD read them."""
        return self.scorer.files(observations)

    def told(self, sample: Sample) -> tuple[int, bool]:
        """Between how many tokens there is to choose, and whether it is the one that stands for no answer."""
        label: Any = sample.label
        return sum(map(len, sample.candidates)), label[0] == sample.facts.null

    def guess(self, labels: Sequence[tuple[int, bool]], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """Any of the tokens where an answer may start or end."""
        numbers = np.asarray([number for number, _ in labels], dtype=float)
        rate = float(np.mean([is_null for _, is_null in labels]))
        among_others = (1 - rate) * float(np.mean(np.log(numbers - 1)))
        prior = float(entropy_terms(np.asarray([rate, 1 - rate])).sum()) + among_others
        return Guess(float(np.mean(np.log(numbers))), "one of the tokens of a context", prior)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _of_article(paragraphs: Any, where: str) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The questions, contexts, answers and ids of an article.

    Raises:
        DataError: It is none.
    """
    try:
        for paragraph in paragraphs:
            for asked in paragraph["qas"]:
                yield asked["question"], paragraph["context"], asked.get("answers"), asked.get("id")
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: no article of SQuAD: {PARAGRAPHS} must be a list of {{context, qas: [{{question, answers}}]}} "
            f"({type(error).__name__}: {error}); leave task.rows out where a row has one question"
        ) from error


def _answers(value: Any, where: str) -> list[tuple[int, str]]:
    """Where each answer starts, and its text.

    Raises:
        DataError: It is of another form.
    """
    try:
        if isinstance(value, Mapping):
            value = [
                {"text": text, "answer_start": start}
                for text, start in zip(value["text"], value["answer_start"], strict=True)
            ]
        found = [(whole_number(one["answer_start"]), one["text"]) for one in value]
    except (TypeError, KeyError, ValueError):
        found = [(None, None)]
    answers = [(start, text) for start, text in found if start is not None and isinstance(text, str) and text.strip()]
    if len(answers) < len(found):
        raise DataError(
            f"{where}: answers are {value!r:.200}; they must be {FORM}, with a text and a whole number each"
        )
    return answers
