"""Whole runs with transfer texts: any number of ranks, a cached teacher, going on, and what depends on them."""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.test_resume import resume_from_each, seven_steps
from tests.layouts import zero_stage
from tests.runs import run, with_dropout
from tests.tiny import write_labelled, write_run

FINETUNE = "student.finetune={max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"
LOSSES = ("loss/task", "loss/kl_teacher_student", "loss/feature_mse")


def transfer_of(folder, *, share="0.4", count=30):
    path = write_labelled(folder / "more.jsonl", count, labels=("of", "another", "task"), seed=3)
    return f"data.transfer=[{{path: {path}}}]", f"data.transfer_share={share}"


def reports(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "distill" and "loss/task" in line]


def test_a_run_that_was_stopped_goes_on_to_the_last_bit(tmp_path):
    recipe = with_dropout(write_run(tmp_path, kind="sequence_classification", method="kd"))
    arguments = seven_steps(recipe, zero_stage(2), *transfer_of(tmp_path), "data.length_grouping.window_steps=3")
    resume_from_each(tmp_path, arguments, (4,))


@pytest.mark.slow
def test_ranks_and_a_cached_teacher_change_nothing_and_stage_two_alone_depends_on_them(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification")
    steps = ("distill.max_steps=30", "distill.micro_batch_size=1")
    arguments = ["run", str(recipe), FINETUNE, *steps]
    transfer = transfer_of(tmp_path, count=12)
    output = run([*arguments, *transfer])
    assert " transfer texts for Stage II, 0.4 of each step" in output
    run([*arguments, *transfer, f"output_dir={tmp_path / 'alone'}"], num_ranks=1)
    cached = run([*arguments, *transfer, f"output_dir={tmp_path / 'cached'}", "teacher.cache.max_gib=1"])
    num_train, num_transfer = (int(one) for one in re.findall(r"(\d+) (?:training examples|transfer texts)", output))
    assert f"teacher cache: {num_train + num_transfer} examples, " in cached
    whole = reports(tmp_path / "run")
    assert whole[-1]["data/epoch"] == pytest.approx(72 / num_train)
    assert whole[-1]["data/transfer_epoch"] == pytest.approx(48 / num_transfer)
    # what is rounded in another order goes through 30 steps of Adam; a cache rounds what layers are compared with to 8
    # bits, and after some steps that is another student
    for name, num_steps, tolerance in (("alone", 30, 1e-3), ("cached", 5, 2e-2)):
        for one, other in zip(whole[:num_steps], reports(tmp_path / name)[:num_steps], strict=True):
            for loss in LOSSES:
                assert other[loss] == pytest.approx(one[loss], rel=tolerance), (name, one["step"], loss)
    changed = run([*arguments, *transfer[:1], "data.transfer_share=0.5"], codes=2)
    assert "run/distill: was completed with other settings: transfer.share was 0.4, now 0.5. " in changed
