"""Where ranks were in their collectives, by torch's own recorder, when they do not meet any more."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ted_ds.launching.positions import position_file, read_positions
from ted_ds.runtime.flight_records import keep_records, leave_position, position_of
from ted_ds.runtime.world import is_lost_rank
from tests.dist import run_ranks

pytestmark = pytest.mark.lengthy


def apart(world: Any, folder: Path) -> list[str]:
    """Two ranks that are in different collectives, until their time is up."""
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size))
    position_file(folder, world.rank).parent.mkdir(exist_ok=True)
    position_file(folder, world.rank).write_text("of an earlier start")
    keep_records(folder, uses_nccl=False)
    assert not position_file(folder, world.rank).exists()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2), group_desc="test")
    world.gather(None)
    try:
        if world.rank == 0:
            dist.all_reduce(torch.ones(3, 2), group=group)
        else:
            time.sleep(0.5)
            dist.broadcast(torch.ones(5), 1, group=group)
            dist.all_reduce(torch.ones(7), group=group)
    except RuntimeError as error:
        return leave_position(error) if is_lost_rank(error) else [repr(error)]
    return []


def test_ranks_that_are_apart_say_where_each_is(tmp_path: Path) -> None:
    said = run_ranks(apart, 2, tmp_path)
    positions = read_positions(tmp_path)
    assert [one.rank for one in positions] == [0, 1]
    assert positions[0].name == "gloo:all_reduce"
    assert positions[0].sizes == "Float 3x2"
    assert positions[0].group.endswith("(test)")
    assert positions[0].number == 1
    assert positions[1].group == positions[0].group
    assert len(said[0]) == 3, said
    assert said[1] == [positions[1].in_words, f"what the other ranks left is in {tmp_path}"]
    lines = said[0]
    assert lines[0].startswith(
        f"rank 0 on {os.uname().nodename}: {'in' if positions[0].is_open else 'last in'} gloo:all_reduce, number 1"
    )
    assert lines[-1] == f"what torch's flight recorder had is in {tmp_path}/collectives_*.json"


def test_what_a_recorder_saw_last() -> None:
    entry = {
        "record_id": 4,
        "retired": True,
        "process_group": ["3", "undefined"],
        "profiling_name": "gloo:gather",
        "collective_seq_id": 12,
        "p2p_seq_id": 0,
        "is_p2p": False,
        "input_sizes": [[2, 3], []],
        "input_dtypes": ["Float", "Long"],
    }
    last = position_of({"entries": [entry, {**entry, "record_id": 3, "profiling_name": "x"}]}, rank=1, num_ranks=2)
    assert last is not None
    assert "last in gloo:gather, number 12 of group 3 (Float 2x3, Long 1)" in last.in_words
    still = {**entry, "record_id": 2, "retired": False, "is_p2p": True, "p2p_seq_id": 5, "profiling_name": "gloo:send"}
    inside = position_of({"entries": [entry, still]}, rank=1, num_ranks=2)
    assert inside is not None
    assert "in gloo:send, number 5 of group 3" in inside.in_words
    assert position_of({"entries": []}, rank=0, num_ranks=1) is None


def test_with_nccl_torchs_own_files_go_there_unless_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", raising=False)
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/elsewhere/trace_")
    keep_records(tmp_path, uses_nccl=True)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == "/elsewhere/trace_"
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "2000"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE")
    keep_records(tmp_path, uses_nccl=True)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/nccl_trace_rank_"
