"""What families of encoders can and cannot do, as ``check`` says it before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.pipeline_cut import operations_per_token
from tests.tiny import ENCODERS, LABELS, write_model, write_run
from tests.unit.planning.test_plan import plan, refusal


def run_of(folder: Path, family: str, **changes: Any) -> Path:
    write_run(folder, kind="sequence_classification", family=family)
    if changes:
        write_model(folder / "teacher", family, labels=LABELS, **changes)
    return folder


@pytest.mark.parametrize("family", ENCODERS)
def test_every_encoder_is_planned(tmp_path: Path, family: str) -> None:
    found = plan(run_of(tmp_path, family))
    assert found.student is not None
    assert (found.student.num_blocks, found.layer_pairs) == (2, ((1, 2), (2, 4)))


@pytest.mark.parametrize(("family", "longest"), [("roberta", 63), ("xlm-roberta", 63), ("mpnet", 62), ("bert", 64)])
def test_rows_of_padding_are_no_positions(tmp_path: Path, family: str, longest: int) -> None:
    run = run_of(tmp_path, family)
    plan(run, f"task.max_length={longest}")
    assert refusal(run, f"task.max_length={longest + 1}") == (
        f"teacher.path: task.max_length is {longest + 1}, but this model allows at most {longest} tokens; lower "
        "task.max_length"
    )


def test_layers_that_share_a_block_are_in_no_pipeline(tmp_path: Path) -> None:
    assert refusal(run_of(tmp_path, "albert"), "pipeline.stages=2", ranks=2) == (
        "teacher.path: pipeline.stages is 2, but the layers of an ALBERT share blocks, which several stages would have "
        "to hold and train as one; remove it, and share memory out by ZeRO"
    )


def test_a_cut_without_the_shorter_first_block_is_refused(tmp_path: Path) -> None:
    assert refusal(run_of(tmp_path, "modernbert"), "student.from_teacher.blocks=[1,3]") == (
        "student.from_teacher.blocks: begins with block 1, but the first block of a modernbert lacks a norm that all "
        "others have, and none of them would be itself without; begin with block 0"
    )
    assert refusal(run_of(tmp_path / "again", "modernbert"), "student.from_teacher.blocks=[0,0,3]") == (
        "student.from_teacher.blocks: repeats block 0, but the first block of a modernbert lacks a norm that all "
        "others have, and it would not be itself with one; use block 0 once, and first"
    )


@pytest.mark.parametrize(("blocks", "fits"), [([0, 3], True), ([1, 2], True), ([0, 1], False), ([0, 1, 2], True)])
def test_layers_of_shared_blocks_are_cut_as_the_model_deals_them_out(
    tmp_path: Path, blocks: list[int], *, fits: bool
) -> None:
    run = run_of(tmp_path, "albert", num_hidden_groups=2)
    cut = f"student.from_teacher.blocks={blocks}"
    if fits:
        assert plan(run, cut).student.parameters.blocks_by_layer == tuple(block // 2 for block in blocks)  # type: ignore[union-attr]
        return
    assert refusal(run, cut) == (
        "student.from_teacher.blocks: these layers go through the weights [0, 0] (numbered from 0), but in a model of "
        "2 layers they go through [0, 1]; choose as many layers of each"
    )


def test_a_shared_block_is_held_once_and_worked_through_as_often_as_there_are_layers(tmp_path: Path) -> None:
    run = run_of(tmp_path, "albert")
    recipe, costs = load_recipe(run / "recipe.yaml"), []
    for blocks in (1, 4):
        write_model(run / "teacher", "albert", labels=LABELS, blocks=blocks)
        found = plan(run, "student.from_teacher.blocks=[0]", "distill.method=sft", "filters=null")
        assert found.teacher is not None
        facts = {"teacher": found.teacher, "student": found.teacher}
        costs.append((operations_per_token(recipe, facts, ((1, 1),), 16, DISTILL), found.teacher.parameters.total))
    assert costs[0][1] == costs[1][1]
    per_pass = [cost for cost, _ in costs]
    filters = 2 * 4 * 16 * 16  # learned on one side, computed on the other
    assert (per_pass[1] - filters) == pytest.approx(4 * (per_pass[0] - filters))
