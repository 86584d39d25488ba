"""What ``check`` says of a student that is to be healed: its plan, and every reason why it cannot be."""

from __future__ import annotations

import dataclasses

import pytest

from ted_ds.errors import ConfigError
from ted_ds.models.families import FAMILY_OF
from ted_ds.planning.heal import heal_doubts, heal_mistakes, heal_targets, num_unknowns
from ted_ds.planning.heal_cost import heal_cost
from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.phase_memory import phase_memories
from ted_ds.planning.plan_in_words import describe
from ted_ds.planning.work import Pace, describe_work
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import ONE_STACK_TYPES, TYPES_WITH_LABELS, write_run

HEAL = "student.heal={}"


def planned(path, *overrides):
    return plan_recipe(str(path), [HEAL, *overrides])


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as error:
        planned(path, *overrides)
    return without_overrides(str(error.value))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("llama"), kind="causal_lm", family="llama")


def test_the_plan_says_what_becomes_of_each_block(llama):
    recipe, plan = planned(llama)
    assert plan.phases[:2] == ("cut_student", "heal_student")
    text = describe(recipe, plan, num_ranks=1)
    assert "heal      student<-teacher 1<-3 2<-4\n" in text
    assert "WARN" not in text
    by_map = describe(*planned(llama, "student.heal.towards=layer_map"), num_ranks=1)
    assert "heal      student<-teacher 1<-2 2<-4\n" in by_map
    one = describe(*planned(llama, "student.heal.towards=layer_map", "layer_map.kind=last"), num_ranks=1)
    assert "heal      student<-teacher 2<-4\n" in one
    chosen = "student.from_teacher={num_blocks: 2, choose: influence}"
    assert "heal      each block's output to the teacher's state before the next one\n" in describe(
        *planned(llama, chosen), num_ranks=1
    )


def test_the_plan_says_what_it_takes(llama):
    recipe, plan = planned(llama, "student.calibration={tokens: 900, heldout_tokens: 100}")
    assert num_unknowns(plan.student) == 32
    work = describe_work(recipe, plan, Pace(2, 1.0))
    assert (
        "work      heal_student     1,000 calibration tokens through the teacher once and the student twice, and 2 "
        "maps of 32 unknowns solved in fp64; less than 0.1 h if each of 2 ranks computes 1 TFLOP/s" in work
    )
    memory = describe_memory(recipe, plan, num_ranks=2)
    assert (
        "memory    heal_student     weights 0.032 MiB + sums 0.0469 MiB + teacher + states 0.0916 MiB in host" in memory
    )
    assert "gradients" not in memory.splitlines()[0]
    own = phase_memories(recipe, plan, {"optimizer": {"type": "AdamW"}}, world_size=2)[0]
    assert own.total({}, device_is_host=True) - own.total({}, device_is_host=False) == own.on_host == 3 * 500 * 16 * 4
    cost = heal_cost(recipe, plan.teacher, plan.student, num_ranks=2)
    # matrices of a block: q k v o, and gate up down; attention over 16 tokens
    block = 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 * 16)
    heads = 2 * 100 * 16
    forward = (4 * block + heads) + 2 * (2 * block + heads)
    assert cost.in_passes == 1000 * (forward + 2 * 2 * 32 * (32 + 16))


def test_fewer_tokens_than_unknowns_are_said(llama):
    recipe, plan = planned(llama, "student.calibration.tokens=31")
    wanted = "student.calibration.tokens: 31 for 32 unknowns of each number that a block's output map puts out: "
    assert wanted in describe(recipe, plan, num_ranks=1)
    assert not [*heal_doubts(planned(llama, "student.calibration.tokens=32")[0], plan.student)]


def test_only_what_was_cut_in_order_is_healed(llama):
    assert (
        "student: heal: brings a student that is cut out of its teacher back to it; give from_teacher, or remove it"
    ) in refusal(llama, "student.from_teacher=null", "student.from_config={}")
    repeated = refusal(llama, "student.from_teacher.blocks=[0,2,2]")
    assert (
        "student: heal.towards: cut: brings each block to the teacher's state before the next one, and "
        "from_teacher.blocks are [0, 2, 2]; give them in ascending order, each once, or use towards: layer_map"
    ) in repeated
    planned(llama, "student.from_teacher.blocks=[0,2,2]", "student.heal.towards=layer_map")
    assert "student.heal: strengths: [0.1, 0.1] has one twice; name each once" in refusal(
        llama, "student.heal.strengths=[0.1,0.1]"
    )


def test_a_layer_map_that_does_not_fit_is_said_whatever_the_method(llama):
    options = ("student.heal.towards=layer_map", "layer_map.kind=explicit", "layer_map.pairs=[[1, 9]]")
    assert "layer_map.pairs[0]: teacher block 9 does not exist" in refusal(llama, *options, "distill.method=kd")


def test_a_student_of_another_width_is_refused(llama):
    recipe, plan = planned(llama)
    narrow = dataclasses.replace(plan.student, hidden_size=12)
    assert [*heal_mistakes(recipe, plan.teacher, narrow)] == [
        "student.heal: the student's states are 12 wide and the teacher's 16, so that none can be brought to another; "
        "keep the teacher's hidden size, or remove it"
    ]


def test_targets_are_what_stood_before_the_next_block(llama):
    recipe, plan = planned(llama)
    assert heal_targets(recipe, plan.teacher, plan.student, [0, 3]) == {1: 3, 2: 4}
    assert heal_targets(recipe, plan.teacher, plan.student, [1]) == {1: 4}
    assert heal_targets(recipe, plan.teacher, plan.student, [1, 2]) == {1: 2, 2: 4}


def targets(path, blocks, *overrides):
    recipe, plan = planned(path, f"student.from_teacher.blocks={blocks}", *overrides)
    return heal_targets(recipe, plan.teacher, plan.student, blocks)


def test_first_blocks_of_the_teachers_own_are_left_as_they_are(llama):
    assert targets(llama, [0, 1, 3]) == {2: 3, 3: 4}
    assert targets(llama, [0, 1, 2, 3]) == {}
    by_map = ("student.heal.towards=layer_map", "layer_map.kind=explicit", "layer_map.pairs=[[1,1]]")
    assert targets(llama, [0, 3], *by_map) == {}
    assert targets(llama, [1, 3], *by_map) == {1: 1}
    recipe, plan = planned(llama, "student.from_teacher.blocks=[0,1,2,3]")
    assert "heal      nothing: all blocks put out what they did\n" in describe(recipe, plan, num_ranks=1)
    smaller = tuple(((8, 16),) for _ in range(4))
    narrow = dataclasses.replace(plan.student.parameters, of_blocks=smaller)
    other = dataclasses.replace(plan.student, parameters=narrow)
    assert [*heal_targets(recipe, plan.teacher, other, [0, 1, 2, 3])] == [1, 2, 3, 4]


@pytest.mark.parametrize("family", [name for name, one in FAMILY_OF.items() if "heal" in one.refused])
def test_families_that_are_not_healed_say_why(tmp_path, family):
    kind = "causal_lm" if family not in TYPES_WITH_LABELS else "sequence_classification"
    kind = kind if family in ONE_STACK_TYPES else "seq2seq"
    path = write_run(tmp_path, kind=kind, family=family)
    blocks = ["student.from_teacher.blocks=[0,1,2,3]"] if family == "albert" else []
    (line,) = [line for line in refusal(path, *blocks).splitlines() if "student.heal" in line]
    reason = FAMILY_OF[family].refused["heal"]
    assert line.endswith(
        f"student.heal: the teacher is a {family}, which cannot be healed here, as {reason}; remove it"
    )


def test_families_that_are_healed_have_an_output_map():
    for name, family in FAMILY_OF.items():
        assert (family.output_map is not None) or "heal" in family.refused, name


def test_a_pipeline_heals_models_in_shards(llama):
    recipe, plan = plan_recipe(str(llama), [HEAL, "pipeline.stages=2"], num_ranks=2)
    memory = describe_memory(recipe, plan, num_ranks=2).splitlines()
    assert memory[0].startswith("memory    heal_student     weights ")
    assert memory[0].count("states") == 1
    assert not any("heal_student" in line for line in memory[1:])
