"""``deepspeed: auto``: the fastest of the files that ship by which all phases fit; a run keeps what it began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ted_ds.assembly.deepspeed_file import find_deepspeed
from ted_ds.cli import main
from ted_ds.output.run_folder import Run
from ted_ds.planning.deepspeed_choice import DeepSpeedChoice, candidates, choose_deepspeed
from ted_ds.planning.hosting import USABLE, Machine
from tests.task_kinds import plan_recipe
from tests.tiny import write_model, write_run

AUTO = "deepspeed=auto"


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose models outweigh what ZeRO-3 leaves whole."""
    folder = tmp_path_factory.mktemp("large")
    write_run(folder)
    write_model(folder / "teacher", "llama", blocks=4, hidden=256)
    return folder


def machine(free: float, ranks: int = 2) -> Machine:
    """CPU ranks, on which buckets cost nothing."""
    return Machine(ranks, free_device=int(free), free_host=int(free), device_is_host=True, torchao_is_there=False)


def choose(run: Path, free: float, *overrides: str, ranks: int = 2, **given: Any) -> DeepSpeedChoice:
    recipe, plan = plan_recipe(str(run / "recipe.yaml"), [AUTO, *overrides], num_ranks=ranks)
    assert plan.chooses_deepspeed
    return choose_deepspeed(recipe, plan, machine(free, ranks), **given)


def needed(run: Path, *overrides: str) -> dict[str, int]:
    recipe, plan = plan_recipe(str(run / "recipe.yaml"), [AUTO, *overrides], num_ranks=2)
    return {one.name: one.needed for one in candidates(recipe, plan, num_ranks=2, device_is_host=True)}


def test_the_first_that_fits_is_chosen(large_run: Path) -> None:
    needs = needed(large_run)
    assert [*needs] == ["zero2", "zero3"]
    assert needs["zero3"] < needs["zero2"]
    plenty = choose(large_run, needs["zero2"] / USABLE + 1)
    assert (plenty.name, "zero3" in plenty.why) == ("zero2", False)
    less = choose(large_run, needs["zero2"] / USABLE - 9)
    assert less.name == "zero3"
    assert "free per rank; zero2 takes about " in less.why
    assert less.why.endswith(", which does not fit")
    assert less.why.startswith("about ")
    nothing = choose(large_run, 1000)
    assert nothing.name == "zero3"
    assert nothing.why.endswith("of 0.000954 MiB free per rank that is least")


def test_a_run_keeps_what_it_began_with(large_run: Path) -> None:
    assert choose(large_run, 10**12, kept="zero3") == DeepSpeedChoice("zero3", "as when this run began")
    assert choose(large_run, 1000, kept="zero2").name == "zero2"
    assert choose(large_run, 10**12, kept="none of ours").name == "zero2"
    assert choose(large_run, 10**12, "torch_compile=true", kept="zero3").name == "zero2"  # no longer in question


@pytest.mark.parametrize(
    ("overrides", "ranks", "name", "why"),
    [
        ([], 1, "zero2", "for one rank"),
        (["pipeline.stages=2", "distill.method=kd"], 2, "zero1", "for a pipeline"),
        (["torch_compile=true"], 2, "zero2", "as no other can be used with these settings and models"),
    ],
)
def test_some_runs_have_no_choice(lm_run: Path, overrides: list[str], ranks: int, name: str, why: str) -> None:
    assert choose(lm_run, 1, *overrides, ranks=ranks) == DeepSpeedChoice(name, why)


def test_a_family_that_is_not_sharded_is_not(lm_run: Path) -> None:
    recipe, plan = plan_recipe(str(lm_run / "recipe.yaml"), [AUTO], num_ranks=2)
    assert plan.student is not None
    family = replace(plan.student.family, refused={"zero3": "its weights are looked at from outside"})
    plan = replace(plan, student=replace(plan.student, family=family))
    assert [one.name for one in candidates(recipe, plan, num_ranks=2, device_is_host=True)] == ["zero2"]


def test_what_a_run_began_with_is_kept_in_its_folder(large_run: Path) -> None:
    path = str(large_run / "recipe.yaml")
    world: Any = SimpleNamespace(size=2, gather=lambda one: [one, one], device=SimpleNamespace(type="cpu"))
    recipe, plan = plan_recipe(path, [AUTO], num_ranks=2)
    found, run, choice = find_deepspeed(recipe, plan, Run("a1", deepspeed="zero3"), world)
    assert (found.deepspeed.name, run.deepspeed) == ("zero3.json", "zero3")
    assert choice is not None
    _, run, _ = find_deepspeed(recipe, plan, Run("a1"), world)
    assert run.deepspeed in ("zero2", "zero3")
    recipe, plan = plan_recipe(path, [], num_ranks=2)  # whose own is zero1
    found, run, choice = find_deepspeed(recipe, plan, Run("a1", deepspeed="zero3"), world)
    assert (found, run.deepspeed, choice) == (recipe, None, None)


def test_check_says_what_is_chosen_by(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(lm_run / "recipe.yaml"), AUTO, "--ranks", "2"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("deepspeed ")]
    assert len(said) == 1
    assert said[0].startswith("deepspeed auto: the first that fits into a rank's free memory: zero2 takes about ")
    assert ", zero3 takes about " in said[0]
    assert main(["check", str(lm_run / "recipe.yaml"), "--ranks", "2"]) == 0
    assert "deepspeed auto" not in capsys.readouterr().out
