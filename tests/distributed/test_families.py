"""Every decoder in ZeRO-3 shards, as teacher and as student, against plain PyTorch; what is saved loads as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ted_ds.models.student import FilteredModel
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.runtime.sharding import full_state_dict
from ted_ds.runtime.world import World
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import TOLERANCE, train_plainly
from tests.distributed.training import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    WEIGHTS,
    batches,
    config,
    load_tapped,
    start_engine,
    student_bank,
    teacher_bank,
)
from tests.task_kinds import TASK_TERMS
from tests.tiny import CAUSAL_LM_TYPES, distill_plan, write_model

KIND = "causal_lm"
DEFAULT = ("llama", "gpt2", "gpt_neox", "gemma2", "opt", "mixtral")
"""What differs in what ZeRO-3 gathers: ties, biases, one norm beside two, experts; the others are slow."""


def train_all(world: World, folder: Path, model_types: Sequence[str]) -> dict[str, Any]:
    """A step of each family, one after the other: the whole weights, the report, and what is held of the teacher."""
    return {model_type: train_one(world, folder / model_type) for model_type in model_types}


def train_one(world: World, folder: Path) -> Any:
    ds_config = config(3, world.size, 0.0)
    shard = frozen_engine_config(ds_config, "fp32")
    shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    tapped = load_tapped(folder / "teacher", KIND, TEACHER_LAYERS, shard=shard)
    teacher = FrozenModel(tapped, device=world.device, engine_config=shard)
    module = FilteredModel(load_tapped(folder / "student", KIND, STUDENT_LAYERS, shard=ds_config), student_bank())
    student = module.tapped
    objective = DistillObjective(
        TASK_TERMS[KIND],
        distill_plan(**WEIGHTS),
        teacher=teacher,
        teacher_filters=teacher_bank(),
        student_layers=STUDENT_LAYERS,
    )
    engine = start_engine(world, module, ds_config)
    engine.step(batches(world, KIND), objective)
    report = engine.report(objective)
    whole = full_state_dict(module, keep=world.is_main)
    if world.is_main:
        begins = "tapped.model."
        own = {name.removeprefix(begins): one for name, one in whole.items() if name.startswith(begins)}
        student.model.save_pretrained(folder / "trained", state_dict=own)
    held = teacher.num_parameters_held / teacher.num_parameters
    engine.release()
    teacher.release()
    return whole, report, held


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders")
    for model_type in CAUSAL_LM_TYPES:
        write_model(folder / model_type / "teacher", model_type, blocks=4, seed=1)
        write_model(folder / model_type / "student", model_type, blocks=2, seed=2)
    return folder


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, folder: Path) -> Any:
    """Those that were asked for, in one group of processes."""
    asked = [item.callspec.params["model_type"] for item in request.session.items if item.path == request.path]
    return run_ranks(train_all, 2, folder, asked)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(one, marks=[] if one in DEFAULT else pytest.mark.slow) for one in CAUSAL_LM_TYPES],
)
def test_shards_take_the_steps_of_plain_pytorch_and_are_saved_as_they_are(
    folder: Path, trained: Any, model_type: str
) -> None:
    # not in fp64, which experts in products of groups, and masks of eager attention, do not know
    weights, (terms,) = train_plainly(folder / model_type, "distill", KIND, 0.0, torch.float32, num_steps=1)
    whole, report, held = trained[0][model_type]
    assert whole.keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(whole[name], expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in terms.items():
        assert report[name] == pytest.approx(value, rel=2e-5, abs=5e-7), name
    assert held < 0.51
    model, loading = AutoModelForCausalLM.from_pretrained(folder / model_type / "trained", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole[f"tapped.model.{name}"]), name
