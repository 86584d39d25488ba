"""What ``student.freeze_blocks`` comes to: what is counted, what is shared, and what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.frozen_blocks import shared_blocks
from ted_ds.planning.operations import operations_per_step
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.phase_memory import phase_memories, with_head
from ted_ds.planning.pipeline_cut import FORWARD, LEARN, border_of, forward_operations, shared_by_stages
from ted_ds.planning.plan import Plan
from ted_ds.planning.plan_in_words import describe
from ted_ds.planning.stage_memory import sent_bytes, stage_needs
from tests.task_kinds import make_plan
from tests.tiny import write_model, write_run

THREE = "student.from_teacher.blocks=[0, 1, 3]"
ZERO_1 = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}


def planned(run: Path, *overrides: str) -> tuple[Any, Plan]:
    recipe = load_recipe(run / "recipe.yaml", overrides)
    return recipe, make_plan(recipe, num_ranks=recipe.pipeline.stages)


def frozen_line(run: Path, *overrides: str) -> str:
    recipe, plan = planned(run, *overrides)
    lines = describe(recipe, plan, num_ranks=1).splitlines()
    return next(line for line in lines if line.startswith("frozen ")).removeprefix("frozen    ")


def test_what_is_frozen_and_shared_is_said(lm_run: Path) -> None:
    _, plan = planned(lm_run, THREE)
    assert plan.student is not None
    blocks = plan.student.parameters.of_blocks
    in_blocks = sum(size for block in blocks[:2] for size in (shape[0] * (shape[1:] or (1,))[0] for shape in block))
    count = in_blocks + plan.student.parameters.embeddings
    share = f"{100 * count / plan.student.parameters.total:.2g} %"
    assert frozen_line(lm_run, THREE, "student.freeze_blocks=2") == (
        f"embeddings and the first 2 of the student's 3 blocks, {count:,} parameters ({share}); Stage II runs "
        "embeddings and the first 2 blocks once for both models, if their weights are equal"
    )


@pytest.mark.parametrize(
    ("overrides", "number", "reason"),
    [
        ([], 2, None),
        (["student.from_teacher.blocks=[0, 2, 3]"], 1, "block 1 of the student is block 2 of the teacher"),
        (["student.from_teacher.blocks=[1, 2, 3]"], 0, "block 0 of the student is block 1 of the teacher"),
        (["student.from_teacher={num_blocks: 3, choose: ends}"], 2, None),
        (
            ["student.from_teacher={num_blocks: 3, choose: influence}"],
            0,
            "which of the teacher's blocks the student's are is known once they are chosen",
        ),
        (["distill.method=sft"], 0, "no teacher runs in Stage II"),
        (["student.heal={}"], 0, "the student's blocks are healed"),
        (["teacher.host=int8"], 0, "the teacher computes in 8 bits"),
        (["student.from_teacher.intermediate_size=20"], 0, "the student is narrower than its teacher"),
        (
            ["student.dropout.attention=0.2"],
            0,
            "the student has dropout (attention_dropout 0.2) while it trains, and the teacher has none "
            "(student.dropout: {attention: 0} would take it away)",
        ),
        (
            ["distill.relation_weight=1", "distill.relation_layers=[3, 2]", "distill.relation_heads=2"],
            1,
            "the attention of the teacher's block 1 (counted from 0) is compared",
        ),
    ],
)
def test_what_is_shared_and_why_no_more(lm_run: Path, overrides: list[str], number: int, reason: str | None) -> None:
    recipe, plan = planned(lm_run, THREE, "student.freeze_blocks=2", *overrides)
    assert plan.teacher is not None
    assert plan.student is not None
    found = shared_blocks(recipe, plan.teacher, plan.student)
    assert (found.number, found.reason) == (number, reason)
    line = frozen_line(lm_run, THREE, "student.freeze_blocks=2", *overrides)
    assert reason is None or reason in line
    assert ("the teacher runs its own, as" in line) == (number == 0)


def test_a_cached_teacher_runs_no_blocks(classification_run: Path) -> None:
    given = [THREE, "student.freeze_blocks=2", "teacher.cache.max_gib=1"]
    assert "as no teacher runs beside the student, as its cache is read" in frozen_line(classification_run, *given)


def test_dropout_of_the_config_is_seen_unless_the_recipe_takes_it_away(tmp_path: Path) -> None:
    write_run(tmp_path, family="gpt2")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "embd_pdrop": 0.1, "attn_pdrop": 0.1}))
    given = [THREE, "student.freeze_blocks=2"]
    assert "the student has dropout (embd_pdrop 0.1) while it trains" in frozen_line(tmp_path, *given)
    without = "student.dropout={hidden: 0, attention: 0}"
    assert "Stage II runs embeddings and the first 2 blocks once" in frozen_line(tmp_path, *given, without)


def test_memory_is_of_what_trains_and_operations_are_of_what_runs(lm_run: Path) -> None:
    (plain, whole), (recipe, plan) = planned(lm_run, THREE), planned(lm_run, THREE, "student.freeze_blocks=2")
    assert plan.student is not None
    assert plan.teacher is not None
    count = plan.student.parameters.total - sum(plan.student.parameters.sizes_behind(2))
    (before, after) = (
        phase_memories(one, of_one, ZERO_1, world_size=2)[-1] for one, of_one in ((plain, whole), (recipe, plan))
    )
    assert before.num_trained - after.num_trained == count
    assert before.trained.parameters == after.trained.parameters  # they are held all the same
    assert before.trained.optimizer - after.trained.optimizer == count // 2 * 12
    assert after.activations * 3 == before.activations  # one block of three keeps some
    steps = [operations_per_step(one, of_one, DISTILL) or 0.0 for one, of_one in ((plain, whole), (recipe, plan))]
    tokens = recipe.distill.global_batch_size * recipe.task.sequence_length
    head = 2.0 * plan.student.parameters.embeddings if not plan.student.parameters.lm_head else 0.0
    of_block = (
        forward_operations(recipe, plan.teacher) - 2.0 * (with_head(recipe, plan.teacher).lm_head or head / 2)
    ) / 4
    assert steps[0] - steps[1] == pytest.approx(tokens * (2 * (LEARN - FORWARD) * of_block + 2 * of_block + head))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["student.freeze_blocks=3"],
            "student.freeze_blocks: 3: the student has 3 blocks, and one at least has to train; use at most 2",
        ),
        (
            ["student.freeze_blocks=1", "student.from_teacher.blocks=[0]"],
            "student.freeze_blocks: 1: the student has 1 block, and one at least has to train; remove it",
        ),
        (["student.freeze_blocks=0"], "student.freeze_blocks: 0: use a whole number above 0, or null"),
        (
            ["student.freeze_blocks=1", "student.from_teacher=null", "student.path=TEACHER"],
            "student: freeze_blocks: is for the first blocks of a student that is cut out of its teacher; give "
            "from_teacher, or remove it",
        ),
        (
            ["student.freeze_blocks=1", "student.lora={rank: 2}"],
            "student: freeze_blocks: with lora all but adapters and head is left as it is; remove it",
        ),
        (
            [
                "student.freeze_blocks=2",
                "distill.balance=gradient_norm",
                "layer_map={kind: explicit, pairs: [[2, 2], [3, 4]]}",
            ],
            "student.freeze_blocks: 2: distill.balance compares gradients on block 2 of the student (counted from 1), "
            "the last one that all terms reach; use at most 1, match later layers alone, or give weights without "
            "balance",
        ),
    ],
)
def test_what_does_not_go_with_frozen_blocks_is_refused(lm_run: Path, overrides: list[str], expected: str) -> None:
    given = [one.replace("TEACHER", str(lm_run / "teacher")) for one in overrides]
    with pytest.raises(ConfigError) as caught:
        planned(lm_run, THREE, *given)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "family", "cut", "expected"),
    [
        (
            "seq2seq",
            "t5",
            "{encoder_blocks: [0, 1], decoder_blocks: [0, 1]}",
            "student.freeze_blocks: 1: a t5 has an encoder and a decoder, of which no first blocks are frozen here; "
            "remove it",
        ),
        (
            "sequence_classification",
            "albert",
            "{blocks: [0, 1]}",
            "student.freeze_blocks: 1: the layers of this albert share their blocks, which would all be frozen; remove "
            "it",
        ),
    ],
)
def test_models_without_first_blocks_of_their_own_are_refused(
    tmp_path: Path, kind: str, family: str, cut: str, expected: str
) -> None:
    write_run(tmp_path, kind=kind, family=family)
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, f"student.from_teacher={cut}", "student.freeze_blocks=1")
    assert expected in str(caught.value)


def test_frozen_embeddings_beside_frozen_blocks_change_nothing(lm_run: Path) -> None:
    recipe, plan = planned(lm_run, THREE, "student.freeze_blocks=1", "student.freeze_embeddings=true")
    text = describe(recipe, plan, num_ranks=1)
    assert "without effect: student.freeze_embeddings (student.freeze_blocks freezes them, too)" in text


LAYERS = "distill.method=lwd"  # whose filters no phase would have to be cut for
EVERY_LAYER = "layer_map={kind: explicit, pairs: [[1, 1], [2, 2], [3, 4]]}"
TIGHT = "layer_map={kind: explicit, pairs: [[1, 1], [2, 2], [3, 2]]}"
"""Leaves no choice of where to cut the teacher, up to block 2."""


@pytest.mark.parametrize(
    ("stages", "pairs", "number"),
    [
        (2, EVERY_LAYER, 2),
        (3, EVERY_LAYER, 2),
        (4, EVERY_LAYER, 2),
        # the second pair keeps a border behind block 1 of both from being
        (3, "layer_map={kind: explicit, pairs: [[1, 2], [3, 4]]}", 2),
        (4, "layer_map={kind: explicit, pairs: [[1, 2], [3, 4]]}", 1),
    ],
)
def test_a_pipeline_is_cut_so_that_blocks_are_run_once(lm_run: Path, stages: int, pairs: str, number: int) -> None:
    recipe, plan = planned(lm_run, THREE, LAYERS, "student.freeze_blocks=2", f"pipeline.stages={stages}", pairs)
    assert plan.teacher is not None
    assert plan.student is not None
    of_phase = plan.stages["distill"]
    assert len(of_phase) == stages
    borders = [border_of(stage) for stage in of_phase[1:]]
    assert all(own == other or min(own, other) >= number for own, other in borders)
    assert shared_by_stages(recipe, plan.teacher, plan.student, of_phase).number == number
    line = describe(recipe, plan, num_ranks=stages)
    assert f"the first {'block' if number == 1 else f'{number} blocks'} once for both models" in line
    why = "as a pipeline stage begins behind block 1 of the student and 2 of the teacher"
    assert (why in line) == (number == 1)


def test_a_stage_of_frozen_blocks_trains_nothing_and_sends_one_state(lm_run: Path) -> None:
    needs, sent = [], []
    for frozen in ("student.freeze_blocks=2", "student.freeze_blocks=null"):
        recipe, plan = planned(lm_run, THREE, LAYERS, frozen, "pipeline.stages=4", TIGHT)
        assert [border_of(stage) for stage in plan.stages["distill"][1:3]] == [(1, 1), (2, 2)]
        needs.append(stage_needs(recipe, plan, ZERO_1, "distill", num_replicas=1))
        sent.append([sent_bytes(recipe, plan, "distill", border) for border in range(3)])
    assert plan.student is not None
    assert plan.teacher is not None
    model = plan.student.parameters
    of_blocks = [sum(math.prod(shape) for shape in block) for block in model.of_blocks]
    adam = 16  # bytes of gradient, two moments and master weights
    frozen, trains = needs
    assert trains[1].weights - frozen[1].weights == adam * of_blocks[1]
    # the last stage's head is the embeddings
    num_frozen = sum(of_blocks[:2]) + model.embeddings * (1 if model.lm_head else 2)
    assert sum(one.weights - other.weights for one, other in zip(trains, frozen, strict=True)) == adam * num_frozen
    tokens = recipe.distill.micro_batch_size * recipe.task.sequence_length
    of_state = 4 * plan.teacher.hidden_size * tokens
    assert [one - other for one, other in zip(sent[1], sent[0], strict=True)] == [of_state, of_state, 0]
    assert frozen[0].activations < trains[0].activations


def test_operations_of_a_pipeline_are_those_of_its_stages(lm_run: Path) -> None:
    for stages, pairs in ((3, EVERY_LAYER), (4, "layer_map={kind: explicit, pairs: [[1, 2], [3, 4]]}")):
        recipe, plan = planned(lm_run, THREE, LAYERS, "student.freeze_blocks=2", f"pipeline.stages={stages}", pairs)
        tokens = recipe.distill.global_batch_size * recipe.task.sequence_length
        of_stages = sum(stage.cost for stage in plan.stages["distill"])
        assert operations_per_step(recipe, plan, DISTILL) == pytest.approx(tokens * of_stages)


def test_blocks_are_run_twice_where_the_slowest_stage_is_faster_so(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_model(tmp_path / "teacher", "llama", blocks=12, hidden=32, seed=1)
    given = ["student.from_teacher.blocks=[0, 1, 2, 3, 4, 11]", LAYERS, "student.freeze_blocks=5", "pipeline.stages=3"]
    recipe, plan = planned(tmp_path, *given, "layer_map={kind: explicit, pairs: [[1, 6], [6, 12]]}")
    assert plan.teacher is not None
    assert plan.student is not None
    assert shared_by_stages(recipe, plan.teacher, plan.student, plan.stages["distill"]).number < 5
    whole = shared_blocks(recipe, plan.teacher, plan.student)
    assert whole.number == 5
    # all five on the first stage would leave all the rest to two others
    assert border_of(plan.stages["distill"][1])[0] < 5
