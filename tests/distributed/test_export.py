"""What is exported is the student that was trained, to the last bit, for users who have only transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from ted_ds.config.schema import Recipe
from ted_ds.models.companions import Origins
from ted_ds.models.filter_files import FILE_NAME
from ted_ds.models.loading import DTYPES
from ted_ds.models.student import FilteredModel
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.output.export import export_student
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.training import STUDENT_LAYERS, config, load_tapped, start_engine, student_bank
from tests.task_kinds import TASK_TERMS
from tests.tiny import recipe_dict, write_model

INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def train_and_save(world, folder, stage, precision):
    """A few steps, then the student's folder; returns the trained engine's own logits."""
    from ted_ds.data.loader import Batch

    ds_config = config(stage, world.size, 0.0, precision)
    tapped = load_tapped(
        folder / "start", "causal_lm", STUDENT_LAYERS, shard=ds_config if stage == 3 else None, precision=precision
    )
    module = FilteredModel(tapped, student_bank())
    engine = start_engine(world, module, ds_config, precision=precision)
    batch = Batch(**INPUTS, labels=INPUTS["input_ids"], kept_tokens=INPUTS["attention_mask"].bool())
    objective = FinetuneObjective(TASK_TERMS["causal_lm"])

    def loss(forward, _batch, _counts):  # the filters must take part, as in distillation
        logits, features = forward(batch.inputs)
        total = (logits.float().sum() + sum(one.float().sum() for one in features)) * 1e-2
        return total, {"loss/task": total.detach()}

    objective.loss = loss  # type: ignore[method-assign]
    steps = iter([[batch] * (8 // (2 * world.size))] * 2)
    for _ in range(2):
        engine.step(steps, objective)
    engine.engine.eval()
    with torch.no_grad():
        logits, _ = engine.engine(INPUTS)
    state = full_state_dict(module, keep=world.is_main)
    if world.is_main:
        student = {k.removeprefix("tapped.model."): v for k, v in state.items() if k.startswith("tapped.model.")}
        tapped.model.save_pretrained(folder / "trained", state_dict=student)
    return logits


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16")])
@pytest.mark.parametrize("tied", [True, False])
def test_exported_logits_are_the_students_to_the_last_bit(tmp_path, stage, precision, tied):
    write_model(tmp_path / "start", "llama", blocks=2, tie_word_embeddings=tied)
    logits, *_ = run_ranks(train_and_save, 2, tmp_path, stage, precision)
    (tmp_path / "export").mkdir()
    recipe = Recipe.model_validate(recipe_dict(tmp_path))
    export_student(
        tmp_path / "trained",
        tmp_path / "export",
        recipe=recipe,
        origins=Origins(tmp_path / "start", None),
        blocks=[0, 3],
    )
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=DTYPES[precision])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=DTYPES[precision])
    with torch.no_grad():
        assert torch.equal(exported(**INPUTS).logits, logits)
        assert not torch.equal(before(**INPUTS).logits, logits)
    assert not (tmp_path / "export" / FILE_NAME).exists()
