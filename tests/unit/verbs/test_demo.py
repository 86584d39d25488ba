"""``ted-ds demo``: what it shows of a run is what the run's files say. The run itself: ``tests/integration``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ted_ds.cli import main
from ted_ds.verbs.demo import LONGEST_SHOWN, changed_in_words

LABELS = ("no", "yes")
RIGHT = {  # of each text, its label and how sure each model is of it
    "stays right": (1, 0.9, 0.8, 0.7),
    "is gained": (1, 0.9, 0.4, 0.75),
    "is gained more": (0, 0.8, 0.1, 0.9),
    "is gained against the teacher": (1, 0.3, 0.2, 0.8),
    "is lost": (0, 0.9, 0.6, 0.2),
    "x" * (LONGEST_SHOWN + 1): (1, 0.9, 0.1, 0.9),
}


def write_outcomes(run: Path) -> Path:
    folder = run / "evaluate" / "outcomes"
    folder.mkdir(parents=True)
    for place, model in enumerate(("teacher", "student_before", "student_after"), 1):
        right = [(row[0], row[place]) for row in RIGHT.values()]
        columns = {
            "label": [label for label, _ in right],
            "prediction": [label if share > 0.5 else 1 - label for label, share in right],
            "loss": [-math.log(share) for _, share in right],
        }
        (folder / f"{model}.json").write_text(json.dumps({"columns": columns}))
    return run


def test_predictions_that_changed_are_counted_and_the_clearest_shown(tmp_path):
    lines = [*changed_in_words(write_outcomes(tmp_path), [*RIGHT, "beyond what was scored"], LABELS)]
    assert lines[0] == (
        "\nOf 6 held-out sentences, training turned 4 predictions from wrong to right and 1 from right to wrong. "
        "Some of them:"
    )
    assert lines[1:6] == [
        "",
        "“is gained more” is no",
        "  teacher        no 0.80",
        "  student before yes 0.90   wrong",
        "  student after  no 0.90",
    ]
    shown = [line for line in lines if line.startswith("“")]
    assert shown == ["“is gained more” is no", "“is gained” is yes", "“is lost” is no"]


def test_a_change_of_the_recipe_that_is_wrong_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "distill.max_step=3"]) == 2
    assert "demo.yaml: distill.max_step: unknown key; did you mean 'max_steps'?" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "demo").touch()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert f"{tmp_path / 'demo'}: cannot be written: " in capsys.readouterr().err
