"""Runs of students whose first blocks are frozen: what they say, share and leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import differences, run, traces, with_dropout
from tests.tiny import ROOT, write_run

BLOCKS = "student.from_teacher.blocks=[0, 1, 3]"
ONCE = "frozen blocks: Stage II runs embeddings and the first 2 blocks once for both models"


def zero(stage: int) -> str:
    return f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{stage}.json'}"


def apart(rank: int) -> None:
    """Both models run what they have in common."""
    from ted_ds.phases import distill

    distill.share_prefix = lambda *_: None


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (3, ["teacher.host=zero3", "distill.method=kd"]),
        *(
            pytest.param(stage, more, marks=pytest.mark.slow)
            for stage, more in (
                (3, []),
                (2, ["distill.kl_weight=0", "layer_map={kind: explicit, pairs: [[1, 1], [2, 2]]}"]),
                (1, ["precision=bf16", "activation_checkpointing=true"]),
                (0, ["teacher.host=zero3"]),
                (1, ["pipeline.stages=2"]),
                (1, ["pipeline.stages=2", "precision=bf16", "activation_checkpointing=true"]),
                (0, ["pipeline.stages=3", "layer_map={kind: explicit, pairs: [[1, 1], [2, 2], [3, 4]]}"]),
            )
        ),
    ],
)
def test_what_is_run_once_is_the_same_to_the_bit(tmp_path: Path, stage: int, more: list[str]) -> None:
    recipe = str(write_run(tmp_path))
    arguments = ["run", recipe, BLOCKS, "student.freeze_blocks=2", zero(stage), *more]
    finetune = "student.finetune={max_steps: 1, learning_rate: 0.1, global_batch_size: 4, micro_batch_size: 2}"
    arguments += ["evaluation.every_steps=1", finetune]
    num_ranks = 3 if "pipeline.stages=3" in more else 2
    output = run(arguments, num_ranks=num_ranks)
    assert ONCE in output
    assert "parameters of the teacher's first blocks, freed per rank: " in output
    found = traces(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert ONCE not in run(arguments, num_ranks=num_ranks, fault=apart)
    assert differences(found, traces(tmp_path / "run")) == []
    teacher, student = (load_file(tmp_path / one / "model.safetensors") for one in ("teacher", "run/export"))
    moved = {name for name, own in student.items() if not own.equal(teacher.get(name.replace("s.2.", "s.3."), own))}
    still = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")
    if "precision=bf16" not in more:  # in which all are rounded
        assert moved == {name for name in student if not name.startswith(still)}
    changed = run([*arguments, "student.freeze_blocks=1"], num_ranks=num_ranks, codes=2)
    assert "finetune_student: was completed with other settings: freeze_blocks was 2, now 1" in changed


def test_what_cannot_be_run_once_is_said(tmp_path: Path) -> None:
    recipe = str(with_dropout(write_run(tmp_path, method="kd", family="gpt2")))
    output = run(["run", recipe, BLOCKS, "student.freeze_blocks=2"], num_ranks=1)
    assert "frozen blocks: the teacher runs its own, as the student has dropout (" in output
    shutil.rmtree(tmp_path / "run")
    given = ["student.dropout={hidden: 0, attention: 0}", "student.from_teacher.blocks=[0, 2, 3]"]
    output = run(["run", recipe, *given, "student.freeze_blocks=2"], num_ranks=1)
    assert "Stage II runs embeddings and the first block once for both models, and no more, as the weights" in output
    assert "the weights of both differ in transformer.h.1." in output


@pytest.mark.slow
def test_a_run_says_which_border_of_a_pipeline_keeps_blocks_apart(tmp_path: Path) -> None:
    changes = ["pipeline.stages=4", "distill.method=lwd", "layer_map={kind: explicit, pairs: [[1, 2], [3, 4]]}"]
    output = run(["run", str(write_run(tmp_path)), BLOCKS, "student.freeze_blocks=2", zero(1), *changes], num_ranks=4)
    assert (
        "Stage II runs embeddings and the first block once for both models, and no more, as a pipeline stage begins "
        "behind block 1 of the student and 2 of the teacher"
    ) in output
