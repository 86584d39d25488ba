"""A context that is longer than the models read, in parts that overlap, each behind the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ted_ds.data.samples import Example, Sample


@dataclass(frozen=True)
class Question(Example):
    """A question, ``text``, about a context, ``second``, which is read in parts.

    The label is the first character of the answer in the context, and that behind its last; none where nothing there
    is an answer.
    """

    answers: Sequence[str] | None = None
    """The texts of all right answers; None where they are not known."""
    name: str | None = None
    """What the data call it; None where they do not."""

    @property
    def whole_text(self) -> str:
        """The context: what is asked about one is held out together, or a model would have read it before."""
        return self.texts[-1]


class Passage(NamedTuple):
    """What scoring must know of a window."""

    number: int
    """Of its question."""
    null: int
    """The token that stands for no answer."""
    first: int
    """The first token of the context's part; others follow without a gap."""
    spans: np.ndarray
    """``[tokens, 2]``: where each of these tokens begins in the context, and the character behind it."""
    context: str
    answers: Sequence[str] | None
    name: str | None
    """As :attr:`Question.name`."""


class Windows(NamedTuple):
    """How contexts are cut."""

    max_length: int
    """Tokens of a window, with the question and what the tokenizer puts around."""
    stride: int
    """Tokens of a context that two windows have in common."""

    def cut(self, tokenizer: Any, questions: Sequence[Question], numbers: Iterator[int]) -> list[list[Sample] | str]:
        """The windows of each question, by the tokenizer's own pair encoding; or what is wrong with it.

        Args:
            tokenizer: A fast one.
            questions: With contexts.
            numbers: To tell them apart.
        """
        alone = {"add_special_tokens": False, "verbose": False}
        texts = [one.text for one in questions]
        lengths = [len(ids) for ids in tokenizer(texts, **alone)["input_ids"]] if texts else []
        rooms = [self.max_length - tokenizer.num_special_tokens_to_add(pair=True) - length for length in lengths]
        found: list[list[Sample] | str] = [[] if room > self.stride else self._too_long(room) for room in rooms]
        fitting = [place for place, one in enumerate(found) if isinstance(one, list)]
        if not fitting:
            return found
        encoded = tokenizer(
            [questions[place].text for place in fitting],
            [questions[place].texts[-1] for place in fitting],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        marks = [token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None]
        passages = {place: next(numbers) for place in fitting}
        for row, which in enumerate(encoded["overflow_to_sample_mapping"]):
            place = fitting[which]
            windows = found[place]
            ids = encoded["input_ids"][row]
            of_context = [index for index, part in enumerate(encoded.sequence_ids(row)) if part == 1]
            if isinstance(windows, str) or not of_context:
                found[place] = "of its context the tokenizer makes no token"
                continue
            question = questions[place]
            spans = np.asarray(encoded["offset_mapping"][row][of_context[0] : of_context[-1] + 1], dtype=np.int32)
            null = next((ids.index(mark) for mark in marks if mark in ids), 0)
            told = (question.texts[-1], question.answers, question.name)
            passage = Passage(passages[place], null, of_context[0], spans, *told)
            windows.append(_sample(ids, passage, question.label, encoded, row))
        return found

    def _too_long(self, room: int) -> str:
        return (
            f"its question leaves {max(room, 0)} of task.max_length {self.max_length} tokens to the context, of which "
            f"task.stride {self.stride} come again in the next part; raise max_length or lower stride"
        )


def _sample(ids: list[int], passage: Passage, answer: Any, encoded: Mapping[str, Any], row: int) -> Sample:
    """A window whose label is none where the question has none, and the null token where the answer is elsewhere.

    That is the convention of the original BERT's script and those that followed, for SQuAD 1.1 as well.
    """
    label = None
    if answer is not None:
        inside = tokens_of(answer, passage.spans)
        label = [passage.null] * 2 if inside is None else [passage.first + place for place in inside]
    types = encoded.get("token_type_ids")
    return Sample(
        ids,
        label,
        token_types=None if types is None else types[row],
        candidates=(
            range(passage.null, passage.null + 1),
            range(passage.first, passage.first + len(passage.spans)),
        ),
        facts=passage,
    )


def tokens_of(answer: Sequence[int], spans: np.ndarray) -> tuple[int, int] | None:
    """The first token and the last that have something of an answer; None where it is not whole within them.

    Args:
        answer: Its first character and that behind its last; nothing of none.
        spans: As :attr:`Passage.spans`. A token may be a part of a character, or have the space before it.
    """
    if not len(answer):
        return None
    start, stop = answer
    if start < spans[0, 0] or stop > spans[:, 1].max():
        return None
    first, behind = np.searchsorted(spans[:, 1], start, side="right"), np.searchsorted(spans[:, 0], stop, side="left")
    return (int(first), int(behind) - 1) if first < behind else None
