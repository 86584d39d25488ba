"""Which files of a model folder are what, by their names: one list for what is fetched, compared and copied."""

from __future__ import annotations

from ted_ds.models.sentencepiece_model import MODEL_FILE

TEMPLATES_FOLDER = "additional_chat_templates"
TOKENIZER_PATTERNS = ("*.model", f"{MODEL_FILE}.*", "*.jinja", "*.tiktoken")
"""Of what only a tokenizer has; its other files are JSON and text."""
MODEL_PATTERNS = ("*.json", "*.safetensors", "*.txt", *TOKENIZER_PATTERNS)
"""Of all that decides what a model computes."""
LICENCE_PREFIXES = (
    "license",
    "licence",
    "copying",
    "copyright",
    "notice",
    "use_policy",
    "usage_policy",
    "acceptable_use",
    "terms",
    "third_party",
    "third-party",
    "patents",
    "authors",
    "citation",
)
CARD_PREFIXES = ("readme", "model_card", "modelcard")
PROGRAM_SUFFIXES = (".py", ".sh", ".safetensors", ".bin")
"""Of files that are neither licence nor card, whatever their names begin with."""
PAPER_PATTERNS = tuple(
    "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in prefix) + "*"
    for prefix in (*LICENCE_PREFIXES, *CARD_PREFIXES)
)
"""Of licences and cards, in capitals or not: the hub tells them apart."""
OTHER_PATTERNS = ("consolidated*", *(f"{paper}{end}" for paper in PAPER_PATTERNS for end in ("/*", *PROGRAM_SUFFIXES)))
"""Of what these patterns match too and nobody reads: the weights once more, folders and programs named like papers."""
