"""Parts of a teacher chosen on calibration data: the same on any ranks, by what a plain model says, of what is cut."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

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
WIDTHS = "student.from_teacher={intermediate_size: 20, num_heads: 1%s}"
NARROWER = {
    "llama": ", hidden_size: 10, num_key_value_heads: 1",
    "gpt2": ", hidden_size: 8",
    "choices": ", hidden_size: 8",
}
TUNED = "teacher.finetune={learning_rate: 1, max_steps: 1, global_batch_size: 4, micro_batch_size: 4}"


def write_runs(folder: Path) -> dict[str, Path]:
    found = {}
    for name, (kind, family, changes) in OWN.items():
        found[name] = write_run(folder / name, kind=kind, family=family)
        if changes:
            labels = LABELS if kind == "sequence_classification" else None
            write_model(folder / name / "teacher", family, labels=labels, **changes)
    found["headless"] = write_run(folder / "headless", kind="sequence_classification")
    write_model(folder / "headless" / "teacher", "bert")
    found["infinite"] = write_run(folder / "infinite")
    file = folder / "infinite" / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    save_file(weights, file, {"format": "pt"})
    return found


def opened(recipe: Path, choose: str, *overrides: str, size: int = 4) -> Any:
    cut = f"student.from_teacher={{num_blocks: 2, choose: {choose}}}"
    given = [cut, CALIBRATION % size, *NO_MATTER, *overrides]
    return prepare(str(recipe), given, contracts_hold=True, stops=StopRequests())[0]


def chosen(recipe: Path, *overrides: str, size: int, **options: Any) -> Choice:
    return choose_student(opened(recipe, "search", *overrides, size=size), recipe.parent / "teacher", **options)


class OnRanks(NamedTuple):
    """What one rank of some chooses."""

    blocks: dict[str, Choice]
    units: dict[str, Choice]


def on_ranks(_world: Any, recipes: dict[str, Path], size: int, host: str) -> OnRanks:
    blocks = {name: chosen(recipes[name], f"teacher.host={host}", size=size) for name in OWN}
    units = {
        name: chosen(recipes[name], WIDTHS % more, f"teacher.host={host}", size=size) for name, more in NARROWER.items()
    }
    return OnRanks(blocks, units)


def on_one_rank(world: Any, recipes: dict[str, Path]) -> tuple[OnRanks, dict[str, dict[str, float]], Any, Choice]:
    """What is chosen, the losses of what is cut for each choice, plain influence, and of a teacher without a head."""
    found = on_ranks(world, recipes, 4, "replica")
    losses = {name: losses_of_students(recipes[name], found.blocks[name]) for name in OWN}
    untuned = chosen(recipes["headless"], TUNED, size=4, for_now=True)
    return found, losses, plain_influence(recipes["llama"]), untuned


def on_two_ranks(world: Any, recipes: dict[str, Path]) -> tuple[OnRanks, Choice, str]:
    """What they choose of a teacher in shards, in a pipeline, and what is said of states that are not finite."""
    in_stages = chosen(recipes["llama"], "pipeline.stages=2", size=4)
    with pytest.raises(NumericsError) as caught:
        chosen(recipes["infinite"], size=4)
    return on_ranks(world, recipes, 3, "zero3"), in_stages, str(caught.value)


def losses_of_students(recipe: Path, choice: Choice) -> dict[str, float]:
    """The held-out loss of what is cut for each choice, loaded as a model of its own."""
    build = opened(recipe, "influence")
    calibration, found = open_calibration(build), {}
    for name, blocks in choice.measured["choices"].items():
        place = recipe.parent / name
        cut_student(build, recipe.parent / "teacher", place, Choice({"": blocks}))
        model = build.models.frozen("student", place)
        total, count = 0.0, 0
        for one in calibration.batches:
            rows = one.heldout[:: build.recipe.task.rows_per_example]
            own: list[float] = []
            model(one.batch.inputs, functools.partial(_read, own, build.terms, one.batch))
            total += sum(loss for loss, wanted in zip(own, rows.tolist(), strict=True) if wanted)
            count += int(build.terms.kept(one.batch.labels)[rows].sum())
        found[name] = total / count
    return found


def _read(into: list[float], terms: Any, batch: Any, predictions: Any) -> None:
    into += predictions.task_sums(terms, batch)


def plain_influence(recipe: Path) -> list[float]:
    """Of each block of transformers' own model, in fp64."""
    build = opened(recipe, "influence")
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
    return (sums / count).tolist()


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_runs(tmp_path_factory.mktemp("choice"))


@pytest.fixture(scope="module")
def one(recipes: dict[str, Path]) -> Any:
    return run_ranks(on_one_rank, 1, recipes)[0]


@pytest.fixture(scope="module")
def two(recipes: dict[str, Path]) -> list[Any]:
    return run_ranks(on_two_ranks, 2, recipes)


def numbers(choice: Choice) -> list[float]:
    measured = choice.measured
    tried = [loss for one in measured["rounds"] for loss in one["losses"].values()]
    return [*measured["influence"], *measured["heldout_loss"].values(), *tried]


def assert_same(found: Choice, expected: Choice, name: str) -> None:
    assert found.blocks == expected.blocks, name
    # what differs is fp32 passes of other batches
    assert numbers(found) == pytest.approx(numbers(expected), rel=2e-6, abs=2e-6), name


def assert_same_units(found: Choice, expected: Choice, name: str) -> None:
    assert found.scores.keys() == expected.scores.keys()
    for key, own in found.scores.items():
        if key.startswith("kept."):
            assert torch.equal(own, expected.scores[key]), (name, key)
        else:
            torch.testing.assert_close(own, expected.scores[key], rtol=2e-6, atol=2e-6)


def test_ranks_that_share_a_teacher_choose_the_same_blocks(one: Any, two: list[Any]) -> None:
    for sharded, in_stages, _ in two:
        assert_same(in_stages, one[0].blocks["llama"], "in stages")
        for name in OWN:
            assert_same(sharded.blocks[name], one[0].blocks[name], name)


def test_ranks_that_share_a_teacher_keep_the_same_units(one: Any, two: list[Any]) -> None:
    for sharded, *_ in two:
        for name in NARROWER:
            assert_same_units(sharded.units[name], one[0].units[name], name)


@pytest.mark.slow
def test_four_ranks_choose_the_same(recipes: dict[str, Path], one: Any) -> None:
    for found in run_ranks(on_ranks, 4, recipes, 1, "replica"):
        for name in OWN:
            assert_same(found.blocks[name], one[0].blocks[name], name)
        for name in NARROWER:
            assert_same_units(found.units[name], one[0].units[name], name)


def test_the_teacher_without_blocks_is_what_the_cut_will_be(one: Any) -> None:
    chosen, losses = one[:2]
    for name, of_choices in losses.items():
        measured = chosen.blocks[name].measured
        for choice, loss in of_choices.items():
            assert measured["heldout_loss"][choice] == pytest.approx(loss, rel=2e-6), (name, choice)
        best = min(of_choices.values())
        assert of_choices[measured["by"]] == pytest.approx(best, rel=2e-6)
        assert chosen.blocks[name].blocks[""] == measured["choices"][measured["by"]]


def test_influence_is_that_of_a_plain_model_in_fp64(one: Any) -> None:
    assert one[0].blocks["llama"].measured["influence"] == pytest.approx(one[2], abs=1e-6)


def test_a_teacher_whose_head_is_random_is_chosen_from_by_influence(one: Any) -> None:
    choice = one[3]
    assert (choice.measured["by"], choice.measured["heldout_loss"]) == ("influence", {})
    assert "search" not in choice.measured["choices"]
    assert choice.blocks[""] == choice.measured["choices"]["influence"]


def test_a_state_that_is_not_finite_is_told_by_its_layer(two: list[Any]) -> None:
    assert [said for *_, said in two] == 2 * [
        "student.from_teacher: the teacher's states of layer 2 are not finite on the calibration data; ted-ds doctor "
        "looks at its weights, and precision: fp32 or bf16 has room for states that are too large for fp16"
    ]
