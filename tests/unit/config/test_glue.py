"""GLUE as tasks: what a short recipe stands for, from the hub, copies of it, and the official files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ted_ds.config.glue import ALL_EXAMPLES, GLUE, HUB
from ted_ds.config.load import load_recipe
from ted_ds.config.schema import Recipe
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import ConfigError
from ted_ds.planning.plan_in_words import describe
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import labelled, plan_recipe
from tests.tiny import recipe_dict, texts, write_model, write_recipe, write_tokenizer

# --- what the names stand for, by the card of nyu-mll/glue and GLUE's own files -------------------------------------

LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "rte": ["entailment", "not_entailment"],
    "sst2": ["negative", "positive"],
    "wnli": ["not_entailment", "entailment"],
}
HEADERS = {
    "CoLA": None,
    "MNLI": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "MRPC": "Quality,#1 ID,#2 ID,#1 String,#2 String",
    "QNLI": "index question sentence label",
    "QQP": "id qid1 qid2 question1 question2 is_duplicate",
    "RTE": "index sentence1 sentence2 label",
    "SST-2": "sentence label",
    "STS-B": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "WNLI": "index sentence1 sentence2 label",
}
NAMED = ("MNLI", "QNLI", "RTE")
"""Official files that have names of labels, and not ids."""
ODD = 'He said "hello, and half a quote'


def write_official(folder: Path, task: str, count: int = 12) -> Path:
    """The official files of a task, with quotation marks that mean nothing, and a hidden test split."""
    about = GLUE[task]
    place = folder / about.folder
    place.mkdir(parents=True)
    header = HEADERS[about.folder]
    names = (
        ["source", "label", "mark", "sentence"] if header is None else re.split("," if "," in header else " ", header)
    )
    label = "label" if header is None else names[0] if about.folder == "MRPC" else names[-1]

    def row(index: int) -> str:
        value = index / 3 if task == "stsb" else index % len(about.labels)
        if about.folder in NAMED:
            value = about.labels[int(value)]
        words = iter(texts(2, seed=index))
        values = {
            name: str(value) if name == label else next(words) if "String" in name or name in OF_TEXT else f"x{index}"
            for name in names
        }
        return "\t".join(values.values())

    for file in ("train.tsv", *(name for _, name in (about.heldout, *about.apart.values()))):
        lines = ["\t".join(names)] if header is not None else []
        mark = "\ufeff" if about.folder == "MRPC" else ""  # as GLUE's script leaves it
        odd = row(0).replace(texts(2, seed=0)[0], ODD, 1)
        (place / file).write_text(mark + "\n".join([*lines, odd, *map(row, range(1, count))]) + "\n", encoding="utf-8")
    (place / "test.tsv").write_text("index\tsentence\n0\tba be\n", encoding="utf-8")
    return place


OF_TEXT = ("sentence", "sentence1", "sentence2", "question", "question1", "question2")


def short_recipe(folder: Path, glue: str, **data: Any) -> Path:
    """A recipe that says nothing of its task but its name in GLUE."""
    recipe = recipe_dict(folder, kind="sequence_classification")
    del recipe["task"], recipe["evaluation"]["max_examples"]
    recipe["data"] = {"glue": glue, **data}
    return write_recipe(folder / "recipe.yaml", recipe)


def open_data(recipe: Recipe, folder: Path) -> LabelledData:
    tokenizer: Any = write_tokenizer(folder / "tokenizer", encoder=True)
    kind: Any = kind_of(recipe.task)
    return kind.open_data(recipe.data, tokenizer, list_data(recipe.data), max_heldout=recipe.evaluation.max_examples)


@pytest.mark.parametrize("name", GLUE)
def test_a_name_stands_for_the_hubs_dataset(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(short_recipe(tmp_path, name))
    task: Any = recipe.task
    assert recipe.evaluation.max_examples == ALL_EXAMPLES
    train, heldout = recipe.data.train[0], (recipe.data.evaluation or [])[0]
    assert {(one.path, one.name) for one in (train, heldout)} == {(HUB, name)} == {("nyu-mll/glue", name)}
    assert (train.split, heldout.split) == ("train", "validation_matched" if name == "mnli" else "validation")
    if name == "stsb":
        assert (task.kind, task.target_columns, task.headline) == ("regression", ["label"], "spearman")
        return
    assert (task.kind, task.labels, task.label_column) == ("sequence_classification", LABELS[name], "label")
    headlines = {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1"}
    assert task.headline == kind_of(task).headline == headlines.get(name, "accuracy")


def test_mismatched_mnli_is_scored_apart(tmp_path: Path) -> None:
    apart = load_recipe(short_recipe(tmp_path, "mnli")).data.apart
    assert apart is not None
    assert [(part, one.path, one.name, one.split) for part, (one,) in apart.items()] == [
        ("mismatched", HUB, "mnli", "validation_mismatched")
    ]


def test_validation_data_of_its_own_take_the_place_of_the_tasks(tmp_path: Path) -> None:
    data = load_recipe(short_recipe(tmp_path, "rte"), ["data.validation=[{path: mine.tsv}]"]).data
    assert data.evaluation is None
    assert [source.path for source in data.heldout_sources or []] == ["mine.tsv"]


def test_what_a_recipe_says_itself_stays(tmp_path: Path) -> None:
    overrides = ["task.max_length=64", "task.headline=accuracy", "evaluation.max_examples=9", "data.apart=null"]
    recipe = load_recipe(short_recipe(tmp_path, "mrpc"), [*overrides, "task.data_labels=['no', 'yes']"])
    task: Any = recipe.task
    assert (task.max_length, task.headline, task.data_labels) == (64, "accuracy", ["no", "yes"])
    assert task.labels == LABELS["mrpc"]
    assert recipe.evaluation.max_examples == 9


# --- the official files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_official_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    about = GLUE[name]
    place = write_official(tmp_path / "glue_data", name)
    for given in (place, place.parent):  # the task's own folder, or that with all of them
        recipe = load_recipe(short_recipe(tmp_path, name, glue_folder=str(given)))
        data = open_data(recipe, tmp_path)
        assert data.bad_records == []
        assert (len(data.train), len(data.heldout)) == (12, 12)
        assert {part: len(samples) for part, samples in data.beside.items()} == dict.fromkeys(about.apart, 12)
        labels = [sample.label for sample in data.train]
        assert labels == [[index / 3] if name == "stsb" else index % len(about.labels) for index in range(12)]
        tokenizer = write_tokenizer(tmp_path / "tokenizer", encoder=True)
        written = texts(2, seed=3)[: len(about.texts)]
        assert data.train[3].input_ids == tokenizer(*written, truncation=True, max_length=128)["input_ids"]
        assert len(data.train[0].input_ids) > len(tokenizer(ODD)["input_ids"]) - 3, "up to the quote alone"


def test_files_that_lack_a_split_are_a_mistake(tmp_path: Path) -> None:
    place = write_official(tmp_path, "mnli")
    (place / "dev_mismatched.tsv").unlink()
    recipe = short_recipe(tmp_path, "mnli", glue_folder=str(place))
    with pytest.raises(ConfigError, match=r"data\.apart\.mismatched\[0\]\.path: .*dev_mismatched\.tsv: no such data"):
        plan_recipe(str(recipe), [])


# --- copies of the hub's ----------------------------------------------------------------------------------------------


def hub_copy(folder: Path, *, saved: bool) -> Path:
    """MNLI as the hub has it: a repository of Parquet files, or what ``save_to_disk`` makes of it."""
    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS["mnli"])}
    )
    rows = [{"premise": one, "hypothesis": one[::-1], "label": index % 3} for index, one in enumerate(texts(12))]
    hidden = [{**row, "label": -1} for row in rows]
    splits = dict.fromkeys(("train", "validation_matched", "validation_mismatched"), rows)
    splits |= dict.fromkeys(("test_matched", "test_mismatched"), hidden)
    whole = DatasetDict({name: Dataset.from_list(of_split, features=features) for name, of_split in splits.items()})
    if saved:
        whole.save_to_disk(folder)
        return folder
    card = ["---", "configs:", "- config_name: mnli", "  data_files:"]
    for name, of_split in whole.items():
        (folder / "mnli").mkdir(parents=True, exist_ok=True)
        of_split.to_parquet(folder / "mnli" / f"{name}-00000-of-00001.parquet")
        card += [f"  - split: {name}", f"    path: mnli/{name}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("saved", [False, True])
def test_a_copy_of_the_hubs_dataset_is_read_by_its_splits(tmp_path: Path, saved: bool) -> None:
    place = hub_copy(tmp_path / "copy", saved=saved)
    recipe = load_recipe(short_recipe(tmp_path, "mnli", glue_folder=str(place)))
    data = open_data(recipe, tmp_path)
    assert [len(part) for part in (data.train, data.heldout, data.beside["mismatched"])] == [12, 12, 12]
    assert [sample.label for sample in data.train] == [index % 3 for index in range(12)]


# --- mistakes, and what is said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.glue=mnl"], "data.glue: 'mnl': use one of cola, mnli, mrpc, .*, wnli; did you mean 'mnli'?"),
        (["data.glue=[mnli]"], "data.glue: ['mnli']: use one of cola, mnli, mrpc"),
        (["data.glue=null"], "data.train: this key is required"),
        (["task={kind: regression}"], "task.kind: 'regression': cola of data.glue is a sequence_classification; leave"),
        (["data.train=[{path: x.tsv}]"], "data.train: data.glue: cola says what is trained on; remove one of the two"),
        (["data.glue_folder=7"], "data.glue_folder: 7: use a text that is not empty, or null"),
        (
            ["task.headline=pearson"],
            "task: headline: 'pearson': use accuracy, f1_macro, matthews_correlation, f1 or loss",
        ),
    ],
)
def test_mistakes_beside_a_task_of_glue_are_told(tmp_path: Path, overrides: list[str], message: str) -> None:
    recipe = short_recipe(tmp_path, "cola")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    assert re.search(f"{re.escape(str(recipe))}: {pattern}", str(caught.value)), str(caught.value)


def test_a_place_without_a_task_has_no_effect(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification"))
    with pytest.raises(ConfigError, match=r"data: glue_folder: here has no effect without glue; name a task"):
        load_recipe(recipe, ["data.glue_folder=here"])


def test_check_prints_what_a_task_stands_for(tmp_path: Path) -> None:
    place = write_official(tmp_path, "mnli")
    write_model(tmp_path / "teacher", "bert", labels=LABELS["mnli"])
    short = short_recipe(tmp_path, "mnli", glue_folder=str(place))
    recipe, plan = plan_recipe(str(short), ["task.max_length=64"])
    shown = describe(recipe, plan, num_ranks=1)
    assert (
        "glue      mnli stands for task.kind sequence_classification; task.text_column sentence1, sentence2; "
        "task.labels entailment, neutral, contradiction; task.label_column gold_label; task.headline accuracy; "
        f"data.train {place}/train.tsv; data.evaluation {place}/dev_matched.tsv; data.apart.mismatched "
        f"{place}/dev_mismatched.tsv; evaluation.max_examples 100,000"
    ) in shown
    assert (
        "data.apart.mismatched[0] 1 file; first 12 rows: sentence1 (text), sentence2 (text), gold_label (text)" in shown
    )


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_predictions_of_each_task_are_scored_by_the_libraries(tmp_path: Path) -> None:
    import torch
    from scipy.stats import pearsonr, spearmanr

    recorded = json.loads((Path(__file__).parent / "glue_predictions.json").read_text(encoding="utf-8"))
    for name in GLUE:
        kind: Any = kind_of(load_recipe(short_recipe(tmp_path, name)).task)
        outputs, labels = (torch.tensor(recorded[name][part]) for part in ("outputs", "labels"))
        scores = kind.scorer.score([kind.scorer.observe(outputs, labelled(labels))])
        if name == "stsb":
            columns = outputs[:, 0].double().numpy(), labels[:, 0].double().numpy()
            assert scores["pearson"] == pytest.approx(pearsonr(*columns).statistic)
            assert scores["spearman"] == pytest.approx(spearmanr(*columns).statistic)
        else:
            predicted, given = outputs.argmax(-1).numpy(), labels.numpy()
            assert scores["accuracy"] == accuracy_score(given, predicted)
            assert scores["matthews_correlation"] == matthews_corrcoef(given, predicted)
            if len(GLUE[name].labels) == 2:
                assert scores["f1"] == f1_score(given, predicted)
        assert scores[kind.headline] == pytest.approx(recorded[name]["score"], abs=1e-9)
