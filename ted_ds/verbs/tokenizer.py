"""``ted-ds tokenizer train``: from a recipe's training documents to a tokenizer folder, and what it is worth."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from transformers import AutoTokenizer

from ted_ds.config.data import by_older_name
from ted_ds.config.load import load_recipe
from ted_ds.config.schema import Recipe
from ted_ds.data.reading.listing import DataListing, Listing, list_data
from ted_ds.data.rows import RowReader
from ted_ds.data.tokenizer_training import train_tokenizer
from ted_ds.errors import ConfigError, counted
from ted_ds.models.sentencepiece_model import MODEL_FILE
from ted_ds.output.output_lock import holding
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.screen import Screen
from ted_ds.runtime.rendezvous import rendezvous_variables

FOLDER = "tokenizer"
MIB = 2**20


def train_from_recipe(recipe_path: str, overrides: Sequence[str]) -> None:
    """Train the tokenizer of a recipe in ``output_dir/tokenizer``, unless it is there already, and show it.

    Raises:
        TedError: The recipe has no such section, the data cannot be used, or another tokenizer is in the way.
    """
    recipe = load_recipe(recipe_path, overrides)
    if recipe.tokenizer is None:
        raise ConfigError(f"{recipe_path}: no tokenizer section; add one, such as tokenizer: {{vocab_size: 32000}}")
    if int(rendezvous_variables(os.environ).get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a tokenizer is trained by one process; run this verb without a launcher")
    column = _column(recipe)
    listing = list_data(recipe.data)
    held_out = ("validation", "evaluation")
    values = recipe.model_dump(
        mode="json",
        include={"tokenizer": True, "seed": True, "data": {"train", *held_out, "heldout_fraction", "cleaning"}},
        exclude={"data": {part: {"__all__": {"path"}} for part in ("train", *held_out)}},
    )
    inputs = {
        **values,
        "data": by_older_name(values["data"]),
        "text_column": column,
        "data_files": listing.identity(),
    }
    folder = PhaseFolder(recipe.output_dir / FOLDER, inputs)
    screen = Screen(shown=True)
    with holding(recipe.output_dir, say=screen.say):
        if folder.is_complete():
            screen.say(f"tokenizer: complete, skipped; the same as in {folder.path}")
        else:
            folder.write(lambda unfinished: _train(recipe, listing, unfinished))
    _show(screen, recipe, folder)


def training_texts(recipe: Recipe, listing: DataListing) -> Iterator[str]:
    """One pass over the documents a run of this recipe would train on, from the sources in turn.

    Raises:
        DataError: Too many records cannot be used.
    """
    return _in_turn(recipe, listing.train, "train" if listing.evaluation is None else "all")


def heldout_texts(recipe: Recipe, listing: DataListing) -> Iterator[str]:
    """The documents such a run would be scored on.

    Raises:
        DataError: Too many records cannot be used.
    """
    if listing.evaluation is None:
        return _in_turn(recipe, listing.train, "heldout")
    return _in_turn(recipe, listing.evaluation, "all")


def _column(recipe: Recipe) -> str:
    if recipe.task.document_column is None:
        raise ConfigError(
            f"tokenizer: the rows of a {recipe.task.kind} are no texts to train one on; use a recipe of documents "
            "(task.kind: causal_lm)"
        )
    return recipe.task.document_column


def _in_turn(recipe: Recipe, sources: Sequence[Listing], split: Literal["train", "heldout", "all"]) -> Iterator[str]:
    reader = RowReader(recipe.data, [_column(recipe)])
    streams = [reader.texts(source, split) for source in sources]
    for text in itertools.chain.from_iterable(itertools.zip_longest(*streams)):
        if text is not None:
            yield text
    reader.judge(is_complete=True)


def _train(recipe: Recipe, listing: DataListing, folder: Path) -> dict[str, Any]:
    assert recipe.tokenizer is not None
    started = time.monotonic()
    reading = train_tokenizer(training_texts(recipe, listing), recipe.tokenizer, seed=recipe.seed, folder=folder)
    seconds = time.monotonic() - started
    return {**vars(reading), "seconds": seconds, "peak_rss_mib": _peak_rss_mib(), **_measure(recipe, listing, folder)}


def _measure(recipe: Recipe, listing: DataListing, folder: Path) -> dict[str, int]:
    """The tokenizer as others will load it, on held-out documents."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    counts = {"tokens": len(tokenizer)}
    counts |= dict.fromkeys(("heldout_documents", "heldout_bytes", "heldout_tokens", "same_ids", "round_trips"), 0)
    for text in itertools.islice(heldout_texts(recipe, listing), recipe.evaluation.max_examples):
        ids = tokenizer.encode(text, add_special_tokens=False)
        counts["heldout_documents"] += 1
        counts["heldout_bytes"] += len(text.encode())
        counts["heldout_tokens"] += len(ids)
        counts["same_ids"] += ids == processor.encode(text)
        counts["round_trips"] += tokenizer.decode(ids) == text
    return counts


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak * 1024 / MIB


def _show(screen: Screen, recipe: Recipe, folder: PhaseFolder) -> None:
    assert recipe.tokenizer is not None
    result, settings = folder.result(), recipe.tokenizer
    heldout = result["heldout_documents"]
    screen.say(f"vocabulary  {result['tokens']:,} tokens, {settings.kind}")
    screen.say(
        f"read        {counted(result['documents'], 'document')}, {result['bytes']:,} bytes; trained on "
        f"{min(result['sentences'], settings.max_sentences):,} of {result['sentences']:,} pieces of text"
    )
    if heldout:
        screen.say(
            f"held out    {result['heldout_bytes'] / result['heldout_tokens']:.3f} bytes per token; of {heldout:,} "
            f"documents {result['round_trips']:,} come back as they were, {result['same_ids']:,} have the ids that "
            "SentencePiece gives"
        )
    else:
        screen.say("held out    no documents; raise data.heldout_fraction or give data.validation")
    screen.say(f"took        {result['seconds']:.1f} s, at most {result['peak_rss_mib']:.0f} MiB of memory")
    screen.say(f"tokenizer   {folder.path}")
