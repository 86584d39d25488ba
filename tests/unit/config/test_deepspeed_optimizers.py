"""Optimizers and schedulers of a DeepSpeed JSON: the tables against the classes, and what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

from ted_ds.config.deepspeed import complete, inspect_deepspeed_json, remarks
from ted_ds.config.deepspeed_optimizers import (
    OTHER_OPTIMIZERS,
    PARAMETERS,
    SCHEDULERS,
    TESTED_OPTIMIZERS,
    UNSUPPORTED_PARAMETERS,
    UNTESTED_OF_TORCH,
    optimizer_class,
)
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.errors import ConfigError

CLASSES = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "torch.optim.Adam": torch.optim.Adam,
    "torch.optim.SGD": torch.optim.SGD,
    "torch.optim.Adagrad": torch.optim.Adagrad,
    "FusedAdam": FusedAdam,
    "DeepSpeedCPUAdam": DeepSpeedCPUAdam,
}
PLAN = PhasePlan(max_steps=100, learning_rate=5e-5, global_batch_size=32, micro_batch_size=4)
OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def problems(tmp_path: Path, config: dict[str, Any]) -> list[str]:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return [one.removeprefix(f"{path}: ") for one in inspect_deepspeed_json(path)[1]]


def completed(config: dict[str, Any], *, plan: PhasePlan = PLAN, on_gpu: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = {"precision": "fp32", "world_size": 2, "source": Path("zero.json"), "on_gpu": on_gpu}
    return complete(config, plan, plan_path="distill", **settings)


def names(given: Any) -> set[str]:
    return set(inspect.signature(given).parameters) - {"params", "model_params", "optimizer", "self"}


# --- the tables against the classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_of_an_optimizer_are_its_classs(name: str) -> None:
    own = names(CLASSES[name])
    assert own >= PARAMETERS[name]
    taken_out_by_deepspeed = {"adam_w_mode", "fp32_optimizer_states"}
    assert own <= PARAMETERS[name] | UNSUPPORTED_PARAMETERS | taken_out_by_deepspeed


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_parameters_of_a_scheduler_are_its_classs(name: str) -> None:
    assert names(getattr(lr_schedules, name)) == SCHEDULERS[name] | {"last_batch_iteration"}


def test_every_optimizer_that_deepspeed_or_torch_has_is_in_a_list() -> None:
    assert {name.lower() for name in (*TESTED_OPTIMIZERS, *OTHER_OPTIMIZERS)} == {*DEEPSPEED_OPTIMIZERS, "sgd"}
    of_torch = {name for name, one in vars(torch.optim).items() if inspect.isclass(one) and name != "Optimizer"}
    assert of_torch == {"Adam", "AdamW", "SGD", "Adagrad", "Muon", *UNTESTED_OF_TORCH}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AdamWW", "OneBitAdam", "ZeroOneAdam", "sgd", "Adm"])
def test_an_optimizer_that_does_not_exist_is_refused_as_deepspeed_would(tmp_path: Path, name: str) -> None:
    (found,) = problems(tmp_path, {"optimizer": {"type": name}})
    assert found.startswith(f"optimizer.type: {name!r}: {name} is not a supported DeepSpeed Optimizer; ")
    assert not hasattr(torch.optim, name)


@pytest.mark.parametrize("name", [*OTHER_OPTIMIZERS, *UNTESTED_OF_TORCH, "lamb", "MUON"])
def test_an_optimizer_whose_steps_no_test_compares_is_refused(tmp_path: Path, name: str) -> None:
    (found,) = problems(tmp_path, {"optimizer": {"type": name}})
    assert found.startswith(f"optimizer.type: {name!r}: ")
    assert "use AdamW, Adam, SGD or Adagrad" in found


@pytest.mark.parametrize("zero", [{"stage": 1}, {"stage": 3}, OFFLOAD])
def test_adagrad_is_refused_under_zero_where_deepspeed_fails_with_it(tmp_path: Path, zero: dict[str, Any]) -> None:
    (found,) = problems(tmp_path, {"optimizer": {"type": "Adagrad"}, "zero_optimization": zero})
    expected = "DeepSpeed fails with it under ZeRO; use AdamW, Adam or SGD, or stage 0"
    assert found == f"optimizer.type: 'Adagrad': {expected}"
    assert problems(tmp_path, {"optimizer": {"type": "Adagrad"}, "zero_optimization": {"stage": 0}}) == []


@pytest.mark.parametrize(("zero", "where"), [({"stage": 1}, "on GPUs"), (OFFLOAD, "offloaded")])
def test_deepspeeds_own_adam_is_said_to_be_untested(zero: dict[str, Any], where: str) -> None:
    config: dict[str, Any] = {"optimizer": {"type": "AdamW"}, "zero_optimization": zero}
    (line,) = remarks(config, {}, Path("zero.json"))
    assert line.startswith(f"zero.json: optimizer: {where} this is DeepSpeed's own Adam, whose steps no test of ted_ds")
    config["optimizer"]["params"] = {"lr": "auto", "torch_adam": True}
    assert remarks(config, {}, Path("zero.json")) == []


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "AdamW", "params": {"warmup": 3}}, "warmup: AdamW.__init__() got an unexpected keyword argument 'wa"),
        ({"type": "Adam", "params": {"beta": [0, 0]}}, "unexpected keyword argument 'beta'; did you mean 'betas'?"),
        ({"type": "SGD", "params": {"betas": "auto"}}, "unexpected keyword argument 'betas'; it takes dampening, for"),
        ({"type": "AdamW", "params": {"eps": "1e-8"}}, "optimizer.params.eps: '1e-8': use a number, 0 or more"),
        ({"type": "AdamW", "params": {"lr": True}}, "optimizer.params.lr: True: use a number, 0 or more"),
        (
            {"type": "AdamW", "params": {"betas": 0.9}},
            "optimizer.params.betas: 0.9: use two numbers, from 0 to below 1",
        ),
        ({"type": "AdamW", "params": {"torch_adam": 1}}, "optimizer.params.torch_adam: 1: use true or false"),
        ({"type": "AdamW", "params": {"max_grad_norm": 1}}, "max_grad_norm: not supported as an optimizer parameter"),
        ({"type": "SGD", "params": {"maximize": True}}, "optimizer.params.maximize: True: not supported by ted_ds"),
        ({"type": "SGD", "params": {"nesterov": True}}, "Nesterov momentum requires a momentum and zero dampening"),
        ({"type": "AdamW", "legacy_fusion": "no"}, "optimizer.legacy_fusion: 'no': use true or false"),
    ],
)
def test_a_parameter_that_is_wrong_is_refused(tmp_path: Path, optimizer: dict[str, Any], message: str) -> None:
    (found,) = problems(tmp_path, {"optimizer": optimizer})
    assert message in found


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "WarmupCosine"}, "DeepSpeed does not recognize LR scheduler WarmupCosine, or ted_ds does not suppor"),
        ({"type": "StepLR", "params": {"step_size": 3}}, "use WarmupLR, WarmupDecayLR, WarmupCosineLR or OneCycle; or"),
        ({"type": "LRRangeTest"}, "it would leave the recipe's learning_rate without effect"),
        (
            {"type": "WarmupLR", "params": {"total_num_steps": 9}},
            "got an unexpected keyword argument 'total_num_steps'",
        ),
        ({"type": "WarmupLR", "params": {"warmup_num_steps": 0}}, "warmup_num_steps: 0: must be a positive integer"),
        ({"type": "WarmupLR", "params": {"warmup_type": "cosine"}}, "warmup_type: 'cosine': use log or linear"),
        ({"type": "WarmupLR", "params": {"last_batch_iteration": 5}}, "last_batch_iteration: 5: use -1"),
        (
            {"type": "OneCycle", "params": {"cycle_min_lr": 0, "cycle_max_lr": "auto"}},
            "scheduler.params.cycle_momentum: betas are the recipe's, and OneCycle would change them; write false",
        ),
        ({"params": {}}, 'scheduler.type: required, e.g. "WarmupLR"; or remove the section'),
    ],
)
def test_a_scheduler_that_is_wrong_is_refused(tmp_path: Path, scheduler: dict[str, Any], message: str) -> None:
    (found,) = problems(tmp_path, {"scheduler": scheduler})
    assert message in found


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "zero", "expected"),
    [
        ({"type": "AdamW", "params": {"torch_adam": True}}, {}, "torch.optim.AdamW"),
        ({"type": "Adam", "params": {"torch_adam": True}}, {}, "torch.optim.AdamW"),
        ({"type": "Adam", "params": {"torch_adam": True, "adam_w_mode": False}}, {}, "torch.optim.Adam"),
        ({"type": "adam"}, {}, "FusedAdam"),
        ({"type": "AdamW"}, OFFLOAD, "DeepSpeedCPUAdam"),
        ({"type": "Adagrad"}, {}, "torch.optim.Adagrad"),
        ({"type": "SGD"}, OFFLOAD, "torch.optim.SGD"),
    ],
)
def test_the_class_follows_from_the_type_and_where_it_steps(
    optimizer: dict[str, Any], zero: dict[str, Any], expected: str
) -> None:
    assert optimizer_class({"optimizer": optimizer, "zero_optimization": zero}) == expected


def params(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    return completed(config, **options)["optimizer"]["params"]


def test_on_a_cpu_adamw_is_torchs_unless_the_json_says_otherwise() -> None:
    assert params({"optimizer": {"type": "AdamW"}})["torch_adam"] is True
    assert params({"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}})["torch_adam"] is False
    for own in ({"optimizer": {"type": "AdamW", "params": {"bias_correction": True}}}, {"zero_optimization": OFFLOAD}):
        assert "torch_adam" not in params({"optimizer": {"type": "AdamW"}, **own})


def test_on_a_gpu_torchs_adamw_is_fused_unless_the_json_says_how() -> None:
    own = {"type": "AdamW", "params": {"torch_adam": True}}
    assert params({"optimizer": own}, on_gpu=True)["fused"] is True
    assert "fused" not in params({"optimizer": own})
    for how in ({"foreach": True}, {"fused": False}):
        given = params({"optimizer": {"type": "AdamW", "params": {"torch_adam": True, **how}}}, on_gpu=True)
        assert {key: given.get(key) for key in how} == how
        assert given.get("fused") is not True
    assert "fused" not in params({"optimizer": {"type": "AdamW"}}, on_gpu=True)  # DeepSpeed's own is
    assert "fused" not in params({"optimizer": own, "zero_optimization": OFFLOAD}, on_gpu=True)


def test_deepspeeds_timer_which_waits_for_the_device_is_off_unless_the_json_wants_it() -> None:
    assert completed({"optimizer": {"type": "AdamW"}})["timers"] == {"throughput": {"enabled": False}}
    wanted = {"throughput": {"enabled": True, "synchronized": False}}
    assert completed({"optimizer": {"type": "AdamW"}, "timers": wanted})["timers"] == wanted


@pytest.mark.parametrize(("type_", "key"), [("SGD", "betas"), ("SGD", "eps"), ("Adagrad", "betas")])
def test_a_value_of_the_recipe_that_the_optimizer_does_not_know_is_refused(type_: str, key: str) -> None:
    plan = PLAN.model_copy(update={key: PLAN.eps if key == "eps" else PLAN.betas})
    with pytest.raises(ConfigError) as caught:
        completed({"optimizer": {"type": type_}}, plan=plan)
    assert str(caught.value) == f"distill.{key}: {type_} of zero.json does not use it; remove it"
    assert key not in params({"optimizer": {"type": type_}})


def test_every_optimizer_gets_the_recipes_values_and_not_its_own_defaults() -> None:
    assert params({"optimizer": {"type": "Adagrad"}}) == {"lr": 5e-5, "eps": 1e-8}


def test_sgd_under_zero_needs_no_word_more() -> None:
    sgd = {"optimizer": {"type": "SGD"}, "zero_optimization": {"stage": 2}}
    assert completed(sgd)["zero_allow_untested_optimizer"] is True
    with pytest.raises(ConfigError, match="zero_allow_untested_optimizer: False: DeepSpeed would refuse SGD"):
        completed({**sgd, "zero_allow_untested_optimizer": False})


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("WarmupLR", {"warmup_max_lr": 5e-5, "warmup_num_steps": 1}),
        ("WarmupDecayLR", {"warmup_max_lr": 5e-5, "warmup_num_steps": 1, "total_num_steps": 100}),
        ("WarmupCosineLR", {"warmup_num_steps": 1, "total_num_steps": 100}),
    ],
)
def test_a_scheduler_gets_the_recipes_values_where_it_says_nothing(type_: str, expected: dict[str, Any]) -> None:
    """DeepSpeed's own would be 1,000 steps of warm-up, and a rate of 0.001."""
    assert completed({"optimizer": {"type": "AdamW"}, "scheduler": {"type": type_}})["scheduler"]["params"] == expected


def test_onecycle_does_not_warm_up() -> None:
    cycle = {"cycle_min_lr": 0, "cycle_max_lr": "auto", "cycle_momentum": False}
    config = {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "OneCycle", "params": cycle}}
    assert completed(config)["scheduler"]["params"]["cycle_max_lr"] == 5e-5
    with pytest.raises(ConfigError, match="OneCycle of zero"):
        completed(config, plan=PLAN.model_copy(update={"warmup_steps": 10}))


def test_the_optimizer_that_the_json_leaves_open_is_said(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    config, _ = inspect_deepspeed_json(path)
    assert config is not None
    assert remarks(config, {"distill": PLAN}, path) == [
        f"optimizer: torch's AdamW with the recipe's values; {path} says no more"
    ]
