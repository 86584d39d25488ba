"""What stands before and behind each document of a corpus: the BOS setting, and what a tokenizer's own encode does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

from ted_ds.errors import CheckpointError, ConfigError

BosSetting = Literal["auto", "always", "never"]
Encode = Callable[[str, bool], Sequence[int]]
"""A text, and whether to add special tokens, to ids."""
PROBES = ("a", "the", "0", "é", "的", "а", "あ", "ا")
"""Texts of one character or word in the scripts of most corpora."""
NUM_PROBED_TOKENS = 2000


def describe_ends(start: Sequence[int], end: Sequence[int], to_token: Callable[[int], object], *, why: str) -> str:
    """What is put before and behind a text, in words."""
    before, behind = (" ".join(f"{to_token(index)!r} ({index})" for index in ids) or "nothing" for ids in (start, end))
    return f"before each text {before} ({why}), behind it {behind}"


WHY = {"auto": "as the tokenizer's own encode does", "always": "task.bos: always", "never": "task.bos: never"}
"""Why documents start as they do, by the setting."""


def added_around(encode: Encode, texts: Iterator[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer's own ``encode`` puts before and behind a text.

    Raises:
        CheckpointError: It gives no token for any of the texts.
    """
    failure = ""
    for text in texts:
        try:
            plain, whole = tuple(encode(text, False)), tuple(encode(text, True))
        except Exception as error:  # the library raises nothing more specific: a text of no known word, maybe
            failure = f" ({error})"
            continue
        if not plain:
            continue
        for begin in range(len(whole) - len(plain) + 1):
            if whole[begin : begin + len(plain)] == plain:
                return whole[:begin], whole[begin + len(plain) :]
        return (), ()  # with special tokens it reads the text itself in another way: nothing is put around it
    raise CheckpointError(
        f"the tokenizer gives no tokens for any text, not even for those of its own vocabulary{failure}; use the "
        "tokenizer the model was trained with"
    )


def probes(vocabulary: Mapping[str, int], specials: Collection[str], to_text: Callable[[int], str]) -> Iterator[str]:
    """Texts that a tokenizer should know: short ones of many scripts, then those of its own tokens."""
    yield from PROBES
    ordinary = (index for token, index in vocabulary.items() if token not in specials)
    yield from map(to_text, itertools.islice(ordinary, NUM_PROBED_TOKENS))


def choose_start(setting: BosSetting, *, added: Sequence[int], bos: int | None) -> tuple[int, ...]:
    """The ids before each document.

    Args:
        setting: The recipe's.
        added: What the tokenizer's own encode puts before a text.
        bos: Its BOS token; None where it has none.

    Raises:
        ConfigError: It is to add a BOS token and has none.
    """
    if setting == "never":
        return ()
    if setting == "always" and not added:
        if bos is None:
            raise ConfigError(
                "task.bos: always, but the teacher's tokenizer has no BOS token; use auto or never, or name one of its "
                "tokens as bos_token in its tokenizer_config.json"
            )
        return (bos,)
    return tuple(added)
