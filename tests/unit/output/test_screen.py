"""What is printed: on real pseudo-terminals of several widths, and into files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ted_ds.output.screen import Screen, duration
from tests.terminals import on_terminal
from tests.tiny import ROOT

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]|\x1b\[[0-9;]*38;")
PHASE = "filters_teacher, states of the teacher"
SHOW = f"""
import sys
from ted_ds.output.screen import Screen
screen = Screen(shown=True, log_every_s=float(sys.argv[1]))
screen.start({PHASE!r}, 50)
for step in (10, 20, 30, 50):
    values = {{"loss/total": 0.5, "loss/task": 0.25, "loss/kl_teacher_student": 0.125, "perf/tokens_per_s": 1234.5}}
    screen.update(step, values, remaining_s=3.0)
    if step == 20:
        screen.say("  a remark")
screen.stop()
screen.say(f"{{screen.tick}} distill")
rows = [(name, "22.7 M", "0.7786", "0.4641", "1443") for name in ("teacher", "student before", "student after")]
screen.table("demo: ted, 1.2 min", ("model", "parameters", "held-out accuracy", "loss", "tokens/s"), rows)
"""


def shown(columns: int, **variables: str) -> str:
    """What the program writes to a terminal of that width."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = {**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **variables}
    return on_terminal([sys.executable, "-c", SHOW, "0"], environment, columns=columns)


def in_file(tmp_path: Path, every_s: float, **variables: str) -> list[str]:
    file = tmp_path / "out"
    with file.open("w") as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        subprocess.run([sys.executable, "-c", SHOW, str(every_s)], stdout=out, env=environment, check=True)
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("columns", [60, 100, 140])
def test_a_terminal_gets_one_live_line_and_nothing_is_wider(columns):
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", shown(columns)))
    assert max(map(len, lines)) <= columns
    of_bar = [line for line in lines if line.startswith(PHASE[:15])]
    assert any(" 50/50 " in line and "loss 0.5" in line for line in of_bar)
    assert (columns == 60) == all(PHASE not in line for line in of_bar)
    assert not [line for line in lines if line.startswith(f"  {PHASE}")], "no lines of a log beside it"
    assert "  a remark" in [line.rstrip() for line in lines]
    assert "✓ distill" in lines


def test_colours_are_left_out_where_they_are_not_wanted():
    assert COLOUR.search(shown(100))
    assert not COLOUR.search(shown(100, NO_COLOR="1"))
    assert "\x1b[" not in shown(100, TERM="dumb")


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}])
def test_a_file_gets_lines_and_no_bar(tmp_path, variables):
    lines = [ESCAPES.sub("", line) for line in in_file(tmp_path, 0, **variables)]
    reports = [line for line in lines if line.startswith(f"  {PHASE} ")]
    assert [line.split()[5] for line in reports] == ["10/50", "20/50", "30/50", "50/50"]
    assert reports[0] == f"  {PHASE} 10/50  loss 0.5  task 0.25  kl 0.125  tok/s 1234  3 s left"
    assert not [line for line in lines if "━━ " in line]


def test_reports_that_come_too_often_are_no_lines_of_a_file_but_the_first_and_the_last(tmp_path):
    lines = in_file(tmp_path, 60)
    assert [line.split()[5] for line in lines if line.startswith(f"  {PHASE} ")] == ["10/50", "50/50"]


def test_each_phase_begins_with_a_line(capsys):
    screen = Screen(shown=True, log_every_s=60)
    for phase in ("one", "two"):
        screen.start(phase, 9)
        screen.update(1, {}, remaining_s=0)
        screen.update(2, {}, remaining_s=0)
        screen.stop()
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["one", "1/9"], ["two", "1/9"]]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (41.4, "41 s"),
        (100, "1 min 40 s"),
        (725, "12 min 05 s"),
        (11520, "3 h 12 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
