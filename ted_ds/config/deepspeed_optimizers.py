"""The optimizers and schedulers a DeepSpeed JSON may name, and their parameters.

Only optimizers whose steps are compared over ZeRO stages and ranks (``tests/distributed/test_optimizers.py``): one that
looks at a whole matrix (Muon, Lamb) sees a shard of it under ZeRO, and steps otherwise than on one rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

TYPED_SECTION_KEYS = ("type", "params", "legacy_fusion")
DEFAULT_OPTIMIZER: Mapping[str, Any] = {"type": "AdamW", "params": {"torch_adam": True}}
"""Where the JSON has none: what transformers takes then."""
TESTED_OPTIMIZERS = ("AdamW", "Adam", "SGD", "Adagrad", "Lion")
OTHER_OPTIMIZERS = ("Lamb", "Muon", "MuAdam", "MuAdamW", "MuSGD")
"""DeepSpeed has them too."""
PARAMETERS: Mapping[str, frozenset[str]] = {
    "torch.optim.AdamW": frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "fused"}),
    "torch.optim.Adam": frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "fused"}),
    "FusedAdam": frozenset({"lr", "bias_correction", "betas", "eps", "weight_decay", "set_grad_none"}),
    "DeepSpeedCPUAdam": frozenset({"lr", "bias_correction", "betas", "eps", "weight_decay"}),
    "torch.optim.SGD": frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov", "foreach", "fused"}),
    "torch.optim.Adagrad": frozenset(
        {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "foreach", "fused"}
    ),
    "DeepSpeedCPUAdagrad": frozenset({"lr", "eps", "weight_decay"}),
    "DeepSpeedCPULion": frozenset({"lr", "betas", "weight_decay"}),
}
"""By class; of what its constructor takes, what leaves the direction of a step to the recipe.
``tests/unit/test_deepspeed_optimizers.py`` holds it against the classes."""
ADAM_SWITCHES = frozenset({"torch_adam", "adam_w_mode", "fp32_optimizer_states"})
"""DeepSpeed takes these out of an Adam's parameters itself."""
SWITCHES_OF_OPTIMIZERS = ADAM_SWITCHES | {"amsgrad", "bias_correction", "foreach", "fused", "nesterov", "set_grad_none"}
SCHEDULERS: Mapping[str, frozenset[str]] = {
    "WarmupLR": frozenset({"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}),
    "WarmupDecayLR": frozenset(
        {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}
    ),
    "WarmupCosineLR": frozenset(
        {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type"}
    ),
    "OneCycle": frozenset(
        {
            "cycle_min_lr",
            "cycle_max_lr",
            "decay_lr_rate",
            "cycle_first_step_size",
            "cycle_second_step_size",
            "cycle_first_stair_count",
            "cycle_second_stair_count",
            "decay_step_size",
            "cycle_momentum",
            "cycle_min_mom",
            "cycle_max_mom",
            "decay_mom_rate",
        }
    ),
}
WARMUP_TYPES = ("log", "linear")


def optimizer_class(config: Mapping[str, Any]) -> str:
    """The class DeepSpeed will take for the ``optimizer`` section, one of :data:`PARAMETERS`."""
    section = config["optimizer"]
    name, parameters = section["type"].lower(), section.get("params") or {}
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    on_cpu = offload.get("device", "none") in ("cpu", "nvme")
    if name in ("adam", "adamw"):
        if parameters.get("torch_adam") is True:
            decoupled = name == "adamw" or parameters.get("adam_w_mode", True)
            return "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
        return "DeepSpeedCPUAdam" if on_cpu else "FusedAdam"
    if name == "adagrad":
        return "DeepSpeedCPUAdagrad" if on_cpu else "torch.optim.Adagrad"
    return "DeepSpeedCPULion" if name == "lion" else "torch.optim.SGD"


def check_typed_sections(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every mistake in ``optimizer`` and ``scheduler``, as the key's place and what is wrong with it."""
    for section in ("optimizer", "scheduler"):
        content = config.get(section)
        if not isinstance(content, dict):
            continue
        wrong = [*_check_form(content, section)]
        yield from wrong
        if not wrong:
            yield from _check_optimizer(config) if section == "optimizer" else _check_scheduler(content)


def _check_form(section: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    for key in section:
        if key not in TYPED_SECTION_KEYS:
            yield f"{name}.{key}", "unknown key; use type and params"
    if "type" not in section:
        example = {"optimizer": "AdamW", "scheduler": "WarmupLR"}[name]
        yield f"{name}.type", f'required, e.g. "{example}"; or remove the section'
    elif not isinstance(section["type"], str):
        yield f"{name}.type", f"{section['type']!r}: must be a name"
    if not isinstance(section.get("params", {}), dict):
        yield f"{name}.params", f"{section['params']!r}: must be a JSON object"
    if not isinstance(section.get("legacy_fusion", False), bool):
        yield f"{name}.legacy_fusion", f"{section['legacy_fusion']!r}: use true or false"


def _check_optimizer(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = config["optimizer"]["type"]
    by_lower_name = {one.lower(): one for one in (*TESTED_OPTIMIZERS, *OTHER_OPTIMIZERS)}
    known = by_lower_name.get(name.lower())
    if known == "SGD" and name != known:  # torch's own, by its exact name
        known = None
    place, choice = "optimizer.type", f"use {', '.join(TESTED_OPTIMIZERS[:-1])} or {TESTED_OPTIMIZERS[-1]}"
    if known is None:
        close = difflib.get_close_matches(name, TESTED_OPTIMIZERS, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]!r}?" if close else choice
        yield (
            place,
            f"{name!r}: DeepSpeed: module 'torch.optim' has no attribute {name!r}, or ted_ds does not know it; {hint}",
        )
        return
    if known in OTHER_OPTIMIZERS:
        yield (
            place,
            f"{name!r}: its steps depend on how weights are sharded over ranks (or no test says that they do not); "
            f"{choice}",
        )
        return
    if known == "Lion" and optimizer_class(config) == "DeepSpeedCPULion" and not _offloads(config):
        yield (
            place,
            f"{name!r}: DeepSpeed's FusedLion is compiled for GPUs and is not tested here; set "
            'zero_optimization.offload_optimizer.device to "cpu" for its Lion on the CPU, or '
            f"{choice.replace(' or Lion', '').replace('SGD, Adagrad', 'SGD or Adagrad')}",
        )
    yield from _check_parameters(config["optimizer"].get("params", {}), optimizer_class(config))


def _offloads(config: Mapping[str, Any]) -> bool:
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return offload.get("device", "none") in ("cpu", "nvme")


def _check_parameters(parameters: Mapping[str, Any], owner: str) -> Iterator[tuple[str, str]]:
    adam = "Adam" in owner
    known = PARAMETERS[owner] | (ADAM_SWITCHES if adam else frozenset())
    for key, value in parameters.items():
        place = f"optimizer.params.{key}"
        if key == "max_grad_norm":
            yield place, "DeepSpeed does not take it here; gradient_clipping of the recipe does it: remove it"
        elif key == "amsgrad" and value is False:
            continue
        elif key not in known:
            yield (
                place,
                (
                    f"DeepSpeed: {owner.rpartition('.')[2]}.__init__() got an unexpected keyword argument {key!r}, or "
                    f"ted_ds does not support it; {_nearest(key, known)}"
                ),
            )
        elif value == "auto":
            continue
        elif key in SWITCHES_OF_OPTIMIZERS:
            if not isinstance(value, bool):
                yield place, f"{value!r}: use true or false"
        elif key == "betas":
            if not (
                isinstance(value, list) and len(value) == 2 and all(_is_number(one) and 0 <= one < 1 for one in value)
            ):
                yield place, f"{value!r}: use two numbers, from 0 to below 1"
        elif not _is_number(value) or value < 0:
            yield place, f"{value!r}: use a number, 0 or more"
    if parameters.get("nesterov") is True and (not parameters.get("momentum") or parameters.get("dampening")):
        yield "optimizer.params.nesterov", "True: Nesterov momentum requires a momentum and zero dampening"


def _check_scheduler(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, parameters = section["type"], section.get("params", {})
    if name not in SCHEDULERS:
        names = [*SCHEDULERS]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(names[:-1])} or {names[-1]}"
        known = (
            "it leaves the recipe's learning_rate without effect"
            if name == "LRRangeTest"
            else (f"DeepSpeed does not recognize LR scheduler {name}, or ted_ds does not support it")
        )
        yield "scheduler.type", f"{name!r}: {known}; {hint}, or remove the section and use schedule of the recipe"
        return
    for key, value in parameters.items():
        place = f"scheduler.params.{key}"
        if key not in SCHEDULERS[name]:
            yield (
                place,
                (
                    f"DeepSpeed: {name}.__init__() got an unexpected keyword argument {key!r}, or ted_ds does not "
                    f"support it; {_nearest(key, SCHEDULERS[name])}"
                ),
            )
        elif value == "auto" or value is None:
            continue
        elif key == "warmup_type":
            if value not in WARMUP_TYPES:
                yield place, f"{value!r}: use {' or '.join(WARMUP_TYPES)}"
        elif key == "cycle_momentum":
            if not isinstance(value, bool):
                yield place, f"{value!r}: use true or false"
        elif key == "warmup_num_steps" and not (type(value) is int and value > 0):
            yield place, f"warmup_num_steps must be a positive integer, got {value!r}"
        elif not _is_number(value) or value < 0:
            yield place, f"{value!r}: use a number, 0 or more"
    if name == "OneCycle":
        if parameters.get("cycle_momentum") is not False:
            yield (
                "scheduler.params.cycle_momentum",
                "betas are the recipe's, and OneCycle would change them; set it to false",
            )
        for key in ("cycle_min_lr", "cycle_max_lr"):
            if key not in parameters:
                yield f"scheduler.params.{key}", "OneCycle requires it"


def _nearest(key: str, known: frozenset[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(known))}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
