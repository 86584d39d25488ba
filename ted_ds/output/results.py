"""What the evaluation of a run leaves, by its place in the phase's folder."""

from __future__ import annotations

from pathlib import Path

RESULTS_FILE = "evaluation.json"
SAMPLES_FILE = "samples.json"
"""A few examples, with their texts and what models make of them."""
OUTCOMES = "outcomes"
"""The folder with what each example came to, where the recipe keeps that."""
TEACHER = "teacher"
BEGUN = "student before"
STUDENT = "student after"
"""What scores of these models are called: of the teacher, of the student as it began, and of that which comes out."""


def outcomes_file(model: str, part: str | None = None) -> Path:
    """Where the outcomes of a model are: on held-out data, or on a part beside them."""
    name = model.replace(" ", "_")
    return Path(OUTCOMES, f"{name}.json" if part is None else f"{name}.{part}.json")
