"""Wrong input: one clear message, exit code 2 on every rank, in seconds, nothing written."""

from __future__ import annotations

import json
import shutil

import pytest
from deepspeed.accelerator import get_accelerator

from tests.integration.launching import alone, deepspeed, forked, forked_ranks
from tests.tiny import ROOT, texts, write_labelled, write_model, write_rows, write_run

SECONDS = 30
# starting Python, torch and deepspeed on two shared cores is most of it
LAUNCHED_SECONDS = 60
ZERO3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"


def check_refused(folder, arguments, message, *, count=2):
    """Every rank exits with 2, the message is printed once, and no output folder appears."""
    outcomes = forked_ranks(count, ["run", str(folder / "recipe.yaml"), *arguments])
    everything = "".join(outcome.output for outcome in outcomes)
    assert [outcome.code for outcome in outcomes] == [2] * count, everything
    assert everything.count(message) == 1, everything
    assert "Traceback" not in everything
    assert outcomes[0].seconds < SECONDS
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill.max_stepz=3"], "distill.max_stepz: unknown key; did you mean 'max_steps'?"),
        (["distill.max_steps=many"], "distill.max_steps: 'many': use a whole number above 0"),
        (
            ["layer_map={kind: explicit, pairs: [[1, 33]]}"],
            "layer_map.pairs[0]: teacher block 33 does not exist (the model has 4 blocks); use 1..4",
        ),
        (["teacher.path=nowhere/teacher/here"], "teacher.path: nowhere/teacher/here: no such model folder"),
        (["task.sequence_length=65"], "allows at most 64 tokens; lower task.sequence_length"),
    ],
    ids=["unknown-key", "wrong-type", "layer-map", "missing-file", "too-long"],
)
def test_mistakes_in_the_recipe(tmp_path, arguments, message):
    write_run(tmp_path)
    check_refused(tmp_path, arguments, message)


def test_different_tokenizers(tmp_path):
    write_run(tmp_path)
    write_model(tmp_path / "student", "llama", blocks=2)
    tokenizer = tmp_path / "student" / "tokenizer.json"
    swapped = tokenizer.read_text().replace('"ba"', '"XX"').replace('"be"', '"ba"').replace('"XX"', '"be"')
    tokenizer.write_text(swapped)
    arguments = [f"student={{path: {tmp_path / 'student'}}}"]
    check_refused(tmp_path, arguments, "id 5 is 'ba' to the teacher and 'be' to the student")


def test_label_orders_that_differ(tmp_path):
    write_run(tmp_path, kind="sequence_classification")
    message = "its labels are ['negative', 'positive'], task.labels are ['positive', 'negative']"
    check_refused(tmp_path, ["task.labels=[positive, negative]"], message)


@pytest.mark.parametrize("zero", [[], [ZERO3]], ids=["zero1", "zero3"])
def test_a_file_missing_on_one_rank_only(tmp_path, zero):
    write_run(tmp_path)
    shutil.copytree(tmp_path / "teacher", tmp_path / "teacher_0")
    shutil.copytree(tmp_path / "teacher", tmp_path / "teacher_1")
    (tmp_path / "teacher_1" / "model.safetensors").unlink()
    arguments = [f"teacher.path={tmp_path}/teacher_${{oc.env:RANK}}", *zero]
    check_refused(
        tmp_path,
        arguments,
        f"rank 1: {tmp_path}/recipe.yaml: teacher.path: {tmp_path}/teacher_1: no *.safetensors weights here",
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train.jsonl: "),
        ([{"body": "ba be"}], "no column 'text'; it has body"),
        ([*({"text": text} for text in texts(20)), {"text": None}], "no value in column 'text'; every row needs one"),
    ],
    ids=["empty", "no-text-column", "row-without-text"],
)
def test_data_that_is_wrong(tmp_path, rows, message):
    write_run(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)
    check_refused(tmp_path, ["data.bad_records.max_count=0"], message)


def test_a_label_nobody_knows(tmp_path):
    write_run(tmp_path, kind="sequence_classification")
    write_labelled(tmp_path / "train.jsonl", labels=("negative", "neutral"))
    check_refused(tmp_path, [], "label 'neutral' is unknown; use one of ['negative', 'positive']")


def test_tasks_started_without_ranks_are_refused(tmp_path):
    outcome = alone("run", str(write_run(tmp_path)), PMI_SIZE="2")
    assert outcome.code == 2
    assert "$PMI_SIZE is 2, but $RANK is not set" in outcome.output
    assert not (tmp_path / "run").exists()


def test_hosts_that_this_machine_lacks(tmp_path):
    write_run(tmp_path)
    check_refused(
        tmp_path,
        ["teacher.host=int8"],
        "teacher.host: int8 needs torchao 0.18 or newer, which is not installed here: pip",
    )
    accelerator = get_accelerator()
    if not accelerator.create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        on_disk = ["teacher.host=nvme_offload", f"teacher.offload_dir={tmp_path}/disk"]
        check_refused(tmp_path, on_disk, "needs DeepSpeed's async_io, which cannot be built here: install libaio with")


def test_a_typo_inside_a_section_of_the_deepspeed_json(tmp_path):
    recipe = write_run(tmp_path)
    config = json.loads((ROOT / "ds_configs" / "deepspeed" / "zero2.json").read_text())
    config["zero_optimization"]["overlap_com"] = True
    (tmp_path / "ds.json").write_text(json.dumps(config))
    outcome = forked("run", str(recipe), f"deepspeed={tmp_path / 'ds.json'}")
    assert outcome.code == 2
    assert "overlap_com" in outcome.output
    assert "Traceback" not in outcome.output


def test_a_precision_the_device_lacks(tmp_path):
    write_run(tmp_path, method="sft")
    if get_accelerator().is_fp16_supported():
        assert forked("run", str(tmp_path / "recipe.yaml"), "precision=fp16").code == 0
    else:
        check_refused(tmp_path, ["precision=fp16"], "precision: fp16 is not supported by this cpu")


def test_the_launcher_passes_the_exit_code_on(tmp_path):
    write_run(tmp_path)
    outcome = deepspeed("run", str(tmp_path / "recipe.yaml"), "seed=minus one")
    assert outcome.code == 2
    assert outcome.output.count("seed: 'minus one'") == 1
    assert outcome.seconds < LAUNCHED_SECONDS
