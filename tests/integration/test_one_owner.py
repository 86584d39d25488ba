"""One run at a time in an output folder, and a run that follows a killed one at once."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.integration.launching import alone
from tests.runs import Run, run
from tests.tiny import write_run

STEPS = ("checkpoint.every_steps=20", "tracking.log_every_steps=2")


@pytest.fixture
def working(tmp_path):
    """A run of two ranks in the middle of Stage II."""
    recipe = write_run(tmp_path)
    started = Run(["run", str(recipe), *STEPS, "distill.max_steps=100000"])
    started.wait_for("distill 24/")
    yield recipe, started
    started.kill()


def untouched(folder):
    """What is there besides what the owner writes by itself."""
    return {str(file) for file in folder.rglob("*") if "step_" not in str(file) and "wandb" not in str(file)}


def test_a_second_run_ends_at_once_and_touches_nothing(working):
    recipe, first = working
    before = untouched(recipe.parent / "run")
    for other, num_ranks in (("run", 2), ("distill", 1), ("export", 1)):
        output = run([other, str(recipe), *STEPS, "distill.max_steps=100000"], num_ranks=num_ranks, codes=2)
        assert output.count("ted-ds ") == 1
        owner = f"output_dir: {recipe.parent / 'run'} is in use by {os.uname().nodename}:{first.processes[0].pid} since"
        assert owner in output
    assert untouched(recipe.parent / "run") == before
    # who writes nothing there may look
    assert "one step" in run(["doctor", str(recipe)], num_ranks=1, codes=None)
    assert alone("check", str(recipe)).code == 0
    step = first.output(0).count("distill ")
    deadline = time.monotonic() + 180
    while first.output(0).count("distill ") < step + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send(signal.SIGTERM)
    assert first.wait() == [75, 75]
    assert not (recipe.parent / "run" / "owner.json").exists()


def test_a_killed_run_is_followed_at_once(tmp_path):
    recipe = write_run(tmp_path)
    arguments = ["run", str(recipe), *STEPS, "distill.max_steps=60"]
    first = Run(arguments)
    first.wait_for("distill 24/")
    first.send(signal.SIGKILL)
    output = run(arguments)
    first.kill()
    assert "going on after step 20" in output
    assert "waiting for" not in output
    assert (recipe.parent / "run" / "export").is_dir()


def test_a_former_owner_ends_with_a_message(working):
    recipe, first = working
    lock = recipe.parent / "run" / "owner.json"
    owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "token": "another", "process": {**owner["process"], "host": "node7"}}))
    codes = first.wait()
    assert codes == [2, 76], first.output()
    assert f"output_dir: {recipe.parent / 'run'} was taken over by node7:" in first.output(0)
    assert "Traceback" not in first.output()
    assert json.loads(lock.read_text())["token"] == "another"
