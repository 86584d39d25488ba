"""A checkpoint of one layout holds, to the last bit, the state that any other layout goes on with."""

from __future__ import annotations

import re

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from ted_ds.errors import CheckpointError
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.checkpoints.folders import Retention
from ted_ds.runtime.checkpoints.origin import Origin
from ted_ds.runtime.checkpoints.saving import Checkpoints
from ted_ds.runtime.sharding import whole_parameters
from tests.dist import run_ranks
from tests.distributed.training import batches, config, load_tapped, start_engine
from tests.task_kinds import TASK_TERMS
from tests.tiny import write_model

LAYOUTS = [(0, 2), (1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (3, 4)]
ADAM = {"type": "AdamW", "params": {"lr": 0.2, "torch_adam": True}}
SGD = {"type": "SGD", "params": {"lr": 0.2, "momentum": 0.9}}


def new_engine(world, folder, stage, precision, optimizer, sub_group_size):
    ds_config = config(stage, 1, 1.0, precision)
    ds_config |= {"optimizer": optimizer, "train_batch_size": 2 * world.size, "gradient_accumulation_steps": 1}
    if stage == 3 and sub_group_size:
        ds_config["zero_optimization"]["sub_group_size"] = sub_group_size
    shard = ds_config if stage == 3 else None
    tapped = load_tapped(folder, "causal_lm", (), shard=shard, precision=precision)
    return tapped, start_engine(
        world, tapped, ds_config, precision=precision, max_steps=50, schedule="linear", weight_decay=0.1
    )


def checkpoints(world, folder):
    place = folder / "checkpoints"
    return Checkpoints(place, world, origin=Origin("a", {}, place), retention=Retention(9), say=lambda _: None)


def whole_state(engine, tapped):
    """Every parameter's weight, fp32 weight and optimizer state, whole; and the settings of the groups."""
    state = {f"{name} weight": weight.clone() for name, weight in whole_parameters(tapped)}
    inner = getattr(engine.engine.optimizer, "optimizer", engine.engine.optimizer)
    keys = ("exp_avg", "exp_avg_sq") if isinstance(inner, torch.optim.AdamW) else ("momentum_buffer",)
    if engine.layout["zero_stage"] in (1, 2):
        # DeepSpeed links optimizer state to parameters once, when only the first group has stepped
        engine.engine.optimizer._hp_optimizer_states_linked = False
        engine.engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in tapped.named_parameters():
        if engine.layout["zero_stage"] == 0:
            own = {"fp32": parameter.detach(), **{key: inner.state[parameter][key] for key in keys}}
        else:
            own = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            own["fp32"] = safe_get_full_fp32_param(parameter)
        state |= {f"{name} {key}": value.reshape(-1).float().clone() for key, value in own.items()}
    steps = {float(one["step"]) for one in inner.state.values() if "step" in one}
    groups = [(group["lr"], group["weight_decay"]) for group in inner.param_groups]
    counters = (
        engine.engine.global_steps,
        engine.engine.skipped_steps,
        engine.engine.lr_scheduler.state_dict()["last_epoch"],
    )
    return state, steps, groups, counters


def train_and_save(world, folder, stage, precision, optimizer):
    tapped, engine = new_engine(world, folder, stage, precision, optimizer, None)
    steps = batches(world, "causal_lm")
    for _ in range(3):
        engine.step(steps, FinetuneObjective(TASK_TERMS["causal_lm"]))
    kept = checkpoints(world, folder)
    kept.begin(engine, 3, state={}, of_rank={"rank": world.rank}, texts={}, best=None)
    kept.finish()
    return whole_state(engine, tapped)


def load_elsewhere(world, folder, stage, precision, optimizer, sub_group_size):
    tapped, engine = new_engine(world, folder, stage, precision, optimizer, sub_group_size)
    kept = checkpoints(world, folder)
    saved = kept.newest()
    kept.load(engine, saved)
    assert not (folder / "checkpoints" / ".resharded").exists() or not world.is_main
    assert [one["rank"] for one in saved.of_ranks] == list(range(saved.state["num_ranks"]))
    found = whole_state(engine, tapped)
    engine.step(batches(world, "causal_lm"), FinetuneObjective(TASK_TERMS["causal_lm"]))  # and it trains
    return found


def compared(tmp_path, source, targets, precision):
    """Save on one layout, and load on each of the others."""
    write_model(tmp_path, "llama", blocks=2, hidden=20, tie_word_embeddings=True)
    stage, num_ranks = source
    (expected, *_) = run_ranks(train_and_save, num_ranks, tmp_path, stage, precision, ADAM)
    for other_stage, other_ranks in targets:
        for found in run_ranks(load_elsewhere, other_ranks, tmp_path, other_stage, precision, ADAM, 500):
            assert found[1:] == expected[1:], (other_stage, other_ranks)
            assert found[0].keys() == expected[0].keys()
            for name, value in expected[0].items():
                assert torch.equal(found[0][name], value), f"ZeRO-{other_stage} on {other_ranks}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_layout_goes_on_from_every_other(tmp_path, source, precision):
    layouts = [one for one in LAYOUTS if precision == "fp32" or one[0] > 0]
    if source in layouts:  # the recipe refuses the rest
        compared(tmp_path, source, layouts, precision)


@pytest.mark.parametrize(
    ("source", "targets", "precision"),
    [((1, 2), [(3, 2), (0, 1)], "fp32"), ((3, 2), [(2, 1), (3, 1)], "bf16"), ((0, 2), [(1, 2)], "fp32")],
)
def test_some_layouts_go_on_from_some_others(tmp_path, source, targets, precision):
    compared(tmp_path, source, targets, precision)


def test_another_optimizers_state_goes_along(tmp_path):
    write_model(tmp_path, "llama", blocks=1)
    (expected, *_) = run_ranks(train_and_save, 2, tmp_path, 2, "fp32", SGD)
    for stage in (0, 3):
        for found in run_ranks(load_elsewhere, 1, tmp_path, stage, "fp32", SGD, None):
            for name, value in expected[0].items():
                assert torch.equal(found[0][name], value), name


def refuse(world, folder):
    with pytest.raises(CheckpointError) as refused:
        load_elsewhere(world, folder, 3, "fp32", ADAM, None)
    return str(refused.value)


def test_a_checkpoint_of_fewer_parameters_is_refused_on_every_rank(tmp_path):
    write_model(tmp_path, "llama", blocks=1)
    run_ranks(train_and_save, 2, tmp_path, 1, "fp32", ADAM)
    write_model(tmp_path, "llama", blocks=2)
    for message in run_ranks(refuse, 2, tmp_path):
        assert re.search(r"step_00000003: lacks 9 trained parameters \(model\.model\.layers\.1\.", message)
