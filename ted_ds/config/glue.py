"""GLUE (Wang et al. 2018): what each of its tasks holds and is scored by, so that a recipe need not say it.

Labels stand in the order of the hub's dataset, whose columns and splits these are. The official files, such as
``MNLI/train.tsv``, as GLUE's own script fetches them, have columns of their own, quotation marks that mean nothing, and
in CoLA no first row of names. The split ``test`` has no labels that anybody is given, and is not read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ted_ds.errors import ConfigError

HUB = "nyu-mll/glue"
ALL_EXAMPLES = 100_000
"""More than any of its held-out sets has."""
TRAIN_FILE = "train.tsv"

GlueName = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One of its tasks."""

    texts: tuple[str, ...]
    """Columns of the hub's dataset with the text, or both of a pair."""
    labels: tuple[str, ...] = ()
    """In the order of their ids; none where a number is predicted."""
    headline: str
    """The metric it is compared by."""
    folder: str
    """Of its official files."""
    official_texts: tuple[str, ...] = ()
    """The columns there, where they are called otherwise."""
    official_label: str = "label"
    official_columns: tuple[str, ...] = ()
    """Of a file without a first row of names, all."""
    heldout: tuple[str, str] = ("validation", "dev.tsv")
    """The split that a model is scored on, by the hub's name and as a file."""
    apart: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Others that it is scored on by themselves."""

    @property
    def kind(self) -> str:
        """Its ``task.kind``."""
        return "sequence_classification" if self.labels else "regression"


GLUE: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        texts=("sentence",),
        labels=("unacceptable", "acceptable"),
        headline="matthews_correlation",
        folder="CoLA",
        official_columns=("source", "label", "mark", "sentence"),
    ),
    "mnli": GlueTask(
        texts=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        headline="accuracy",
        folder="MNLI",
        official_texts=("sentence1", "sentence2"),
        official_label="gold_label",
        heldout=("validation_matched", "dev_matched.tsv"),
        apart={"mismatched": ("validation_mismatched", "dev_mismatched.tsv")},
    ),
    "mrpc": GlueTask(
        texts=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        headline="f1",
        folder="MRPC",
        official_texts=("#1 String", "#2 String"),
        official_label="Quality",
    ),
    "qnli": GlueTask(
        texts=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        headline="accuracy",
        folder="QNLI",
    ),
    "qqp": GlueTask(
        texts=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        headline="f1",
        folder="QQP",
        official_label="is_duplicate",
    ),
    "rte": GlueTask(
        texts=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        headline="accuracy",
        folder="RTE",
    ),
    "sst2": GlueTask(
        texts=("sentence",),
        labels=("negative", "positive"),
        headline="accuracy",
        folder="SST-2",
    ),
    "stsb": GlueTask(
        texts=("sentence1", "sentence2"),
        headline="spearman",
        folder="STS-B",
        official_label="score",
    ),
    "wnli": GlueTask(
        texts=("sentence1", "sentence2"),
        labels=("not_entailment", "entailment"),
        headline="accuracy",
        folder="WNLI",
    ),
}
assert tuple(GLUE) == get_args(GlueName)


def fill_from_glue(values: Any) -> Iterator[str]:
    """Put what ``data.glue`` stands for into the raw values of a recipe, wherever it does not say something itself.

    Yields:
        What is wrong with what it says beside that.

    Raises:
        ConfigError: There is no such task.
    """
    data = values.get("data") if isinstance(values, dict) else None
    if not isinstance(data, dict) or data.get("glue") is None:
        return
    name = data["glue"]
    if not isinstance(name, str) or name not in GLUE:
        close = difflib.get_close_matches(str(name), [*GLUE], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"data.glue: {name!r}: use one of {', '.join(GLUE)}{hint}")
    task = GLUE[name]
    given = data.get("glue_folder")
    place = given if isinstance(given, str) else None
    own = None if place is None else _official_folder(place, task)
    train = [_source(name, place, own, ("train", TRAIN_FILE), task)]
    yield from _contradictions(values, name, task, train)
    if data.get("train") is None:
        data["train"] = train
    if data.get("validation") is None:
        data.setdefault("evaluation", [_source(name, place, own, task.heldout, task)])
    if task.apart:
        apart = {part: [_source(name, place, own, split, task)] for part, split in task.apart.items()}
        data.setdefault("apart", apart)
    texts = [*(task.official_texts if own is not None and task.official_texts else task.texts)]
    label = task.official_label if own is not None else "label"
    wanted: dict[str, Any] = {"kind": task.kind, "text_column": texts if len(texts) > 1 else texts[0]}
    if task.labels:
        wanted |= {"labels": [*task.labels], "label_column": label}
    else:
        wanted |= {"target_columns": [label]}
    section = values.setdefault("task", {})
    if isinstance(section, dict):
        for key, value in {**wanted, "headline": task.headline}.items():
            section.setdefault(key, value)
    evaluation = values.setdefault("evaluation", {})
    if isinstance(evaluation, dict):
        evaluation.setdefault("max_examples", ALL_EXAMPLES)


def _contradictions(values: dict[str, Any], name: str, task: GlueTask, train: list[dict[str, Any]]) -> Iterator[str]:
    section = values.get("task")
    kind = section.get("kind", task.kind) if isinstance(section, dict) else task.kind
    if kind != task.kind:
        yield f"task.kind: {kind!r}: {name} of data.glue is a {task.kind}; leave it out"
    if values["data"].get("train") not in (None, train):  # in a recipe that was filled before, it stands there
        yield f"data.train: data.glue: {name} says what is trained on; remove one of the two"


def _official_folder(place: str, task: GlueTask) -> Path | None:
    """Where the official files are: in the folder that is given, or below it by their own name; None where not."""
    given = Path(place)
    return next((folder for folder in (given, given / task.folder) if (folder / TRAIN_FILE).is_file()), None)


def _source(
    name: str, place: str | None, official: Path | None, split: tuple[str, str], task: GlueTask
) -> dict[str, Any]:
    of_hub, file = split
    if official is not None:
        source: dict[str, Any] = {"path": str(official / file), "format": "csv", "delimiter": "\t", "quoting": "none"}
        return {**source, "columns": [*task.official_columns]} if task.official_columns else source
    is_saved = place is not None and (Path(place) / "dataset_dict.json").is_file()  # by datasets' save_to_disk
    return {"path": place or HUB, **({} if is_saved else {"name": name}), "split": of_hub}


def filled_in(name: str, recipe: Mapping[str, Any]) -> Iterator[str]:
    """What a task of GLUE stands for in a recipe, in words; ``recipe`` is one that was read, as a mapping."""
    task, section = GLUE[name], recipe["task"]
    keys = ("labels", "label_column") if task.labels else ("target_columns",)
    for key in ("kind", "text_column", *keys, "headline"):
        value = section.get(key)
        yield f"task.{key} {', '.join(value) if isinstance(value, list) else value}"
    data = recipe["data"]
    sources = {part: data[part] or [] for part in ("train", "validation", "evaluation")}
    sources |= {f"apart.{part}": of_part for part, of_part in (data["apart"] or {}).items()}
    for part, of_part in sources.items():
        for source in of_part:
            split = f" split {source['split']}" if source["name"] is not None or source["format"] == "auto" else ""
            yield f"data.{part} {source['path']}{split}"
    yield f"evaluation.max_examples {recipe['evaluation']['max_examples']:,}"
