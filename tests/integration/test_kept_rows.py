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
from tests.tiny import VOCAB_SIZE, recipe_dict, write_letters, write_model, write_recipe

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
    run(["run", str(live), f"output_dir={folder / 'live'}"], num_ranks=1)
    output = run(["run", str(rows), f"output_dir={folder / 'rows'}", f"teacher.cache.top_k={VOCAB_SIZE}"], num_ranks=1)
    assert "training rows of tokens, held by every rank (of all rows read as labels" in output
    assert "texts: tokens as they are" in output
    pairs = [*zip(reports(folder / "rows"), reports(folder / "live"), strict=True)]
    assert len(pairs) == 4
    for of_rows, of_live in pairs:
        for name in ("loss/total", "loss/task", "loss/kl_teacher_student"):
            assert of_rows[name] == pytest.approx(of_live[name], rel=2e-3), name
        assert "gap/task_loss_teacher" in of_live
        assert "gap/task_loss_teacher" not in of_rows  # nobody has heard it
    scores = {
        name: json.loads((folder / name / "evaluate" / "evaluation.json").read_text()) for name in ("live", "rows")
    }
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


@pytest.mark.parametrize("form", ["distillkit", pytest.param("axolotl", marks=pytest.mark.slow)])
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


def test_wrong_rows_end_a_run_before_anything_is_written(tmp_path, teacher):
    """They are named, by both ranks together; so is a data set of other tokens, or without its settings."""
    folder = with_teacher(tmp_path / "wrong", teacher)
    data = write_axolotl(folder / "train.jsonl", teacher)
    recipe = recipe_for(folder, data, {"format": "axolotl"})
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    broken = json.loads(json.dumps(rows))
    for index, row in enumerate(broken[:9]):  # some are held out, and of these nothing is read
        place = len(row["input_ids"]) - 2
        if index % 3 == 0:
            row["target_logprobs"][place][2] = float("nan")
        elif index % 3 == 1:
            row["target_logprobs"][place] = [0.0] * 8
        else:
            row["target_mask"][place] = [0] * 8
    write_json(data, broken)
    output = run(["run", str(recipe)], codes=2)
    assert re.search(rf"{data}: byte \d+: token \d+ of input_ids: the log of a probability is nan\n", output)
    assert "probabilities add up to 8, which is more than 1" in output
    assert "no prediction; every token that is compared needs one" in output
    write_json(data, rows)
    assert "8 ids of 9 (teacher.cache.top_k); use top_k: 8 or fewer" in run(
        ["run", str(recipe), "teacher.cache.top_k=9"], codes=2, num_ranks=1
    )
    other = [
        {**row, "input_ids": [VOCAB_SIZE + 3, *row["input_ids"][1:]], "labels": [-100, *row["labels"][1:]]}
        for row in rows
    ]
    write_json(data, other)
    output = run(["run", str(recipe)], codes=2, num_ranks=1)
    assert (
        "input_ids: place 0 has 103, and the tokenizer has 100 ids, from 0 on; the row is of another tokenizer"
        in output
    )
    write_json(data, rows)
    recipe = recipe_for(folder, data, {"format": "distillkit"}, temperature=1.0)
    assert "no compression_config.yaml in the folder of its files or in the one above" in run(
        ["run", str(recipe)], codes=2, num_ranks=1
    )
    assert not (folder / "run" / "distill").exists()


def test_predictions_of_the_other_token_are_refused(tmp_path, teacher):
    """Rows of which each token is by far the most probable one, one place off."""
    folder = with_teacher(tmp_path / "shifted", teacher)
    rows = []
    for index, ids in enumerate(ROWS):
        said = [([token, *(one for one in range(8) if one != token)][:8], [-0.1] + [-5.0] * 7) for token in ids[1:]]
        rows.append(axolotl_row(ids, [*map(renormalised, said)], labels_of(ids, index), own=True))
    recipe = recipe_for(folder, write_json(folder / "train.jsonl", rows), {"format": "axolotl"})
    output = run(["run", str(recipe), "preflight=refuse"], codes=2)
    assert (
        "the predictions look as if they were of the token that stands there; use row_is_of: own; preflight: warn"
        in output
    )
    assert not (folder / "run").exists()
    output = run(["run", str(recipe)], codes=2, num_ranks=1)  # its first tokens have none
    assert "WARN teacher.cache.rows: of " in output
    assert "token 1 of input_ids: no prediction; every token that is compared needs one" in output
    run(["run", str(recipe), "teacher.cache.rows.row_is_of=own", "preflight=refuse"], num_ranks=1)


def test_a_students_own_tokenizer_must_agree(tmp_path, teacher):
    folder = with_teacher(tmp_path / "letters", teacher)
    data = write_axolotl(folder / "train.jsonl", teacher)
    write_letters(write_model(folder / "letters", "llama", vocab=24))
    recipe = recipe_for(folder, data, {"format": "axolotl"})
    output = run(["run", str(recipe), f"student={{path: {folder / 'letters'}}}"], codes=2, num_ranks=1)
    assert "tokenizer" in output
