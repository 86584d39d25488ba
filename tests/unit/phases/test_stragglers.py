"""Who keeps the others waiting, from what ranks have measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ted_ds.phases.pace import OfRank
from ted_ds.phases.stragglers import MIN_STEPS, SLOWEST, TO_MEDIAN, WINDOW_S, Stragglers, note_own_work

HOSTS = ("node1", "node1", "node2", "node2")


def measured(*own: float, step_s: float = 10.0, steps: float = MIN_STEPS, most: str = "forward") -> list[OfRank]:
    """Of each rank, by its own work in a step; the rest of it is a wait for others."""
    return [
        OfRank(
            {
                "steps": steps,
                "tokens": 8.0,
                most: 0.8 * one * steps,
                "backward": 0.2 * one * steps,
                "communication": (step_s - one) * steps,
            },
            {},
        )
        for one in own
    ]


def test_the_slow_one_is_named_once_with_its_host_and_what_it_does() -> None:
    stragglers = Stragglers(HOSTS, 1)
    metrics, text = stragglers.take(measured(4, 5, 9, 4.5, most="data"))
    assert metrics == {SLOWEST: 2.0, TO_MEDIAN: pytest.approx(2.0)}
    assert text == (
        "rank 2 on node2 keeps the others waiting: 9 s of its own work a step, 7.2 s of it data; the median of its "
        "peers is 4.5 s. Look at that host (other programs, clocks, disk)"
    )
    assert stragglers.take(measured(4, 5, 9, 4.5))[1] is None, "the same one again"
    metrics, text = stragglers.take(measured(4, 4, 4, 4))
    assert (metrics[TO_MEDIAN], text) == (pytest.approx(1.0), None)
    assert "rank 2 on node2" in str(stragglers.take(measured(4, 5, 9, 4.5))[1]), "anew"
    assert "rank 0 on node1" in str(stragglers.take(measured(9, 4, 4, 4))[1]), "another one"


def test_ranks_are_compared_over_a_while() -> None:
    stragglers = Stragglers(HOSTS[:2], 1)
    of_a_second = measured(0.2, 0.9, step_s=1.001, steps=1)
    for _ in range(int(WINDOW_S) - 1):
        assert stragglers.take(of_a_second) == ({}, None)
    metrics, text = stragglers.take(of_a_second)
    assert metrics[TO_MEDIAN] == pytest.approx(4.5)
    assert text is not None
    assert stragglers.take(measured(0.2, 0.9, step_s=100.0, steps=1)) == ({}, None), "few steps say little"


def test_a_rank_is_compared_with_its_own_stage() -> None:
    stragglers = Stragglers(HOSTS, 2)
    metrics, text = stragglers.take(measured(2, 2, 8, 8))
    assert (metrics[TO_MEDIAN], text) == (pytest.approx(1.0), None)
    assert "rank 1 on node1" in str(stragglers.take(measured(2, 6, 8, 8))[1])


def test_nobody_waits_for_a_rank_without_peers() -> None:
    assert Stragglers(HOSTS[:1], 1).take(measured(9)) == ({}, None)
    assert Stragglers(HOSTS[:2], 2).take(measured(1, 9)) == ({}, None)


def test_each_ranks_own_work_is_in_a_file_report_by_report(tmp_path: Path) -> None:
    note_own_work(tmp_path, "distill", 10, measured(4, 5, 9, 4.5, most="data"))
    note_own_work(tmp_path, "distill", 20, [*measured(4, 5), OfRank({"steps": 0.0, "tokens": 0.0}, {})])
    lines = [json.loads(line) for line in (tmp_path / "logs" / "own_work.jsonl").read_text().splitlines()]
    assert [(one["phase"], one["step"], one["own_s"]) for one in lines] == [
        ("distill", 10, [4.0, 5.0, 9.0, 4.5]),
        ("distill", 20, [4.0, 5.0, None]),
    ]
    assert lines[0].keys() == {"time", "phase", "step", "own_s"}
