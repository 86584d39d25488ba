"""Filters that are solved: what plain fp64 least squares over all tokens gives, on any ranks and hosts."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ted_ds.assembly.calibration import open_calibration
from ted_ds.assembly.solved_filters import solve_filters
from ted_ds.errors import NumericsError
from ted_ds.planning.phase import FILTERS_BOTH
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import prepare
from tests.dist import run_ranks
from tests.layouts import zero_stage
from tests.optional import MISSING, OPTIONAL
from tests.tiny import recipe_dict, write_model, write_recipe, write_run

CASES = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "sequence_classification"}
"""Kinds of tasks by the family of teacher and student."""
BLOCKS = {
    "llama": ("model.layers", "model.norm", "lm_head"),
    "gpt2": ("transformer.h", "transformer.ln_f", "lm_head"),
    "bert": ("bert.encoder.layer", "bert.pooler", "classifier"),
}
"""Paths of blocks, and of what stands behind them."""
STRENGTH = 0.01
TOLERANCE = 2e-5
"""Of weights of about 1, where states are in fp32 and summed in other shapes: 3e-6 was seen."""
LAYERS = {"teacher": (2, 4), "student": (1, 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each family, with a narrower student of its own."""
    folder = tmp_path_factory.mktemp("solved")
    found = {}
    for family, kind in CASES.items():
        write_run(folder / family, kind=kind, family=family)
        labels = ("negative", "positive") if kind == "sequence_classification" else None
        write_model(folder / family / "student", family, blocks=2, hidden=12, seed=1, labels=labels)
        recipe = recipe_dict(folder / family, kind=kind)
        plan = {**recipe["filters"]["teacher"], "max_steps": 0}
        recipe |= {
            "student": {
                "path": str(folder / family / "student"),
                "calibration": {"tokens": 200, "heldout_tokens": 40},
            },
            "filters": {"initialisation": "ridge", "ridge": {"strengths": [STRENGTH]}, "both": plan},
        }
        found[family] = write_recipe(folder / family / "recipe.yaml", recipe)
    return found


def solved(_world: Any, cases: list[tuple[Path, list[str]]]) -> list[Any]:
    """The filters of both models, what is said of them, and, of one rank, the calibration data."""
    found = []
    for recipe, overrides in cases:
        build, inputs = prepare(str(recipe), overrides, contracts_hold=True, stops=StopRequests())
        models = {side: recipe.parent / side for side in ("teacher", "student")}
        try:
            sides = solve_filters(build, FILTERS_BOTH, models, teacher_filters=None, vet=lambda _: None)
        except NumericsError as error:
            found.append((error.agreed, str(error)))
            continue
        weights = {
            side: [(f.weight.detach(), f.bias.detach()) for f in one.bank.filters] for side, one in sides.items()
        }
        data = [
            (one.batch.inputs, one.batch.kept_tokens, {"fitted": one.fitted, "heldout": one.heldout})
            for one in open_calibration(build).batches
        ]
        heldout = [(batch.inputs, batch.labels[0]) for batch in (build.collate([one]) for one in build.data.heldout)]
        found.append((weights, {side: one.about for side, one in sides.items()}, data, heldout))
        assert inputs.plan.filter_dim == 16
    return found


@pytest.fixture(scope="module")
def on_one(runs):
    """What one rank finds."""
    return dict(zip(runs, *run_ranks(solved, 1, [(recipe, []) for recipe in runs.values()]), strict=True))


# --- a plain twin ---------------------------------------------------------------------------------------------------


def model_of(recipe: Path, family: str, side: str) -> Any:
    auto = AutoModelForCausalLM if CASES[family] == "causal_lm" else AutoModelForSequenceClassification
    return auto.from_pretrained(recipe.parent / side).double().eval()


@torch.no_grad()
def states_of(model: Any, family: str, inputs: Any) -> list[torch.Tensor]:
    """What each block puts out."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in model.get_submodule(BLOCKS[family][0])]
    model(**inputs, **({} if family == "bert" else {"use_cache": False}))  # with a cache, documents are not kept apart
    for hook in hooks:
        hook.remove()
    return found


def least_squares(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The weighted ridge regression with a bias, by a QR decomposition of all rows and those of the ridge."""
    w = 1 / np.square(y).mean(1)
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    scale = (w[:, None] * np.square(x)).sum() / x.shape[1]  # the mean of the diagonal of the products
    held = np.sqrt(STRENGTH * scale) * np.eye(ones.shape[1])[:-1]
    rows = np.concatenate([np.sqrt(w)[:, None] * ones, held])
    targets = np.concatenate([np.sqrt(w)[:, None] * y, held @ start.T])
    return np.linalg.lstsq(rows, targets, rcond=None)[0].T


def own_start(width: int, dim: int) -> np.ndarray:
    return np.concatenate([np.eye(dim) if width == dim else np.zeros((dim, width)), np.zeros((dim, 1))], 1)


@pytest.mark.parametrize("family", CASES)
def test_filters_are_those_of_plain_least_squares(runs, on_one, family):
    weights, about, data, _ = on_one[family]
    teacher, student = (model_of(runs[family], family, side) for side in ("teacher", "student"))
    reads_texts = CASES[family] != "causal_lm"
    rows: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for inputs, kept, parts in data:
        of_teacher, of_student = (states_of(one, family, inputs) for one in (teacher, student))
        tokens = kept & parts["fitted"][:, None]
        first = parts["fitted"]
        for place, layer in enumerate(LAYERS["teacher"]):
            x, y = of_teacher[layer - 1], of_teacher[-1]
            x, y = (one[first, 0] if reads_texts else one[tokens] for one in (x, y))
            rows.setdefault(("teacher", place), []).append((x.numpy(), y.numpy()))
            weight, bias = (one.double() for one in weights["teacher"][place])
            filtered = of_teacher[layer - 1][tokens] @ weight.T + bias
            x = of_student[LAYERS["student"][place] - 1][tokens]
            rows.setdefault(("student", place), []).append((x.numpy(), filtered.numpy()))
    for (side, place), pairs in rows.items():
        x, y = (np.concatenate(column) for column in zip(*pairs, strict=True))
        expected = least_squares(x, y, own_start(x.shape[1], 16))
        weight, bias = weights[side][place]
        found = np.concatenate([weight.numpy(), bias.numpy()[:, None]], 1)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=f"{side} {place}")
        one = about[side][f"layer_{LAYERS[side][place]:02d}"]
        assert one["num_tokens"] == len(x)
    (last, bias), one = weights["teacher"][1], about["teacher"]["layer_04"]
    np.testing.assert_allclose(last, np.eye(16), atol=1e-6)
    assert not bias.any()
    assert (one["error_before"], one["error"]) == (0, 0), "it is what is read"


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_filters_are_scored_by_what_the_models_own_head_makes_of_them(runs, on_one, family):
    weights, about, _, heldout = on_one[family]
    model = model_of(runs[family], family, "teacher")
    norm, head = (model.get_submodule(path) for path in BLOCKS[family][1:])
    for place, layer in enumerate(LAYERS["teacher"]):
        weight, bias = (one.double() for one in weights["teacher"][place])
        total, count = 0.0, 0
        for inputs, labels in heldout:
            logits = head(norm(states_of(model, family, inputs)[layer - 1] @ weight.T + bias))[0]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
        found = about["teacher"][f"layer_{layer:02d}"]["scores"]["loss"]
        assert found == pytest.approx(total / count, rel=1e-5), layer


# --- any ranks, hosts and microbatches --------------------------------------------------------------------------------

IN_8_BITS = "teacher.host=int8"
SHARDED = [zero_stage(3), "teacher.host=zero3"]
ONE_AT_ONCE = [f"{phase}.micro_batch_size=1" for phase in ("filters.both", "distill")]
ELSEWHERE = {
    2: [
        ("llama", ["student.calibration.micro_batch_size=3"]),
        ("gpt2", SHARDED),
        ("gpt2", ["teacher.host=cpu_offload"]),
        ("bert", ["pipeline.stages=2", zero_stage(0)]),
    ],
    4: [
        ("llama", ["pipeline.stages=2", zero_stage(0)]),
        ("bert", ["student.calibration.micro_batch_size=1", *ONE_AT_ONCE]),
    ],
}
"""Families and settings by the number of ranks."""


@pytest.mark.parametrize("num_ranks", ELSEWHERE)
def test_ranks_hosts_and_microbatches_make_no_difference(runs, on_one, num_ranks):
    cases = [(runs[family], overrides) for family, overrides in ELSEWHERE[num_ranks]]
    of_ranks = run_ranks(solved, num_ranks, cases)
    for number, (family, overrides) in enumerate(ELSEWHERE[num_ranks]):
        expected, about, *_ = on_one[family]
        for of_rank in of_ranks:
            found, said, *_ = of_rank[number]
            for side, filters in expected.items():
                for one, other in zip(found[side], filters, strict=True):
                    for a, b in zip(one, other, strict=True):
                        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE, msg=f"{family} {side} {overrides}")
                for name, facts in about[side].items():
                    assert said[side][name] == of_ranks[0][number][1][side][name], "all ranks say the same"
                    assert said[side][name]["num_tokens"] == facts["num_tokens"]
                    assert said[side][name]["scores"]["loss"] == pytest.approx(facts["scores"]["loss"], rel=1e-5)


def in_8_bits(world: Any, recipe: Path) -> Any:
    sys.path.append(str(OPTIONAL))
    return solved(world, [(recipe, [IN_8_BITS])])[0][0]["teacher"]


def test_a_teacher_in_8_bits_has_the_same_filters_on_any_ranks(runs, on_one):
    assert OPTIONAL.is_dir(), MISSING
    (expected,), (one, other) = (run_ranks(in_8_bits, number, runs["llama"]) for number in (1, 2))
    for (a, _), (b, _), (c, _) in zip(expected, one, other, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=TOLERANCE)
        assert torch.equal(b, c)
    assert not torch.allclose(expected[0][0], on_one["llama"][0]["teacher"][0][0], atol=TOLERANCE), "its states differ"


# --- what cannot be solved --------------------------------------------------------------------------------------------


def with_nan(recipe: Path, folder: Path, block: int) -> Path:
    """The same run with a teacher whose block puts out NaN."""
    copy = Path(shutil.copytree(recipe.parent, folder / f"{block}"))
    file = copy / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights[f"model.layers.{block}.mlp.down_proj.weight"][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    return write_recipe(copy / "recipe.yaml", moved(recipe, copy))


def moved(recipe: Path, folder: Path) -> Any:
    return yaml.safe_load(recipe.read_text().replace(str(recipe.parent), str(folder)))


def test_a_state_that_is_not_finite_is_named_on_all_ranks(runs, tmp_path):
    cases = [(with_nan(runs["llama"], tmp_path, block), []) for block in (0, 2)]
    for of_rank in run_ranks(solved, 2, cases):
        counts = set()
        for (agreed, text), what in zip(of_rank, ("the state it reads", "what it is solved towards"), strict=True):
            assert agreed
            (tokens,) = re.findall(r" at (\d+) tokens", text)
            assert text == (
                f"filters_both, teacher/layer_02: {what} is not finite at {tokens} tokens of the calibration texts "
                "(student.calibration); look at the model (ted-ds doctor), or use precision bf16 or fp32"
            )
            counts.add(tokens)
        assert len(counts) == 1, "all that are kept"
