"""What an engine sends in a step, counted at its collectives, against the arithmetic of ``ted-ds check``."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm

from ted_ds.planning.traffic import sent_by_engine
from tests.dist import run_ranks

NUM_MICRO, WIDTH, NUM_LAYERS = 3, 400, 3
RING = {
    "all_reduce": 2.0,
    "all_gather_into_tensor": 1.0,
    "all_gather": 1.0,
    "reduce_scatter_tensor": 1.0,
    "reduce_scatter": 1.0,
    "broadcast": 1.0,
}
"""Of the tensor that is whole, each rank sends (W - 1) / W times this."""

INPUTS = ("input", "input_tensor", "input_list")
OUTPUTS = ("tensor", "output_tensor", "tensor_list")


def count_sent(world: Any, stage: int) -> float:
    sent, counting = [0.0], [False]

    def whole(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> int:
        number, keys = (
            (1, ("input", "input_tensor", "input_list")) if name.startswith("reduce_scatter") else (0, OUTPUTS)
        )
        tensors = given[number] if len(given) > number else next(named[key] for key in keys if key in named)
        each = tensors if isinstance(tensors, list) else [tensors]
        return sum(one.numel() * one.element_size() for one in each)

    def counted(name: str, plain: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if counting[0]:
                sent[0] += RING[name] * whole(name, given, named) * (world.size - 1) / world.size
            return plain(*given, **named)

        return call

    for name in RING:
        setattr(dist, name, counted(name, getattr(dist, name)))
    # which DeepSpeed chose when the ranks met
    comm.cdb.all_gather_function = dist.all_gather_into_tensor
    comm.cdb.reduce_scatter_function = dist.reduce_scatter_tensor
    torch.manual_seed(0)
    module = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(NUM_LAYERS)))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": NUM_MICRO,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},  # needs no build
        "bf16": {"enabled": True},
    }
    engine, *_ = deepspeed.initialize(model=module, config=config)
    for step in range(2):
        counting[0] = step == 1
        for _ in range(NUM_MICRO):
            engine.backward(engine(torch.randn(1, WIDTH, dtype=torch.bfloat16)).float().square().mean())
            engine.step()
    counting[0] = False
    return sent[0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_arithmetic_is_what_engines_send(stage):
    num_parameters = NUM_LAYERS * (WIDTH * WIDTH + WIDTH)
    expected = sent_by_engine(num_parameters, stage=stage, item_bytes=2, num_ranks=2, num_micro=NUM_MICRO)
    for found in run_ranks(count_sent, 2, stage):
        assert found == pytest.approx(expected, rel=0.01)  # and a few numbers for norms and overflows
