"""Whole runs on pipelines: they go on bit by bit, from and to other layouts, and leave the same student."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from tests.faults import signal_at
from tests.integration.test_resume import STOPPED, resume_from_each, seven_steps, stage
from tests.runs import run, traces, with_dropout
from tests.tiny import write_run

THREE_BLOCKS = "student.from_teacher.blocks=[0, 1, 3]"
WORST = {"fp32": 2e-5, "bf16": 5e-3}
"""Relative; see docs/checkpoints.md."""


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
    arguments = seven_steps(recipe, stage(number), f"precision={precision}", "pipeline.stages=2")
    resume_from_each(tmp_path, arguments, steps, num_ranks=num_ranks)


def changing_layouts(tmp_path, precision, chain):
    """(ranks, ZeRO stage, pipeline stages) in turns, three steps each, against a run on the first one to the end."""
    recipe = write_run(tmp_path, family="gpt2")
    micro = [f"{phase}.micro_batch_size=1" for phase in ("distill", "filters.teacher", "filters.student")]
    base = ["run", str(recipe), f"precision={precision}", "distill.weight_decay=0.1", *micro, THREE_BLOCKS]
    base += [f"distill.max_steps={3 * len(chain)}"]

    def layout(turn):
        _, zero, stages = chain[turn]
        return [*base, stage(zero), f"pipeline.stages={stages}"]

    run(layout(0), num_ranks=chain[0][0])
    expected = traces(tmp_path / "run")["reports"]
    shutil.rmtree(tmp_path / "run")
    num_before = 4  # steps of the filters
    for turn, (num_ranks, *_) in enumerate(chain):
        options = {}
        if turn < len(chain) - 1:
            arrivals = (num_before if turn == 0 else 0) + 3
            options = {"codes": STOPPED, "fault": signal_at, "fault_arguments": ("step", arrivals, signal.SIGTERM)}
        output = run(layout(turn), num_ranks=num_ranks, **options)
        assert ("another layout than the checkpoint's" in output) == (turn > 0)
    found = traces(tmp_path / "run")["reports"]
    assert [(one["phase"], one["step"]) for one in found] == [(one["phase"], one["step"]) for one in expected]
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        for name in one.keys() & other.keys():
            if name.startswith(("data/", "train/tokens", "train/total")):
                assert one[name] == pytest.approx(other[name], rel=1e-9), name  # the data itself is exact
            elif isinstance(one[name], float):
                worst = max(worst, abs(one[name] - other[name]) / max(abs(one[name]), 1e-6))
    return worst


@pytest.mark.parametrize(
    ("precision", "chain"),
    [
        ("fp32", [(2, 1, 2), (2, 3, 1), (3, 0, 3), (4, 1, 2)]),
        pytest.param("bf16", [(2, 1, 2), (2, 3, 1), (3, 1, 3), (4, 1, 2)], marks=pytest.mark.slow),
        pytest.param("fp32", [(1, 2, 1), (3, 1, 3), (2, 0, 2), (2, 0, 1)], marks=pytest.mark.slow),
    ],
)
def test_pipelines_go_on_from_other_layouts_within_rounding(tmp_path, precision, chain):
    assert changing_layouts(tmp_path, precision, chain) <= WORST[precision]


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("deberta-v2", "sequence_classification", ["precision=bf16", "activation_checkpointing=true"]),
        pytest.param("bert", "multi_label_classification", ["distill.method=lwd"], marks=pytest.mark.slow),
        pytest.param("bert", "regression", ["distill.method=kd"], marks=pytest.mark.slow),
        pytest.param("llama", "sequence_classification", ["distill.method=sft"], marks=pytest.mark.slow),
        pytest.param("llama", "causal_lm", ["distill.kl_weight=0", "layer_map.kind=last"], marks=pytest.mark.slow),
        pytest.param("gpt2", "causal_lm", ["student.freeze_embeddings=true"], marks=pytest.mark.slow),
        pytest.param("bert", "sequence_classification", ["TOKENS"], marks=pytest.mark.slow),
    ],
)
def test_a_run_on_two_pipelines_of_two_stages_is_the_run_on_two_ranks(tmp_path, family, kind, changes):
    recipe = write_run(tmp_path, kind=kind, family=family)
    if changes == ["TOKENS"]:  # microbatches by their size, more in one step than in another
        changes = ["distill.micro_batch_size=null", "distill.micro_batch_tokens=20"]
    arguments = ["run", str(recipe), *changes, "evaluation.every_steps=1"]
    arguments += ["student.finetune={max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"]
    run(arguments, num_ranks=2)
    expected = traces(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    run([*arguments, "pipeline.stages=2"], num_ranks=4)
    found = traces(tmp_path / "run")
    assert found["weights"].keys() == expected["weights"].keys()
    worst = WORST["bf16" if "precision=bf16" in changes else "fp32"]
    for one, other in zip(expected["reports"], found["reports"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=worst, abs=1e-6), (one["phase"], one["step"], name)
    student = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert student.get("num_hidden_layers", student.get("n_layer")) == 2
