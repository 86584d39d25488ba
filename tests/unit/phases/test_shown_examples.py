"""Which held-out examples are shown."""

from __future__ import annotations

from ted_ds.phases.shown_examples import changed_rows

LABELS = [0, 1, 0, 1, 0, 1]
NAMES = ("bad", "good")


def columns(predictions: list[int]) -> dict[str, list[int]]:
    right = [int(one == other) for one, other in zip(predictions, LABELS, strict=True)]
    return {"prediction": predictions, "label": LABELS, "right": right}


def test_changes_are_told_from_each_other_and_each_example_is_shown_once() -> None:
    models = {
        "teacher": columns([0, 1, 0, 1, 0, 0]),
        "student before": columns([1, 1, 1, 0, 1, 0]),
        "student after": columns([0, 0, 0, 0, 0, 0]),
    }
    found = changed_rows(models, names=NAMES, most=2)
    assert [(row, about["change"]) for row, about in found] == [
        (0, "wrong before training, right after it"),
        (2, "wrong before training, right after it"),
        (1, "right before training, wrong after it"),
        (3, "right by the teacher, wrong by the student"),
    ]
    assert found[0][1]["label"] == "bad"
    assert found[0][1]["predictions"] == {"teacher": "bad", "student before": "good", "student after": "bad"}


def test_without_a_model_its_changes_are_left_out() -> None:
    models = {"teacher": columns([0] * 6), "student after": columns([1] * 6)}
    assert [row for row, _ in changed_rows(models, names=NAMES, most=9)] == [0, 2, 4]
    assert changed_rows({"student after": columns([1] * 6)}, names=NAMES, most=9) == []
    assert changed_rows({}, names=NAMES, most=9) == []
    assert changed_rows(models, names=NAMES, most=0) == []
