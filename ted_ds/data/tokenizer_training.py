"""Texts become a tokenizer: SentencePiece learns it, from a bounded sample; a Hugging Face folder holds it."""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizerFast

from ted_ds.config.schema import TokenizerTraining
from ted_ds.errors import DataError
from ted_ds.models.sentencepiece_model import MODEL_FILE, convert, parse, special_tokens

UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
SENTENCE = re.compile(r"\n{0,24}[^\n]{1,1000}(?=[ \n]|\Z)|\n{0,24}[^\n]{1,1000}|\n{1,24}")
"""A line, after the line ends before it; a long one is cut between words where it can be."""
MAX_SENTENCE_BYTES = 4 * (24 + 1000)
RESERVED = "▅"
"""SentencePiece drops every sentence that holds this character (U+2585)."""
BYTE_NAME_CHARACTERS = "<>x0123456789ABCDEF"
SCORE_STEPS = 256
NUM_THREADS = 16
"""Fixed, as it decides in which order numbers are summed: the result must not depend on the machine."""


@dataclass
class Reading:
    """How much was read and kept."""

    documents: int = 0
    bytes: int = 0
    sentences: int = 0
    """Of these the trainer sees at most ``max_sentences``."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerTraining, *, seed: int, folder: Path) -> Reading:
    """Train a tokenizer and save it in ``folder``: Hugging Face files and SentencePiece's own ``tokenizer.model``.

    Text is not normalised, so with byte fallback ``decode(encode(text)) == text`` for every text. The result is a
    function of (texts, settings, seed). Memory is bounded by ``settings.max_sentences``, however long the stream is.

    Args:
        texts: Documents, read once.
        settings: Kind and size of the tokenizer.
        seed: Of the sample.
        folder: An existing folder.

    Raises:
        DataError: No text, or one that such a vocabulary cannot be learned from.
    """
    reading = Reading()
    sample = draw_sample(
        cut_into_sentences(itertools.islice(texts, settings.max_documents), reading), settings.max_sentences, seed
    )
    if not sample:
        raise DataError("no text to train a tokenizer on; the files are empty or all is held out")
    model = _train(sample, settings)
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=convert(model, space=" "), **special_tokens(model), clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    return reading


def cut_into_sentences(texts: Iterable[str], reading: Reading) -> Iterator[str]:
    """Lines, and parts of long ones, below SentencePiece's limit; counts what it reads and gives."""
    for text in texts:
        reading.documents += 1
        reading.bytes += len(text.encode())
        for part in text.split(RESERVED):
            for sentence in SENTENCE.findall(part):
                if sentence.strip("\r\n"):  # SentencePiece strips these from the end
                    reading.sentences += 1
                    yield sentence


def draw_sample(sentences: Iterable[str], size: int, seed: int) -> list[str]:
    """A uniform sample of a stream of unknown length (Vitter's algorithm R).

    SentencePiece can sample too, but by a seed of its own, and it hides what goes wrong while the stream is read.
    """
    generator = random.Random(seed)
    sample: list[str] = []
    for number, sentence in enumerate(sentences):
        if number < size:
            sample.append(sentence)
        elif (place := generator.randrange(number + 1)) < size:
            sample[place] = sentence
    return sample


def _train(sample: list[str], settings: TokenizerTraining) -> Any:
    written = io.BytesIO()
    unigram_bytes = settings.byte_fallback and settings.kind == "unigram"
    try:
        sentencepiece.SentencePieceTrainer.train(
            # each is let go of as SentencePiece copies it
            sentence_iterator=(sample.pop() for _ in range(len(sample))),
            model_writer=written,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            byte_fallback=settings.byte_fallback,
            character_coverage=settings.character_coverage,
            # the conversion needs them to tell the text <0x41> from the byte of that name
            required_chars=BYTE_NAME_CHARACTERS if unigram_bytes else "",
            max_sentence_length=MAX_SENTENCE_BYTES,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=PAD_ID,
            num_threads=NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, settings) from error
    model = parse(written.getvalue())
    if settings.kind == "unigram":
        # SentencePiece adds up scores in 32 bits, tokenizers in 64: two ways to cut a text that are equally good must
        # be so in both. Multiples of 1/256 have exact sums up to 65,536.
        for piece in model.pieces:
            piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    return model


def _explained(error: RuntimeError, settings: TokenizerTraining) -> DataError:
    size = f"tokenizer.vocab_size: {settings.vocab_size}"
    if most := re.search(r"Vocabulary size too high .* <= (\d+)", str(error)):
        return DataError(f"{size}: these texts give at most {most[1]} tokens; use {most[1]} or fewer, or more text")
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
        return DataError(
            f"{size}: the characters of these texts alone need {least[1]}; use more than {least[1]}, or lower "
            f"tokenizer.character_coverage ({settings.character_coverage})"
        )
    return DataError(f"SentencePiece cannot train on these texts: {error}")
