"""Whole runs on pipelines: they go on bit by bit, from and to other layouts, and leave the same student."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.integration.launching import alone, deepspeed
from tests.integration.test_resume import resume_from_each, seven_steps
from tests.layouts import TOLERANCE, Layout, change_layouts, zero_stage
from tests.optional import MISSING, OPTIONAL
from tests.runs import is_looked_at, run, traces, with_dropout
from tests.tiny import write_run

THREE_BLOCKS = "student.from_teacher.blocks=[0, 1, 3]"
FROZEN = "student.freeze_blocks=2"
ONE_PASS = "filters={both: {max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 1}}"
ONE_PAIR = "layer_map={kind: explicit, pairs: [[1, 1]]}"


@pytest.mark.parametrize(
    ("number", "precision", "num_ranks", "steps"),
    [
        (1, "bf16", 2, (5,)),
        pytest.param(0, "fp32", 2, (1, 4, 6), marks=pytest.mark.slow),
        pytest.param(1, "fp32", 4, (1, 4, 6), marks=pytest.mark.slow),
    ],
)
def test_a_pipeline_with_dropout_goes_on_bit_by_bit(tmp_path, number, precision, num_ranks, steps):
    recipe = with_dropout(write_run(tmp_path, family="gpt2"))
    # no stage has all of what is balanced, or related
    arguments = seven_steps(recipe, zero_stage(number), f"precision={precision}", "pipeline.stages=2", more=())
    resume_from_each(tmp_path, arguments, steps, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("precision", "chain", "stops", "changes"),
    [
        # the first stop is in Stage I
        pytest.param(
            "fp32", [(2, 1, 2), (2, 0, 1), (3, 0, 3), (4, 1, 2)], (1, 4, 3), [ONE_PASS], marks=pytest.mark.slow
        ),
        pytest.param("fp32", [(2, 1, 2), (2, 0, 1), (3, 0, 3), (4, 1, 2)], (1, 6, 3), [], marks=pytest.mark.slow),
        pytest.param("fp32", [(2, 3, 1), (3, 1, 3), (2, 2, 1)], (1, 4), [ONE_PASS], marks=pytest.mark.slow),
        # stages without a filter have a stand-in for it
        pytest.param(
            "fp32", [(2, 1, 2), (2, 1, 1), (3, 1, 3), (2, 1, 2)], (1, 2, 1), [ONE_PAIR], marks=pytest.mark.slow
        ),
        # a stage of frozen blocks alone
        pytest.param("fp32", [(3, 1, 3), (2, 0, 2), (2, 3, 1), (3, 0, 3)], (1, 4, 3), [FROZEN], marks=pytest.mark.slow),
        pytest.param("bf16", [(2, 1, 2), (2, 3, 1), (3, 1, 3), (4, 1, 2)], (), [], marks=pytest.mark.slow),
        pytest.param("fp32", [(1, 2, 1), (3, 1, 3), (2, 3, 1), (2, 0, 2)], (), [], marks=pytest.mark.slow),
    ],
)
def test_pipelines_go_on_from_other_layouts_within_rounding(tmp_path, precision, chain, stops, changes):
    change_layouts(tmp_path, precision, [Layout(*one) for one in chain], THREE_BLOCKS, *changes, stops=stops)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("deberta-v2", "sequence_classification", ["precision=bf16", "activation_checkpointing=true"]),
        ("bert", "multi_label_classification", ["distill.method=lwd"]),
        ("bert", "regression", ["distill.method=kd"]),
        ("bert", "multiple_choice", []),
        ("llama", "sequence_classification", ["distill.method=sft"]),
        ("llama", "causal_lm", ["distill.kl_weight=0", "layer_map.kind=last"]),
        ("gpt2", "causal_lm", ["student.freeze_embeddings=true"]),
        ("bert", "sequence_classification", ["TOKENS"]),
    ],
)
def test_a_run_on_two_pipelines_of_two_stages_is_the_run_on_two_ranks(tmp_path, family, kind, changes):
    recipe = write_run(tmp_path, kind=kind, family=family)
    if changes == ["TOKENS"]:  # microbatches by their size, more in one step than in another
        changes = ["distill.micro_batch_size=null", "distill.micro_batch_tokens=20"]
    arguments = ["run", str(recipe), *changes, "evaluation.every_steps=1"]
    arguments += ["student.finetune={max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"]
    run(arguments, num_ranks=2)
    expected, settings = traces(tmp_path / "run"), exported_settings(tmp_path)
    shutil.rmtree(tmp_path / "run")
    run([*arguments, "pipeline.stages=2"], num_ranks=4)
    found = traces(tmp_path / "run")
    assert found["weights"].keys() == expected["weights"].keys()
    precision = "bf16" if "precision=bf16" in changes else "fp32"
    worst = TOLERANCE[precision]
    for one, other in zip(expected["reports"], found["reports"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float) and not is_looked_at(name, value, other[name], precision):
                # a correlation near zero is a difference of larger numbers: off by 3.3e-6 of 0.13
                bound = pytest.approx(value, rel=worst, abs=5e-6 if name.endswith("/pearson") else 1e-6)
                assert other[name] == bound, (one["phase"], one["step"], name)
    assert exported_settings(tmp_path) == settings
    assert settings["config.json"].get("num_hidden_layers", settings["config.json"].get("n_layer")) == 2


def exported_settings(folder):
    files = sorted((folder / "run" / "export").glob("*config.json"))
    return {file.name: json.loads(file.read_text()) for file in files}


@pytest.mark.slow
def test_a_teacher_in_8_bits_on_a_pipeline(tmp_path):
    assert OPTIONAL.is_dir(), MISSING
    arguments = ("run", str(write_run(tmp_path)), "teacher.host=int8")
    outcome = alone(*arguments, PYTHONPATH=str(OPTIONAL))
    assert outcome.code == 0, outcome.output
    expected = traces(tmp_path / "run")["reports"]
    shutil.rmtree(tmp_path / "run")
    outcome = deepspeed(*arguments, "pipeline.stages=2", PYTHONPATH=str(OPTIONAL))
    assert outcome.code == 0, outcome.output
    assert "each stage its part, in 8 bits" in outcome.output
    for one, other in zip(expected, traces(tmp_path / "run")["reports"], strict=True):
        losses = {name: value for name, value in one.items() if name.startswith("loss/")}
        assert {name: other[name] for name in losses} == pytest.approx(losses, rel=TOLERANCE["fp32"]), one["phase"]
