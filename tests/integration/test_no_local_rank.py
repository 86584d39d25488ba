"""DeepSpeed's launcher with ``--no_local_rank``: ranks are known by the environment alone, of scripts and of verbs."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.dist import free_port
from tests.integration.launching import BIN, environment
from tests.tiny import write_run

SCRIPT = """
import json, os, sys
from pathlib import Path
from ted_ds import distill

changes = {"distill.method": "sft", "filters": None, "distill.max_steps": 2, "tracking.to": []}
result = distill("recipe.yaml", overrides={**changes, "output_dir": "runs/own"})
Path(f"rank{os.environ['RANK']}.json").write_text(json.dumps([sys.argv[1:], result.student_score]))
"""


def launched(folder, *words):
    """DeepSpeed's launcher on two ranks."""
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("words", "given"), [(["--no_local_rank"], [[], []]), ([], ["0", "1"])])
def test_a_script_is_started_by_the_launcher(tmp_path, words, given):
    write_run(tmp_path, kind="sequence_classification")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launched(tmp_path, *words, "script.py")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [one[0] for one in found] == [[f"--local_rank={one}"] if one else [] for one in given]
    assert found[0][1] == found[1][1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_verb_is_started_by_the_launcher(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification")
    changes = ["distill.method=sft", "filters=null", "distill.max_steps=2", "tracking.to=[]", "output_dir=runs/own"]
    done = launched(tmp_path, "--no_local_rank", "--module", "ted_ds", "run", str(recipe), *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "own" / "export" / "config.json").is_file()
    done = launched(tmp_path, "--no_local_rank", "--module", "ted_ds", "run", str(recipe), *changes, "seed=minus one")
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("recipe.yaml: seed: ") == 1
