"""A run that was stopped anywhere and started again is, to the last bit, the run that was never stopped."""

from __future__ import annotations

import shutil

import pytest

from tests.runs import copy_run, differences, run, traces
from tests.tiny import ROOT, write_run

SAVE_ALL = ("checkpoint.every_steps=1", "checkpoint.keep_every_steps=1", "evaluation.every_steps=3")
LATER = ("distill", "evaluate", "export")


def stage(number):
    return f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{number}.json'}"


@pytest.mark.parametrize(
    ("number", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
)
def test_exact(tmp_path, number, precision):
    recipe = write_run(tmp_path, family="gpt2")
    arguments = [
        "run",
        str(recipe),
        stage(number),
        f"precision={precision}",
        "distill.max_steps=7",
        "tracking.log_every_steps=2",
        *SAVE_ALL,
    ]
    print(run(arguments)[-300:])
    whole = traces(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for step in (1, 4, 6):
        copy_run(tmp_path / "whole", tmp_path / "run")
        for phase in LATER:
            shutil.rmtree(tmp_path / "run" / phase)
        for later in range(step + 1, 8):
            shutil.rmtree(tmp_path / "run" / "checkpoints" / "distill" / f"step_{later:08d}", ignore_errors=True)
        output = run(arguments)
        assert f"going on after step {step} of 7" in output
        assert differences(whole, traces(tmp_path / "run")) == []
