"""Stage I of both models in one pass over the data leaves the filters that a pass each leaves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.layouts import zero_stage
from tests.runs import run
from tests.tiny import write_run

PLAN = "{max_steps: 3, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 1, gradient_clipping: 0}"
A_PASS_EACH = f"filters={{dim: 12, teacher: {PLAN}, student: {PLAN}}}"
ONE_PASS = f"filters={{dim: 12, both: {PLAN}}}"


@pytest.mark.parametrize(
    ("family", "kind", "zero", "stages"),
    [
        ("gpt2", "causal_lm", 3, 1),
        pytest.param("llama", "causal_lm", 2, 1, marks=pytest.mark.slow),
        pytest.param("bert", "regression", 0, 1, marks=pytest.mark.slow),
        pytest.param("deberta-v2", "sequence_classification", 1, 2, marks=pytest.mark.slow),
        pytest.param("llama", "causal_lm", 0, 2, marks=pytest.mark.slow),
    ],
)
def test_one_pass_learns_what_a_pass_each_learns(tmp_path, family, kind, zero, stages):
    recipe = write_run(tmp_path, family=family, kind=kind)
    arguments = [str(recipe), zero_stage(zero), f"pipeline.stages={stages}", "evaluation.every_steps=2"]
    each, both = (f"output_dir={tmp_path / name}" for name in ("each", "both"))
    run(["run", *arguments, A_PASS_EACH, each])
    run(["run", *arguments, ONE_PASS, both])
    for side in ("teacher", "student"):
        expected = load_file(tmp_path / "each" / f"filters_{side}" / "filters.safetensors")
        found = load_file(tmp_path / "both" / "filters_both" / side / "filters.safetensors")
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7, msg=f"{side} {name}")
        scores = json.loads((tmp_path / "each" / f"filters_{side}" / "phase.json").read_text())["result"]["filters"]
        both_scores = json.loads((tmp_path / "both" / "filters_both" / "phase.json").read_text())["result"]["filters"]
        assert both_scores.keys() == {"teacher", "student"}
        for layer, values in scores[side].items():
            assert both_scores[side][layer] == pytest.approx(values, rel=1e-5), (side, layer)
    reports = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("each", "both")
    }
    for one in (one for one in reports["each"] if one["phase"].startswith("filters_")):
        side = one["phase"].removeprefix("filters_")
        (other,) = (
            other
            for other in reports["both"]
            if other["phase"] == "filters_both"
            and other["step"] == one["step"]
            and any(name.startswith("eval/") for name in other) == any(name.startswith("eval/") for name in one)
        )
        of_layers = {name: value for name, value in one.items() if "/layer_" in name}
        assert of_layers
        for name, value in of_layers.items():
            assert other[name.replace("/layer_", f"/{side}/layer_")] == pytest.approx(value, rel=1e-5, abs=1e-6), name
