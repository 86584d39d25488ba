"""What may stand in a DeepSpeed JSON beside ``optimizer`` and ``scheduler``: keys, types, and what they may say here.

DeepSpeed ignores an unknown top-level key without a word (``gradient_cliping`` trains unclipped), looks at most other
sections only when its engine starts, and offers much that would change a step behind the recipe's back. So three
tables: what there is, by type (``tests/unit/test_deepspeed_sections.py`` holds them against DeepSpeed's source); what
must keep its value; and what is known to give the same step on any number of ranks. The rest is allowed, and said.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SWITCH, COUNT, NUMBER, TEXT, NAMES, SECTION = "switch", "count", "number", "text", "names", "section"
RULES = {
    SWITCH: "use true or false",
    COUNT: "use a whole number, 0 or more",
    NUMBER: "use a number",
    TEXT: "use a text",
    NAMES: "use a list of names",
    SECTION: "this section is a JSON object",
}
KEYS: Mapping[str, Mapping[str, str]] = {
    "": {
        COUNT: "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps",
        NUMBER: "gradient_clipping gradient_predivide_factor steps_per_print",
        SWITCH: "dataloader_drop_last disable_allgather disable_python_gc dump_state memory_breakdown "
        "prescale_gradients use_data_before_expert_parallelism wall_clock_breakdown zero_allow_untested_optimizer "
        "zero_force_ds_cpu_optimizer",
        TEXT: "communication_data_type gradient_allreduce_op log_level",
        SECTION: "activation_checkpointing aio autotuning bf16 checkpoint comet comms_logger compile csv_monitor "
        "data_efficiency data_types flops_profiler fp16 optimizer pipeline scheduler tensor_parallel tensorboard "
        "timers torch_autocast wandb weight_quantization zero_optimization",
    },
    "zero_optimization": {
        COUNT: "stage reduce_bucket_size allgather_bucket_size sub_group_size stage3_prefetch_bucket_size "
        "stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters "
        "stage3_max_reuse_distance stage3_module_granularity_threshold zero_hpz_partition_size prefetch_bucket_size "
        "param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance "
        "module_granularity_threshold",
        SWITCH: "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions "
        "overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint cpu_offload cpu_offload_param "
        "cpu_offload_use_pin_memory stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save "
        "stage3_gather_fp16_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
        "use_all_reduce_for_fetch_params stage3_allgather_sequential allgather_sequential ignore_unused_parameters "
        "legacy_stage1 round_robin_gradients parameter_alignment zero_quantized_weights "
        "zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear "
        "pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks "
        "save_muon_momentum_buffer_in_memory",
        SECTION: "offload_param offload_optimizer zenflow leaf_module",
    },
    "zero_optimization.offload_param": {
        TEXT: "device nvme_path",
        COUNT: "buffer_count buffer_size max_in_cpu",
        SWITCH: "pin_memory",
    },
    "zero_optimization.offload_optimizer": {
        TEXT: "device nvme_path",
        COUNT: "buffer_count",
        SWITCH: "pin_memory pipeline_read pipeline_write fast_init super_offload",
        NUMBER: "ratio cpuadam_cores_perc",
    },
    "bf16": {
        SWITCH: "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"
    },
    "fp16": {
        SWITCH: "enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads",
        NUMBER: "loss_scale",
        COUNT: "initial_scale_power loss_scale_window hysteresis min_loss_scale",
    },
    "torch_autocast": {SWITCH: "enabled", TEXT: "dtype", NAMES: "lower_precision_safe_modules"},
    "data_types": {TEXT: "grad_accum_dtype param_dtype buffer_dtype", NAMES: "keep_in_fp32_modules"},
    "activation_checkpointing": {
        SWITCH: "partition_activations contiguous_memory_optimization cpu_checkpointing profile "
        "synchronize_checkpoint_boundary",
        COUNT: "number_checkpoints",
    },
    "aio": {
        COUNT: "block_size queue_depth intra_op_parallelism",
        SWITCH: "single_submit overlap_events use_gds",
    },
    "comms_logger": {SWITCH: "enabled prof_all verbose debug", NAMES: "prof_ops"},
    "flops_profiler": {
        SWITCH: "enabled detailed",
        NUMBER: "recompute_fwd_factor module_depth",
        COUNT: "profile_step top_modules",
        TEXT: "output_file",
    },
    "timers": {SECTION: "throughput"},
    "timers.throughput": {SWITCH: "enabled synchronized"},
    "tensorboard": {SWITCH: "enabled", TEXT: "output_path job_name"},
    "csv_monitor": {SWITCH: "enabled", TEXT: "output_path job_name"},
    "wandb": {SWITCH: "enabled", TEXT: "group team project"},
    "comet": {
        SWITCH: "enabled online",
        COUNT: "samples_log_interval",
        TEXT: "project workspace api_key experiment_name experiment_key mode",
    },
}
"""The keys of each section, by type. Sections that are refused as a whole have none here."""
TYPES: Mapping[str, Mapping[str, str]] = {
    section: {key: kind for kind, keys in by_type.items() for key in keys.split()} for section, by_type in KEYS.items()
}
KNOWN_TOP_LEVEL_KEYS = frozenset(TYPES[""])
REMOVED: Mapping[str, str] = {
    "amp": "NVIDIA Apex AMP integration has been removed",
    "compression_training": "The DeepSpeed compression library has been removed",
    "curriculum_learning": "Legacy top-level 'curriculum_learning' has been removed",
    "eigenvalue": "Eigenvalue-based Mixture-of-Quantization (MoQ) has been removed",
    "elasticity": "Elastic training has been removed",
    "graph_harvesting": "Graph harvesting has been removed",
    "nebula": "Nebula checkpointing has been removed",
    "progressive_layer_drop": "Progressive Layer Dropping has been removed",
    "quantize_training": "Mixture-of-Quantization (MoQ) / 'quantize_training' has been removed",
    "sparse_attention": "DeepSpeed Sparse Attention has been removed",
    "sparse_gradients": "Sparse compression of dense torch.nn.Embedding gradients has been removed",
    "zero_optimization.mics_hierarchical_params_gather": "MiCS ZeRO-3 sharding has been removed",
    "zero_optimization.mics_shard_size": "MiCS ZeRO-3 sharding has been removed",
    "zero_optimization.zeropp_loco_param": "LoCo-Zero++ has been removed",
}
"""What DeepSpeed 0.19 no longer has, in its own words."""

_WHOLE = "not supported by ted_ds"
_ELSEWHERE = "not supported by ted_ds, which saves and loads in its own way"
_DIVISION = "ted_ds divides each loss once by its global count, which this would undo"
_PRECISION = "the recipe's precision decides what is computed in which numbers"
_LOSSY = "it sends or keeps rounded numbers, so a step would depend on the number of ranks"
_ALIEN = "it has no effect on how ted_ds runs a step"
MUST_BE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "autotuning.enabled": ((False,), _WHOLE),
    "compile.deepcompile": ((False,), _WHOLE + "; the recipe has torch_compile"),
    "data_efficiency.enabled": ((False,), _WHOLE + ", whose recipe names the data"),
    "zero_optimization.elastic_checkpoint": ((), _ELSEWHERE),
    "zero_optimization.load_from_fp32_weights": ((), _ELSEWHERE),
    "zero_optimization.pipeline_loading_checkpoint": ((), _ELSEWHERE),
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
    "torch_autocast.enabled": ((False,), f"contradicts the recipe: {_PRECISION}"),
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
REFUSED_SECTIONS = ("checkpoint", "pipeline", "tensor_parallel", "weight_quantization")
SWITCHED_OFF = ("autotuning", "compile", "data_efficiency")
"""Sections that are refused unless their one switch says no."""
UNTESTED = frozenset(
    """
    aio fp16.hysteresis fp16.consecutive_hysteresis bf16.immediate_grad_update
    zero_optimization.use_multi_rank_bucket_allreduce zero_optimization.allgather_partitions
    zero_optimization.reduce_scatter zero_optimization.ignore_unused_parameters
    zero_optimization.round_robin_gradients zero_optimization.parameter_alignment
    zero_optimization.stage3_module_granularity_threshold zero_optimization.module_granularity_threshold
    zero_optimization.stage3_use_all_reduce_for_fetch_params zero_optimization.use_all_reduce_for_fetch_params
    zero_optimization.stage3_allgather_sequential zero_optimization.allgather_sequential
    zero_optimization.override_module_apply zero_optimization.enable_sanity_checks zero_optimization.leaf_module
    zero_optimization.offload_optimizer.ratio zero_optimization.offload_optimizer.super_offload
    zero_optimization.offload_optimizer.pipeline_read zero_optimization.offload_optimizer.pipeline_write
    """.split()  # noqa: SIM905 - a table of quoted strings hides what it holds
)
"""Harmless by what DeepSpeed says of them, but no test of ted_ds compares their steps."""
OFFLOAD_DEVICES = ("none", "cpu", "nvme")
MONITORS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "comet": ("comet_ml", 'comet_ml>=3.41.0"'),
}
"""The module each of DeepSpeed's monitors needs, and what pip calls it."""


def check_sections(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every mistake in the sections, as the key's place and what is wrong with it."""
    yield from _check_keys(config, "")
    yield from _check_offload(config)
    for section, (module, package) in MONITORS.items():
        if switched_on(config.get(section)) and importlib.util.find_spec(module) is None:
            yield f"{section}.enabled", f"True: {package} is not installed; `pip install {package}`, or switch it off"
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
            yield place, f"unknown key{_nearest(key, section)}"
        elif place in REFUSED_SECTIONS:
            yield place, f"{_WHOLE}; remove it"
        elif place in MUST_BE and not _among(value, MUST_BE[place][0]):
            yield place, f"{value!r}: {MUST_BE[place][1]}; remove it"
        elif value == "auto" or value is None:
            continue
        elif not HOLDS[kind](value):
            rule = RULES[kind] if place != "zero_optimization.stage" else "use 0, 1, 2 or 3"
            yield place, f"{value!r}: {rule}"
        elif place in SWITCHED_OFF:
            yield from _check_switched_off(value, place)
        elif place == "zero_optimization.stage" and value not in (0, 1, 2, 3):
            yield place, f"{value!r}: use 0, 1, 2 or 3"
        elif place in TYPES:
            yield from _check_keys(value, place)


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
    for part in ("offload_param", "offload_optimizer"):
        section, place = zero.get(part), f"zero_optimization.{part}"
        if not isinstance(section, dict):
            continue
        device = section.get("device", "none")
        if device not in (*OFFLOAD_DEVICES, "auto"):
            yield f"{place}.device", f"{device!r}: use {', '.join(OFFLOAD_DEVICES[:-1])} or {OFFLOAD_DEVICES[-1]}"
        elif device == "nvme" and section.get("nvme_path") in (None, "", "none"):
            yield (
                f"{place}.nvme_path",
                '"nvme_path" in DeepSpeed Config cannot be None if remote device is nvme; give a folder on a fast disk '
                "of each node",
            )
        if part == "offload_param" and device in ("cpu", "nvme") and zero.get("stage") != 3:
            yield place, f"{device!r} is for ZeRO stage 3 alone, and this is {zero.get('stage', 0)!r}; remove it"
        if part == "offload_optimizer" and device in ("cpu", "nvme") and not zero.get("stage"):
            yield place, f"{device!r} is for ZeRO stages 1 to 3; set zero_optimization.stage"


def untested(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config whose steps no test compares over ranks and ZeRO stages, by their place."""
    return sorted(place for place, value in _places(config) if place in UNTESTED and value is not None)


def _places(node: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        place = f"{section}.{key}".lstrip(".")
        yield place, value
        if isinstance(value, dict):
            yield from _places(value, place)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


HOLDS: Mapping[str, Callable[[Any], bool]] = {
    SWITCH: lambda value: isinstance(value, bool),
    COUNT: lambda value: _is_number(value) and value >= 0 and value == int(value),  # 5e8 is one
    NUMBER: _is_number,
    TEXT: lambda value: isinstance(value, str),
    NAMES: lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    SECTION: lambda value: isinstance(value, dict),
}


def _nearest(key: str, section: str) -> str:
    close = difflib.get_close_matches(key, TYPES[section], n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]!r}?"
    return " (DeepSpeed would ignore it silently); remove it" if not section else f" of {section}; remove it"
