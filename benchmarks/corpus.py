"""Texts and a tokenizer to measure with: the quickstart's where they are, else generated ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.report import ROOT

REVIEWS = ROOT / "demo_assets" / "imdb.jsonl"
TOKENIZER = ROOT / "demo_assets" / "smollm2-135m"
GENERATED_DOCUMENTS, GENERATED_WORDS, GENERATED_VOCABULARY = 5000, 4000, 8000
WORDS_PER_DOCUMENT = 180


class Corpus:
    """JSON lines of any size, out of one set of documents in orders that a seed decides."""

    def __init__(self) -> None:
        """Take the quickstart's reviews where they have been prepared, else generate texts."""
        if REVIEWS.is_file():
            self.description = "IMDB reviews (demo_assets), repeated in new orders"
            self._lines = [line + b"\n" for line in REVIEWS.read_bytes().splitlines()]
        else:
            self.description = "generated texts (demo_assets are not prepared), repeated in new orders"
            self._lines = [json.dumps({"text": text}).encode() + b"\n" for text in _generated()]

    def write(self, path: Path, num_bytes: int) -> Path:
        """Make a file of about ``num_bytes``."""
        generator, size = random.Random(num_bytes), 0
        with path.open("wb") as file:
            while size < num_bytes:
                for line in generator.sample(self._lines, len(self._lines)):
                    size += file.write(line)
                    if size >= num_bytes:
                        break
        return path


def prepare_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer: that of the quickstart's models, else one trained in ``folder`` on generated texts."""
    if TOKENIZER.is_dir():
        return TOKENIZER
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=GENERATED_VOCABULARY, special_tokens=["[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(_generated(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[EOS]").save_pretrained(folder)
    return folder


def _generated() -> Iterator[str]:
    """Documents of words whose frequencies fall as those of a language do (Zipf)."""
    generator = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(GENERATED_WORDS)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    for _ in range(GENERATED_DOCUMENTS):
        yield " ".join(generator.choices(words, weights, k=generator.randint(20, 2 * WORDS_PER_DOCUMENT)))
