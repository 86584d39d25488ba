"""Tokenizers: encoding whole documents, and whether two models read the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ted_ds.config.tasks import BosSetting
from ted_ds.data.document_ends import Ends, ends_of
from ted_ds.errors import CheckpointError
from ted_ds.models.tokenizer_settings import ROLES
from ted_ds.models.tokenizer_traits import Origin, TokenizerTraits

LOADED = "the loaded tokenizer"
MOST_SHOWN = 3
"""Ids that mean different tokens."""
CACHED_WORDS = 100_000
"""Words whose tokens are kept: a corpus has more than the library's 10,000, and each other one is merged anew."""


class DocumentEncoder:
    """Documents to ids, whole and without special tokens around them; can be sent to another process."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a transformers tokenizer."""
        self._slow = None if getattr(tokenizer, "backend_tokenizer", None) is not None else tokenizer
        if self._slow is None:
            self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._fast.no_truncation()  # some models' files cut at what the model was trained with
            self._fast.no_padding()
            self._widen_cache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process; the cache's size does not travel along."""
        self.__dict__.update(state)
        if self._slow is None:
            self._widen_cache()

    def _widen_cache(self) -> None:
        resize = getattr(self._fast.model, "_resize_cache", None)  # models that merge nothing have no cache
        if resize is not None:
            resize(CACHED_WORDS)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        if self._slow is not None:
            return [self._slow(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        # without offsets, which take a third of the time
        return [one.ids for one in self._fast.encode_batch_fast(texts, add_special_tokens=False)]


def traits_of(tokenizer: Any) -> TokenizerTraits:
    """A loaded transformers tokenizer as one of a folder's files is looked at."""
    named = {role: getattr(tokenizer, role, None) for role in ROLES}
    return TokenizerTraits(
        backend=getattr(tokenizer, "backend_tokenizer", None),
        loaded=tokenizer,
        own_vocabulary=tokenizer.get_vocab(),
        roles={role: str(token) for role, token in named.items() if token is not None},
        origins=dict(
            reversed([(str(token), Origin(role, LOADED)) for role, token in named.items() if token is not None])
        ),
        settings={
            "chat_template": tokenizer.chat_template,
            "padding_side": tokenizer.padding_side,
            "model_max_length": tokenizer.model_max_length,
            "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        },
    )


def ends_when_loaded(tokenizer: Any, bos: BosSetting | None, *, own_end: bool = False, pairs: bool = False) -> Ends:
    """What stands around a text read with a transformers tokenizer (:func:`~ted_ds.data.document_ends.ends_of`).

    Raises:
        CheckpointError: It gives no tokens.
        ConfigError: ``task.bos`` asks for a token that it has not.
    """
    try:
        return ends_of(traits_of(tokenizer), bos, own_end=own_end, pairs=pairs)
    except CheckpointError as error:
        raise CheckpointError(f"{tokenizer.name_or_path}: {error}") from error


def describe_difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> str | None:
    """The first ids that mean different tokens, in words; None where the vocabularies are the same."""
    if teacher == student:
        return None
    teacher_tokens = {index: token for token, index in teacher.items()}
    student_tokens = {index: token for token, index in student.items()}
    differing = sorted(
        index
        for index in teacher_tokens.keys() | student_tokens.keys()
        if teacher_tokens.get(index) != student_tokens.get(index)
    )
    examples = "; ".join(
        f"id {index} is {teacher_tokens.get(index)!r} to the teacher and {student_tokens.get(index)!r} to the student"
        for index in differing[:MOST_SHOWN]
    )
    return f"{len(differing)} ids differ: {examples}"
