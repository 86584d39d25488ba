"""A student of chosen blocks: what the plan knows of it, what choosing takes, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.family_uses import refused_uses
from ted_ds.planning.model_sizes import describe_sizes
from ted_ds.planning.plan import Plan
from tests.refusals import without_overrides
from tests.task_kinds import make_plan
from tests.tiny import LABELS, write_model, write_run


def plan(run: Path, cut: str, *overrides: str) -> Plan:
    recipe = load_recipe(run / "recipe.yaml", (f"student.from_teacher={cut}", *overrides))
    return make_plan(recipe, source="tiny.yaml")


def said(run: Path, cut: str, *overrides: str) -> list[str]:
    """What ``check`` says of the choice and of both models."""
    recipe = load_recipe(run / "recipe.yaml", (f"student.from_teacher={cut}", *overrides))
    return describe_sizes(recipe, make_plan(recipe)).splitlines()


def refusal(run: Path, cut: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(run, cut, *overrides)
    return "\n".join(line.partition(": ")[2] for line in without_overrides(str(caught.value)).splitlines())


def of_labels(folder: Path, family: str, **changes: object) -> Path:
    """A run of a classifier of a family."""
    write_run(folder, kind="sequence_classification")
    write_model(folder / "teacher", family, labels=LABELS, **changes)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    ("cut", "rule"),
    [
        (
            "{blocks: [0], num_blocks: 2}",
            "student.from_teacher: give blocks, or num_blocks, or encoder_blocks and decoder_blocks of an "
            "encoder-decoder, or a width; given: blocks and num_blocks",
        ),
        (
            "{blocks: [0], choose: ends}",
            "student.from_teacher: choose: ends: chooses num_blocks of them; give num_blocks, or remove it",
        ),
        (
            "{num_blocks: 2, search_tokens: 9}",
            "student.from_teacher: search_tokens: is the bound on choose: search; remove it",
        ),
        (
            "{num_blocks: 2, any_order: true}",
            "student.from_teacher: any_order: blocks that are chosen keep their order; remove it",
        ),
        (
            "{num_blocks: 2, choose: search, search_tokens: 8191}",
            "student: from_teacher.search_tokens: 8191: each look at a block takes calibration.heldout_tokens (4096), "
            "and there are two to compare; use 8192 or more",
        ),
        (
            "{num_blocks: 0%}",
            "student.from_teacher.num_blocks: '0%': use a whole number above 0, or a share of the teacher's blocks: "
            "half, third, quarter, or such as 40%",
        ),
        ("{num_blocks: 5}", "student.from_teacher.num_blocks: 5: the teacher has 4 blocks; use as many or fewer"),
    ],
)
def test_what_does_not_go_together_is_refused(lm_run: Path, cut: str, rule: str) -> None:
    assert refusal(lm_run, cut) == rule


@pytest.mark.parametrize("choose", ["influence", "search"])
def test_layers_of_shared_blocks_are_not_tried_without(tmp_path: Path, choose: str) -> None:
    run = of_labels(tmp_path, "albert")
    assert refusal(run, f"{{num_blocks: 2, choose: {choose}}}") == (
        f"student.from_teacher.num_blocks: 2 by choose: {choose}: layers of this albert share their blocks, and none "
        "can be tried without; use choose: spread"
    )
    assert said(run, "{num_blocks: 2}")[0] == "cut       2 of the teacher's 4 blocks by spread: 0 3"


@pytest.mark.parametrize("choose", ["spread", "ends", "influence", "search"])
def test_any_choice_is_planned_as_given_blocks_are(lm_run: Path, choose: str) -> None:
    found, given = plan(lm_run, f"{{num_blocks: 2, choose: {choose}}}"), plan(lm_run, "{blocks: [0, 3]}")
    assert found.student == given.student
    assert found.layer_pairs == given.layer_pairs


def test_the_blocks_are_said_where_they_are_known(lm_run: Path) -> None:
    assert said(lm_run, "{num_blocks: 3}")[0] == "cut       3 of the teacher's 4 blocks by spread: 0 2 3"
    assert said(lm_run, "{num_blocks: 3, choose: ends}")[0] == "cut       3 of the teacher's 4 blocks by ends: 0 1 3"


@pytest.mark.parametrize(("share", "number"), [("half", 2), ("quarter", 1), ("40%", 2), ("62.5%", 3), ("1%", 1)])
def test_a_share_of_the_blocks_is_as_good_as_their_number(lm_run: Path, share: str, number: int) -> None:
    for choose in ("spread", "search"):
        given = f"num_blocks: {{}}, choose: {choose}"
        of_share, of_number = (f"{{{given.format(one)}}}" for one in (share, number))
        assert said(lm_run, of_share) == said(lm_run, of_number)
        assert plan(lm_run, of_share).student == plan(lm_run, of_number).student
    cut = CutFromTeacher(num_blocks=share, choose="search")
    assert cut.deciding_values(4) == CutFromTeacher(num_blocks=number, choose="search").deciding_values(4)


def test_a_share_of_an_encoder_decoder_is_of_each_stack(tmp_path: Path) -> None:
    run = write_run(tmp_path, kind="seq2seq").parent
    assert said(run, "{num_blocks: half}")[:2] == [
        "cut       2 of the teacher's 4 encoder blocks by spread: 0 3",
        "cut       2 of the teacher's 3 decoder blocks by spread: 0 2",
    ]


def test_what_choosing_takes_is_said(lm_run: Path) -> None:
    calibration = "student.calibration={tokens: 2000, heldout_tokens: 100}"
    line = "1 forward pass of the teacher over 2,000 calibration tokens; {} over 100 held-out ones"
    assert said(lm_run, "{num_blocks: 2, choose: influence}", calibration)[0] == (
        f"cut       2 of the teacher's 4 blocks by influence: {line.format(4)}"
    )
    search = "cut       1 of the teacher's 4 blocks by search: " + line.format(5)
    assert said(lm_run, "{num_blocks: 1, choose: search}", calibration)[0] == (
        f"{search}; 9 more over these in 3 rounds that try 4 blocks at most"
    )
    assert said(lm_run, "{num_blocks: 1, choose: search, search_tokens: 420}", calibration)[0] == (
        f"{search}; 4 more over these in 3 rounds that try 2 blocks at most, in 1 of them the block of least influence "
        "goes untried"
    )


def test_blocks_of_several_sizes_are_planned_by_the_most_costly(tmp_path: Path) -> None:
    write_run(tmp_path, family="qwen3_moe")  # block 1 has no experts
    cut = "{num_blocks: 2, choose: influence}"
    found = plan(tmp_path, cut)
    assert found.teacher is not None
    assert found.student is not None
    sizes = [sum(map(math.prod, block)) for block in found.teacher.parameters.of_blocks]
    assert sizes[1] == min(sizes) < sizes[0]
    assert [sum(map(math.prod, block)) for block in found.student.parameters.of_blocks] == sorted(sizes)[-2:]
    assert said(tmp_path, cut)[1] == (
        "note      student.from_teacher: blocks of this teacher differ in size; the plan is of the most costly 2"
    )
    assert not [line for line in said(tmp_path, "{num_blocks: 2}") if line.startswith("note")]


def test_a_shorter_first_block_stays(tmp_path: Path) -> None:
    run = of_labels(tmp_path, "modernbert")
    found = plan(run, "{num_blocks: 1, choose: influence}")
    assert found.student == plan(run, "{blocks: [0]}").student


def test_a_family_that_is_not_run_in_parts_is_not_measured(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", ["student.from_teacher={num_blocks: 2, choose: influence}"])
    facts = make_plan(recipe).teacher
    assert facts is not None
    found = replace(facts, family=replace(facts.family, refused={"pipeline": "layer 1 is another one in a stage"}))
    assert list(refused_uses(recipe, found, found)) == [
        "student.from_teacher.choose: the teacher is a llama, which cannot be run without some of its blocks here, as "
        "layer 1 is another one in a stage; use spread or ends, or give blocks"
    ]


def test_parameters_bytes_and_operations_of_both_are_said(lm_run: Path) -> None:
    found = plan(lm_run, "{num_blocks: 2}")
    assert found.teacher is not None
    assert found.student is not None
    matrices = 4 * 16 * 16 + 3 * 16 * 32
    head = 16 * found.teacher.vocab_size
    rows = said(lm_run, "{num_blocks: 2}")[1:]
    for row, facts, name in zip(rows, (found.teacher, found.student), ("teacher", "student"), strict=True):
        depth = facts.num_blocks
        number = depth * (matrices + 2 * 16) + 16 + 2 * head  # the head is not tied
        operations = 2 * (depth * (matrices + 2 * 16 * 16) + head)  # a multiplication and an addition; 16 tokens
        share = "" if name == "teacher" else r" (61.8 %)"
        assert row.startswith(
            f"size      {name} {number:,} parameters{share}, {4 * number / 2**20:.3g} MiB{share} in fp32"
        )
        assert f" {operations / 1e6:.3g} MFLOP a token in a forward pass" in row


# --- width ------------------------------------------------------------------------------------------------------------

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher has four heads, two of which share keys and values."""
    folder = tmp_path_factory.mktemp("grouped")
    write_run(folder)
    write_model(folder / "teacher", "llama", **GROUPED)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher's heads are as wide together as its states."""
    return of_labels(tmp_path_factory.mktemp("full"), "bert", num_attention_heads=4)


@pytest.mark.parametrize(
    ("cut", "rule"),
    [
        ("{intermediate_size: 33}", "intermediate_size: 33: the teacher has 32; use as many or fewer"),
        ("{hidden_size: 17, blocks: [0]}", "hidden_size: 17: the teacher has 16; use as many or fewer"),
        (
            "{num_heads: 3}",
            "num_heads: 3 heads do not divide over 2 heads of keys and values; use a multiple of 2, or another "
            "num_key_value_heads",
        ),
        (
            "{num_key_value_heads: 1}",
            "num_key_value_heads: 4 heads with 1 of keys and values are 4 to each, and the teacher has 2; use "
            "num_heads: 2 or fewer",
        ),
    ],
)
def test_widths_that_do_not_go_together_are_refused(grouped: Path, cut: str, rule: str) -> None:
    assert refusal(grouped, cut) == f"student.from_teacher.{rule}"


@pytest.mark.parametrize(
    ("cut", "rule"),
    [
        ("{num_key_value_heads: 2}", "num_key_value_heads: a bert has as many as heads; remove it, num_heads says it"),
        (
            "{hidden_size: 10}",
            "hidden_size: in a bert all heads together are as wide as the states, and each of this teacher's is 4 "
            "wide: hidden_size 10 would be 2.5 heads, not 4; give hidden_size and num_heads that go together, as 16 "
            "and 4",
        ),
        (
            "{num_heads: 3}",
            "num_heads: in a bert all heads together are as wide as the states, and each of this teacher's is 4 wide: "
            "hidden_size 16 would be 4 heads, not 3; give hidden_size and num_heads that go together, as 12 and 3",
        ),
    ],
)
def test_heads_that_fill_the_states_keep_their_width(full: Path, cut: str, rule: str) -> None:
    assert refusal(full, cut) == f"student.from_teacher.{rule}"


def test_families_say_which_width_is_not_cut(tmp_path: Path) -> None:
    assert refusal(of_labels(tmp_path / "a", "albert"), "{intermediate_size: 8}") == (
        "student.from_teacher.intermediate_size: a albert is not cut in width here; remove it, or give student.path"
    )
    write_run(tmp_path / "b", family="gemma2")
    assert refusal(tmp_path / "b", "{hidden_size: 8}") == (
        "student.from_teacher.hidden_size: 8: not of a gemma2: its embeddings are multiplied by the root of their "
        "width; remove it"
    )
    assert plan(tmp_path / "b", "{intermediate_size: 8}").student is not None


def test_a_narrower_student_is_planned(grouped: Path) -> None:
    found = plan(
        grouped, "{blocks: [0, 3], hidden_size: 12, intermediate_size: 20, num_heads: 2, num_key_value_heads: 1}"
    )
    assert found.student is not None
    assert (found.student.num_blocks, found.student.hidden_size, found.student.num_heads) == (2, 12, 2)
    head_dim = 8
    of_block = 12 * head_dim * (2 + 1 + 1 + 2) + 3 * 12 * 20 + 2 * 12
    assert found.student.parameters.total == 2 * of_block + 12 + 2 * 12 * found.student.vocab_size
    assert found.filter_dim == 16, "layers are matched in the teacher's width"
    line = "cut       intermediate_size 20, num_heads 2 by what units do: {} over 32,768 calibration tokens"
    width = "intermediate_size: 20, num_heads: 2}"
    assert said(grouped, f"{{{width}")[0] == line.format("1 forward pass of the teacher")
    assert said(grouped, f"{{num_blocks: 2, choose: influence, {width}")[1] == line.format("in the same pass")
    assert plan(grouped, "{intermediate_size: 20}").student.num_blocks == 4  # type: ignore[union-attr]
