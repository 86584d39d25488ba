"""The names that Python imports: quick, typed, and as the documentation has them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import get_args

import pytest

import ted_ds
from ted_ds.planning.phase import PHASES
from ted_ds.verbs.distill import Verb
from tests.python_docs import blocks
from tests.tiny import ROOT

MOST_S = 0.3
WRONG = {
    'distill(recipe, verb="fly")': "reportArgumentType",
    "distill(recipe, callbacks=[print])": "reportArgumentType",
    "distill(recipe, train_data=[1, 2])": "reportArgumentType",
    "distill(recipe, steps=3)": "reportCallIssue",
    "distill(recipe).scores['teacher'].accuracy": "reportAttributeAccessIssue",
    'OwnTerm("x", angle, per="row")': "reportArgumentType",
    "Patience(3).on_evaluate(Stop(''))": "reportArgumentType",
}
"""What a checker of types must see."""


def test_the_package_is_imported_at_once():
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import ted_ds"], cwd=ROOT, check=True)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < MOST_S, seconds


def test_public_names_are_there_and_nothing_else():
    assert dir(ted_ds) == sorted(ted_ds.__all__)
    for name in ted_ds.__all__:
        assert getattr(ted_ds, name) is not None
    with pytest.raises(AttributeError, match="module 'ted_ds' has no attribute 'train'"):
        _ = ted_ds.train


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = "import sys, ted_ds; print(sorted({'torch', 'pydantic', 'transformers', 'omegaconf'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_verbs_are_those_of_the_command_line():
    assert {*get_args(Verb)} == {"run", *(phase.verb for phase in PHASES)}


def checked(*files):
    """What pyright says of files: for each line, the rule that is broken."""
    pyright = shutil.which("pyright") or "pyright"
    done = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["range"]["start"]["line"], one.get("rule"), one["message"]) for one in found]


@pytest.mark.lengthy
def test_the_documentation_is_typed_and_mistakes_are_seen(tmp_path):
    code = "\n".join(blocks())
    first = code.count("\n") + 1
    file = tmp_path / "example.py"
    file.write_text("\n".join([code, *WRONG]) + "\n")
    found = checked(file)
    assert [one for one in found if one[0] < first] == [], "the documentation itself is right"
    assert {line - first: rule for line, rule, _ in found if line >= first} == dict(enumerate(WRONG.values()))
