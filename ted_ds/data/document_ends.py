"""What stands before and behind each document of a corpus: the BOS setting, and what a tokenizer's own encode does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ted_ds.config.tasks import BosSetting
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.tokenizer_traits import TokenizerTraits

Encode = Callable[[str, bool], Sequence[int]]
"""A text, and whether to add special tokens, to ids."""
PROBES = ("a", "the", "0", "é", "的", "а", "あ", "ا")
"""Texts of one character or word in the scripts of most corpora."""
NUM_PROBED_TOKENS = 2000


ENDS = ("sep_token", "eos_token", "pad_token")
"""What may end a document, the best first; the first is that of encoders."""
WHY = {"auto": "as the tokenizer's own encode does", "always": "task.bos: always", "never": "task.bos: never"}
"""Why documents start as they do, by the setting."""


class Ends(NamedTuple):
    """What stands around each text."""

    start: tuple[int, ...]
    """Ids before it."""
    end: tuple[int, ...]
    """Ids behind it."""
    in_words: str


def ends_of(tokenizer: TokenizerTraits, bos: BosSetting | None, *, own_end: bool = False, pairs: bool = False) -> Ends:
    """What stands around each text.

    Args:
        tokenizer: With a ``backend``, or loaded.
        bos: The recipe's for the documents of a corpus; None for the texts of a labelled task.
        own_end: Whether documents end as the tokenizer's own encode ends a text; else with its end token.
        pairs: Whether texts come in pairs; what stands between the two is said then, too.

    Raises:
        CheckpointError: It gives no tokens.
        ConfigError: It is to add a BOS token and has none.
    """
    start, end = own_ends(tokenizer)
    if bos is not None:
        start = choose_start(bos, added=start, bos=tokenizer.role_id("bos_token"))
        separator = end[-1] if own_end and end else separator_id(tokenizer, ENDS if own_end else ENDS[1:])
        end = () if separator is None else (separator,)
    names = {index: token for token, index in tokenizer.vocabulary.items()}

    def shown(ids: Sequence[int]) -> str:
        return " ".join(f"{names.get(index)!r} ({index})" for index in ids) or "nothing"

    in_words = f"before each text {shown(start)} ({WHY[bos or 'auto']}), behind it {shown(end)}"
    if pairs and (between := own_separator(tokenizer)) is not None:
        in_words += f", between the two of a pair {shown(between)}"
    return Ends(start, end, in_words)


def own_ends(tokenizer: TokenizerTraits) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer, with a ``backend`` or loaded, puts before and behind a text by itself.

    Raises:
        CheckpointError: It gives no tokens.
    """
    specials = {*tokenizer.flags, *tokenizer.roles.values()}
    return added_around(tokenizer.encode, probes(tokenizer.vocabulary, specials, tokenizer.decode))


def own_separator(tokenizer: TokenizerTraits) -> tuple[int, ...] | None:
    """What a tokenizer puts between the two texts of a pair; None where it reads a text in a pair in another way."""
    specials = {*tokenizer.flags, *tokenizer.roles.values()}
    for text in probes(tokenizer.vocabulary, specials, tokenizer.decode):
        try:
            plain, whole = tuple(tokenizer.encode(text, False)), tuple(tokenizer.encode_pair(text, text)[0])
        except Exception:  # noqa: S112 - as in added_around, which says so where no text will do
            continue
        if plain:
            size = len(plain)
            found = [at for at in range(len(whole) - size + 1) if whole[at : at + size] == plain]
            return whole[found[0] + size : found[-1]] if found and found[-1] >= found[0] + size else None
    return None


def separator_id(tokenizer: TokenizerTraits, roles: Sequence[str]) -> int | None:
    """The id that ends each document of a corpus: of the first of the roles that it has; None where it has none."""
    return tokenizer.role_id(next((role for role in roles if role in tokenizer.roles), roles[-1]))


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
