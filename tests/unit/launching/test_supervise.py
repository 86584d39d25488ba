"""``ted-ds supervise`` starts again what should be, passes on the rest, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ted_ds.launching.starters import SAME_REQUEST_S
from tests.tiny import ROOT

pytestmark = pytest.mark.lengthy

RANK = """
import json, os, socket, sys, time
from pathlib import Path
from ted_ds.launching.records import OwnRecord, log_folder
codes = Path("codes")
code, *rest = codes.read_text().split()
codes.write_text(" ".join(rest))
if code == "silent":  # nothing of a rank, not even a record
    time.sleep(600)
if code == "alone":  # of two
    os.environ.update(RANK="0", WORLD_SIZE="2")
own = OwnRecord(log_folder(os.environ))
if code == "waits":
    while not (log_folder(os.environ) / "stop").exists():
        time.sleep(0.05)
    code = "75"
if code == "hangs":
    time.sleep(600)
if code == "ends":  # and its launcher does not
    own.ended(76)
    time.sleep(600)
if code == "faults":
    own.failed("CUDA error: uncorrectable ECC error encountered")
    code = "76"
if code == "alone":
    code = "76"
if code != "dies":
    own.ended(int(code))
os._exit(int(code) if code.isdecimal() else 137)
"""
"""A launcher that is its only rank, and ends with one code after the other."""


def start(folder, codes, *options):
    (folder / "codes").write_text(" ".join(map(str, codes)))
    command = [sys.executable, "-m", "ted_ds", "supervise", *options, "--", sys.executable, "-c", RANK]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def left(folder):
    return (folder / "codes").read_text().split()


@pytest.mark.parametrize(
    ("codes", "code", "num_left"),
    [([0, 9], 0, 1), ([75, 75, 0], 0, 0), ([76, "dies", 0, 9], 0, 1), ([75, 2, 9], 2, 1), ([1, 9], 1, 1)],
)
def test_it_starts_again_what_was_stopped_or_lost(tmp_path, codes, code, num_left):
    found, said = finish(start(tmp_path, codes))
    assert (found, len(left(tmp_path))) == (code, num_left), said
    assert len(list((tmp_path / "logs").glob("attempt_*"))) == len(codes) - num_left


def test_it_pauses_before_a_restart_after_what_was_lost_soon(tmp_path):
    _, said = finish(start(tmp_path, [76, 75, 76, 0]))
    assert [line.split(" s of pause")[0].split()[-1] for line in said.splitlines() if "of pause" in line] == ["1", "4"]
    _, said = finish(start(tmp_path, [76, 0], "--restarts", "0"))
    assert "of pause" not in said


def test_it_gives_up(tmp_path):
    code, said = finish(start(tmp_path, [75] * 5, "--restarts", "2"))
    assert (code, len(left(tmp_path))) == (75, 2)
    assert "given up after 2 restarts" in said


def test_a_gpu_that_fails_again_and_again_is_given_up(tmp_path):
    code, said = finish(start(tmp_path, ["faults", "faults", "faults", 0]))
    assert (code, left(tmp_path)) == (76, ["0"]), said
    host = socket.gethostname()
    assert (
        f"rank 0 on {host} was the first to fail: it had a fault of its hardware (CUDA error: uncorrectable ECC error"
        in said
    )
    assert f"given up: 3 times in a row hardware of {host} failed; look at it" in said


@pytest.mark.slow
def test_ranks_that_never_leave_anything_are_given_up(tmp_path):
    code, said = finish(start(tmp_path, ["alone", 76, "alone", "alone", "alone", 0]))
    assert (code, left(tmp_path)) == (76, ["0"]), said  # in a row, by the same ranks
    assert "given up: 3 times the same ranks left nothing; give --logs a folder all hosts see" in said


def test_a_request_is_a_file_for_the_ranks_and_nothing_is_started_again(tmp_path):
    process = start(tmp_path, ["waits", 0])
    attempt = tmp_path / "logs" / "attempt_0001"
    wait_for(attempt / "rank_00000.json")
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert (code, left(tmp_path)) == (75, ["0"]), said
    assert (attempt / "stop").exists()


def test_a_launcher_that_waits_for_a_rank_that_has_ended_is_ended(tmp_path):
    started = time.monotonic()
    code, said = finish(start(tmp_path, ["ends", 0], "--grace", "1"))
    assert code == 0, said
    assert "a rank ended 1 s ago and the launcher still waits: ending it" in said
    assert time.monotonic() - started < 300  # the rank and its launcher would be there for 600


def test_a_second_request_ends_a_rank_that_hangs(tmp_path):
    process = start(tmp_path, ["hangs", 0])
    attempt = tmp_path / "logs" / "attempt_0001"
    wait_for(attempt / "rank_00000.json")
    process.send_signal(signal.SIGINT)
    wait_for(attempt / "stop")
    time.sleep(SAME_REQUEST_S + 0.5)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert (code, left(tmp_path)) == (76, ["0"]), said
    assert "second request: ends at once" in said


def test_a_request_ends_a_launcher_that_has_started_no_rank_yet(tmp_path):
    process = start(tmp_path, ["silent", 0])
    until = time.monotonic() + 30
    while len(left(tmp_path)) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert (code, left(tmp_path)) == (76, ["0"]), said
    assert "no rank has started within" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["supervise"], "the following arguments are required: command"),
        (["supervise", "--", "no_such_program"], "no_such_program: cannot be started"),
        (["supervise", "--hostfile", "none", "--", "true", "{hostfile}"], "none: cannot be read as a hostfile"),
        (["supervise", "--hostfile", "none", "--", "true"], "the command does not have {hostfile} where"),
        (
            ["supervise", "--hostfile", "hosts", "--min-hosts", "3", "--", "true", "{hostfile}"],
            "3 is more than the 2 of",
        ),
        (
            ["supervise", "--hostfile", "hosts", "--exclude", "b", "--", "true", "{hostfile}"],
            "--exclude: hosts has no b",
        ),
        (["supervise", "--in-slurm", "--", "true"], "unknown arguments: --in-slurm"),
        (["supervise", "--logs", "/proc/x", "--", "true"], "--logs: /proc/x: cannot be written"),
        (["supervise", "--grace", "-1", "--", "true"], "--grace: -1: use 0 or more seconds"),
        (["supervise", "--host-wait", "soon", "--", "true"], "--host-wait: soon: use 0 or more seconds"),
        (["supervise", "--restarts", "1.5", "--", "true"], "--restarts: 1.5: use a whole number, 0 or more"),
    ],
)
def test_it_says_what_is_wrong(tmp_path, words, message):
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    done = subprocess.run([sys.executable, "-m", "ted_ds", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(("requeued", "code"), [("0", 1), ("2", 76)])
def test_a_start_without_ranks_is_final_only_the_first_time(tmp_path, requeued, code):
    command = [sys.executable, "-m", "ted_ds", "supervise", "--slurm", "--restarts", "0", "--", "true"]
    environment = {**os.environ, "SLURM_RESTART_COUNT": requeued}  # an earlier start of the job had ranks
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "no rank has started" in done.stderr


def wait_for(file):
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
