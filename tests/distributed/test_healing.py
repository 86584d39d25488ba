"""A student is healed to the same weights on any ranks, in any microbatches, with its teacher on any host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from ted_ds.planning.phase import CUT_STUDENT, HEAL_STUDENT
from ted_ds.verbs.run import run_phases
from tests.dist import run_ranks
from tests.optional import MISSING, OPTIONAL
from tests.tiny import ROOT, write_corpus, write_recipe, write_run

FAMILIES = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "sequence_classification"}
ZERO3 = [f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}", "teacher.host=zero3"]
CALIBRATION = {"tokens": 250, "heldout_tokens": 60, "micro_batch_size": 3}
BY_RANKS: dict[int, dict[str, list[str]]] = {
    1: {"one rank": [], "one row at once": ["student.calibration.micro_batch_size=1"]},
    2: {
        "two ranks": [],
        "ZeRO-3": ZERO3,
        "offloaded": ["teacher.host=cpu_offload"],
        "padded": ["data.padding.multiple_of=8"],
        "pipeline": ["pipeline.stages=2"],
    },
    4: {"four ranks": ["student.calibration.micro_batch_size=2"]},
}
WORST = 3e-5
"""Of a weight's difference, as a share of the largest: states are of fp32, and come from other batches."""


def write_cases(folder: Path) -> list[Path]:
    found = []
    for family, kind in FAMILIES.items():
        path = write_run(folder / family, kind=kind, family=family, method="kd")
        if kind == "causal_lm":
            write_corpus(folder / family / "train.jsonl", 200)
        recipe = yaml.safe_load(path.read_text())
        recipe["distill"]["micro_batch_size"] = 1
        recipe["student"] |= {"calibration": CALIBRATION, "heal": {"strengths": [0.1, 0.003]}}
        found.append(write_recipe(path, recipe))
    return found


def heal_by_layer_map(world: Any, recipes: list[Path]) -> None:
    heal(world, recipes, {"by layer map": ["student.heal.towards=layer_map"]})


def heal(world: Any, recipes: list[Path], cases: dict[str, list[str]]) -> None:
    for recipe in recipes:
        for name, overrides in cases.items():
            output = f"output_dir={recipe.parent / f'{world.size} {name}'}"
            run_phases(str(recipe), [output, *overrides], [CUT_STUDENT, HEAL_STUDENT])


def heal_in_8_bits(world: Any, recipes: list[Path]) -> None:
    sys.path.insert(0, str(OPTIONAL))
    heal(world, recipes, {"int8": ["teacher.host=int8"]})


def difference(one: Path, other: Path) -> float:
    weights, others = (load_file(place / "heal_student" / "model" / "model.safetensors") for place in (one, other))
    assert weights.keys() == others.keys()
    return max(
        float((weights[name] - others[name]).abs().max() / (others[name].abs().max() + 1e-9)) for name in weights
    )


def result(place: Path) -> dict[str, Any]:
    return json.loads((place / "heal_student" / "phase.json").read_text())["result"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("healing"))


@pytest.mark.parametrize("ranks", [(1, 2), pytest.param((1, 4), marks=pytest.mark.slow)], ids=["two", "four"])
def test_ranks_microbatches_and_hosts_give_the_same_weights(tmp_path, ranks):
    recipes = write_cases(tmp_path)
    by_ranks = {number: BY_RANKS[number] for number in ranks}
    for num_ranks, cases in by_ranks.items():
        run_ranks(heal, num_ranks, recipes, cases)
    for recipe in recipes:
        first = recipe.parent / "1 one rank"
        blocks, scores = (result(first)[key] for key in ("blocks", "scores"))
        assert [one["teacher_layer"] for one in blocks] == [3, 4]
        assert any(one["error_after"] < 0.99 * one["error_before"] for one in blocks)
        assert scores["after"] != scores["before"]
        for num_ranks, cases in by_ranks.items():
            for name in cases:
                place = recipe.parent / f"{num_ranks} {name}"
                assert difference(place, first) < WORST, place
                for own, other in zip(result(place)["blocks"], blocks, strict=True):
                    assert own["strength"] == other["strength"]
                    assert own["error_after"] == pytest.approx(other["error_after"], rel=1e-3)
                    assert own["num_tokens"] == other["num_tokens"]
        assert not (first / "checkpoints" / "heal_student").exists()


def test_blocks_are_healed_towards_the_partners_of_a_layer_map(recipes):
    run_ranks(heal_by_layer_map, 1, recipes[:1])
    by_map = result(recipes[0].parent / "1 by layer map")["blocks"]
    assert [one["teacher_layer"] for one in by_map] == [2, 4]


def test_a_teacher_in_8_bits_heals_alike_on_any_ranks(recipes):
    assert OPTIONAL.is_dir(), MISSING
    for num_ranks in (1, 2):
        run_ranks(heal_in_8_bits, num_ranks, recipes[:1])
    one, two = (recipes[0].parent / f"{number} int8" for number in (1, 2))
    assert difference(two, one) < WORST
    run_ranks(heal, 1, recipes[:1], {"one rank": []})
    assert difference(one, recipes[0].parent / "1 one rank") > 1e-4, "its teacher is another one"
