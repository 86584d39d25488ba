"""``tokenizer_config.json`` and its neighbours: their values, each of the kind it should be; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.model_file import read_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``; empty where there is none.

    Raises:
        CheckpointError: It is damaged, or has values of another kind.
    """
    file = folder / TOKENIZER_CONFIG_FILE
    settings = read_object(file)
    longest = settings.get("model_max_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        raise CheckpointError(
            f"{file}: model_max_length is {longest!r:.100}, and has to be a number, without quotes, or null; correct it"
        )
    refuse_no_tokens(file, settings)
    return settings


def declared_tokens(folder: Path, settings: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """The tokens that ``tokenizer_config.json`` numbers, by id.

    Raises:
        CheckpointError: One has no number, or is no token.
    """
    listed = settings.get("added_tokens_decoder") or {}
    where = f"{folder / TOKENIZER_CONFIG_FILE}: added_tokens_decoder"
    if not isinstance(listed, Mapping):
        raise CheckpointError(f"{where} is a {type(listed).__name__}, not an object of tokens by id; copy it again")
    for key, token in listed.items():
        if not (key.isascii() and key.isdigit()):
            raise CheckpointError(f"{where} has {key!r} for an id, no whole number; copy the file again")
        if not (isinstance(token, Mapping) and is_token(token)):
            raise CheckpointError(f"{where}.{key} is {token!r:.100}, no token; copy the file again")
    return sorted(((int(key), token) for key, token in listed.items()), key=lambda item: item[0])


def refuse_no_tokens(file: Path, settings: Mapping[str, Any]) -> None:
    """Make sure that what should be tokens is: transformers would take a text in the place of a list apart."""
    for role in ROLES:
        value = settings.get(role)
        if value is not None and not is_token(value):
            raise CheckpointError(f"{file}: {role} is {value!r:.100}, no token; give its text, or null")
    for key in EXTRA_TOKENS:
        value = settings.get(key)
        if value is None or isinstance(value, Mapping):
            continue
        if not isinstance(value, list) or not all(map(is_token, value)):
            raise CheckpointError(f'{file}: {key} is {value!r:.100}, and has to be a list of tokens, as ["A", "B"]')


def is_token(value: Any) -> bool:
    """Whether a value of a JSON file is a token: its text, or an object with that as its ``content``."""
    return isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("content"), str))


def read_object(file: Path) -> dict[str, Any]:
    """A file's object; empty where there is no such file.

    Raises:
        CheckpointError: It is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not an object; copy it again")
    return content
