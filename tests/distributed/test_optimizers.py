"""Every optimizer a DeepSpeed JSON may name steps as torch's own does, whatever the ZeRO stage and the ranks.

Raw gradients and SGD are compared elsewhere (``test_zero_parity.py``); this is about the rest of a step: state that is
sharded, clipping, weight decay by group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.sharding import full_state_dict
from ted_ds.runtime.step_runner import group_of
from ted_ds.runtime.world import World
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import plain_loss, write_models
from tests.distributed.training import (
    GLOBAL_BATCH,
    MICRO_BATCH,
    NUM_STEPS,
    batches,
    load_tapped,
    samples,
    start_engine,
)
from tests.task_kinds import TASK_TERMS

KIND = "causal_lm"
PLAN = {
    "max_steps": NUM_STEPS,
    "global_batch_size": GLOBAL_BATCH,
    "micro_batch_size": MICRO_BATCH,
    "schedule": "constant",
    "gradient_clipping": 0.05,
    "weight_decay": 0.1,
}
OPTIMIZERS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "AdamW": ({"type": "AdamW", "params": {"torch_adam": True}}, torch.optim.AdamW, {}),
    "AdamW fused": ({"type": "AdamW", "params": {"torch_adam": True, "fused": True}}, torch.optim.AdamW, {}),
    "AdamW offloaded": ({"type": "AdamW", "params": {"torch_adam": True}}, torch.optim.AdamW, {}),
    "AdamW in other buckets": ({"type": "AdamW", "params": {"torch_adam": True}}, torch.optim.AdamW, {}),
    "AdamW by default": ({"type": "adamw"}, torch.optim.AdamW, {}),
    "Adam": ({"type": "Adam", "params": {"torch_adam": True, "adam_w_mode": False}}, torch.optim.Adam, {}),
    "SGD": ({"type": "SGD", "params": {"momentum": 0.9}}, torch.optim.SGD, {"momentum": 0.9}),
    "Adagrad": ({"type": "Adagrad"}, torch.optim.Adagrad, {}),
}
ZERO: dict[str, dict[str, Any]] = {
    "AdamW offloaded": {"offload_optimizer": {"device": "cpu"}},
    "AdamW in other buckets": {"contiguous_gradients": False, "reduce_bucket_size": 100, "allgather_bucket_size": 100},
}
"""What else stands in ``zero_optimization``, for stages 1 to 3."""
RATES = {"SGD": 0.2, "Adagrad": 0.01}
# weights of size ~0.3; Adam divides by gradients of about 1e-4, which makes fp32's rounding visible
RELATIVE, ABSOLUTE = 1e-4, 2e-5


def stages_of(name: str) -> tuple[int, ...]:
    """The ZeRO stages at which an optimizer is allowed, and there is something to compare."""
    return (0,) if name == "Adagrad" else (1, 2, 3) if name in ZERO else (0, 1, 2, 3)


def plan_of(name: str) -> PhasePlan:
    return PhasePlan(**PLAN, learning_rate=RATES.get(name, 1e-3))


def steps_of_engines(world: World, folder: Path, cases: list[tuple[str, int]]) -> list[dict[str, torch.Tensor]]:
    """Whole weights after the steps of each optimizer and stage, one engine after the other."""
    results = []
    for name, stage in cases:
        zero: dict[str, Any] = {"stage": stage, **ZERO.get(name, {})}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
            if name == "AdamW offloaded":
                zero["offload_param"] = {"device": "cpu"}
        config = complete(
            {"optimizer": OPTIMIZERS[name][0], "zero_optimization": zero},
            plan_of(name),
            plan_path="distill",
            precision="fp32",
            world_size=world.size,
            source=Path("zero.json"),
        )
        student = load_tapped(folder / "student", KIND, (), shard=config if stage == 3 else None)
        engine = start_engine(world, student, config, weight_decay=PLAN["weight_decay"])
        objective = FinetuneObjective(TASK_TERMS[KIND])
        steps = iter(batches(world, KIND))
        for _ in range(NUM_STEPS):
            assert engine.step(steps, objective) is None
        results.append(full_state_dict(student, keep=world.is_main))
        engine.release()
    return results


def steps_of_torch(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The same by torch's optimizer in fp64, on the whole batch at once."""
    _, make, arguments = OPTIMIZERS[name]
    plan = plan_of(name)
    student = load_tapped(folder / "student", KIND, ()).double().train()
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if group_of(p) == "matrix"], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if group_of(p) == "vector"], "weight_decay": 0.0},
    ]
    values = {"lr": plan.learning_rate, "betas": plan.betas, "eps": plan.eps, **arguments}
    taken = {"SGD": ("lr", "momentum"), "Adagrad": ("lr", "eps")}.get(name, ("lr", "betas", "eps"))
    optimizer = make(groups, **{key: values[key] for key in taken})
    everything = samples(KIND)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        batch = everything[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        loss, _ = plain_loss("finetune", KIND, {"student": student}, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.gradient_clipping)
        optimizer.step()
    return {key: value.detach() for key, value in student.state_dict().items()}


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_optimizer_of_the_list_steps_as_torchs_own_does(tmp_path: Path, world_size: int) -> None:
    write_models(tmp_path, KIND)
    cases = [(name, stage) for name in OPTIMIZERS for stage in stages_of(name)]
    (found, *_) = run_ranks(steps_of_engines, world_size, tmp_path, cases)
    failed = []
    expected = {name: steps_of_torch(tmp_path, name) for name in OPTIMIZERS}
    for (name, stage), weights in zip(cases, found, strict=True):
        for key, value in expected[name].items():
            try:
                torch.testing.assert_close(weights[key].double(), value, rtol=RELATIVE, atol=ABSOLUTE)
            except AssertionError as error:
                failed.append(f"{name} at stage {stage}, {key}: {error}")
    assert not failed, "\n".join(failed)
