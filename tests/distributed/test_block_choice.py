"""Blocks chosen on calibration data: the same on any ranks, by what a plain model says, of what the cut will be."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ted_ds.assembly.calibration import open_calibration
from ted_ds.assembly.student_choice import Choice, choose_student
from ted_ds.assembly.student_cut import cut_student
from ted_ds.errors import NumericsError
from ted_ds.models.parts import blocks_of
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import prepare
from tests.dist import run_ranks
from tests.tiny import LABELS, write_model, write_run

OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("causal_lm", "llama", {}),
    "gpt2": ("causal_lm", "gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "deberta": ("sequence_classification", "deberta-v2", {"conv_kernel_size": 3}),
    "windows": ("causal_lm", "gemma2", {"sliding_window": 2}),
    "masked": ("masked_lm", "modernbert", {}),
    "choices": ("multiple_choice", "bert", {}),
}
"""Runs by name: kind of task, family, and entries of the config."""
CALIBRATION = "student.calibration={tokens: 250, heldout_tokens: 90, micro_batch_size: %d}"

NO_MATTER = ("distill.method=kd", "filters=null", "distill.micro_batch_size=1")
"""What comes after."""


def write_runs(folder: Path) -> dict[str, Path]:
    found = {}
    for name, (kind, family, changes) in OWN.items():
        found[name] = write_run(folder / name, kind=kind, family=family)
        if changes:
            labels = LABELS if kind == "sequence_classification" else None
            write_model(folder / name / "teacher", family, labels=labels, **changes)
    return found


def opened(recipe: Path, choose: str, *overrides: str, size: int = 4, count: int = 2) -> Any:
    cut = f"student.from_teacher={{num_blocks: {count}, choose: {choose}}}"
    given = [cut, CALIBRATION % size, *NO_MATTER, *overrides]
    return prepare(str(recipe), given, contracts_hold=True, stops=StopRequests())[0]


def chosen(_world: Any, recipes: dict[str, Path], size: int, *overrides: str) -> dict[str, Choice]:
    found = {}
    for name, recipe in recipes.items():
        build = opened(recipe, "search", *overrides, size=size)
        found[name] = choose_student(build, recipe.parent / "teacher")
    return found


def chosen_sharded_and_in_stages(world: Any, recipes: dict[str, Path]) -> list[dict[str, Choice]]:
    in_stages = {"llama": recipes["llama"]}
    return [
        chosen(world, recipes, 3, "teacher.host=zero3"),
        chosen(world, in_stages, 4, "pipeline.stages=2"),
    ]


def numbers(choice: Choice) -> list[float]:
    measured = choice.measured
    tried = [loss for one in measured["rounds"] for loss in one["losses"].values()]
    return [*measured["influence"], *measured["heldout_loss"].values(), *tried]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_runs(tmp_path_factory.mktemp("choice"))


@pytest.fixture(scope="module")
def on_one(recipes: dict[str, Path]) -> dict[str, Choice]:
    return run_ranks(chosen, 1, recipes, 4)[0]


def assert_same(found: dict[str, Choice], expected: dict[str, Choice]) -> None:
    for name, choice in found.items():
        assert choice.blocks == expected[name].blocks, name
        # what differs is fp32 passes of other batches
        assert numbers(choice) == pytest.approx(numbers(expected[name]), rel=2e-6, abs=2e-6), name


def test_two_ranks_that_share_a_teacher_choose_the_same_blocks(
    recipes: dict[str, Path], on_one: dict[str, Choice]
) -> None:
    for of_rank in run_ranks(chosen_sharded_and_in_stages, 2, recipes):
        for found in of_rank:
            assert_same(found, on_one)


def test_four_ranks_choose_the_same_blocks(recipes: dict[str, Path], on_one: dict[str, Choice]) -> None:
    for found in run_ranks(chosen, 4, recipes, 1):
        assert_same(found, on_one)


def _read(into: list[float], terms: Any, batch: Any, predictions: Any) -> None:
    into += predictions.task_sums(terms, batch)


def losses_of_students(
    _world: Any, recipes: dict[str, Path], choices: dict[str, Choice]
) -> dict[str, dict[str, float]]:
    """The held-out loss of what is cut for each choice, loaded as a model of its own."""
    found: dict[str, dict[str, float]] = {}
    for name, recipe in recipes.items():
        build = opened(recipe, "influence")
        calibration = open_calibration(build)
        found[name] = {}
        for choice, blocks in choices[name].measured["choices"].items():
            place = recipe.parent / choice
            cut_student(build, recipe.parent / "teacher", place, Choice({"": blocks}))
            model = build.models.frozen("student", place)
            total, count = 0.0, 0
            for one in calibration.batches:
                rows = one.heldout[:: build.recipe.task.rows_per_example]
                own: list[float] = []
                read = functools.partial(_read, own, build.terms, one.batch)
                model(one.batch.inputs, read)
                total += sum(loss for loss, wanted in zip(own, rows.tolist(), strict=True) if wanted)
                count += int(build.terms.kept(one.batch.labels)[rows].sum())
            found[name][choice] = total / count
    return found


def test_the_teacher_without_blocks_is_what_the_cut_will_be(
    recipes: dict[str, Path], on_one: dict[str, Choice]
) -> None:
    (losses,) = run_ranks(losses_of_students, 1, recipes, on_one)
    for name, of_choices in losses.items():
        measured = on_one[name].measured
        for choice, loss in of_choices.items():
            assert measured["heldout_loss"][choice] == pytest.approx(loss, rel=2e-6), (name, choice)
        assert on_one[name].blocks[""] == min(measured["choices"].items(), key=lambda one: of_choices[one[0]])[1]


def plain_influence(_world: Any, recipe: Path) -> tuple[list[float], list[float]]:
    build = opened(recipe, "influence")
    found = choose_student(build, recipe.parent / "teacher").measured["influence"]
    model = AutoModelForCausalLM.from_pretrained(recipe.parent / "teacher", dtype=torch.float64)
    states: list[Any] = []
    for block in blocks_of(model, build.teacher_facts.family):
        block.register_forward_hook(lambda _, given, put_out: states.append((given[0], put_out)))
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    for one in open_calibration(build).batches:
        kept = one.kept(one.fitted, 0)
        with torch.no_grad():
            model(**one.batch.inputs, use_cache=False)
        for block, (before, after) in enumerate(states):
            x, y = before[kept], (after[0] if isinstance(after, tuple) else after)[kept]
            sums[block] += (1 - (x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)).sum()
        states.clear()
        count += int(kept.sum())
    return found, (sums / count).tolist()


def test_influence_is_that_of_a_plain_model_in_fp64(recipes: dict[str, Path]) -> None:
    ((found, plain),) = run_ranks(plain_influence, 1, recipes["llama"])
    assert found == pytest.approx(plain, abs=1e-6)


def told_of_infinity(_world: Any, recipe: Path) -> str:
    build = opened(recipe, "influence")
    with pytest.raises(NumericsError) as caught:
        choose_student(build, recipe.parent / "teacher")
    return str(caught.value)


def test_a_state_that_is_not_finite_is_told_by_its_layer(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    save_file(weights, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    assert run_ranks(told_of_infinity, 2, recipe) == 2 * [
        "student.from_teacher: the teacher's states of layer 2 are not finite on the calibration data; ted-ds doctor "
        "looks at its weights, and precision: fp32 or bf16 has room for states that are too large for fp16"
    ]


# --- width ------------------------------------------------------------------------------------------------------------

WIDTHS = "student.from_teacher={intermediate_size: 20, num_heads: 1%s}"
NARROWER = {
    "llama": ", hidden_size: 10, num_key_value_heads: 1",
    "gpt2": ", hidden_size: 8",
    "choices": ", hidden_size: 8",
}


def narrowed(_world: Any, recipes: dict[str, Path], size: int, host: str) -> dict[str, Choice]:
    found = {}
    for name, more in NARROWER.items():
        recipe = recipes[name]
        build = opened(recipe, "influence", WIDTHS % more, f"teacher.host={host}", size=size)
        found[name] = choose_student(build, recipe.parent / "teacher")
    return found


def test_any_ranks_keep_the_same_units(recipes: dict[str, Path]) -> None:
    (on_one,) = run_ranks(narrowed, 1, recipes, 4, "replica")
    for of_rank in run_ranks(narrowed, 2, recipes, 3, "zero3"):
        for name, choice in of_rank.items():
            own, other = choice.scores, on_one[name].scores
            assert own.keys() == other.keys()
            for key, one in own.items():
                if key.startswith("kept."):
                    assert torch.equal(one, other[key]), (name, key)
                else:
                    torch.testing.assert_close(one, other[key], rtol=2e-6, atol=2e-6)


# --- a teacher without a head -----------------------------------------------------------------------------------------


def without_head(_world: Any, recipe: Path) -> Any:
    """What is chosen of a teacher that has yet to be fine-tuned, as the doctor does."""
    build = opened(
        recipe, "search", "teacher.finetune={learning_rate: 1, max_steps: 1, global_batch_size: 4, micro_batch_size: 4}"
    )
    return choose_student(build, recipe.parent / "teacher", for_now=True)


def test_a_teacher_whose_head_is_random_is_chosen_from_by_influence(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification")
    write_model(tmp_path / "teacher", "bert")
    (choice,) = run_ranks(without_head, 1, recipe)
    assert (choice.measured["by"], choice.measured["heldout_loss"]) == ("influence", {})
    assert "search" not in choice.measured["choices"]
    assert choice.blocks[""] == choice.measured["choices"]["influence"]
