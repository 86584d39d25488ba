"""Which files of a model folder are what, by their names: one list for what is fetched, compared and copied."""

from __future__ import annotations

import re

from ted_ds.models.sentencepiece_model import MODEL_FILE

TEMPLATES_FOLDER = "additional_chat_templates"
TOKENIZER_PATTERNS = ("*.model", f"{MODEL_FILE}.*", "*.jinja", "*.tiktoken")
"""Of what only a tokenizer has; its other files are JSON and text."""
MODEL_PATTERNS = ("*.json", "*.safetensors", "*.txt", *TOKENIZER_PATTERNS)
"""Of all that decides what a model computes."""
LICENCE_STEMS = ("license", "licence", "licensing")
"""What is anywhere in the name of a licence, in capitals or not (``LLAMA_LICENSE``)."""
LICENCE_WORDS = (
    "copying",
    "copyright",
    "notice",
    "eula",
    "terms",
    "use_policy",
    "usage_policy",
    "acceptable_use",
    "third_party",
    "third-party",
    "patents",
    "authors",
    "citation",
)
"""What begins a word in it (``Gemma_Terms.md``)."""
LICENCE = re.compile(f"{'|'.join(LICENCE_STEMS)}|(?:^|[^a-z])(?:{'|'.join(LICENCE_WORDS)})")
"""Found in the name of a licence in small letters."""
LICENCE_FOLDERS = ("LICENSES", "original")
"""Folders of a model in which licences may lie; of the first, all that is in it is one."""
CARD_PREFIXES = ("readme", "model_card", "modelcard")
PROGRAM_SUFFIXES = (".py", ".sh", ".safetensors", ".bin")
"""Of files that are neither licence nor card, whatever their names say."""


def _in_any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in word)


_STEMS, _WORDS, _CARDS = (
    [_in_any_case(word) for word in words] for words in (LICENCE_STEMS, LICENCE_WORDS, CARD_PREFIXES)
)
PAPER_PATTERNS = (
    *(f"*{stem}*" for stem in _STEMS),
    *(f"{word}*" for word in _WORDS),
    *(f"*[!a-zA-Z]{word}*" for word in _WORDS),
    *(f"{card}*" for card in _CARDS),
)
"""Of licences and cards, in capitals or not: the hub tells them apart."""
OTHER_PATTERNS = (
    "consolidated*",
    *(f"{word}*/*" for word in (*_WORDS, *_CARDS)),
    *(f"{paper}{suffix}" for paper in PAPER_PATTERNS for suffix in PROGRAM_SUFFIXES),
)
"""Of what these patterns match too and nobody reads: the weights once more, folders and programs named like papers."""
