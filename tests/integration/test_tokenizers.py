"""Runs with tokenizers that begin texts, give ids without an embedding, or share a vocabulary and not all else."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import processors

from tests.runs import copy_run, run
from tests.tiny import write_model, write_run


def edit_json(file, **changes):
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))


def add_bos(folder):
    """The tokenizer of a tiny model begins each text with [CLS], its BOS token."""
    edit_json(folder / "tokenizer_config.json", bos_token="[CLS]")
    step = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 3)])
    edit_json(folder / "tokenizer.json", post_processor=json.loads(step.__getstate__()))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    """A run of a teacher whose tokenizer begins texts with [CLS]: its folder, its arguments and what it printed."""
    folder = tmp_path_factory.mktemp("bos")
    arguments = ["run", str(write_run(folder)), "distill.max_steps=3"]
    add_bos(folder / "teacher")
    return folder, arguments, run(arguments)


def test_what_documents_start_with_is_said_and_is_an_input_of_each_phase_with_data(with_bos):
    folder, _, output = with_bos
    line = "texts: before each text '[CLS]' (3) (as the tokenizer's own encode does), behind it '[EOS]' (1)"
    assert output.count(line) == 1  # on rank 0 alone
    for phase in ("filters_teacher", "filters_student", "distill", "evaluate"):
        inputs = json.loads((folder / "run" / phase / "phase.json").read_text())["inputs"]
        assert inputs["task"]["bos"] == ["[CLS]"], phase


def test_a_finished_phase_is_taken_for_the_same_start_by_another_setting_and_refused_for_another_start(with_bos):
    folder, arguments, _ = with_bos
    before = sorted(folder.rglob("*"))
    assert run([*arguments, "task.bos=always"], num_ranks=1).count("complete, skipped") == 6
    output = run([*arguments, "task.bos=never"], codes=2)
    assert output.count("was completed with other settings: task.bos was ['[CLS]'], now None") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_of_documents_that_start_otherwise_is_refused(with_bos):
    folder, _, _ = with_bos
    recipe = str(folder / "recipe.yaml")
    half = ["run", recipe, "distill.max_steps=3", f"output_dir={folder / 'half'}", "checkpoint.every_steps=1"]
    copy_run(folder / "run", folder / "half")
    for phase in ("distill", "evaluate", "export"):
        shutil.rmtree(folder / "half" / phase)
    run(half)
    assert "task.bos was" in run([*half, "task.bos=never"], codes=2)


def test_a_run_from_before_the_setting_goes_on_where_nothing_is_added(tmp_path):
    arguments = ["run", str(write_run(tmp_path, method="kd")), "distill.max_steps=2"]
    assert "texts: before each text nothing (as the tokenizer's own encode does)" in run(arguments, num_ranks=1)
    for file in (tmp_path / "run").rglob("phase.json"):
        manifest = json.loads(file.read_text())
        if "task" in manifest["inputs"]:
            assert manifest["inputs"]["task"].pop("bos") is None
            file.write_text(json.dumps(manifest))
    assert run(arguments, num_ranks=1).count("complete, skipped") == 4
    edit_json(tmp_path / "teacher" / "tokenizer_config.json", bos_token="[CLS]")
    output = run([*arguments, "task.bos=always"], num_ranks=1, codes=2)
    assert "task.bos was None, now ['[CLS]']" in output


def test_an_id_that_only_loading_shows_to_be_outside_is_refused_before_anything_is_written(tmp_path):
    # a vocabulary of the oldest kind, and a default that only the loading class adds to it
    recipe = write_run(tmp_path, family="gpt2", method="kd")
    teacher = tmp_path / "teacher"
    vocabulary = json.loads((teacher / "tokenizer.json").read_text())["model"]["vocab"]
    (teacher / "tokenizer.json").unlink()
    (teacher / "tokenizer_config.json").unlink()
    (teacher / "vocab.json").write_text(json.dumps(vocabulary))
    (teacher / "merges.txt").write_text("#version: 0.2\n")
    output = run(["run", str(recipe)], codes=2)
    message = (
        "teacher.path: its tokenizer gives '<|endoftext|>' (bos_token in the loaded tokenizer) the id 100, but the"
    )
    assert output.count(message) == 1
    assert not (tmp_path / "run").exists()


def test_two_tokenizers_of_one_vocabulary_are_named_and_the_run_goes_on(tmp_path):
    recipe = write_run(tmp_path, method="kd")
    student = write_model(tmp_path / "student", "llama", blocks=2)
    edit_json(student / "tokenizer_config.json", eos_token="[SEP]", chat_template="{{ messages }}")
    edit_json(student / "generation_config.json", eos_token_id=4)
    arguments = [str(recipe), f"student={{path: {student}}}", "distill.max_steps=1"]
    output = run(["run", *arguments], num_ranks=1)
    for words in (
        "WARN student.path: its tokenizer differs from the teacher's, which is the one that is used and exported: "
        "eos_token is '[EOS]' to the teacher and '[SEP]' to the student; only the student has a chat template",
        "WARN student.path: its generation_config.json ends a text at '[SEP]' (4), the teacher's tokenizer, which is",
    ):
        assert output.count(words) == 1
