"""What teacher, student and task must agree on: each contract kept, and broken, in which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.config.pipeline import Pipeline
from ted_ds.config.schema import Recipe
from ted_ds.data.tokenizers import describe_difference, traits_of
from ted_ds.errors import ConfigError
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import load_tokenizer
from ted_ds.planning.contracts import Side, broken_by_loaded, broken_contracts, document_ends, doubts
from tests.task_kinds import make_plan
from tests.tiny import LABELS, WORDS, recipe_dict, task_dict, write_model, write_tokenizer

HEAD_KINDS = ["sequence_classification", "soft_label_classification", "multi_label_classification", "regression"]
LABELLED_KINDS = HEAD_KINDS[:3]
TRAINING = {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
MODELS = {
    "lm": ("llama", {}),
    "larger_lm": ("llama", {"vocab": 128}),
    "smaller_lm": ("llama", {"vocab": 90}),
    "body": ("bert", {}),
    "two": ("bert", {"labels": LABELS}),
    "swapped": ("bert", {"labels": LABELS[::-1]}),
    "three": ("bert", {"labels": ("a", "b", "c")}),
    "unnamed_two": ("bert", {"labels": ("LABEL_0", "LABEL_1")}),
    "unnamed_three": ("bert", {"labels": ("LABEL_0", "LABEL_1", "LABEL_2")}),
    "one_output": ("bert", {"labels": ("LABEL_0",)}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, by the names in ``MODELS``."""
    folder = tmp_path_factory.mktemp("models")
    for name, (family, shape) in MODELS.items():
        write_model(folder / name, family, blocks=2, **shape)
    return folder


def recipe_of(task: dict[str, Any], tmp_path: Path) -> Recipe:
    return Recipe.model_validate({**recipe_dict(tmp_path), "task": task})


def side(name: str, folder: Path, *, trained_first: bool = False) -> Side:
    return Side(name, folder, read_model_facts(folder), trained_first)


def broken(
    recipe: Recipe, teacher: Path | None, student: Path | None = None, *, trained_first: bool = False
) -> dict[str, list[str]]:
    sides = [
        side(name, folder, trained_first=trained_first) if folder is not None else None
        for name, folder in (("teacher", teacher), ("student", student))
    ]
    return {**broken_contracts(recipe, *sides)}


@pytest.fixture
def lm(tmp_path: Path) -> Recipe:
    return recipe_of(task_dict("causal_lm"), tmp_path)


# --- contracts that hold ----------------------------------------------------------------------------------------------


def test_models_that_are_not_known_yet_break_nothing(lm: Recipe, models: Path) -> None:
    assert broken(lm, None, None) == {}
    assert broken(lm, models / "lm", None) == {}
    assert broken(lm, None, models / "lm") == {}


@pytest.mark.parametrize("student", ["lm", "larger_lm"])
def test_causal_lms_of_one_tokenizer_keep_all_contracts_whatever_their_vocabulary_sizes(
    lm: Recipe, models: Path, student: str
) -> None:
    assert broken(lm, models / "lm", models / student) == {}
    assert broken(lm, models / student, models / "lm") == {}


@pytest.mark.parametrize("kind", LABELLED_KINDS)
@pytest.mark.parametrize("name", ["two", "unnamed_two"])
def test_a_head_with_the_tasks_labels_or_as_many_unnamed_ones_keeps_all_contracts(
    models: Path, tmp_path: Path, kind: str, name: str
) -> None:
    assert broken(recipe_of(task_dict(kind), tmp_path), models / name, models / "body") == {}


def test_a_head_with_as_many_outputs_as_targets_keeps_all_contracts(models: Path, tmp_path: Path) -> None:
    assert broken(recipe_of(task_dict("regression"), tmp_path), models / "one_output", models / "body") == {}
    task = {**task_dict("regression"), "target_columns": ["a", "b", "c"]}
    assert broken(recipe_of(task, tmp_path), models / "three", models / "unnamed_three") == {}


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("name", ["body", "three", "swapped"])
def test_what_is_finetuned_first_gets_the_tasks_head(models: Path, tmp_path: Path, kind: str, name: str) -> None:
    assert broken(recipe_of(task_dict(kind), tmp_path), models / name, models / name, trained_first=True) == {}


def test_a_student_cut_from_the_teacher_is_not_held_against_it_twice(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(task_dict("sequence_classification"), tmp_path)
    lines = broken(recipe, models / "swapped", models / "swapped")["labels"]
    assert [line.partition(":")[0] for line in lines] == ["teacher.path"]


def test_models_without_a_tokenizer_file_are_left_to_be_compared_when_they_are_loaded(
    lm: Recipe, models: Path, tmp_path: Path
) -> None:
    slow = Path(shutil.copytree(models / "lm", tmp_path / "slow"))
    (slow / "tokenizer.json").rename(slow / "spiece.model")
    assert broken(lm, models / "lm", slow) == {}
    smaller = Path(shutil.copytree(models / "smaller_lm", tmp_path / "smaller"))
    (smaller / "tokenizer.json").rename(smaller / "spiece.model")
    (line,) = broken(lm, models / "lm", smaller)["tokenizers"]  # what it will read is known all the same
    assert line.startswith(f"student.path: the teacher's tokenizer gives {WORDS[-1]!r} the id 99, but the model has")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LABELLED_KINDS)
@pytest.mark.parametrize("name", ["three", "unnamed_three"])
def test_another_number_of_labels_is_refused(models: Path, tmp_path: Path, kind: str, name: str) -> None:
    assert broken(recipe_of(task_dict(kind), tmp_path), models / name) == {
        "labels": ["teacher.path: it has 3 labels, task.labels has 2; give as many"]
    }


def test_another_number_of_labels_is_refused_also_where_the_config_leaves_out_the_usual_two(
    models: Path, tmp_path: Path
) -> None:
    # transformers does not write LABEL_0 and LABEL_1: a classifier whose config names no labels has two
    recipe = recipe_of({**task_dict("sequence_classification"), "labels": ["a", "b", "c"]}, tmp_path)
    assert broken(recipe, models / "unnamed_two") == {
        "labels": ["teacher.path: it has 2 labels, task.labels has 3; give as many"]
    }


@pytest.mark.parametrize("kind", LABELLED_KINDS)
def test_labels_in_another_order_are_refused(models: Path, tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(task_dict(kind), tmp_path)
    lines = [
        f"{name}.path: its labels are ['positive', 'negative'], task.labels are ['negative', 'positive']; predictions "
        "are compared by id: give task.labels in the model's order"
        for name in ("teacher", "student")
    ]
    assert broken(recipe, models / "swapped") == {"labels": lines[:1]}
    assert broken(recipe, models / "two", models / "swapped") == {"labels": lines[1:]}


@pytest.mark.parametrize("name", ["three", "unnamed_three"])
def test_another_number_of_outputs_than_targets_is_refused(models: Path, tmp_path: Path, name: str) -> None:
    assert broken(recipe_of(task_dict("regression"), tmp_path), models / name) == {
        "labels": ["teacher.path: it has 3 outputs, task.target_columns has 1; give as many"]
    }


# --- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_teacher_without_a_head_is_refused(models: Path, tmp_path: Path, kind: str) -> None:
    assert broken(recipe_of(task_dict(kind), tmp_path), models / "body") == {
        "head": [
            f"teacher.path: a BertModel has no head for {kind} and its predictions would be random; fine-tune it on "
            "the task: add teacher.finetune"
        ]
    }


def test_a_causal_lm_is_no_teacher_of_a_task_with_a_head(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(task_dict("sequence_classification"), tmp_path)
    assert "a LlamaForCausalLM has no head for sequence_classification" in str(broken(recipe, models / "lm")["head"])


# --- vocabulary and tokenizers ----------------------------------------------------------------------------------------


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused(lm: Recipe, models: Path) -> None:
    assert broken(lm, models / "lm", models / "smaller_lm") == {
        "vocabulary": [
            f"student.path: its tokenizer gives {WORDS[-1]!r} the id 99, but the model has embeddings for 0..89 (90 "
            "rows; 10 ids are outside); use the tokenizer it was trained with, or resize its embeddings"
        ]
    }


def test_different_tokenizers_are_refused(lm: Recipe, models: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(models / "lm", tmp_path / "other"))
    write_tokenizer(other, [WORDS[1], WORDS[0], *WORDS[2:]])
    assert broken(lm, models / "lm", other) == {
        "tokenizers": [
            "student.path: teacher and student have different tokenizers (2 ids differ: id 5 is 'ba' to the teacher "
            "and 'be' to the student; id 6 is 'be' to the teacher and 'ba' to the student), and distill.method: ted "
            "compares the two of a causal_lm token by token; use a student with the teacher's tokenizer, or "
            "distill.method: sft, which asks the teacher nothing (a task with one prediction for a text takes two "
            "tokenizers by any method)"
        ]
    }


def test_a_tokenizer_that_lacks_the_last_tokens_is_another_tokenizer(lm: Recipe, models: Path, tmp_path: Path) -> None:
    shorter = Path(shutil.copytree(models / "lm", tmp_path / "shorter"))
    write_tokenizer(shorter, WORDS[:-1])
    (line,) = broken(lm, models / "lm", shorter)["tokenizers"]
    assert f"(1 ids differ: id 99 is {WORDS[-1]!r} to the teacher and None to the student)" in line


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_damaged_tokenizer_is_refused_once_by_its_file_as_the_sides_whose_it_is(
    lm: Recipe, models: Path, tmp_path: Path, name: str
) -> None:
    damaged = Path(shutil.copytree(models / "lm", tmp_path / "damaged"))
    (damaged / "tokenizer.json").write_text("{", encoding="utf-8")
    sides = (damaged, models / "lm") if name == "teacher" else (models / "lm", damaged)
    lines = [line for of_one in broken(lm, *sides).values() for line in of_one]
    assert all(line.endswith("; copy it again") for line in lines)
    assert [line.partition(": damaged (")[0] for line in lines] == [f"{name}.path: {damaged / 'tokenizer.json'}"]


def test_vocabularies_are_compared_token_by_token() -> None:
    assert describe_difference({"a": 0, "b": 1}, {"b": 1, "a": 0}) is None
    difference = describe_difference({"a": 0, "b": 1}, {"a": 1, "b": 0})
    assert difference is not None
    assert difference.startswith("2 ids differ: id 0 is 'a' to the teacher and 'b' to the student")


# --- in the plan ------------------------------------------------------------------------------------------------------


def test_each_broken_contract_has_its_own_name(models: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(models / "swapped", tmp_path / "other"))
    write_tokenizer(other, [*WORDS, "more"], encoder=True)
    recipe = recipe_of(task_dict("sequence_classification"), tmp_path)
    recipe = recipe.model_copy(update={"pipeline": Pipeline(stages=2)})
    assert broken(recipe, models / "body", other).keys() == {"labels", "head", "vocabulary", "tokenizers"}


@pytest.mark.parametrize("finetune", [None, TRAINING])
def test_the_plan_refuses_broken_contracts_unless_told_not_to(
    classification_run: Path, models: Path, finetune: dict[str, Any] | None
) -> None:
    overrides = [f"teacher.path={models / 'swapped'}", f"teacher.finetune={json.dumps(finetune)}"]
    overrides.append("student.from_teacher.blocks=[0,1]")
    recipe = load_recipe(classification_run / "recipe.yaml", overrides)
    assert make_plan(recipe, contracts_hold=False).teacher is not None
    if finetune is not None:
        assert make_plan(recipe).teacher is not None
        return
    with pytest.raises(ConfigError, match=r"tiny\.yaml: teacher\.path: its labels are \['positive', 'negative'\]"):
        make_plan(recipe, source="tiny.yaml")


def test_a_student_given_as_the_teachers_own_folder_is_checked_where_only_the_teacher_is_finetuned(
    classification_run: Path, models: Path
) -> None:
    path = models / "swapped"
    overrides = [f"teacher.path={path}", f"teacher.finetune={json.dumps(TRAINING)}", "student.from_teacher=null"]
    recipe = load_recipe(classification_run / "recipe.yaml", [*overrides, f"student.path={path}"])
    with pytest.raises(ConfigError, match=r"student\.path: its labels are \['positive', 'negative'\]"):
        make_plan(recipe)


def test_a_student_cut_from_a_finetuned_teacher_has_its_head(classification_run: Path, models: Path) -> None:
    overrides = [f"teacher.path={models / 'swapped'}", f"teacher.finetune={json.dumps(TRAINING)}"]
    recipe = load_recipe(classification_run / "recipe.yaml", [*overrides, "student.from_teacher.blocks=[0,1]"])
    assert make_plan(recipe).student is not None


@pytest.mark.parametrize("name", ["CodeLlamaTokenizer", "GemmaTokenizerFast"])
def test_what_a_class_may_put_around_a_text_is_left_to_be_seen_when_it_is_loaded(
    lm: Recipe, models: Path, tmp_path: Path, name: str
) -> None:
    teacher = Path(shutil.copytree(models / "lm", tmp_path / "teacher"))
    file = teacher / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    assert "before each text" in str(document_ends(lm, side("teacher", teacher)))
    file.write_text(json.dumps({**settings, "tokenizer_class": name}), encoding="utf-8")
    assert document_ends(lm, side("teacher", teacher)) == (
        f"what is put around each is known once the teacher's {name.removesuffix('Fast')} is loaded"
    )


def test_texts_that_two_tokenizers_would_read_otherwise_are_a_doubt(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(task_dict("causal_lm"), tmp_path)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for folder in (teacher, student):
        shutil.copytree(models / "lm", folder)
    assert "tokenizers" not in doubts(recipe, side("teacher", teacher), side("student", student))
    file = student / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "normalizer": {"type": "Lowercase"}}))
    (line,) = doubts(recipe, side("teacher", teacher), side("student", student))["tokenizers"]
    assert line.startswith("student.path: ")
    assert "the normaliser differs: none for the teacher, Lowercase for the student" in line
    assert "tokenizers" not in doubts(recipe, None, side("student", student))


def test_what_the_loaded_tokenizer_has_beside_its_files_is_asked_of_each_model_once(
    models: Path, tmp_path: Path
) -> None:
    loaded = traits_of(load_tokenizer(models / "lm"))  # of 100 tokens
    other = shutil.copytree(models / "smaller_lm", tmp_path / "of 90 too")

    def found(*folders: Path | None) -> list[str]:
        sides = [folder and side(name, folder) for name, folder in zip(("teacher", "student"), folders, strict=True)]
        return [line.partition(" tokenizer gives")[0] for line in broken_by_loaded(loaded, *sides)]

    small, fits = models / "smaller_lm", models / "lm"
    assert found(small, other) == ["teacher.path: its", "student.path: the teacher's"]
    assert found(small, small) == ["teacher.path: its"]
    assert found(fits, small) == ["student.path: the teacher's"]
    assert found(small, None) == ["teacher.path: its"]
    assert found(None, small) == ["student.path: the teacher's"]
    assert found(fits, None) == []
