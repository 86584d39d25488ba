"""The verb ``demo``: a small real run from start to end, and what it changed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.config.load import load_recipe
from ted_ds.config.shipped import RECIPES, shipped
from ted_ds.data.cleaning import is_heldout
from ted_ds.errors import ConfigError
from ted_ds.launching.machine import computes_bf16
from ted_ds.launching.side_by_side import command_of_run, environment_of
from ted_ds.output.results import STUDENT, TEACHER, outcomes_file
from ted_ds.output.screen import Screen
from ted_ds.planning.phase import EVALUATE
from ted_ds.planning.study_arms import as_overrides
from ted_ds.verbs.demo_assets import write_assets
from ted_ds.verbs.demo_packages import install
from ted_ds.verbs.report import report

MODEL, TEXTS, RUN = "minilm-l6", "rotten_tomatoes.jsonl", "run"
BEGUN = "student before"
MOST_GAINED, MOST_LOST = 3, 1
"""Sentences that are shown."""
LONGEST_SHOWN = 110
"""Characters of one."""


def demo(folder: Path, overrides: Sequence[str], *, installs: bool) -> int:
    """Run the demo's recipe in ``folder``, or what is left of it, and show what came of it; returns the exit code.

    What its model and texts are in is installed before where that is asked for.

    Raises:
        TedError: A package with the model or the texts is missing, or the folder cannot be written.
    """
    recipe_path = shipped(f"{RECIPES}/demo.yaml")
    place = {
        "teacher.path": str(folder / MODEL),
        "data.train": [{"path": str(folder / TEXTS)}],
        "output_dir": str(folder / RUN),
        **({"precision": "bf16"} if computes_bf16() else {}),
    }
    changes = [*as_overrides(place), *overrides]
    recipe = load_recipe(recipe_path, changes)
    if installs:
        install([MODEL, TEXTS])
    try:
        write_assets(folder, [MODEL, TEXTS])
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}; give another folder with --out") from error
    code = _run(["run", str(recipe_path), *changes])
    if code:
        return code
    screen = Screen(shown=True)
    if importlib.util.find_spec("matplotlib") is None:
        screen.say(
            f"report      needs matplotlib: pip install 'ted_ds[report]', then: ted-ds report {recipe.output_dir}"
        )
    else:
        report([recipe.output_dir], None)
    rows = [json.loads(line) for line in (folder / TEXTS).read_bytes().splitlines()]
    heldout = [row["text"] for row in rows if is_heldout(row["text"], recipe.data.heldout_fraction)]
    for line in changed_in_words(recipe.output_dir, heldout, recipe.task.output_names):
        screen.say(line)
    return 0


def _run(arguments: Sequence[str]) -> int:
    """``ted-ds ARGUMENTS`` on one rank with all cores; returns its exit code. A signal is the run's to answer."""
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        **environment_of(0, at_once=1, num_ranks=1, environment=os.environ),
        "HF_HUB_OFFLINE": "1",  # all there is lies here
    }
    sys.stdout.flush()  # what was said before it comes before it
    process = subprocess.Popen(command_of_run(arguments, 1), env=environment)  # noqa: S603 - our own command
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # a terminal sends it to both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Changed:
    """A sentence whose prediction changed on the way from the student that was cut to the one that was trained."""

    text: str
    label: int
    shares: Mapping[str, tuple[int, float]]
    """By model, the label it predicts and how sure it is."""
    gain: float
    """Of the right label's share."""


def changed_in_words(run: Path, heldout: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    """How many predictions changed between the student that was cut and the trained one, and some of them.

    Args:
        run: A run on texts of two classes that kept the outcomes of each model.
        heldout: The texts that were held out, in the order of the data; at most the first ones were scored.
        labels: Names of the two classes.
    """
    columns = {name: _columns(run, name) for name in (TEACHER, BEGUN, STUDENT)}
    changed = [*_changed(columns, heldout)]
    gained = sorted((one for one in changed if one.gain > 0), key=lambda one: -one.gain)
    lost = sorted((one for one in changed if one.gain < 0), key=lambda one: one.gain)
    yield (
        f"\nOf {len(columns[STUDENT]['label'])} held-out sentences, training turned {len(gained)} predictions from "
        f"wrong to right and {len(lost)} from right to wrong. Some of them:"
    )
    short = [[one for one in some if len(one.text) <= LONGEST_SHOWN] for some in (gained, lost)]
    agreed = [one for one in short[0] if one.shares[TEACHER][0] == one.label]
    for one in [*agreed[:MOST_GAINED], *short[1][:MOST_LOST]]:
        yield ""
        yield from textwrap.wrap(f"“{one.text}” is {labels[one.label]}", width=LONGEST_SHOWN)
        for name, (predicted, share) in one.shares.items():
            mark = "" if predicted == one.label else "   wrong"
            yield f"  {name:14} {labels[predicted]} {share:.2f}{mark}"


def _changed(columns: Mapping[str, Mapping[str, Any]], heldout: Sequence[str]) -> Iterator[Changed]:
    labels = columns[STUDENT]["label"]
    for row, (text, label) in enumerate(zip(heldout, labels, strict=False)):
        predicted = {name: int(one["prediction"][row]) for name, one in columns.items()}
        if predicted[BEGUN] == predicted[STUDENT]:
            continue
        right = {name: math.exp(-one["loss"][row]) for name, one in columns.items()}
        shares = {
            name: (predicted[name], share if predicted[name] == label else 1 - share) for name, share in right.items()
        }
        yield Changed(text, int(label), shares, right[STUDENT] - right[BEGUN])


def _columns(run: Path, model: str) -> Mapping[str, Any]:
    return json.loads((run / EVALUATE.name / outcomes_file(model)).read_text(encoding="utf-8"))["columns"]
