"""Runs that are killed, or asked to stop, anywhere; each is started again and must end as if nothing had happened.

The table that is printed at the end is the one in README.md:
``python -m pytest -s -m slow tests/integration/test_kills.py``.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import signal_at
from tests.runs import Run, differences, run, traces, with_dropout
from tests.tiny import write_run

NUM_STEPS = {"finetune_student": 3, "filters_teacher": 3, "filters_student": 3, "distill": 8}
RANKS = 2
ALL_STEPS = sum(NUM_STEPS.values())
STOPPED, KILLED = 75, -signal.SIGKILL


class Killing:
    """A run that was never stopped, and a count of those that were."""

    def __init__(self, folder: Path) -> None:
        self._folder, recipe = folder, with_dropout(write_run(folder, family="gpt2"))
        self._arguments = [
            "run",
            str(recipe),
            "student.finetune={max_steps: 3, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 1}",
            "filters.teacher.max_steps=3",
            "filters.student.max_steps=3",
            "distill.max_steps=8",
            "distill.micro_batch_size=1",
            "checkpoint.every_steps=2",
            "evaluation.every_steps=3",
            "collective_timeout_s=20",
        ]
        run([*self._arguments, f"output_dir={folder / 'whole'}"])
        self._whole = traces(folder / "whole")
        self.counts: dict[str, Counter[str]] = {}
        self.slowest_exit_s = 0.0

    def inject(self, what: str, *fault: object, number: int, on_ranks: tuple[int, ...] = (0,)) -> bool:
        """Run with a fault, go on without it until it is done, and compare; False where the fault never came."""
        place = self._folder / f"run-{time.monotonic_ns()}"
        arguments = [*self._arguments, f"output_dir={place}"]
        broken = Run(arguments, num_ranks=RANKS, fault=signal_at, fault_arguments=(*fault, number, on_ranks))
        codes = broken.wait()
        count = self.counts.setdefault(what, Counter())
        if codes == [0] * RANKS:
            assert differences(self._whole, traces(place)) == []
            return False
        count["kills"] += 1
        if number == signal.SIGKILL:
            assert all(codes[rank] == KILLED for rank in on_ranks), broken.output()
            assert all(codes[rank] == 76 for rank in range(RANKS) if rank not in on_ranks), broken.output()
        else:
            assert codes == [STOPPED] * RANKS, broken.output()
            stopped = json.loads((place / "stopped.json").read_text())
            assert stopped["exit_code"] == STOPPED
            self.slowest_exit_s = max(self.slowest_exit_s, stopped["seconds_from_request"])
        before = last_step(broken.output(0))
        output = run(arguments, num_ranks=RANKS)
        count["resumed"] += 1
        lost = steps_lost(before, output)
        # saved every two steps; a save is in its place at the next boundary but one at the latest
        assert lost <= 4, (before, output)
        count["steps lost"] += lost
        count["went on from a checkpoint"] += "going on after step" in output
        wrong = differences(self._whole, traces(place))
        count["mismatches"] += bool(wrong)
        assert not wrong, wrong
        assert not [*place.rglob(".*unfinished")], "something half written was left"
        assert not (place / "stopped.json").exists()
        return True

    def table(self) -> str:
        columns = ("kills", "resumed", "went on from a checkpoint", "steps lost", "mismatches")
        lines = [f"| what | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for what, count in self.counts.items():
            lines.append(f"| {what} | {' | '.join(str(count[column]) for column in columns)} |")
        whole = sum(self.counts.values(), Counter())
        lines.append(f"| all | {' | '.join(str(whole[column]) for column in columns)} |")
        return "\n".join([*lines, f"from a signal to the exit: at most {self.slowest_exit_s:.1f} s"])


def last_step(output: str) -> tuple[str, int]:
    """The phase and step of the last report."""
    reports = re.findall(r"^  (\w+) (\d+)/\d+  loss", output, re.MULTILINE)
    return (reports[-1][0], int(reports[-1][1])) if reports else ("", 0)


def steps_lost(before: tuple[str, int], output: str) -> int:
    """Steps that were done before and again afterwards."""
    phase, step = before
    if not phase or f"{phase}: complete" in output:
        return 0
    (first,) = re.findall(rf"^  {phase} (\d+)/\d+  loss", output, re.MULTILINE)[:1] or [step + 1]
    return max(step - int(first) + 1, 0)


@pytest.fixture(scope="module")
def killing(tmp_path_factory):
    killing = Killing(tmp_path_factory.mktemp("kills"))
    yield killing
    print(f"\n{killing.table()}")


def test_a_kill_at_a_step(killing):
    assert killing.inject("kill -9 at a step", "step", ALL_STEPS - 3, number=signal.SIGKILL, on_ranks=(1,))


@pytest.mark.parametrize(("place", "occurrence"), [("backward", 15), ("evaluation", 12)])
def test_a_request_to_stop(killing, place, occurrence):
    assert killing.inject(f"SIGTERM, {place}", place, occurrence, number=signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_steps(killing, seed):
    chance = random.Random(seed)
    ranks = ((0,), (1,), (0, 1))[chance.randrange(3)]
    step = chance.randint(1, ALL_STEPS)
    assert killing.inject("kill -9 at a random step", "step", step, number=signal.SIGKILL, on_ranks=ranks)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("place", "rank"), [("file", 0), ("file", 1), ("commit", 0)])
def test_kills_during_a_save(killing, place, rank):
    """At half of every file of every save of the run; and before every sync, rename and removal of three saves."""
    most = {"file": 200, "commit": 40}[place]
    done = 0
    for occurrence in range(1, most):
        what = (
            f"kill -9, half of a file written by rank {rank}" if place == "file" else "kill -9 while it is put in place"
        )
        if not killing.inject(what, place, occurrence, number=signal.SIGKILL, on_ranks=(rank,)):
            break
        done += 1
    assert done >= 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
@pytest.mark.parametrize("place", ["step", "backward", "save", "evaluation", "result"])
def test_every_request_to_stop_everywhere(killing, place, number):
    chance = random.Random(f"{place} {number}")
    most = {"step": ALL_STEPS, "backward": 2 * ALL_STEPS, "save": 6, "evaluation": 20, "result": 5}[place]
    ranks = ((0,), (1,), (0, 1))[chance.randrange(3)]
    occurrence = chance.randint(1, most)
    rank_zero_alone = place in ("save", "result")
    what = f"{number.name}, {place}"
    assert killing.inject(what, place, occurrence, number=number, on_ranks=(0,) if rank_zero_alone else ranks)
