"""What is left of an attempt is waited for, and killed; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ted_ds.launching.hosts import end_ranks
from ted_ds.launching.records import LOG_DIR


@pytest.fixture
def start():
    started = []

    def begin(folder, seconds):
        environment = {**os.environ, LOG_DIR: str(folder)}
        command = [sys.executable, "-c", f"import time; print('up', flush=True); time.sleep({seconds})"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "up\n"
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_that_goes_on_is_killed_and_said_and_those_of_others_are_left(tmp_path, start):
    own, other = start(tmp_path / "a", 60), start(tmp_path / "b", 60)
    said = []
    end_ranks((), tmp_path / "a", grace_s=0.0, say=said.append)
    assert own.wait(10) == -9
    assert said == ["this host: killed 1 process that the attempt left"]
    assert other.poll() is None


def test_one_that_ends_in_time_is_waited_for(tmp_path, start):
    own = start(tmp_path, 3)
    said = []
    started = time.monotonic()
    end_ranks((), tmp_path, grace_s=60.0, say=said.append)
    assert own.wait(10) == 0
    assert time.monotonic() - started < 50  # not to the end of the time it had
    assert said == []
