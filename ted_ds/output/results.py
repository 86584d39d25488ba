"""What the evaluation of a run leaves, by its place in the phase's folder."""

from __future__ import annotations

from pathlib import Path

RESULTS_FILE = "evaluation.json"
OUTCOMES = "outcomes"
"""The folder with what each example came to, where the recipe keeps that."""
TEACHER = "teacher"
STUDENT = "student after"
"""What scores of these models are called: of the teacher, and of the student that comes out."""


def outcomes_file(model: str, part: str | None = None) -> Path:
    """Where the outcomes of a model are: on held-out data, or on a part beside them."""
    name = model.replace(" ", "_")
    return Path(OUTCOMES, f"{name}.json" if part is None else f"{name}.{part}.json")
