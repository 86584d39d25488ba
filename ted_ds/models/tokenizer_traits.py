"""What a tokenizer can give and how it reads text, whether it is known by its files or loaded; without torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from ted_ds.errors import CheckpointError

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Origin(NamedTuple):
    """What adds a token to those of ``tokenizer.json``."""

    key: str
    """Empty where the file is nothing but tokens."""
    file: str
    """Empty for a default of the tokenizer's class."""

    def __str__(self) -> str:
        """For a message, behind the token."""
        return " in ".join(part for part in (self.key, self.file or "transformers' default") if part)


@dataclass(frozen=True)
class TokenizerTraits:
    """A tokenizer as far as it can be looked at without transformers."""

    backend: Tokenizer | None
    """With all tokens added; None where there is only a vocabulary to look at."""
    roles: Mapping[str, str]
    """Its special tokens, by role."""
    origins: Mapping[str, Origin]
    """What adds those tokens that ``tokenizer.json`` lacks."""
    settings: Mapping[str, Any]
    """``chat_template`` (all, by name, where there are several), ``padding_side``, ``model_max_length`` and more."""
    loaded: Any = None
    """The tokenizer of transformers, where there is one: it then encodes and decodes."""
    own_vocabulary: Mapping[str, int] = field(default_factory=dict)
    """Where there is no ``backend``."""
    sha256: str | None = None
    """Of ``tokenizer.json``, so that what is in two equal files need not be compared."""
    unknown_class: str | None = None
    """The class of transformers that will load it, where it may put other tokens around a text than ``backend``."""

    @functools.cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token, added ones included, and its id."""
        return self.own_vocabulary if self.backend is None else self.backend.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def template_ids(self) -> Mapping[str, int]:
        """What the post-processor puts around a text: its own word for each id need not be the vocabulary's."""
        step = None if self.backend is None else self.backend.post_processor
        return {} if step is None else dict(_template_tokens(as_json(step)))

    @functools.cached_property
    def flags(self) -> Mapping[str, Mapping[str, bool]]:
        """How each added token is found in a text."""
        tokens = {} if self.backend is None else self.backend.get_added_tokens_decoder()
        return {token.content: {name: getattr(token, name) for name in FLAGS} for token in tokens.values()}

    def role_id(self, role: str) -> int | None:
        """The id of the token with a role; None where it has none."""
        return self.vocabulary.get(self.roles[role]) if role in self.roles else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of a text; needs a ``backend``, or to be loaded."""
        if self.loaded is not None:
            return list(self.loaded.encode(text, add_special_tokens=add_special_tokens))
        assert self.backend is not None
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """The ids of a pair of texts, and each one's token type: none where it has none. Needs what ``encode`` does."""
        if self.loaded is not None:
            encoded = self.loaded(first, second)
            return list(encoded["input_ids"]), list(encoded.get("token_type_ids", ()))
        assert self.backend is not None
        found = self.backend.encode(first, second)
        return found.ids, found.type_ids

    def decode(self, index: int) -> str:
        """The text of a token; needs a ``backend``, or to be loaded."""
        owner = self.backend if self.loaded is None else self.loaded
        assert owner is not None
        return owner.decode([index])


def refuse_without_places(tokenizer: Any, kind: str) -> None:
    """Make sure that a tokenizer of transformers says which characters of a text its tokens are of.

    Args:
        tokenizer: Of a model that reads texts.
        kind: Of the task that needs it.

    Raises:
        CheckpointError: It does not.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: its tokenizer does not say which characters its tokens are of, which {kind} "
            "needs; use a model with a tokenizer.json"
        )


def as_json(step: Any) -> Any:
    """A step of a tokenizer as its file describes it."""
    return json.loads(step.__getstate__())


def _template_tokens(step: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for one in step.get("processors", ()):
        yield from _template_tokens(one)
    for token in (step.get("special_tokens") or {}).values():
        yield from zip(token["tokens"], token["ids"], strict=True)
    for key in ("cls", "sep"):
        if isinstance(step.get(key), list):
            token, index = step[key]
            yield token, index
