"""``ted-ds doctor --replay``: a rank that gets a bit wrong is found and named, and a sound one is not."""

from __future__ import annotations

import os
import re

import pytest

from tests.faults import flip_a_bit
from tests.runs import run, with_dropout
from tests.tiny import write_run

pytestmark = pytest.mark.lengthy

HOST = re.escape(os.uname().nodename)


@pytest.mark.parametrize(("zero", "method"), [("zero1", "ted"), pytest.param("zero3", "kd", marks=pytest.mark.slow)])
def test_sound_ranks_repeat_themselves_and_leave_nothing(tmp_path, zero, method):
    recipe = with_dropout(write_run(tmp_path, family="gpt2", method=method))
    said = run(["doctor", str(recipe), "--replay", "3", f"deepspeed={zero}"])
    assert "repetition 1 of 3: the same bits on all ranks" in said
    assert re.search(rf"3 repetitions of a step's gradients are the same bits on all 2 ranks \({HOST}\), ", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("on_rank", [0, 1])
def test_a_rank_that_gets_a_bit_wrong_is_named(tmp_path, on_rank):
    recipe = write_run(tmp_path, method="kd")
    # a backward pass for each of its microbatches, the first time and in each repetition: this is in the second
    micro = "distill.micro_batch_size=1"
    fault = (on_rank, 1, 2 * 2 + 1)
    said = run(
        ["doctor", str(recipe), "--replay", "5", micro, "distill.global_batch_size=4"],
        codes=76,
        fault=flip_a_bit,
        fault_arguments=fault,
    )
    assert "repetition 1 of 5: the same bits on all ranks" in said
    assert re.search(
        rf"repetition 2 of 5: gradients of the same step are not the bits they were the first time \(rank {on_rank} on "
        rf"{HOST}: 1 of \d+ gradients, as of \S+\)\. A sound machine repeats itself",
        said,
    ), said
    assert said.count("not the bits they were") == 1, "all ranks agree, and one says it"


def test_how_often_must_be_a_number(tmp_path):
    recipe = write_run(tmp_path, method="kd")
    said = run(["doctor", str(recipe), "--replay", "0"], codes=2, num_ranks=1)
    assert "--replay: 0: use a whole number, 1 or more" in said
