"""What each case's README expects, as code: a function a case, that yields what is not so."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    pipeline,
)

from tests.cases.running import Case, Done

TOLERANCE = 1e-5
AT_ONCE = 2
"""Cases, and commands of one case."""
ON_TRAINING_TEXTS = "evaluation.max_examples=1000"
WEIGHTS_OF_GPTQ = ("gptqmodel", "optimum")
"""What transformers loads them with."""

Verdict = Callable[[Case], Iterator[str]]
VERDICTS: dict[str, Verdict] = {}


def judge(folder: Path) -> list[str]:
    """What of a case is not as its README expects."""
    if folder.name not in VERDICTS:
        return [f"no verdict for a case of this name is known; those that are: {', '.join(sorted(VERDICTS))}"]
    with tempfile.TemporaryDirectory(prefix="case-") as scratch:
        faults: list[str] = []
        try:
            faults.extend(VERDICTS[folder.name](Case(folder, Path(scratch) / folder.name)))
        except Exception as error:  # what it looks for is not there, or not what it should be: the other cases go on
            faults.append(f"cannot be judged: {type(error).__name__}: {error}")
        return faults


def judge_all(folders: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """The same of many, a few at a time; in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(folders, pool.map(judge, folders), strict=True)


def _case(name: str) -> Callable[[Verdict], Verdict]:
    def keep(verdict: Verdict) -> Verdict:
        VERDICTS[name] = verdict
        return verdict

    return keep


# --- what many expect -------------------------------------------------------------------------------------------------


def _completes(done: Done) -> Iterator[str]:
    if done.code != 0:
        last = done.output.strip().splitlines()[-1:] or ["(no output)"]
        yield f"{done.command}: exit code {done.code}, not 0: {last[0]}"


def _refuses(case: Case, done: Done, *patterns: str) -> Iterator[str]:
    """Exit code 2, one message that says all of ``patterns``, nothing written."""
    if done.code != 2 or not done.error.strip():
        last = done.output.strip().splitlines()[-1:] or ["(no output)"]
        yield f"{done.command}: exit code {done.code}, not 2 with a message: {last[0]}"
        return
    if "Traceback" in done.output:
        yield f"{done.command}: a traceback beside the message"
    yield from _says(done.command, done.error, *patterns)
    if case.written():
        yield f"{done.command}: has written {', '.join(case.written()[:3])}"


def _says(where: str, text: str, *patterns: str) -> Iterator[str]:
    for pattern in patterns:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL) is None:
            yield f"{where}: does not say {pattern!r}: {text.strip():.300}"


def _is_about(what: str, found: float, expected: float) -> Iterator[str]:
    if not math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield f"{what}: {found:.6f}, not {expected:.6f}"


def _plain_loss(folder: Path, rows: Sequence[tuple[str, str]]) -> float:
    """The mean cross-entropy of texts with the names of their labels, by plain transformers, one text at a time."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = []
    with torch.no_grad():
        for text, label in rows:
            logits = model(**tokenizer(text, return_tensors="pt")).logits
            target = torch.tensor([model.config.label2id[label]])
            losses.append(torch.nn.functional.cross_entropy(logits.double(), target).item())
    return sum(losses) / len(losses)


def _losses_are_plain_ones(case: Case, rows: Sequence[tuple[str, str]], models: Mapping[str, str]) -> Iterator[str]:
    """Reported losses on all training texts; ``models`` are their folders by the name in the report."""
    found = case.read("run/evaluate/evaluation.json")
    for name, folder in models.items():
        if found[name]["num_examples"] != len(rows):
            yield f"{name}: {found[name]['num_examples']} texts are scored, not {len(rows)}"
        expected = _plain_loss(case.folder / folder, rows)
        yield from _is_about(f"loss of {name} against transformers, one text at a time", found[name]["loss"], expected)


# --- one by one -------------------------------------------------------------------------------------------------------


@_case("pad-outside-lm")
def _pad_outside_lm(case: Case) -> Iterator[str]:
    changes = ("evaluation.max_examples=4", "distill.max_steps=6")
    # the token, its id, and the rows of the embedding: ids 0 to 99
    for verb in ("check", "run"):
        yield from _refuses(case, case.start(verb, "recipe.yaml", *changes), "<pad>", r"\b100\b.*\b(100|99)\b")


@_case("pad-outside-clf")
def _pad_outside_clf(case: Case) -> Iterator[str]:
    for verb in ("check", "run"):
        yield from _refuses(case, case.start(verb, "recipe.yaml"), "<pad>", r"\b100\b.*\b(100|99)\b")


@_case("rows")
def _rows(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml")
    yield from _refuses(case, done, r"teacher/(config\.json|model\.safetensors)", r"\b104\b", r"\b100\b", ";|: use ")
    if len(done.error.strip().splitlines()) > 1 and done.error.count("104") != 1:
        yield f"more than one message: {done.error.strip()}"
    if "report" in done.error:
        yield f"refers to a report that is not shown: {done.error.strip()}"


@_case("quant-gptq")
def _quant_gptq(case: Case) -> Iterator[str]:
    missing = [name for name in WEIGHTS_OF_GPTQ if importlib.util.find_spec(name) is None]
    for verb in ("check", "run"):
        done = case.start(verb, "recipe.yaml")
        yield from _refuses(case, done, "gptq", f"({'|'.join(missing)})") if missing else _completes(done)


@_case("tokenizer-truncation")
def _tokenizer_truncation(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml")
    yield from _completes(done)
    if done.code == 0:
        exported, own = (case.read(f"{folder}/tokenizer.json") for folder in ("run/export", "teacher"))
        for key in ("truncation", "padding"):
            if exported[key] != own[key]:
                yield f"export/tokenizer.json: {key} is {exported[key]}, the teacher's {own[key]}"
        if exported != own:
            yield "export/tokenizer.json: differs from the teacher's"


@_case("classlabel-ft")
def _classlabel(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml")
    yield from _completes(done)
    if done.code != 0:
        return
    rows = load_from_disk(str(case.folder / "ds"))
    names = rows.features["label"].names
    classify = pipeline("text-classification", model=str(case.folder / "run/export"), device="cpu")
    found = [one["label"] for one in classify(list(rows["text"]))]
    share = sum(name == names[label] for name, label in zip(found, rows["label"], strict=True)) / len(found)
    if share < 0.9:
        yield f"the export's pipeline names {share:.0%} of the rows what the data name them"


@_case("csv-stars")
def _csv_stars(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml", "data.evaluation=[{path: train.csv}]", ON_TRAINING_TEXTS)
    yield from _completes(done)
    if done.code == 0:
        with (case.folder / "train.csv").open(newline="", encoding="utf-8") as file:
            rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
        # the teacher's weights have a head for two labels, so that the run makes a new one
        yield from _losses_are_plain_ones(case, rows, {"student after": "run/export"})
        names = case.read("run/export/config.json")["id2label"]
        if names != {str(index): str(index + 1) for index in range(5)}:
            yield f"export/config.json: id2label is {names}"


@_case("gpt2-eos-end")
def _gpt2_eos_end(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml", "data.evaluation=[{path: train.jsonl}]", ON_TRAINING_TEXTS)
    yield from _completes(done)
    if done.code == 0:
        lines = (case.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [(row["text"], row["label"]) for row in map(json.loads, lines)]
        yield from _losses_are_plain_ones(case, rows, {"teacher": "teacher", "student after": "run/export"})


@_case("empty-row")
def _empty_row(case: Case) -> Iterator[str]:
    # it is one bad record, and of 61 that is more than data.bad_records allows
    done = case.start("run", "recipe.yaml")
    yield from _refuses(case, done, r"train\.jsonl\W+(line|row|record)\W+8\b", r"\b1 of 61\b", "bad_records")
    allowed = case.again("allowed")
    done = allowed.start("run", "recipe.yaml", "data.bad_records.max_fraction=0.1")
    yield from _completes(done)
    if done.code == 0:
        records = (allowed.folder / "run" / "bad_records.jsonl").read_text(encoding="utf-8").splitlines()
        if len(records) != 1:
            yield f"{len(records)} bad records are listed, not 1"
        found = " ".join(f"{one['file']}: {one['position']}" for one in map(json.loads, records))
        yield from _says("the bad record", found, r"train\.jsonl\W+(line|row|record)\W+8\b")


@_case("folder-splits")
def _folder_splits(case: Case) -> Iterator[str]:
    done = case.start("run", "recipe.yaml", ON_TRAINING_TEXTS)
    yield from _completes(done)
    heldout, trained = (
        re.search(pattern, done.output) for pattern in (r"(\d+) held-out sequences", r"(\d+) training examples")
    )
    if heldout is None or trained is None:
        yield "does not say how many rows it uses"
    elif int(heldout[1]) + int(trained[1]) != 40:
        yield f"{trained[1]} rows are trained on and {heldout[1]} held out, not 40 in all"


@_case("longrope-clf")
def _longrope(case: Case) -> Iterator[str]:
    yield from _completes(case.start("check", "recipe.yaml"))
    runs = [("recipe.yaml",), ("recipe.yaml", "distill.micro_batch_size=1", "output_dir=run1")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        all_done = list(pool.map(lambda words: case.start("run", *words), runs))
    for done in all_done:
        yield from _completes(done)
    if all(done.code == 0 for done in all_done):
        of_four, of_one = (case.reports("distill", output=output) for output in ("run", "run1"))
        for one, other in zip(of_four, of_one, strict=True):
            yield from _is_about(f"step {one['step']}, microbatches of 1", other["loss/total"], one["loss/total"])


REFUSED_JSON = {
    "adamww": (r"optimizer\.type", "AdamWW"),
    "lion": ("optimizer", "Lion"),
    "unknown-parameter": (r"optimizer\.params", "warmup"),
    "unknown-scheduler": (r"scheduler\.type", "WarmupCosine"),
    "mics": (r"zero_optimization\.mics_shard_size",),
    "nvme-without-path": ("offload_optimizer", "nvme_path"),
    "torch-autocast": ("torch_autocast", "precision"),
    "duplicate-key": (r"\bstage\b", "twice|more than once|duplicate|2 times|several times|again"),
}
"""The files and what is said of each."""


@_case("deepspeed-json")
def _deepspeed_json(case: Case) -> Iterator[str]:
    def refused(name: str) -> list[str]:
        own, said = case.again(name), (rf"{name}\.json", *REFUSED_JSON[name])
        return [fault for verb in ("check", "run") for fault in _refuses(own, own.start(verb, *words(name)), *said)]

    def words(name: str) -> list[str]:
        return ["recipe.yaml", f"deepspeed={name}.json", "distill.method=sft", "distill.max_steps=4"]

    def filled(name: str) -> list[str]:
        own = case.again(name)
        warm_up = own.start("run", *words(name), "distill.warmup_steps=3", "output_dir=warm")
        all_done = (own.start("check", *words(name)), own.start("run", *words(name)), warm_up)
        faults = [fault for done in all_done for fault in _completes(done)]
        if not faults:
            # as transformers fills it: from 0 to the learning rate, within the recipe's warm-up steps
            rates = [one["train/learning_rate"] for one in own.reports("distill", output="warm")]
            if not (rates[0] < rates[1] < rates[-1] and math.isclose(rates[-1], 1e-3, rel_tol=1e-6)):
                faults.append(f"{name}: learning rates are {rates}, which do not warm up to 0.001")
        return faults

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [*pool.map(refused, REFUSED_JSON), filled("hf-auto-scheduler")]
    for faults in found:
        yield from faults


@_case("two-tokenizers")
def _two_tokenizers(case: Case) -> Iterator[str]:
    for verb in ("check", "doctor"):
        done = case.start(verb, "recipe.yaml")
        if verb == "check":
            yield from _completes(done)
        yield from _says(done.command, done.words, r"\[EOS\].*\[SEP\]|\[SEP\].*\[EOS\]", r"chat.?template")
    done = case.start("run", "recipe.yaml")
    yield from _completes(done)
    if done.code == 0:
        yield from _is_of_one_piece(case.folder / "run" / "export", case.folder / "teacher")


def _is_of_one_piece(export: Path, teacher: Path) -> Iterator[str]:
    """The exported tokenizer is the teacher's, and what generates stops where it does."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if not (export / name).is_file() or (export / name).read_bytes() != (teacher / name).read_bytes():
            yield f"export/{name}: is not the teacher's"
    tokenizer = AutoTokenizer.from_pretrained(export)
    for name, config in (
        ("generation_config.json", GenerationConfig.from_pretrained(export)),
        ("config.json", AutoConfig.from_pretrained(export)),
    ):
        for key in ("eos_token_id", "pad_token_id"):
            given = getattr(config, key)
            if getattr(tokenizer, key) not in (given if isinstance(given, list) else [given]):
                yield f"export/{name}: {key} is {given}, the tokenizer's {getattr(tokenizer, key)}"
