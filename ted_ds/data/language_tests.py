"""Texts that language models are tested on become sequences of which only the end is scored; without torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ted_ds.data.samples import Sample

WIKITEXT_JOINTS = re.compile(r" @([-,.])@ ")
WIKITEXT_RULES = (
    (re.compile(r" ([.,:;?!%)\]}])"), r"\1"),  # closes up to what is before it
    (re.compile(r"([(\[{$£€]) "), r"\1"),  # and to what is behind it
    (re.compile(r"\" ([^\"\n]*?) \""), r'"\1"'),
    (re.compile(r"' ([^'\n]*?) '(?= |$)", re.MULTILINE), r"'\1'"),
    (re.compile(r" ('s|'re|'ve|'ll|'d|'m|n't)\b"), r"\1"),
    (re.compile(r"s ' "), "s' "),
)
"""What WikiText writes with spaces around it, and how it was written before: of its preparation, what can be undone
without looking words up."""

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class EndSample(Sample):
    """A sequence whose last tokens are scored."""

    num_scored: int = 0


def without_wikitext_spaces(text: str) -> str:
    """A text of WikiText as one would write it; headings and line ends stay."""
    text = WIKITEXT_JOINTS.sub(r"\1", text)
    for pattern, replacement in WIKITEXT_RULES:
        text = pattern.sub(replacement, text)
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {"none": lambda text: text, "wikitext": without_wikitext_spaces}


def num_words(text: str) -> int:
    """Words of a text: what white space separates."""
    return len(text.split())


def strided(tokens: Sequence[int], *, num_given: int, window: int, stride: int) -> Iterator[EndSample]:
    """The windows over a text, in which each token after the first ``num_given`` is scored once.

    The first window scores all it can, each later one its last ``stride`` tokens, after at least ``window - stride``.

    Args:
        tokens: The text's, with those that start it.
        num_given: Of them, how many are not predicted; at least 1, as the first follows nothing.
        window: Most tokens at once.
        stride: How far it moves; below ``window``.
    """
    scored = num_given
    for begin in itertools.count(0, stride):
        end = min(begin + window, len(tokens))
        if end > scored:
            yield EndSample([*tokens[begin:end]], num_scored=end - scored)
            scored = end
        if end == len(tokens):
            return


def last_word(text: str, encode: Encode, *, start: Sequence[int], window: int) -> EndSample | None:
    """A text whose last word is scored; None where it has one word alone, or does not fit into the window.

    The word's tokens are those by which the text is longer than what stands before the word; of a text that is too
    long, the end is kept.
    """
    whole = text.strip()
    before = whole[: len(whole) - len(whole.split()[-1])].rstrip() if whole else ""
    if not before:
        return None
    tokens, context = encode(whole), encode(before)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, context, strict=False))
    num_scored = len(tokens) - sum(1 for _ in same)
    kept = [*start, *tokens][-window:]
    return EndSample(kept, num_scored=num_scored) if 0 < num_scored < len(kept) else None
