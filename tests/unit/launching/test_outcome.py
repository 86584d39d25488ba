"""What became of an attempt, told from what its ranks left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ted_ds.launching.outcome import FaultsInARow, Outcome, outcome_of
from ted_ds.launching.positions import Position, write_position
from ted_ds.launching.processes import Process
from ted_ds.launching.records import LOG_DIR, OwnRecord, RankRecord, log_file, read_records, record_file


def write(folder, *codes, **changes):
    for rank, code in enumerate(codes):
        ended = None if code is None else 100.0 - rank
        record = RankRecord(rank, len(codes), f"host{rank}", 1000 + rank, 1.0, ended=ended, code=code)
        replace(record, **changes.get(f"of_{rank}", {})).write(folder)
        os.utime(record_file(folder, rank), (100.0 - rank, 100.0 - rank))
        log_file(folder, rank).write_text("".join(f"rank {rank} line {number}\n" for number in range(50)))


@pytest.mark.parametrize(
    ("codes", "code", "text"),
    [
        ((0, 0), 0, "complete"),
        ((75, 75), 75, "stopped on request; what there was is saved"),
        ((75, None), 75, "stopped on request; what there was is saved"),  # the launcher was quicker
        ((0, None), 0, "complete"),
        ((76, None, 76), 76, "rank 1 on host1 was the first to fail: it died or hangs. Its last lines"),
        ((76, 1, 76), 1, "rank 1 on host1 was the first to fail: it ended with exit code 1."),
        ((2, 2), 2, "rank 1 on host1 was the first to fail: it ended with exit code 2."),  # 1 s before rank 0
        ((None, 139), 139, "rank 1 on host1 was the first to fail: it ended with exit code 139."),
        ((76, 76), 76, "the ranks lost each other; the last to say so was rank 0 on host0"),
        ((), 3, "no rank has started: the launcher ended with exit code 3; its output says more"),
    ],
)
def test_the_outcome_is_what_the_ranks_say(tmp_path, codes, code, text):
    write(tmp_path, *codes)
    outcome = outcome_of(tmp_path, 3)
    assert outcome.code == code
    assert outcome.text.startswith(text)


def test_where_ranks_were_is_told_where_one_was_lost(tmp_path):
    write(tmp_path, 76, None, 76)
    for rank in (0, 2):
        position = Position(
            rank, 3, f"host{rank}", "gloo:all_reduce", 7 + rank, "0 (default_pg)", "Float 3", True, "a:1"
        )
        write_position(tmp_path, position, {"entries": []})
    (tmp_path / "collectives_00001.json").write_text("{")
    lines = outcome_of(tmp_path, 1).text.splitlines()
    assert [line.strip() for line in lines[-4:]] == [
        "rank 0 on host0: in gloo:all_reduce, number 7 of group 0 (default_pg) (Float 3), called by a:1",
        "rank 2 on host2: in gloo:all_reduce, number 9 of group 0 (default_pg) (Float 3), called by a:1",
        "nothing was left by rank 1: look there first",
        f"what torch's flight recorder had is in {tmp_path}/collectives_*.json",
    ]
    write(tmp_path, 76, 76)
    (tmp_path / "nccl_trace_rank_0").write_bytes(b"")
    assert outcome_of(tmp_path, 1).text.splitlines()[-1].strip() == (
        f"NCCL's watchdog left 1 traces in {tmp_path}: python -m torch.distributed.flight_recorder.fr_trace --prefix "
        f"nccl_trace_rank_ {tmp_path} compares them"
    )


def test_a_launcher_that_starts_no_rank_has_failed_whatever_its_own_code(tmp_path):
    assert outcome_of(tmp_path, 0).code == 1
    assert outcome_of(tmp_path, -9).code == 137


def test_the_last_lines_of_the_first_that_failed_are_shown(tmp_path):
    write(tmp_path, 76, None)
    lines = outcome_of(tmp_path, 1).text.splitlines()
    assert [line.strip() for line in lines[1:]] == [f"rank 1 line {number}" for number in range(30, 50)]


def test_a_rank_that_the_launcher_ended_is_not_what_failed(tmp_path):
    asked = {"asked": "SIGTERM", "asked_at": 50.0}
    write(tmp_path, None, None, None, of_0=asked, of_2=asked)
    assert outcome_of(tmp_path, 1).text.startswith("rank 1 on host1")


def test_a_rank_whose_gpu_failed_is_what_ended_the_others(tmp_path):
    write(tmp_path, 76, None, 76, of_2={"fault": "CUDA error: unspecified launch failure"})
    outcome = outcome_of(tmp_path, 1)
    assert (outcome.code, outcome.faulty_host) == (76, "host2")
    assert outcome.text.startswith(
        "rank 2 on host2 was the first to fail: it had a fault of its hardware (CUDA error: unspecified"
    )


def test_faults_are_counted_host_by_host_while_nothing_else_ends_an_attempt():
    hosts = ["a", "a", "b", "b", "b", None, None, "b", "b"]
    faults = FaultsInARow()
    assert [faults.add(Outcome(76, "", faulty_host=host)) for host in hosts] == [1, 2, 1, 2, 3, 0, 0, 1, 2]


def test_a_defect_counts_before_a_fault_that_follows_it(tmp_path):
    write(tmp_path, 1, 76, of_1={"fault": "NCCL error: unhandled cuda error"})
    outcome = outcome_of(tmp_path, 1)
    assert (outcome.code, outcome.faulty_host) == (1, None)


def test_a_rank_of_which_there_is_nothing_is_named(tmp_path):
    write(tmp_path, 76)
    RankRecord(0, 4, "host0", 1, 1.0, ended=2.0, code=76).write(tmp_path)
    assert f"of rank 1, 2, 3 there is nothing in {tmp_path}" in outcome_of(tmp_path, 1).text


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
    ],
)
def test_a_rank_knows_itself_by_each_launchers_variables(tmp_path, monkeypatch, variables):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "new").mkdir()
    own = OwnRecord(tmp_path / "new")
    own.asked("SIGUSR1")
    own.failed("the first")
    own.failed("what follows from it")
    own.ended(75)
    (record,) = read_records(tmp_path / "new")
    assert (record.rank, record.num_ranks, record.process) == (3, 8, os.getpid())
    assert (record.asked, record.fault, record.code) == ("SIGUSR1", "the first", 75)
    assert record.began <= record.asked_at <= record.ended


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        OwnRecord(tmp_path / "of another host")


def test_a_record_that_cannot_be_read_just_now_is_left_out(tmp_path):
    write(tmp_path, 0, 0)
    record_file(tmp_path, 1).write_text('{"rank": 1')
    assert [one.rank for one in read_records(tmp_path)] == [0]


def test_the_variable_is_what_launchers_pass_on():
    assert LOG_DIR == "TED_DS_LOG_DIR"


def test_the_folder_of_a_run_that_still_writes_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG_DIR, str(tmp_path))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        own = Process.own()
        mine = RankRecord(0, 1, own.host, other.pid, time.time(), own.machine)
        mine.write(tmp_path)
        with pytest.raises(
            FileExistsError, match=rf"rank 0 of another run still writes there \(.*:{other.pid}\); give"
        ):
            OwnRecord(tmp_path)
        replace(mine, began=mine.began - 1000).write(tmp_path)  # its number was given away again
        OwnRecord(tmp_path).ended(0)
        replace(mine, machine="another boot").write(tmp_path)  # of another container, whose numbers mean nothing here
        OwnRecord(tmp_path).ended(0)
        mine.write(tmp_path)
    finally:
        other.kill()
        other.wait()
    assert OwnRecord(tmp_path).rank == 0
