"""What the sections of a DeepSpeed JSON may say here, beside ``optimizer`` and ``scheduler``.

DeepSpeed ignores an unknown top-level key without a word (``gradient_cliping`` trains unclipped), looks at most other
sections only when its engine starts, and offers much that would change a step behind the recipe's back. So there are
tables of what must keep its value, and of what is known to give the same step on any number of ranks; the rest is
allowed, and said.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ted_ds.config.deepspeed_files import check_places_to_write
from ted_ds.config.deepspeed_keys import (
    BUCKET,
    COUNT,
    NAMES,
    NUMBER,
    OFFLOAD_PARTS,
    REMOVED,
    RULES,
    SECTION,
    SWITCH,
    TEXT,
    TYPES,
    offload_device,
    zero_stage,
)
from ted_ds.config.finite_number import is_finite_number
from ted_ds.config.nearest import nearest

_WHOLE = "not supported by ted_ds"
_ELSEWHERE = "not supported by ted_ds, which saves and loads in its own way"
_DIVISION = "ted_ds divides each loss once by its global count, which this would undo"
_PRECISION = "only precision in the recipe says what is computed in which numbers"
_LOSSY = "it sends or keeps rounded numbers, so a step would depend on the number of ranks"
_ALIEN = "it has no effect on how ted_ds runs a step"
OLD_NAMES: Mapping[str, str] = {"aio.thread_count": "intra_op_parallelism"}
"""What DeepSpeed no longer calls so, and its name now."""
MUST_BE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "autotuning.enabled": ((False,), _WHOLE),
    "compile.deepcompile": ((False,), _WHOLE + "; the recipe has torch_compile"),
    "data_efficiency.enabled": ((False,), _WHOLE + ", whose recipe names the data"),
    "zero_optimization.elastic_checkpoint": ((False,), _ELSEWHERE),
    "zero_optimization.load_from_fp32_weights": ((True,), _ELSEWHERE),
    "zero_optimization.pipeline_loading_checkpoint": ((False,), _ELSEWHERE),
    "zero_optimization.cpu_offload": ((False,), 'its old name; write "offload_optimizer": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_param": ((False,), 'its old name; write "offload_param": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_use_pin_memory": ((False,), "its old name; write pin_memory where it is offloaded"),
    "zero_optimization.legacy_stage1": ((False,), "DeepSpeed ignores it; ZeRO-1 has one implementation"),
    "zero_optimization.zenflow": ((None,), "it takes parts of a step later, on the CPU"),
    "zero_optimization.zero_hpz_partition_size": ((0, 1), "weights would be sharded over other ranks than the rest"),
    "zero_optimization.zero_quantized_weights": ((False,), _LOSSY),
    "zero_optimization.zero_quantized_nontrainable_weights": ((False,), _LOSSY + "; the recipe has teacher.host: int8"),
    "zero_optimization.zero_quantized_gradients": ((False,), _LOSSY),
    "gradient_predivide_factor": ((1,), _DIVISION),
    "prescale_gradients": ((False,), _DIVISION),
    "gradient_allreduce_op": (("mean",), _DIVISION),
    "communication_data_type": ((None, "fp32"), _LOSSY),
    "data_types.grad_accum_dtype": (
        (None, "fp32"),
        "a step's gradient is summed in fp32: other types lose small parts",
    ),
    "data_types.param_dtype": ((None,), _PRECISION),
    "data_types.buffer_dtype": ((None,), _PRECISION),
    "data_types.keep_in_fp32_modules": ((None,), _PRECISION),
    "torch_autocast.enabled": ((False,), f"contradicts the recipe's precision: {_PRECISION}"),
    "bf16.bf16_master_weights_and_grads": ((False,), _LOSSY),
    "bf16.bf16_optimizer_states": ((False,), _LOSSY),
    "fp16.fp16_master_weights_and_grads": ((False,), _LOSSY),
    "fp16.auto_cast": ((False,), _PRECISION),
    "activation_checkpointing.partition_activations": ((False,), _ALIEN + "; the recipe has activation_checkpointing"),
    "activation_checkpointing.cpu_checkpointing": ((False,), _ALIEN + "; the recipe has activation_checkpointing"),
    "activation_checkpointing.contiguous_memory_optimization": (
        (False,),
        _ALIEN + "; the recipe has activation_checkpointing",
    ),
    "dataloader_drop_last": ((False,), _ALIEN),
    "disable_allgather": ((False,), _ALIEN),
    "use_data_before_expert_parallelism": ((False,), _ALIEN),
    "wandb.enabled": ((False,), "the recipe's tracking section decides what goes to W&B"),
}
"""What these may say, by their place, and why: all else would break a promise, or switch a second time what the recipe
owns."""
REFUSED = frozenset(
    """
    checkpoint expert_parallel hybrid_engine managed_gradient_accumulation pipeline
    seq_parallel_communication_data_type sequence_parallel_size tensor_parallel weight_quantization
    """.split()  # noqa: SIM905 - a table of quoted strings hides what it holds
)
"""Known to DeepSpeed, but they change who holds which data or how a step runs, which is not ours to ignore."""
SWITCHED_OFF = ("autotuning", "compile", "data_efficiency")
"""Sections that are refused unless their one switch says no."""
UNTESTED: Mapping[str, Any] = {
    "bf16.check_grad_overflow": True,
    "bf16.immediate_grad_update": False,
    "fp16.consecutive_hysteresis": False,
    "zero_optimization.allgather_partitions": True,
    "zero_optimization.compute_grad_norm": True,
    "zero_optimization.ignore_unused_parameters": True,
    "zero_optimization.leaf_module": {},
    "zero_optimization.memory_efficient_linear": True,
    "zero_optimization.override_module_apply": True,
    "zero_optimization.parameter_alignment": False,
    "zero_optimization.reduce_scatter": True,
    "zero_optimization.round_robin_gradients": False,
    "zero_optimization.stage3_allgather_sequential": False,
    "zero_optimization.stage3_module_granularity_threshold": 0,
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": False,
    "zero_optimization.use_multi_rank_bucket_allreduce": True,
    "zero_optimization.offload_optimizer.device": ("none", "cpu"),
    "zero_optimization.offload_optimizer.pipeline_read": False,
    "zero_optimization.offload_optimizer.pipeline_write": False,
    "zero_optimization.offload_optimizer.ratio": 1,
    "zero_optimization.offload_optimizer.super_offload": False,
    "zero_optimization.offload_param.device": ("none", "cpu"),
}
"""Harmless by what DeepSpeed says of them, but no test of ted_ds compares steps with other values than these."""
BOUNDS: Mapping[str, tuple[float, float, str]] = {
    "fp16.loss_scale": (0, math.inf, "use a number, 0 or more; 0 lets DeepSpeed find it"),
    "fp16.initial_scale_power": (0, 32, "use a whole number from 0 to 32: it is a power of 2"),
    "zero_optimization.offload_optimizer.ratio": (0, 1, "use a number from 0 to 1"),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": (0, 1, "use a number from 0 to 1"),
    "flops_profiler.recompute_fwd_factor": (0, math.inf, "use a number, 0 or more"),
}
"""The least and the most that numbers may be, beside their type, and the rule in words."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
NEVER_PRINT = ("steps_per_print", math.inf)
"""As accelerate writes it."""
OFFLOAD_DEVICES = ("none", "cpu", "nvme")
MONITORS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "comet": ("comet_ml", '"comet_ml>=3.41.0"'),
}
"""The module each of DeepSpeed's monitors needs, and what pip calls it."""


def check_sections(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every mistake in the sections, as the key's place and what is wrong with it."""
    yield from _check_keys(config, "")
    yield from _check_offload(config)
    yield from check_places_to_write(config)
    for section, (module, package) in MONITORS.items():
        if switched_on(config.get(section)) and importlib.util.find_spec(module) is None:
            wish = f"If you want to use {section} logging, please `pip install {package}`"
            yield f"{section}.enabled", f"True: {wish}; or switch it off"
    comet = config.get("comet")
    if isinstance(comet, dict) and "api_key" in comet:
        yield "comet.api_key", "secrets do not belong into files; set $COMET_API_KEY and remove it"


def switched_on(section: Any) -> bool:
    """Whether a section says ``"enabled": true``."""
    return isinstance(section, dict) and section.get("enabled") is True


def _check_keys(node: Mapping[str, Any], section: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        place = f"{section}.{key}".lstrip(".")
        kind = TYPES[section].get(key)
        if place in REMOVED:
            yield place, f"DeepSpeed no longer has it: {REMOVED[place]!r}; remove it"
        elif kind is None:
            yield place, f"unknown key{_hint(key, section)}"
            if section not in ("", key) and key in TYPES and isinstance(value, dict):
                yield from _check_keys(value, key)  # as it will be where it belongs
        elif place in REFUSED:
            yield place, f"{_WHOLE}; remove it"
        elif place in MUST_BE and not _among(value, MUST_BE[place][0]):
            yield place, f"{value!r}: {_must_be(place)}"
        elif value is None or (place, value) == NEVER_PRINT:
            continue
        elif value == "auto":
            if kind == SECTION:
                yield place, f"{value!r}: {RULES[kind]}"
        elif not HOLDS[kind](value):
            rule = RULES[kind] if place != "zero_optimization.stage" else "use 0, 1, 2 or 3"
            yield place, f"{value!r}: {rule}"
        elif place in BOUNDS and not BOUNDS[place][0] <= value <= BOUNDS[place][1]:
            yield place, f"{value!r}: {BOUNDS[place][2]}"
        elif place in SWITCHED_OFF:
            yield from _check_switched_off(value, place)
        elif place == "log_level" and str(value).lower() not in LOG_LEVELS:
            yield place, f"{value!r}: is not one of the valid logging levels; use {', '.join(LOG_LEVELS)}"
        elif place == "zero_optimization.stage" and value not in (0, 1, 2, 3):
            yield place, f"{value!r}: use 0, 1, 2 or 3"
        elif place in TYPES and isinstance(value, dict):
            yield from _check_keys(value, place)


def _must_be(place: str) -> str:
    why = MUST_BE[place][1]
    return why if "; write " in why else f"{why}; remove it"  # its new name is what to do


def _check_switched_off(section: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    switches = [name for name in section if f"{place}.{name}" in MUST_BE]
    if not switches:
        yield place, f"{_WHOLE}; remove it"
    for name in switches:
        allowed, why = MUST_BE[f"{place}.{name}"]
        if not _among(section[name], allowed):
            yield f"{place}.{name}", f"{section[name]!r}: {why}; remove it"


def _among(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a value is one of those, ``"auto"`` included; 1 is not true, and words have no case."""
    if value == "auto":
        return bool(allowed)
    if isinstance(value, str):
        value = value.lower()
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def _check_offload(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        return
    for part in OFFLOAD_PARTS:
        section, place = zero.get(part), f"zero_optimization.{part}"
        if not isinstance(section, dict):
            continue
        device, stage = offload_device(config, part), zero_stage(config)
        has_stage = stage in (0, 1, 2, 3) and not isinstance(stage, bool)  # another one is said by itself
        if device not in (*OFFLOAD_DEVICES, "auto"):
            yield f"{place}.device", f"{device!r}: use {', '.join(OFFLOAD_DEVICES[:-1])} or {OFFLOAD_DEVICES[-1]}"
        elif device == "nvme" and section.get("nvme_path") in (None, "", "none"):
            yield (
                f"{place}.nvme_path",
                '"nvme_path" in DeepSpeed Config cannot be None if remote device is nvme; give a folder on a fast disk '
                "of each node",
            )
        if has_stage and part == "offload_param" and device in ("cpu", "nvme") and stage != 3:
            yield place, f"{device!r} is for ZeRO stage 3 alone, and this is {stage!r}; remove it"
        if has_stage and part == "offload_optimizer" and device in ("cpu", "nvme") and not stage:
            yield place, f"{device!r} is for ZeRO stages 1 to 3; set zero_optimization.stage"


def untested(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config whose steps no test compares over ranks and ZeRO stages, by their place."""
    found = ((place, value, UNTESTED[place]) for place, value in _places(config) if place in UNTESTED)
    return sorted(
        place
        for place, value, tested in found
        if value not in ("auto", *(tested if isinstance(tested, tuple) else (tested,)))
    )


def _places(node: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        place = f"{section}.{key}".lstrip(".")
        yield place, value
        if isinstance(value, dict):
            yield from _places(value, place)


HOLDS: Mapping[str, Callable[[Any], bool]] = {
    SWITCH: lambda value: isinstance(value, bool),
    COUNT: lambda value: is_finite_number(value) and value >= 0 and value == int(value),  # 5e8 is one
    BUCKET: lambda value: HOLDS[COUNT](value) and value > 0,
    NUMBER: is_finite_number,
    TEXT: lambda value: isinstance(value, str),
    NAMES: lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    SECTION: lambda value: isinstance(value, dict),
}


def _hint(key: str, section: str) -> str:
    if not key:
        return ": it is empty; remove it"
    if key.startswith(("_", "//", "#")):
        return ": JSON has no comments; remove it"
    renamed = OLD_NAMES.get(f"{section}.{key}")
    if renamed:
        return f": DeepSpeed's old name; write {renamed}"
    owners = [owner for owner, keys in TYPES.items() if owner != section and key in keys]
    if "" in owners:
        return ": it belongs to the top level"
    found = nearest(key, TYPES[section])
    if found:
        return f"; did you mean {found}?"
    if len(owners) == 1:
        return f": it belongs into {owners[0]}"
    return " (DeepSpeed would ignore it silently); remove it" if not section else f" of {section}; remove it"
