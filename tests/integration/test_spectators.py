"""Who reads what a run prints, and the terminal it was started from, may go."""

from __future__ import annotations

import os
import signal

from tests.runs import Run, run
from tests.tiny import write_run


def unread(_rank):
    """Both streams lead into a pipe whose reader has gone, as after ``2>&1 | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)


def test_a_run_that_nobody_reads_comes_to_its_end(tmp_path):
    recipe = write_run(tmp_path)
    assert run(["run", str(recipe)], fault=unread) == ""
    assert (tmp_path / "run" / "export" / "phase.json").is_file()


def test_a_mistake_that_nobody_reads_keeps_its_code(tmp_path):
    recipe = write_run(tmp_path)
    run(["run", str(recipe), "teacher.path=/none"], fault=unread, codes=2)


def test_a_terminal_that_closes_is_a_request_to_save_and_stop(tmp_path):
    recipe = write_run(tmp_path)
    started = Run(["run", str(recipe), "distill.max_steps=100000"])
    started.wait_for("distill 2/")
    started.send(signal.SIGHUP)
    assert started.wait() == [75, 75]
    assert "stopped on SIGHUP (rank 0 and 1 more) after step " in started.output(0)
    (saved,) = (tmp_path / "run" / "checkpoints" / "distill").glob("step_*")
    assert f"The state is in {saved}" in started.output(0)
