"""In which ways two tokenizers of one vocabulary differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from ted_ds.models.tokenizer_traits import FLAGS, TokenizerTraits, as_json

STEPS = {
    "normalizer": "the normaliser",
    "pre_tokenizer": "the pre-tokeniser",
    "post_processor": "the post-processor (what is put around a text)",
    "decoder": "the decoder",
}
"""The steps of a tokenizer beside its vocabulary, as a message calls them."""
LONGEST_SHOWN = 60


def differences(teacher: TokenizerTraits, student: TokenizerTraits) -> Iterator[str]:
    """All that differs beside the vocabularies: special tokens by role, how text is cut, chat template, lengths."""
    for role in dict.fromkeys([*teacher.roles, *student.roles]):
        theirs, own = teacher.roles.get(role), student.roles.get(role)
        if theirs != own:
            yield f"{role} is {_shown(theirs)} to the teacher and {_shown(own)} to the student"
    if teacher.backend is not None and student.backend is not None:
        yield from _other_steps(teacher.backend, student.backend)
        yield from _other_flags(teacher.flags, student.flags)
    for key in ("chat_template", "padding_side", "model_max_length"):
        theirs, own = teacher.settings.get(key), student.settings.get(key)
        if theirs == own:
            continue
        if key != "chat_template":
            yield f"{key} is {_shown(theirs)} to the teacher and {_shown(own)} to the student"
        elif theirs is None or own is None:
            yield f"only the {'student' if theirs is None else 'teacher'} has a chat template"
        else:
            yield "the chat template is another one"


def _other_steps(teacher: Tokenizer, student: Tokenizer) -> Iterator[str]:
    if teacher.model.__getstate__() != student.model.__getstate__():
        theirs, own = as_json(teacher.model), as_json(student.model)
        keys = [key for key in dict.fromkeys([*theirs, *own]) if key != "vocab" and theirs.get(key) != own.get(key)]
        for key in keys or ["the scores of the vocabulary"]:
            if key == "merges":
                yield f"the merges differ ({len(theirs.get(key) or ())} and {len(own.get(key) or ())})"
            elif key in theirs or key in own:
                yield f"{key} is {_shown(theirs.get(key))} to the teacher and {_shown(own.get(key))} to the student"
            else:
                yield f"{key} differ"
    for step, name in STEPS.items():
        theirs, own = (_step(tokenizer, step) for tokenizer in (teacher, student))
        if theirs != own:
            yield f"{name} differs: {_kind(theirs)} for the teacher, {_kind(own)} for the student"


def _step(tokenizer: Tokenizer, name: str) -> Any:
    step = getattr(tokenizer, name)
    return None if step is None else as_json(step)


def _kind(step: Any) -> str:
    if step is None:
        return "none"
    parts = step.get("normalizers") or step.get("pretokenizers") or step.get("processors") or step.get("decoders")
    return " + ".join(map(_kind, parts)) if parts else str(step["type"])


def _other_flags(teacher: Mapping[str, Mapping[str, bool]], student: Mapping[str, Mapping[str, bool]]) -> Iterator[str]:
    for token in dict.fromkeys([*teacher, *student]):
        theirs, own = teacher.get(token), student.get(token)
        if theirs is None or own is None:
            who = "student" if theirs is None else "teacher"
            yield f"{token!r} is found whole in any text by the {who}'s alone (an added token)"
        else:
            flags = [name for name in FLAGS if theirs[name] != own[name]]
            if flags:
                yield f"{token!r} is found in another way ({', '.join(f'{f}: {theirs[f]}, {own[f]}' for f in flags)})"


def _shown(value: Any) -> str:
    text = repr(value) if value is not None else "none"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
