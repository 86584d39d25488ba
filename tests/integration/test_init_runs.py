"""What ``ted-ds init`` writes is run: a recipe that passes ``check`` and that ``run`` then refuses is none."""

from __future__ import annotations

import json

import pytest
import yaml

from ted_ds.cli import main
from tests.first_recipes import CASES, write_place
from tests.runs import run

QUICK = ("distill.global_batch_size=4", "distill.micro_batch_size=4", "evaluation.max_examples=4", "preflight=warn")
"""Teachers are random."""
CALIBRATION = "student.calibration={tokens: 80, heldout_tokens: 24}"
BY_DEFAULT = (("bert", "labels"), ("bert", "answers"), ("llama", "documents"), ("t5", "targets"))
"""A kind of head each; the others run by ``-m slow``."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"))


def in_two_steps(values):
    """Overrides by which every phase of a recipe that was written takes two steps."""
    plans = ["distill", *(["teacher.finetune"] if "finetune" in values["teacher"] else [])]
    return [f"{plan}.{key}" for plan in plans for key in ("epochs=null", "max_steps=2")]


def cases():
    """Each pair, by one method or the other."""
    for number, (teacher, data, _) in enumerate(CASES):
        mark = pytest.mark.lengthy if (teacher, data) in BY_DEFAULT else pytest.mark.slow
        yield pytest.param(teacher, data, ("ted", "kd")[number % 2], marks=mark)


@pytest.mark.parametrize(("teacher", "data", "method"), [*cases()])
def test_what_it_writes_runs(place, tmp_path, capsys, teacher, data, method):
    out = tmp_path / "mine.yaml"
    words = ["--teacher", str(place / teacher), "--data", str(place / f"{data}.jsonl"), "--method", method]
    assert main(["init", *words, "--out", str(out)]) == 0, capsys.readouterr().err
    values = yaml.safe_load(out.read_text(encoding="utf-8"))
    changes = [*QUICK, CALIBRATION, *in_two_steps(values), f"output_dir={tmp_path / 'run'}"]
    run(["run", str(out), *changes], num_ranks=1)
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    assert {"teacher", "student after"} <= scores.keys()
    assert (tmp_path / "run" / "export" / "config.json").is_file()
