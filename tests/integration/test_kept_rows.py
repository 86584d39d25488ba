"""Runs whose teacher is what another tool kept of one, beside runs whose teacher is that model itself."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import signal_at
from tests.integration.test_corpus_cache import in_small_parts, records, reports
from tests.kept_rows import (
    axolotl_row,
    compression,
    distillkit_row,
    labels_of,
    renormalised,
    said_by,
    token_rows,
    write_distillkit,
    write_json,
)
from tests.layouts import STOPPED
from tests.runs import Run, differences, run, traces
from tests.tiny import VOCAB_SIZE, recipe_dict, write_model, write_recipe

ROWS = token_rows()


def recipe_for(folder: Path, data: Path, rows: dict[str, Any] | None, **distill: Any) -> Path:
    """A recipe for rows of tokens, with the predictions in them or with the teacher."""
    recipe = recipe_dict(folder, method="kd", steps=4)
    recipe["task"] = {"kind": "chat", "form": "tokens", "max_length": 12}
    recipe["data"]["train"] = [{"path": str(data)}]
    recipe["distill"] |= distill
    del recipe["filters"]
    if rows is not None:
        recipe["teacher"]["cache"] = {"max_gib": 1, "rows": rows, "top_k": distill.pop("top_k", 8)}
    return write_recipe(folder / f"{'live' if rows is None else 'rows'}.yaml", recipe)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "teacher", "llama", seed=3)


def with_teacher(folder: Path, teacher: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "teacher").symlink_to(teacher)
    return folder


def write_whole(folder: Path, teacher: Path) -> Path:
    """DistillKit's rows of all ids: nothing of predictions is lost."""
    how = compression(VOCAB_SIZE, VOCAB_SIZE)
    rows = [
        distillkit_row(ids, said, how, labels=labels_of(ids, index))
        for index, (ids, said) in enumerate(zip(ROWS, said_by(teacher, ROWS, VOCAB_SIZE), strict=True))
    ]
    return write_distillkit(folder / "data", rows, how)


def test_whole_predictions_teach_what_the_teacher_does(tmp_path, teacher):
    """Which shows that each is of the token it is of: one place off, losses are others."""
    folder = with_teacher(tmp_path / "one", teacher)
    data = write_whole(folder, teacher)
    live = recipe_for(folder, data, None, temperature=1.0)
    rows = recipe_for(folder, data, {"format": "distillkit"}, temperature=1.0)
    both = {"live": live, "rows": rows}
    for name, recipe in both.items():
        arguments = ["run", str(recipe), f"output_dir={folder / name}"]
        output = run([*arguments, *(["teacher.cache.top_k=105"] if name == "rows" else [])], num_ranks=1)
    assert "training rows of tokens, held by every rank (of all rows read as labels" in output
    assert "texts: tokens as they are" in output
    pairs = [*zip(reports(folder / "rows"), reports(folder / "live"), strict=True)]
    assert len(pairs) == 4
    for of_rows, of_live in pairs:
        for name in ("loss/total", "loss/task", "loss/kl_teacher_student"):
            assert of_rows[name] == pytest.approx(of_live[name], rel=2e-3), name
        assert "gap/task_loss_teacher" in of_live
        assert "gap/task_loss_teacher" not in of_rows  # nobody has heard it
    scores = {name: json.loads((folder / name / "evaluate" / "evaluation.json").read_text()) for name in both}
    assert "teacher" in scores["live"]
    assert scores["live"].keys() - scores["rows"].keys() == {"teacher"}
    assert not (folder / "rows" / "teacher_cache").exists()


def write_axolotl(file: Path, teacher: Path, k: int = 8, *, own: bool = False) -> Path:
    """Its rows, with the most probable ids alone."""
    said = said_by(teacher, ROWS, k)
    return write_json(
        file,
        [
            axolotl_row(ids, [*map(renormalised, of_row)], labels_of(ids, index), own=own)
            for index, (ids, of_row) in enumerate(zip(ROWS, said, strict=True))
        ],
    )


@pytest.mark.parametrize("form", ["distillkit", "axolotl"])
def test_any_ranks_copy_the_same_and_go_on_from_anywhere(tmp_path, teacher, form):
    """Stopped and killed while it copies, by other ranks, and while it trains."""
    folder = with_teacher(tmp_path / form, teacher)
    if form == "distillkit":
        how = compression(VOCAB_SIZE, 8, exact_dtype="bfloat16")
        rows = [
            distillkit_row(ids, said, how, labels=labels_of(ids, index))
            for index, (ids, said) in enumerate(zip(ROWS, said_by(teacher, ROWS, 8), strict=True))
        ]
        data = write_distillkit(folder / "data", rows, how)
    else:
        data = write_axolotl(folder / "train.jsonl", teacher)
    recipe = recipe_for(folder, data, {"format": form}, temperature=1.0 if form == "distillkit" else 2.0)
    steps = ["distill.max_steps=8", "checkpoint.every_steps=2"]

    def arguments(name: str, output: str = "run") -> list[str]:
        return [
            "run",
            str(recipe),
            *steps,
            f"teacher.cache.dir={folder / name}",
            f"output_dir={folder / name / output}",
        ]

    run(arguments("whole"), num_ranks=1)
    stopped = Run(arguments("cut"), fault=in_small_parts, fault_arguments=("cache", 2, signal.SIGTERM))
    assert stopped.wait() == [STOPPED, STOPPED], stopped.output()
    killed = Run(arguments("cut"), fault=signal_at, fault_arguments=("step", 5, signal.SIGKILL, (0,)))
    assert killed.wait()[0] == -signal.SIGKILL
    assert re.search(r"going on after step [24] of 8", run(arguments("cut")))
    again = run(arguments("whole", "again"))
    assert "teacher cache: " in again
    assert differences(traces(folder / "whole" / "again"), traces(folder / "cut" / "run")) == []
    assert records(folder / "whole") == records(folder / "cut")


def test_older_rows_of_axolotl_are_found_out(tmp_path, teacher):
    folder = with_teacher(tmp_path / "older", teacher)
    data = write_axolotl(folder / "train.jsonl", teacher, 40, own=True)
    recipe = recipe_for(folder, data, {"format": "axolotl", "row_is_of": "own"})
    run(["run", str(recipe), "teacher.cache.top_k=40"], num_ranks=1)
    newer = write_axolotl(folder / "newer.jsonl", teacher, 40)
    right = recipe_for(folder, newer, {"format": "axolotl"})
    run(["run", str(right), "teacher.cache.top_k=40", f"output_dir={folder / 'right'}"], num_ranks=1)
    for one, other in zip(reports(folder / "run"), reports(folder / "right"), strict=True):
        assert one["loss/total"] == other["loss/total"]
