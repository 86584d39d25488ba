"""Steps that are computed twice: the same run to the last bit, and one flipped bit is noticed where it happened."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.errors import DeviceFaultError
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import write_models
from tests.distributed.training import NUM_STEPS, assembled, batches, config, start_engine

ENGINES = {
    "some": [(0, "fp32"), (2, "bf16"), (3, "fp32")],
    "others": [(1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")],
}
STEP = 2
"""The one in which a bit flips, counted from 1, while every step is computed twice."""
HURT = "model.layers.1.mlp.down_proj.weight"


def engine_of(world: Any, folder: Path, stage: int, precision: str, **settings: Any) -> tuple[Any, Any, Any]:
    ds_config = config(stage, world.size, 0.0, precision)
    module, objective, teacher = assembled(
        world, folder, "distill", "causal_lm", ds_config, sharded=stage == 3, precision=precision
    )
    for part in module.modules():  # what is drawn must be drawn again
        if isinstance(part, torch.nn.Module) and hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.2
    return start_engine(world, module, ds_config, precision=precision, **settings), objective, teacher


def trained(world: Any, folder: Path, stage: int, precision: str, every: int | None) -> tuple[Any, Any]:
    """The weights after all steps, and each one's report."""
    torch.manual_seed(world.rank)
    engine, objective, teacher = engine_of(world, folder, stage, precision, replay_every_steps=every)
    steps, reports = batches(world, "causal_lm"), []
    for number in range(NUM_STEPS):
        objective.watch(number != 1)
        engine.step(steps, objective)
        reports.append(engine.report(objective))
    weights = full_state_dict(engine.engine.module, keep=world.is_main)
    engine.release()
    teacher.release()
    return weights, reports


def flipped(world: Any, folder: Path, stage: int, precision: str, in_repetition: bool) -> str:
    """The error of ranks of which the second computes one bit wrongly, the first time or the second."""
    engine, objective, teacher = engine_of(world, folder, stage, precision, replay_every_steps=1)
    (parameter,) = (one for name, one in engine.engine.module.named_parameters() if name.endswith(HURT))
    steps, passes = batches(world, "causal_lm"), itertools.count()
    num_micro = 4 // world.size
    wrong = (2 * (STEP - 1) + in_repetition) * num_micro

    def flip(gradient: torch.Tensor) -> torch.Tensor:
        if next(passes) != wrong or world.rank != world.size - 1:
            return gradient
        bits = gradient.clone()
        words = bits.view(torch.int32 if bits.element_size() == 4 else torch.int16)
        words.view(-1)[3] ^= 1
        return bits

    # what backward is given of the parameter passes here before anything of ted_ds sees it
    hook = parameter.register_hook(flip)
    engine.step(steps, objective)
    with pytest.raises(DeviceFaultError) as caught:
        engine.step(steps, objective)
    hook.remove()
    engine.release()
    teacher.release()
    return str(caught.value)


def run_all(world: Any, folder: Path, engines: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for stage, precision in engines:
        for every in (None, 1, 2):
            found[stage, precision, every] = trained(world, folder, stage, precision, every)
        for in_repetition in (False, True):
            found[stage, precision, "flipped", in_repetition] = flipped(world, folder, stage, precision, in_repetition)
    return found


Found = tuple[list[tuple[int, str]], list[dict[Any, Any]]]


@pytest.fixture(scope="module", params=["some", pytest.param("others", marks=pytest.mark.slow)])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("replay")
    write_models(folder, "causal_lm")
    engines = ENGINES[request.param]
    return engines, run_ranks(run_all, 2, folder, engines)


def test_steps_that_are_computed_twice_are_the_same_steps(ran: Found) -> None:
    engines, found = ran
    for stage, precision in engines:
        weights, reports = found[0][stage, precision, None]
        for every in (1, 2):
            others, of_others = found[0][stage, precision, every]
            assert weights.keys() == others.keys()
            assert all(torch.equal(one, others[name]) for name, one in weights.items()), (stage, precision, every)
            assert reports == of_others, "what is looked at is looked at once"


@pytest.mark.parametrize("in_repetition", [False, True])
def test_one_bit_is_noticed_and_its_rank_is_named(ran: Found, in_repetition: bool) -> None:
    engines, found = ran
    for stage, precision in engines:
        texts = {of_rank[stage, precision, "flipped", in_repetition] for of_rank in found}
        assert len(texts) == 1, "all ranks end with the same words"
        (text,) = texts
        assert text.startswith("step 2: computed a second time, gradients are not the same bits (rank 1 on "), text
        assert f": 1 of 25 gradients, as of tapped.model.{HURT}; up to step 1 they were)" in text, text
