"""Whole runs with ``tf32`` and ``deterministic``: the same numbers on a CPU, and what contradicts them is refused."""

from __future__ import annotations

import os

from tests.runs import differences, run, traces
from tests.tiny import ROOT, write_run


def test_deterministic_algorithms_do_for_all_phases(tmp_path):
    """On a CPU the others give the same bits, too; one that had no such form would end the run."""
    write_run(tmp_path)
    recipe, zero3 = str(tmp_path / "recipe.yaml"), f"deepspeed={ROOT}/ds_configs/deepspeed/zero3.json"
    plain = run(["run", recipe, zero3, f"output_dir={tmp_path}/plain"], num_ranks=1)
    said = run(["run", recipe, zero3, f"output_dir={tmp_path}/same", "deterministic=true", "tf32=true"], num_ranks=1)
    assert said.count("WARN tf32: true has no effect on a cpu") == 1
    assert "tf32" not in plain
    assert differences(traces(tmp_path / "plain"), traces(tmp_path / "same")) == []


def _says_otherwise(_rank):
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":8:8"


def test_an_environment_that_says_otherwise_is_refused(tmp_path):
    recipe = str(write_run(tmp_path))
    said = run(["run", recipe, "deterministic=true"], codes=2, fault=_says_otherwise)
    assert said.count("deterministic: true, but $CUBLAS_WORKSPACE_CONFIG is ':8:8'") == 1
    assert not (tmp_path / "run").exists()
