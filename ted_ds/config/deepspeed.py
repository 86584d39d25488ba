"""The DeepSpeed JSON: read, checked, and completed with the values the recipe owns.

DeepSpeed ignores unknown top-level keys without a word (``gradient_cliping`` trains unclipped), so they are refused
here, as are those of ``optimizer`` and ``scheduler``. Keys of the other sections are checked by DeepSpeed itself when
its engine starts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.errors import raise_all

# What DeepSpeed 0.19 reads at the top level; tests/unit/test_deepspeed_config.py holds it against its source.
KNOWN_TOP_LEVEL_KEYS = frozenset(
    """
    activation_checkpointing aio autotuning bf16 checkpoint comet comms_logger communication_data_type
    compile csv_monitor data_efficiency data_types dataloader_drop_last disable_allgather disable_python_gc
    dump_state flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
    gradient_predivide_factor log_level memory_breakdown optimizer pipeline prescale_gradients scheduler
    steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
    train_micro_batch_size_per_gpu use_data_before_expert_parallelism wall_clock_breakdown wandb
    weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """.split()  # noqa: SIM905 - a table of 40 quoted strings hides what it holds
)
TYPED_SECTION_KEYS = ("type", "params", "legacy_fusion")
SECTIONS = ("bf16", "fp16", "optimizer", "scheduler", "zero_optimization")
# Known to DeepSpeed, but they change who holds which data or how a step runs, which is not ours to ignore.
UNSUPPORTED_KEYS = frozenset({"autotuning", "checkpoint", "data_efficiency", "pipeline", "tensor_parallel"})
# ted_ds writes checkpoints in its own way, which these would change behind its back.
UNSUPPORTED_ZERO_KEYS = frozenset({"elastic_checkpoint", "load_from_fp32_weights", "pipeline_loading_checkpoint"})


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """Read the JSON and check what can be checked without the recipe.

    Raises:
        ConfigError: Unreadable, or it has unknown top-level keys, no optimizer, or values that ted_ds cannot honour.
    """
    if not path.is_file():
        raise_all([f"{path}: no such DeepSpeed config; those that ship are in ds_configs/deepspeed"])
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        config = None
        raise_all([f"{path}: not readable as JSON: {error}"])
    if not isinstance(config, dict):
        raise_all([f"{path}: a DeepSpeed config is a JSON object, this is {type(config).__name__}"])
        raise AssertionError("raise_all raised")
    messages = [f"{path}: {key}: unknown key{_hint(key)}" for key in config if key not in KNOWN_TOP_LEVEL_KEYS]
    messages += [
        f"{path}: {key}: not supported by ted_ds; remove it" for key in sorted(UNSUPPORTED_KEYS & config.keys())
    ]
    if isinstance(config.get("zero_optimization"), dict):
        messages += [
            f"{path}: zero_optimization.{key}: not supported by ted_ds, which saves and loads in its own way; remove it"
            for key in sorted(UNSUPPORTED_ZERO_KEYS & config["zero_optimization"].keys())
        ]
    if isinstance(config.get("comet"), dict) and "api_key" in config["comet"]:
        messages.append(f"{path}: comet.api_key: secrets do not belong into files; set $COMET_API_KEY and remove it")
    if str(config.get("gradient_allreduce_op")).lower() == "sum":
        messages.append(
            f"{path}: gradient_allreduce_op: {config['gradient_allreduce_op']!r}: ted_ds divides each loss once by its "
            "global count, which this would undo; remove it"
        )
    wrong = [key for key in SECTIONS if not isinstance(config.get(key, {}), dict)]
    messages += [f"{path}: {key}: {config[key]!r}: this section is a JSON object" for key in wrong]
    if "optimizer" not in wrong and "type" not in config.get("optimizer", {}):
        messages.append(f'{path}: optimizer: required, e.g. {{"type": "AdamW", "params": {{"lr": "auto"}}}}')
    for section in {"optimizer", "scheduler"} & config.keys() - set(wrong):
        messages += _check_typed_section(config[section], f"{path}: {section}")
    if "zero_optimization" not in wrong and zero_stage(config) not in (0, 1, 2, 3):
        messages.append(f"{path}: zero_optimization.stage: {zero_stage(config)!r}: use 0, 1, 2 or 3")
    raise_all(messages)
    return config


def _check_typed_section(section: Mapping[str, Any], where: str) -> list[str]:
    messages = [f"{where}.{key}: unknown key; use type and params" for key in section if key not in TYPED_SECTION_KEYS]
    if not isinstance(section.get("type", ""), str):
        messages.append(f"{where}.type: {section['type']!r}: must be a name")
    if not isinstance(section.get("params", {}), dict):
        messages.append(f"{where}.params: {section['params']!r}: must be a JSON object")
    return messages


def zero_stage(config: Mapping[str, Any]) -> Any:
    """The ZeRO stage the JSON asks for (0 when it says nothing)."""
    return (config.get("zero_optimization") or {}).get("stage", 0)


def complete(
    config: Mapping[str, Any], plan: PhasePlan, *, plan_path: str, precision: str, world_size: int, source: Path
) -> dict[str, Any]:
    """Fill every ``"auto"`` that the recipe owns, and refuse values that contradict it.

    Args:
        config: The JSON as read.
        plan: The phase's plan.
        plan_path: Where the plan stands in the recipe, for messages.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        world_size: Data-parallel ranks.
        source: The JSON's path, for messages.

    Raises:
        ConfigError: A value contradicts the recipe, or the batch does not divide over the ranks.
    """
    messages: list[str] = []
    # Under a token budget the number and size of microbatches differ from step to step, and the engine says which is
    # the last (runtime/engine.py); DeepSpeed only asks that its three values fit together.
    micro_batch_size = plan.micro_batch_size or 1
    per_pass = micro_batch_size * world_size
    if plan.global_batch_size % per_pass:
        into = f"into microbatches of {micro_batch_size} on" if plan.micro_batch_size is not None else "over"
        messages.append(
            f"{plan_path}.global_batch_size: {plan.global_batch_size} does not divide {into} {world_size} ranks; use a "
            f"multiple of {per_pass}"
        )
    owned: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": plan.global_batch_size // per_pass,
        "gradient_clipping": plan.gradient_clipping,
        "optimizer.params.lr": plan.learning_rate,
        "optimizer.params.betas": list(plan.betas),
        "optimizer.params.eps": plan.eps,
        "optimizer.params.weight_decay": plan.weight_decay,
        "scheduler.params.warmup_max_lr": plan.learning_rate,
        "scheduler.params.warmup_num_steps": plan.warmup_steps,
        "scheduler.params.total_num_steps": plan.max_steps,
        "bf16.enabled": precision == "bf16",
        "fp16.enabled": precision == "fp16",
    }
    result = json.loads(json.dumps(config))
    # These must always reach DeepSpeed: it clips at 1.0 when nothing is said, and it needs the precision.
    parameters = result["optimizer"].setdefault("params", {})
    for name in ("lr", "betas", "eps") if "adam" in result["optimizer"]["type"].lower() else ("lr",):
        parameters.setdefault(name, "auto")
    for path in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        result.setdefault(path, "auto")
    result.setdefault("gradient_clipping", "auto")
    if precision != "fp32":
        result.setdefault(precision, {}).setdefault("enabled", "auto")
        # a microbatch adds a small share to the step's gradient: 8 bits of bf16 would lose the later ones
        result.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    result.setdefault("steps_per_print", 2**31 - 1)
    for path, value in owned.items():
        _settle(result, path, value, messages, source)
    messages += [
        f"{source}: {path}: 'auto' is not a value the recipe fills in; write a value" for path in _autos(result)
    ]
    if (plan.schedule == "deepspeed") != ("scheduler" in result):
        messages.append(
            f"{plan_path}.schedule: {plan.schedule!r}: use 'deepspeed' exactly when {source} has a scheduler block"
        )
    if precision != "fp32" and zero_stage(result) == 0:
        messages.append(
            f"{source}: zero_optimization.stage: 0 with precision {precision}: DeepSpeed steps Adam once at start-up "
            "there, which makes the first updates wrong; use stage 1"
        )
    raise_all(messages)
    return result


def _settle(result: dict[str, Any], path: str, value: Any, messages: list[str], source: Path) -> None:
    *parents, key = path.split(".")
    node: Any = result
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or key not in node:
        return
    if node[key] == "auto":
        node[key] = value
    elif node[key] != value:
        messages.append(f"{source}: {path}: {node[key]!r} contradicts the recipe, which says {value!r}; write 'auto'")


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [found for key, child in node.items() for found in _autos(child, f"{path}.{key}" if path else key)]
    if isinstance(node, list):
        return [found for index, child in enumerate(node) for found in _autos(child, f"{path}[{index}]")]
    return [path] if node == "auto" else []


def _hint(key: str) -> str:
    close = difflib.get_close_matches(key, KNOWN_TOP_LEVEL_KEYS, n=1)
    return f"; did you mean {close[0]!r}?" if close else " (DeepSpeed would ignore it silently); remove it"
