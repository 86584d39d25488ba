"""A student of another tokenizer than its teacher's: when each reads by its own, and what is refused in which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.data.tokenizers import traits_of
from ted_ds.errors import ConfigError
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import load_tokenizer
from ted_ds.planning.contracts import Side, broken_by_loaded
from ted_ds.planning.plan import Plan
from ted_ds.planning.plan_in_words import describe
from tests.task_kinds import make_plan
from tests.tiny import LABELS, labels_of, write_labelled, write_letters, write_model, write_run

TRAINING = "{max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"
SHAPES = {"labels": LABELS, "blocks": 2, "vocab": 40}
ONE_FOR_A_TEXT = (
    "sequence_classification",
    "soft_label_classification",
    "multi_label_classification",
    "regression",
    "multiple_choice",
)


@pytest.fixture(scope="module")
def lm_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("students") / "llama", "llama", blocks=2, vocab=40)
    write_letters(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("students") / "roberta", "roberta", **SHAPES)  # type: ignore[arg-type]
    write_letters(folder, encoder=True)
    return folder


def recipe_of(run: Path, student: Path, *overrides: str) -> Any:
    return load_recipe(run / "recipe.yaml", ["student.from_teacher=null", f"student.path={student}", *overrides])


def plan_of(run: Path, student: Path, *overrides: str) -> Plan:
    return make_plan(recipe_of(run, student, *overrides))


def refusal(run: Path, student: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(run, student, *overrides)
    (line,) = str(caught.value).splitlines()
    before, found, behind = line.partition(", and ")
    assert before.startswith("recipe: student.path: teacher and student have different tokenizers (1")
    assert " ids differ: id 0 is '[PAD]' to the teacher and '<pad>' to the student" in before
    assert found
    return behind


# --- what each reads by -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "kd", "lwd", "ted"])
def test_in_a_task_with_one_prediction_for_a_text_each_reads_by_its_own(
    classification_run: Path, student: Path, method: str
) -> None:
    found = plan_of(classification_run, student, f"distill.method={method}")
    assert found.two_tokenizers
    assert found.text_ends is not None
    assert "to the student before each text '<s>' (2)" in found.text_ends
    assert "; to the teacher before each text '[CLS]' (3)" in found.text_ends
    compared = (
        "two tokenizers: layers are compared by one state of each text, where Stage I reads it, not at each token"
    )
    first, *others = (remark for remark in found.remarks if remark.startswith("two "))
    assert first.startswith(
        "two tokenizers (100 ids differ: id 0 is '[PAD]' to the teacher and '<pad>' to the student;"
    )
    assert first.endswith(
        "): each model reads by its own, up to task.max_length of its tokens; the student's is exported"
    )
    assert others == ([compared] if method in ("lwd", "ted") else [])
    assert not found.doubts


@pytest.mark.parametrize("kind", ONE_FOR_A_TEXT)
def test_every_kind_with_one_prediction_for_a_text_takes_two(tmp_path: Path, kind: str) -> None:
    recipe = write_run(tmp_path, kind=kind)
    architecture = "MultipleChoice" if kind == "multiple_choice" else "SequenceClassification"
    write_model(tmp_path / "own", "roberta", blocks=2, labels=labels_of(kind), architecture=architecture)
    write_letters(tmp_path / "own", encoder=True)
    assert plan_of(recipe.parent, tmp_path / "own").two_tokenizers


def test_a_student_of_the_teachers_vocabulary_reads_by_the_teachers(classification_run: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(classification_run / "teacher", tmp_path / "same"))
    settings = json.loads((same / "tokenizer_config.json").read_text())
    (same / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "[SEP]"}))
    found = plan_of(classification_run, same)
    assert not found.two_tokenizers
    assert not any("two tokenizers" in remark for remark in found.remarks)
    assert any("its tokenizer differs from the teacher's" in doubt for doubt in found.doubts)


def test_a_language_model_that_asks_its_teacher_nothing_reads_by_its_own(lm_run: Path, lm_student: Path) -> None:
    recipe = recipe_of(lm_run, lm_student, "distill.method=sft", "task.bos=always")
    found = make_plan(recipe)
    assert found.two_tokenizers
    words = describe(recipe, found, num_ranks=1)
    assert "note      two tokenizers (100 ids differ: id 0 is " in words
    assert "): the data are read by the student's, which is exported; the teacher is not scored\n" in words
    assert "texts     before each text '<s>' (2) (task.bos: always), behind it '</s>' (1)\n" in words


def test_nothing_is_asked_of_a_teacher_for_which_nothing_is_read(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="question_answering", method="sft")
    write_model(tmp_path / "teacher", "bert")  # has no head
    labels = labels_of("question_answering")
    write_model(tmp_path / "own", "bert", blocks=2, labels=labels, architecture="QuestionAnswering")
    with pytest.raises(ConfigError, match=r"teacher\.path: .* add teacher\.finetune"):
        plan_of(recipe.parent, tmp_path / "own")
    write_letters(tmp_path / "own", encoder=True)
    assert plan_of(recipe.parent, tmp_path / "own").two_tokenizers


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kd", "lwd", "ted"])
def test_tokens_of_two_tokenizers_are_not_compared(lm_run: Path, lm_student: Path, method: str) -> None:
    assert refusal(lm_run, lm_student, f"distill.method={method}") == (
        f"distill.method: {method} compares the two of a causal_lm token by token; use a student with the teacher's "
        "tokenizer, or distill.method: sft, which asks the teacher nothing (a task with one prediction for a text "
        "takes two tokenizers by any method)"
    )


def test_a_teacher_is_not_trained_where_its_tokenizer_reads_nothing(lm_run: Path, lm_student: Path) -> None:
    overrides = ("distill.method=sft", f"teacher.finetune={TRAINING}")
    assert refusal(lm_run, lm_student, *overrides) == (
        "the texts of a causal_lm are read by the student's alone; use a student with the teacher's tokenizer, or "
        "train the teacher in a run of its own and remove teacher.finetune"
    )


def test_how_tokens_lie_to_each_other_is_seen_in_the_same_tokens(classification_run: Path, student: Path) -> None:
    overrides = ("distill.method=lwd", "distill.feature_distance=cka")
    assert refusal(classification_run, student, *overrides) == (
        "distill.feature_distance: cka compares how the tokens of a text lie to each other; use a student with the "
        "teacher's tokenizer, or distill.feature_distance: mse or cosine"
    )
    assert plan_of(classification_run, student, "distill.method=kd", *overrides[1:]).two_tokenizers


def test_relations_are_of_the_same_tokens(classification_run: Path, student: Path) -> None:
    overrides = ("distill.method=kd", "distill.relation_weight=1", "distill.relation_heads=4")
    assert refusal(classification_run, student, *overrides) == (
        "distill.relation_weight compares how the tokens of a text relate to each other; use a student with the "
        "teacher's tokenizer, or no relation_weight"
    )


def test_stages_of_a_pipeline_have_the_tokens_of_one(classification_run: Path, student: Path) -> None:
    recipe = recipe_of(classification_run, student, "distill.method=kd", "pipeline.stages=2")
    with pytest.raises(ConfigError) as caught:
        make_plan(recipe, num_ranks=2)
    assert str(caught.value).endswith(
        ", and the stages of a pipeline hand on the tokens of one; use a student with the teacher's tokenizer, or "
        "pipeline.stages: 1, with memory shared out by ZeRO"
    )
    alone = recipe_of(classification_run, student, "distill.method=sft", "pipeline.stages=2")
    assert make_plan(alone, num_ranks=2).two_tokenizers


def test_each_tokenizer_is_held_against_its_own_model(classification_run: Path, student: Path) -> None:
    """The teacher's has 100 ids, and the student, with rows for 40, never reads one of them."""
    folders = {"teacher": classification_run / "teacher", "student": student}
    loaded = {side: traits_of(load_tokenizer(folder)) for side, folder in folders.items()}
    sides = [Side(name, folder, read_model_facts(folder), False) for name, folder in folders.items()]
    assert broken_by_loaded(loaded["teacher"], *sides, of_student=loaded["student"]) == []
    (line,) = broken_by_loaded(loaded["teacher"], *sides)
    assert line.startswith("student.path: the teacher's tokenizer gives ")
    (line,) = broken_by_loaded(loaded["teacher"], *sides, of_student=loaded["teacher"])
    assert line.startswith("student.path: its tokenizer gives ")


def test_types_of_tokens_are_those_of_the_models_own_tokenizer(tmp_path: Path) -> None:
    """A RoBERTa has one type, and its tokenizer gives one: BERT's second is none of its business."""
    recipe = write_run(tmp_path, kind="sequence_classification")
    write_labelled(tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**row, "second": "ba be"}) + "\n" for row in rows))
    pairs = "task.text_column=[text, second]"
    write_model(tmp_path / "own", "bert", blocks=2, labels=LABELS, type_vocab_size=3)
    write_letters(tmp_path / "own", encoder=True)
    assert plan_of(recipe.parent, tmp_path / "own", pairs).two_tokenizers
    file = tmp_path / "own" / "tokenizer.json"
    settings = json.loads(file.read_text())
    for part in settings["post_processor"]["pair"][3:]:
        next(iter(part.values()))["type_id"] = 5
    file.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"student\.path: its tokenizer gives tokens of a pair the type 5, but the"):
        plan_of(recipe.parent, tmp_path / "own", pairs)
