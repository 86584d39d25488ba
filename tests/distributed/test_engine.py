"""What an engine does beside the gradient: schedule, Adam with decay, and giving its memory back."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import AutoModelForCausalLM, get_scheduler

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config, offload_to
from ted_ds.runtime.sharding import collect_garbage, full_state_dict
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import whole_batch
from tests.distributed.training import NUM_STEPS, batches, config, load_tapped, samples, start_engine
from tests.plain import run_frozen
from tests.task_kinds import TASK_TERMS
from tests.tiny import write_model

# large eps: where a gradient is nearly zero, Adam would otherwise turn rounding into steps of size lr
ADAM = {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-3}
DECAY = 0.3


def start(world, tapped, stage, *, optimizer=None, **values):
    ds_config = config(stage, world.size, 0.0)
    if optimizer is not None:
        ds_config["optimizer"] = optimizer
    return start_engine(world, tapped, ds_config, weight_decay=DECAY, **values)


def learning_rates(world, folder, plan, stage):
    engine = start(
        world,
        load_tapped(folder, "causal_lm", ()),
        stage,
        schedule=plan.schedule,
        schedule_parameters=plan.schedule_parameters,
        warmup_steps=plan.warmup_steps,
        max_steps=plan.steps,
    )
    rates = []
    for _ in range(6):
        rates.append(engine.engine.get_lr()[0])
        for _ in range(engine.engine.gradient_accumulation_steps()):
            logits, _ = engine.engine(next(batches(world, "causal_lm"))[0].inputs)
            engine.engine.backward(logits.sum() * 1e-6)
            engine.engine.step()
    return rates


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "constant"}, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [0.0, 0.5, 1.0, 0.8536, 0.5, 0.1464]),
        ({"schedule": "cosine_with_restarts", "num_cycles": 2}, [0.0, 0.5, 1.0, 0.5, 1.0, 0.5]),
        ({"schedule": "polynomial", "power": 2}, [0.0, 0.5, 1.0, 0.5625, 0.25, 0.0625]),
        (
            {"schedule": "polynomial", "power": 2, "end_learning_rate": 0.02},  # a tenth of the peak
            [0.0, 0.5, 1.0, 0.60625, 0.325, 0.15625],
        ),
    ],
)
@pytest.mark.parametrize("stage", [0, 2])
def test_every_schedule_warms_up_and_then_takes_its_shape(tmp_path, values, expected, stage):
    write_model(tmp_path, "llama", blocks=1)
    plan = PhasePlan(max_steps=6, warmup_steps=2, learning_rate=0.2, global_batch_size=1, micro_batch_size=1, **values)
    (rates,) = run_ranks(learning_rates, 1, tmp_path, plan, stage)
    assert [rate / 0.2 for rate in rates] == pytest.approx(expected, abs=1e-4)


def adam_steps(world, folder, stage):
    shard = config(3, world.size, 0.0) if stage == 3 else None
    tapped = load_tapped(folder, "causal_lm", (), shard=shard)
    optimizer = {"type": "AdamW", "params": {**ADAM, "torch_adam": True}}
    engine = start(world, tapped, stage, schedule="linear", optimizer=optimizer)
    objective, steps = FinetuneObjective(TASK_TERMS["causal_lm"]), batches(world, "causal_lm")
    for _ in range(NUM_STEPS):
        engine.step(steps, objective)
    return full_state_dict(tapped, keep=world.is_main)


def test_adam_decays_matrices_only_and_follows_torch(tmp_path):
    write_model(tmp_path, "llama", blocks=2)
    tapped = load_tapped(tmp_path, "causal_lm", ()).double()
    matrices = [p for p in tapped.parameters() if p.dim() >= 2]
    vectors = [p for p in tapped.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=ADAM["lr"], betas=tuple(ADAM["betas"]), eps=ADAM["eps"])
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=NUM_STEPS)
    for step in range(NUM_STEPS):
        inputs, labels = whole_batch(samples("causal_lm")[step * 8 : step * 8 + 8], "causal_lm")
        loss = torch.nn.functional.cross_entropy(tapped(inputs)[0].flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    expected = {name: parameter.detach() for name, parameter in tapped.named_parameters()}
    for stage in (0, 1, 2, 3):
        got, _ = run_ranks(adam_steps, 2, tmp_path, stage)
        for name, value in expected.items():
            # steps of 1e-2; worst seen 4e-6
            torch.testing.assert_close(got[name].double(), value, rtol=0, atol=2e-5, msg=f"stage {stage}: {name}")


def tensor_bytes():
    """Bytes of all tensors that Python knows, each storage once."""
    storages = {}
    for one in gc.get_objects():
        if isinstance(one, torch.Tensor) and one.device.type != "meta":
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def bytes_around_release(world, folder, stage):
    """Bytes of tensors before, while, and after a trained and a sharded frozen engine exist."""
    before = tensor_bytes()
    ds_config = config(3, world.size, 0.0)
    trained = load_tapped(folder, "causal_lm", (), shard=ds_config if stage == 3 else None)
    engine = start(world, trained, stage, optimizer={"type": "AdamW", "params": {**ADAM, "torch_adam": True}})
    engine.step(batches(world, "causal_lm"), FinetuneObjective(TASK_TERMS["causal_lm"]))
    tapped = load_tapped(folder, "causal_lm", (1,), shard=ds_config)
    frozen = FrozenModel(tapped, device=world.device, engine_config=frozen_engine_config(ds_config, "fp32"))
    frozen(next(batches(world, "causal_lm"))[0].inputs)
    during = tensor_bytes()
    engine.release()
    frozen.release()
    del engine, frozen, trained, tapped
    collect_garbage()
    return before, during, tensor_bytes()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_released_engine_gives_its_memory_back(tmp_path, stage):
    write_model(tmp_path, "llama", blocks=4, hidden=64)
    for before, during, after in run_ranks(bytes_around_release, 2, tmp_path, stage):
        assert during - before > 1_000_000
        assert after - before < 0.02 * (during - before)


def offloaded_states(world, folder):
    """Tapped states of a model that is whole on each rank, and of one whose shards wait in host memory."""
    found = []
    for offload in (None, offload_to("cpu_offload", None, 0)):
        shard = None
        if offload is not None:
            shard = frozen_engine_config(config(3, world.size, 0.0), "fp32", offload=offload)
            shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        tapped = load_tapped(folder, "causal_lm", (2, 1), shard=shard)
        frozen = FrozenModel(tapped, device=world.device, engine_config=shard)
        inputs = next(batches(world, "causal_lm"))[0].inputs
        found.append([run_frozen(frozen, inputs)[1] for _ in range(2)])
        frozen.release()
    return found


def test_a_teacher_in_host_memory_gives_the_same_states(tmp_path):
    write_model(tmp_path, "llama", blocks=4)
    for whole, offloaded in run_ranks(offloaded_states, 2, tmp_path):
        for states in offloaded:
            for got, expected in zip(states, whole[0], strict=True):
                torch.testing.assert_close(got, expected)


def states_after_dropping(world, folder, stage):
    """Tapped states before and after what is above them is dropped, and the parameters held."""
    shard = frozen_engine_config(config(3, world.size, 0.0), "fp32") if stage == 3 else None
    if shard is not None:
        shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    tapped = load_tapped(folder, "causal_lm", (2, 1), shard=shard)
    frozen = FrozenModel(tapped, device=world.device, engine_config=shard)
    inputs = next(batches(world, "causal_lm"))[0].inputs
    _, before = run_frozen(frozen, inputs)
    held = [frozen.num_parameters_held]
    dropped = frozen.drop_beyond_taps()
    held.append(frozen.num_parameters_held)
    after: dict[int, torch.Tensor] = {}
    for _ in range(3):
        frozen(inputs, on_state=after.__setitem__)
    same = all(torch.equal(after[place], state) for place, state in enumerate(before))
    names = list(frozen.named_layers)
    frozen.release()
    return same, held, dropped, names


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", [0, 3])
def test_what_no_tapped_layer_needs_is_dropped(tmp_path, stage, tied):
    write_model(tmp_path, "llama", blocks=5, tie_word_embeddings=tied)
    results = run_ranks(states_after_dropping, 2, tmp_path, stage)
    state = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    above = tuple(f"model.layers.{block}." for block in (2, 3, 4))
    gone = sum(weight.numel() for name, weight in state.items() if name.startswith(above))
    gone += 0 if tied else state["lm_head.weight"].numel()
    for same, (before, after), dropped, names in results:
        assert same
        assert before - after == dropped
        assert dropped == pytest.approx(gone / (2 if stage == 3 else 1), rel=0.01)
        assert names == ["layer_00", "layer_01", "layer_02"]
