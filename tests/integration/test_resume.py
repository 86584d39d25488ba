"""A run that was stopped anywhere and goes on is, to the last bit, the run that was never stopped.

On another layout, it is that run up to the rounding of sums in another order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest

from ted_ds.runtime.checkpoints.folders import CheckpointFolders, _manifest_text
from tests.faults import limit_files_at, signal_at
from tests.layouts import STOPPED, Layout, change_layouts, zero_stage
from tests.runs import Run, copy_run, differences, run, traces, with_dropout
from tests.tiny import ROOT, write_run

SAVE_ALL = ("checkpoint.every_steps=1", "checkpoint.keep_every_steps=1", "evaluation.every_steps=3")
LATER = ("distill", "evaluate", "export")


def go_back(folder, step):
    """Remove what a run did after a step of its last training phase."""
    for phase in LATER:
        shutil.rmtree(folder / phase)
    for checkpoint in (folder / "checkpoints" / "distill").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)


def resume_from_each(tmp_path, arguments, steps, num_ranks=2):
    run(arguments, num_ranks=num_ranks)
    whole = traces(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for step in steps:
        copy_run(tmp_path / "whole", tmp_path / "run")
        go_back(tmp_path / "run", step)
        output = run(arguments, num_ranks=num_ranks)
        assert f"going on after step {step} of 7" in output
        assert "another layout" not in output  # as a checkpoint is read that need not be rewritten
        assert differences(whole, traces(tmp_path / "run")) == []


BALANCED = ("distill.balance=gradient_norm", "distill.balance_every_steps=2")
RELATED = ("distill.relation_weight=0.3", "distill.relation_heads=4")


def seven_steps(recipe, *arguments, more=(*BALANCED, *RELATED)):
    every_second = ("distill.max_steps=7", "tracking.log_every_steps=2", "distill.micro_batch_size=1")
    changing = ("distill.kl_weight=[[0,0.5],[6,2.0]]", "distill.feature_weight=[[1,2.0],[4,0.0]]")
    return ["run", str(recipe), *every_second, *changing, *more, *SAVE_ALL, *arguments]


@pytest.mark.parametrize(
    ("number", "precision", "steps"),
    [
        pytest.param(number, precision, steps, marks=[] if (number, precision) == (3, "bf16") else pytest.mark.slow)
        for number, precision in [(0, "fp32"), *((n, p) for n in (1, 2, 3) for p in ("fp32", "bf16"))]
        for steps in [(5,) if (number, precision) == (3, "bf16") else (1, 4, 6)]
    ],
)
def test_every_stage_and_precision_with_dropout(tmp_path, number, precision, steps):
    recipe = with_dropout(write_run(tmp_path, family="gpt2"))
    resume_from_each(tmp_path, seven_steps(recipe, zero_stage(number), f"precision={precision}"), steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal_lm", "sequence_classification"])
@pytest.mark.parametrize("method", ["sft", "kd", "lwd", "ted"])
def test_every_method_and_task(tmp_path, kind, method):
    family = "gpt2" if kind == "causal_lm" else "bert"
    recipe = with_dropout(write_run(tmp_path, kind=kind, family=family, method=method))
    arguments = seven_steps(recipe, zero_stage(2), "checkpoint.asynchronous=false")
    if kind == "causal_lm":
        arguments.append("data.workers=1")
    resume_from_each(tmp_path, arguments, (2, 5))


@pytest.mark.slow
def test_with_an_offloaded_optimizer_and_a_schedule_of_deepspeeds(tmp_path):
    recipe = with_dropout(write_run(tmp_path, family="gpt2"))
    config = json.loads((ROOT / "ds_configs" / "deepspeed" / "zero2.json").read_text())
    config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    config["zero_force_ds_cpu_optimizer"] = False
    config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_num_steps": 4}}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    schedules = [f"{phase}.schedule=deepspeed" for phase in ("distill", "filters.teacher", "filters.student")]
    warmups = [f"{phase}.warmup_steps=1" for phase in ("filters.teacher", "filters.student")]
    arguments = seven_steps(recipe, f"deepspeed={tmp_path / 'ds.json'}", *schedules, *warmups, "distill.warmup_steps=1")
    config["scheduler"]["params"] = {"warmup_num_steps": 1}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    resume_from_each(tmp_path, arguments, (3,))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), [("causal_lm", "gpt2"), ("sequence_classification", "bert")])
def test_stopped_after_every_second_step_of_every_phase_under_zero3(tmp_path, kind, family):
    """With a sharded teacher, and LM heads that stay frozen beside the filters."""
    recipe = with_dropout(write_run(tmp_path, kind=kind, family=family))
    finetune = "{max_steps: 3, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 1}"
    both = [f"{side}.finetune={finetune}" for side in ("teacher", "student")]
    steps = [f"{phase}.max_steps=3" for phase in ("filters.teacher", "filters.student", "distill")]
    arguments = ["run", str(recipe), zero_stage(3), "teacher.host=zero3", *both, *steps, "tracking.log_every_steps=2"]
    run([*arguments, f"output_dir={tmp_path / 'whole'}"])
    num_stops = 0
    while True:
        stopping = Run(arguments, fault=signal_at, fault_arguments=("step", 2, signal.SIGTERM, (num_stops % 2,)))
        codes = stopping.wait()
        if codes == [0, 0]:
            break
        assert codes == [STOPPED, STOPPED], stopping.output()
        num_stops += 1
        assert num_stops < 20
    assert num_stops >= 7
    assert differences(traces(tmp_path / "whole"), traces(tmp_path / "run")) == []


@pytest.mark.slow
def test_a_run_with_a_cached_teacher_goes_on_from_anywhere(tmp_path):
    recipe = with_dropout(write_run(tmp_path, kind="sequence_classification"))
    steps = [f"{phase}.max_steps=2" for phase in ("filters.teacher", "filters.student")]
    cached = ("teacher.cache={max_gib: 1, precision: int8}", "distill.max_steps=40", "distill.micro_batch_size=1")
    arguments = ["run", str(recipe), *cached, *steps, "checkpoint.every_steps=10"]
    run([*arguments, f"output_dir={tmp_path / 'whole'}"])
    killed = Run(arguments, fault=signal_at, fault_arguments=("cache", 9, signal.SIGKILL, (1,)))
    assert killed.wait()[1] == -signal.SIGKILL
    for place, occurrence in (("cache", 9), ("step", 9)):  # the latter in Stage II: there is nothing before it left
        stopping = Run(arguments, fault=signal_at, fault_arguments=(place, occurrence, signal.SIGTERM))
        assert stopping.wait() == [STOPPED, STOPPED], stopping.output()
    before = sorted((tmp_path / "run" / "teacher_cache").glob("*/*"))
    # those of the attempt that was killed are gone, and what the stopped one had was not done again
    assert [file.suffix for file in before].count(".npz") == 4
    assert [file.suffix for file in before].count(".bin") == 4
    output = run(arguments)
    assert "going on after step 9 of 40" in output
    assert f"{tmp_path}/teacher: " in output  # to be evaluated
    assert output.count(f"{tmp_path}/teacher: ") == 1
    assert differences(traces(tmp_path / "whole"), traces(tmp_path / "run")) == []


def test_a_disk_that_refuses_the_teachers_cache_ends_all_ranks(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification", method="lwd")
    arguments = ["run", str(recipe), "teacher.cache.max_gib=1", "distill.max_steps=40", "distill.micro_batch_size=1"]
    output = run(arguments, codes=2, fault=limit_files_at, fault_arguments=("cache", 3, 10_000))
    assert output.count("the file system refuses: [Errno 27] File too large") == 1
    assert "Traceback" not in output
    assert "step 40 of 40" not in run(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_embeddings_that_stay_frozen(tmp_path, number):
    recipe = with_dropout(write_run(tmp_path, family="gpt2"))
    resume_from_each(tmp_path, seven_steps(recipe, zero_stage(number), "student.freeze_embeddings=true"), (4,))


@pytest.mark.slow
def test_first_blocks_that_stay_frozen_and_are_run_once(tmp_path):
    frozen = ("student.freeze_blocks=1", "teacher.host=zero3")
    resume_from_each(tmp_path, seven_steps(write_run(tmp_path), zero_stage(3), *frozen, more=()), (4,))


# --- another layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "chain"),
    [
        ("fp32", [(4, 1), (2, 3), (1, 2), (4, 0)]),
        pytest.param("bf16", [(4, 1), (2, 3), (1, 2), (4, 1)], marks=pytest.mark.slow),
        pytest.param("fp32", [(2, 0), (1, 3), (4, 2), (2, 1)], marks=pytest.mark.slow),
    ],
)
def test_other_ranks_and_stages_go_on_within_rounding(tmp_path, precision, chain):
    change_layouts(tmp_path, precision, [Layout(*one) for one in chain])


# --- what is found at the start ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after step 5 of 7, with a checkpoint of every step, and the whole one beside it."""
    folder = tmp_path_factory.mktemp("stopped")
    arguments = seven_steps(with_dropout(write_run(folder, family="gpt2")))
    run(arguments)
    expected = traces(folder / "run")
    go_back(folder / "run", 5)
    (folder / "run").rename(folder / "five")
    return folder, arguments, expected


def begin_again(stopped):
    folder, arguments, expected = stopped
    copy_run(folder / "five", folder / "run")
    return folder / "run" / "checkpoints" / "distill", arguments, expected


def test_damaged_ones_are_named_and_put_aside_and_the_one_before_is_taken(stopped):
    checkpoints, arguments, expected = begin_again(stopped)
    (optimizer,) = (checkpoints / "step_00000005").rglob("zero_pp_rank_1_*optim_states.pt")
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    (checkpoints / "step_00000004" / "manifest.json").unlink()
    output = run(arguments)
    assert f"{optimizer}: its SHA-256 differs" in output
    assert f"{checkpoints / 'step_00000004' / 'manifest.json'}: is missing" in output
    assert "going on from step 3: at least 2 steps lost and done again" in output
    assert differences(expected, traces(checkpoints.parent.parent)) == []


DAMAGES = {
    "one bit flipped": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "last byte cut off": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "deleted": lambda content: None,
}


def test_every_damage_of_every_file_of_a_real_checkpoint_is_seen(stopped):
    """Prints the table of docs/checkpoints.md."""
    folders = CheckpointFolders(begin_again(stopped)[0])
    files = sorted(file for file in folders.path(5).rglob("*") if file.is_file())
    assert len(files) == 8
    print("| file | " + " | ".join(DAMAGES) + " |")
    for file in [*files, folders.root / "latest"]:
        seen = []
        content = file.read_bytes()
        for damage, change in DAMAGES.items():
            broken = change(content)
            file.unlink() if broken is None else file.write_bytes(broken)
            faults = [folders.latest_fault()] if file.name == "latest" else folders.faults(5)
            assert len(faults) == 1, (file, damage)
            seen.append(faults[0].removeprefix(f"{file}: "))
        file.write_bytes(content)
        print(f"| `{file.relative_to(folders.root)}` | " + " | ".join(seen) + " |")
    assert folders.faults(5) == []


def test_without_a_whole_one_nothing_is_begun_and_nothing_changed(stopped):
    checkpoints, arguments, expected = begin_again(stopped)
    damaged = list(checkpoints.glob("step_*/stream.json"))
    elsewhere = {file: checkpoints.with_name(file.parent.name) for file in damaged}
    for file, place in elsewhere.items():
        file.rename(place)
    output = run(arguments, codes=2)
    (said,) = re.findall(r".*no checkpoint can be read whole.*", output)
    assert str(checkpoints) in said
    assert all(f"{file}: is missing" in said for file in damaged)
    assert "to start the phase anew, move these folders away" in said
    assert len(list(checkpoints.glob("step_*"))) == len(damaged) == 5
    for file, place in elsewhere.items():  # the disk is mended
        place.rename(file)
    assert "going on after step 5 of 7" in run(arguments)
    assert differences(expected, traces(checkpoints.parent.parent)) == []


def test_checkpoints_of_another_version_are_left_alone(stopped):
    checkpoints, arguments, _ = begin_again(stopped)
    manifest = checkpoints / "step_00000005" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.write_text(_manifest_text({**content, "version": 2}))
    before = sorted(str(file) for file in checkpoints.rglob("*"))
    output = run(arguments, codes=2)
    assert output.count(f"{manifest}: has version 2; this ted_ds reads version 1") == 1
    assert sorted(str(file) for file in checkpoints.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.kl_weight=9", "was taken with other settings: plan.kl_weight was [[0, 0.5], [6, 2.0]], now 9.0"),
        ("run.json", "is of another run ("),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_before_anything_is_written(stopped, change, message):
    checkpoints, arguments, _ = begin_again(stopped)
    output_dir = checkpoints.parent.parent
    if change == "run.json":
        (output_dir / "run.json").write_text('{"run_id": "0123"}')
    before = sorted(str(file) for file in output_dir.rglob("*"))
    output = run([*arguments, *([change] if "=" in change else [])], codes=2)
    assert output.count(message) == 1
    assert sorted(str(file) for file in output_dir.rglob("*")) == before


def test_workers_micro_batches_and_evaluation_may_change(stopped):
    checkpoints, arguments, expected = begin_again(stopped)
    output = run([*arguments, "data.workers=1", "checkpoint.keep_last=1"])
    assert "going on after step 5 of 7" in output
    assert differences(expected, traces(checkpoints.parent.parent)) == []


# --- requests to stop -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_budget_stops_the_run_again_and_again_until_it_is_done(tmp_path):
    recipe = write_run(tmp_path)
    arguments = ["run", str(recipe), "distill.max_steps=150", "stop_after_minutes=0.06", "tracking.log_every_steps=50"]
    codes = []
    while not codes or codes[-1] == STOPPED:
        started = Run(arguments, num_ranks=1)
        codes += started.wait()
        assert len(codes) < 30, started.output()
        if codes[-1] == STOPPED:
            assert "stopped on stop_after_minutes (rank 0)" in started.output()
    assert codes[-1] == 0, started.output()
    assert len(codes) > 1
    again = ["run", str(recipe), *arguments[2:3], *arguments[4:], f"output_dir={tmp_path / 'whole'}"]
    run(again, num_ranks=1)
    assert differences(traces(tmp_path / "whole"), traces(tmp_path / "run")) == []


def test_a_second_signal_ends_at_once(tmp_path):
    recipe = write_run(tmp_path)
    started = Run(["run", str(recipe), "distill.max_steps=100000"], num_ranks=2)
    started.wait_for("distill 3/")
    os.kill(started.processes[1].pid, signal.SIGSTOP)  # so that the first request cannot be agreed on
    started.send(signal.SIGINT, 0)  # another than the next: two of a kind may arrive as one
    with pytest.raises(AssertionError):
        started.wait_for("second SIGTERM", timeout_s=1)
    started.send(signal.SIGTERM, 0)
    started.processes[0].join(60)
    assert started.processes[0].exitcode == 128 + signal.SIGTERM
    assert "second SIGTERM: ends at once, nothing is saved" in started.output(0)
    started.kill()
