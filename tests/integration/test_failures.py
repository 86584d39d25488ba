"""Ranks that hang or die, disks that are full or refuse, and what must not be written down."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ted_ds.phases import stragglers
from tests.faults import fill_disk_at_save, flip_a_bit, limit_files_at, spoil_weights_and_stop, with_environment
from tests.integration.launching import BIN, environment, free_port
from tests.runs import Run, differences, run, traces
from tests.tiny import ROOT, write_run

SAVING = ("checkpoint.every_steps=2", "distill.max_steps=8", "checkpoint.keep_last=1")
LOST, MISTAKE = 76, 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_run(folder)
    run(["run", str(recipe), *SAVING])
    return recipe, traces(folder / "run")


def test_a_rank_that_hangs_ends_the_others_within_the_limit(tmp_path):
    recipe = write_run(tmp_path)
    arguments = ["run", str(recipe), "distill.max_steps=100000", "checkpoint.every_steps=5", "collective_timeout_s=6"]
    started = Run(arguments)
    started.wait_for("distill 8/")
    os.kill(started.processes[1].pid, signal.SIGSTOP)
    hung_at = time.monotonic()
    started.processes[0].join(60)
    seconds = time.monotonic() - hung_at
    assert started.processes[0].exitcode == LOST, started.output(0)
    assert seconds < 25  # of 6; without the limit it would be a minute
    assert "rank 0: another rank died or hangs" in started.output(0)
    assert "Start the same command again" in started.output(0)
    assert "Traceback" not in started.output(0)
    assert re.search(
        rf"    rank 0 on {re.escape(os.uname().nodename)}: (last )?in gloo:\w+, number \d+ of group \S+( \(\w+\))? "
        r"\(.+\), called by ted_ds/\S+:\d+ \(\w+\)\n    nothing was left by rank 1: look there first\n    what torch's "
        rf"flight recorder had is in {re.escape(str(tmp_path))}/run/logs/collectives_\*\.json",
        started.output(0),
    ), started.output(0)
    (left,) = (tmp_path / "run" / "logs").glob("collectives_*.json")
    assert len(json.loads(left.read_text())["flight_recorder"]["entries"]) > 10
    started.kill()
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints" / "distill").glob("step_*"), reverse=True)
    step = int(newest.name.removeprefix("step_"))
    assert step >= 5
    again = Run([*arguments[:2], "distill.max_steps=100000", "checkpoint.every_steps=5", "stop_after_minutes=3"])
    again.wait_for(f"going on after step {step} of")
    again.kill()


def _compare_soon(_rank):
    stragglers.WINDOW_S = 1.5


def test_a_rank_that_is_slow_is_named(tmp_path):
    """A rank that the system stops for most of the time, as one on a host that others use, too."""
    recipe = write_run(tmp_path)
    started = Run(["run", str(recipe), "distill.max_steps=100000", "tracking.log_every_steps=10"], fault=_compare_soon)
    started.wait_for("distill 20/")
    deadline = time.monotonic() + 120
    while "keeps the others waiting" not in started.output(0):
        assert time.monotonic() < deadline, started.output(0)
        started.send(signal.SIGSTOP, 1)
        time.sleep(0.15)
        started.send(signal.SIGCONT, 1)
        time.sleep(0.03)
    assert f"  WARN rank 1 on {os.uname().nodename} keeps the others waiting: " in started.output(0)
    started.kill()
    reports = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(one.get("perf/slowest_rank") == 1 and one["perf/slowest_rank/to_median"] > 1.5 for one in reports)
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs" / "own_work.jsonl").read_text().splitlines()]
    in_stage_two = [one for one in lines if one["phase"] == "distill"]
    reported = [one["step"] for one in reports if one["phase"] == "distill"]
    assert [one["step"] for one in in_stage_two][: len(reported)] == reported  # it was killed between two files, maybe
    assert all(len(one["own_s"]) == 2 for one in in_stage_two)
    assert max(theirs / own for own, theirs in (one["own_s"] for one in in_stage_two)) > 1.5


def test_a_rank_that_computes_wrongly_ends_the_run_before_a_weight_is_touched(tmp_path):
    recipe = write_run(tmp_path, method="kd")
    arguments = ["run", str(recipe), "distill.max_steps=6", "checkpoint={every_steps: 1, asynchronous: false}"]
    run([*arguments, f"output_dir={tmp_path / 'plain'}"])
    arguments += ["deterministic=true", "replay.every_steps=2"]
    # a backward pass for each step, and one more of the first and the third
    said = run(arguments, codes=LOST, fault=flip_a_bit, fault_arguments=(1, 1, 4))
    assert said.count("step 3: computed a second time, gradients are not the same bits (rank 1 on ") == 1
    assert "up to step 1 they were" in said
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints" / "distill").glob("step_*"), reverse=True)
    assert newest.name.endswith("2")
    run(arguments)
    assert differences(traces(tmp_path / "plain"), traces(tmp_path / "run")) == []


@pytest.mark.slow
def test_torchruns_restart_goes_on_from_the_last_checkpoint(tmp_path):
    recipe = write_run(tmp_path)
    steps = ["distill.max_steps=150", "checkpoint.every_steps=10", "tracking.log_every_steps=10"]
    run(["run", str(recipe), *steps, f"output_dir={tmp_path / 'whole'}"])

    command = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", "--max_restarts", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-m", "ted_ds", "run", str(recipe), *steps],
            env=environment(WANDB_MODE="disabled"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "distill 40/" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        ranks = [one for one in psutil.Process(process.pid).children() if "ted_ds" in one.cmdline()]
        ranks[-1].kill()
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert "going on after step " in (tmp_path / "log").read_text()
    assert differences(traces(tmp_path / "whole"), traces(tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("to_group", "number", "reason"),
    [
        (True, signal.SIGINT, "stopped on SIG"),  # Ctrl-C: from the terminal, and from the launcher in other words
        pytest.param(False, signal.SIGTERM, "stopped on end of the launcher", marks=pytest.mark.slow),
    ],
)
def test_the_deepspeed_launcher_is_stopped_with_wandb_and_workers_running(tmp_path, to_group, number, reason):
    recipe = write_run(tmp_path)
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), "--module", "ted_ds"]
    arguments = ["run", str(recipe), "distill.max_steps=100000", "data.workers=1", "tracking.log_every_steps=20"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *arguments], env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "distill 20/" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        (os.killpg if to_group else os.kill)(process.pid, number)
        process.wait(60)
        while "seconds_from_request" not in read_if_there(tmp_path / "run" / "stopped.json"):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        time.sleep(0.5)
        output = log.read_text()
        assert reason in output
        assert f'File "{ROOT / "ted_ds"}' not in output, "a traceback of ours"
        # (the launcher also ends W&B's service, which no mask protects: that is said, and stops nothing)
        (checkpoint,) = (tmp_path / "run" / "checkpoints" / "distill").glob("step_*")
        assert f"The state is in {checkpoint}" in output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def read_if_there(file):
    return file.read_text() if file.exists() else ""


def interrupted(whole, output_dir, fault, *fault_arguments):
    """A run whose disk refuses at some save; its output, and the steps of the checkpoints that are left."""
    recipe, _ = whole
    arguments = ["run", str(recipe), *SAVING, f"output_dir={output_dir}"]
    output = run(arguments, codes=MISTAKE, fault=fault, fault_arguments=fault_arguments)
    assert "Traceback" not in output
    assert output.count("cannot be written: ") == 1
    assert "Checkpoints that were there are untouched; make room or mend the disk" in output
    folder = output_dir / "checkpoints" / "distill"
    assert not list(folder.glob(".*unfinished"))
    return [int(one.name.removeprefix("step_")) for one in folder.glob("step_*")]


def goes_on(whole, output_dir, step):
    recipe, expected = whole
    output = run(["run", str(recipe), *SAVING, f"output_dir={output_dir}"])
    assert f"going on after step {step} of 8" in output
    assert differences(expected, traces(output_dir)) == []


@pytest.mark.slow
def test_a_disk_that_refuses_leaves_the_checkpoint_before(whole, tmp_path):
    # two files a rank and save; the third save fails
    assert interrupted(whole, tmp_path / "run", limit_files_at, "save", 6, 40_000) == [4]
    goes_on(whole, tmp_path / "run", 4)


def test_a_stop_does_not_save_weights_that_are_not_finite(whole, tmp_path):
    recipe, _ = whole
    arguments = ["run", str(recipe), *SAVING, f"output_dir={tmp_path / 'run'}"]
    # four steps of the filters, and the sixth of distill; saved are 2, 4
    output = run(arguments, codes=75, fault=spoil_weights_and_stop, fault_arguments=(10,))
    assert output.count("The weights are not finite and were not saved; checkpoints before stay") == 1
    assert (tmp_path / "run" / "checkpoints" / "distill" / "latest").read_text() == "step_00000004\n"
    goes_on(whole, tmp_path / "run", 4)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(whole, small_disk):
    filler = small_disk / "filler"
    assert interrupted(whole, small_disk / "run", fill_disk_at_save, 5, str(filler)) == [4]
    filler.unlink()
    goes_on(whole, small_disk / "run", 4)


def test_a_disk_that_cannot_be_written_is_refused_at_once(whole, small_disk):
    recipe, _ = whole
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    output = run(["run", str(recipe), f"output_dir={small_disk / 'run'}"], codes=MISTAKE)
    assert "output_dir: " in output
    assert "cannot be written: " in output
    assert "Traceback" not in output


def test_checkpoints_that_cannot_be_made_are_said(whole, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    recipe, _ = whole
    output = run(["run", str(recipe), *SAVING, f"output_dir={tmp_path / 'run'}"], codes=MISTAKE)
    assert output.count("cannot be written: ") == 1
    assert "Traceback" not in output


def test_secrets_are_written_nowhere(tmp_path):
    recipe = write_run(tmp_path)
    secrets = {
        "WANDB_API_KEY": "5ecre7" * 6 + "abcd",
        "HF_TOKEN": "hf_5ecre7token",
        "AWS_SECRET_ACCESS_KEY": "5ecre7aws",
    }
    variables = {**secrets, "WANDB_MODE": "offline"}
    arguments = ["run", str(recipe), *SAVING, "checkpoint.keep_every_steps=2"]
    output = run(arguments, num_ranks=1, fault=with_variables, fault_arguments=(json.dumps(variables),))
    assert "5ecre7" not in output
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any("optim_states" in file.name for file in files)
    assert any(file.suffix == ".wandb" for file in files)
    for file in files:
        assert b"5ecre7" not in file.read_bytes(), file
    shutil.rmtree(tmp_path / "run")


def with_variables(rank, variables):
    with_environment(rank, **json.loads(variables))
    sys.stdout.flush()
