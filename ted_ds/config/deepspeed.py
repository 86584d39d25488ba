"""The DeepSpeed JSON: read, checked, and completed with the values the recipe owns.

What may stand in it is in :mod:`~ted_ds.config.deepspeed_sections` and :mod:`~ted_ds.config.deepspeed_optimizers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.deepspeed_contradictions import contradiction
from ted_ds.config.deepspeed_files import nvme_folders
from ted_ds.config.deepspeed_keys import OFFLOAD_PARTS, STAGE_3_KEYS, zero_stage
from ted_ds.config.deepspeed_optimizers import (
    DEFAULT_OPTIMIZER,
    SCHEDULERS,
    check_typed_sections,
    choose_optimizer,
    optimizer_class,
    steps_on_cpu,
)
from ted_ds.config.deepspeed_sections import NEVER_PRINT, check_sections, untested
from ted_ds.config.json_object import read_json_object
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.shipped import DEEPSPEED, names_in
from ted_ds.errors import counted, raise_all

# What transformers and accelerate fill in by the model's hidden size, so that a bucket holds a weight matrix.
SIZES = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """Read the JSON and check what can be checked without the recipe.

    Raises:
        ConfigError: It is not readable, or anything in it is wrong; lists all of it.
    """
    config, problems = inspect_deepspeed_json(path)
    raise_all(problems)
    assert config is not None  # nothing to read is a problem
    return config


def inspect_deepspeed_json(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The JSON, and all that shows to be wrong with it without the recipe.

    Returns:
        What it says, without the keys that are wrong, so that the rest can be checked beside the recipe
        (:func:`filled`), and a message for each of these; None where there is nothing to read.
    """
    if not path.exists():
        names = ", ".join(names_in(DEEPSPEED, ".json"))
        return None, [f"{path}: no such DeepSpeed config; give a file, or one that ships: {names}"]
    config, problems, repeated = read_json_object(path)
    if config is None:
        return None, problems
    had_scheduler = config.get("scheduler") is not None
    twice = [(place, "given twice; JSON takes the last one without a word: keep one") for place in repeated]
    config = _without(config, twice)
    if "zero_optimization.stage" in repeated:
        config["zero_optimization"]["stage"] = "auto"  # no part of ZeRO is judged by it
    _rename(config, {"bfloat16": "bf16"})
    _rename(config.get("zero_optimization"), {key.removeprefix("stage3_"): key for key in STAGE_3_KEYS})
    mistakes = [*twice, *check_sections(config)]
    config = _without(config, mistakes)
    if config.get("steps_per_print") == NEVER_PRINT[1]:
        del config["steps_per_print"]
    # stand-ins for what was wrong, and told: what depends on them is not wrong as well
    if {"zero_optimization", "zero_optimization.stage"} & {place for place, _ in mistakes}:
        config.setdefault("zero_optimization", {})["stage"] = 1
    of_types = [(place, text) for place, text in check_typed_sections(config) if place not in repeated]
    config, mistakes = _without(config, of_types), mistakes + of_types
    if "type" not in config.get("optimizer", {}):
        config["optimizer"] = json.loads(json.dumps(DEFAULT_OPTIMIZER))
    if had_scheduler and "type" not in config.get("scheduler", {}):
        config["scheduler"] = {"type": "WarmupLR"}
    return config, [f"{path}: {_shown(place)}: {text}" for place, text in mistakes]


def _shown(place: str) -> str:
    return ".".join(key or '""' for key in place.split("."))


def _rename(node: Any, names: Mapping[str, str]) -> None:
    """Give a section's keys the one name by which they are known here; DeepSpeed has two of some.

    Where both are given, the other one stays, and is unknown.
    """
    if isinstance(node, dict):
        for other, name in names.items():
            if other in node and name not in node:
                node[name] = node.pop(other)


def _without(config: dict[str, Any], mistakes: Sequence[tuple[str, str]]) -> dict[str, Any]:
    for place, _ in mistakes:
        node, key = _node_of(config, place)
        if node is not None:
            node.pop(key, None)
    return _without_null(config)


def _without_null(node: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that say nothing: DeepSpeed fails at some of them."""
    return {
        key: _without_null(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if value is not None
    }


def with_sizes(config: Mapping[str, Any], hidden_size: int | None) -> dict[str, Any]:
    """The config with the sizes that follow from a model's, where they are ``"auto"``.

    Args:
        config: The JSON as read.
        hidden_size: The student's; None while it is not known: then they are left to DeepSpeed.
    """
    result = json.loads(json.dumps(config))
    zero = result.get("zero_optimization") or {}
    for key, size in SIZES.items():
        if zero.get(key) == "auto":
            del zero[key]
            if hidden_size is not None:
                zero[key] = size(hidden_size)
    return result


def schedule_of(config: Mapping[str, Any], plan: PhasePlan) -> str:
    """The schedule a phase follows: the JSON's, where it has one and the recipe says nothing."""
    return "deepspeed" if "scheduler" in config and "schedule" not in plan.model_fields_set else plan.schedule


def remarks(config: Mapping[str, Any], plans: Mapping[str, PhasePlan], source: Path) -> list[str]:
    """What is worth saying of a JSON that is right: choices it makes, and what no test compares.

    Args:
        config: The JSON as read.
        plans: The recipe's plans, by their path.
        source: The JSON's path.
    """
    said = []
    by_json = [path for path, plan in plans.items() if schedule_of(config, plan) == "deepspeed"]
    if by_json:
        said.append(f"schedule by {config['scheduler']['type']} of {source}: {', '.join(by_json)}")
    if config["optimizer"] == DEFAULT_OPTIMIZER:
        said.append(f"optimizer: torch's AdamW with the recipe's values; {source} says no more")
    if optimizer_class(config) in ("FusedAdam", "DeepSpeedCPUAdam"):
        where = "offloaded" if steps_on_cpu(config) else "on GPUs"
        said.append(
            f"{source}: optimizer: {where} this is DeepSpeed's own Adam, whose steps no test of ted_ds compares; "
            '"torch_adam": true takes torch\'s'
        )
    said += [
        f"{source}: {place}: {folder} is not on this machine; each node needs it"
        for place, folder in nvme_folders(config)
        if not folder.exists()
    ]
    keys = untested(config)
    if keys:
        said.append(
            f"{source}: {', '.join(keys)}: no test compares steps with this set over ranks and ZeRO stages; without it "
            "they are known to be the same"
        )
    return said


def complete(
    config: Mapping[str, Any],
    plan: PhasePlan,
    *,
    plan_path: str,
    precision: str,
    world_size: int,
    source: Path,
    on_gpu: bool = False,
) -> dict[str, Any]:
    """Fill every ``"auto"`` that the recipe owns, and refuse values that contradict it.

    Args:
        config: The JSON as read.
        plan: The phase's plan.
        plan_path: Where the plan stands in the recipe, for messages.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        world_size: Data-parallel ranks.
        source: The JSON's path, for messages.
        on_gpu: Whether the ranks compute on GPUs, which decides how AdamW is computed.

    Raises:
        ConfigError: A value contradicts the recipe, or the batch does not divide over the ranks; lists all of it.
    """
    result, problems = filled(
        config, plan, plan_path=plan_path, precision=precision, world_size=world_size, source=source, on_gpu=on_gpu
    )
    raise_all(problems)
    return result


def filled(
    config: Mapping[str, Any],
    plan: PhasePlan,
    *,
    plan_path: str,
    precision: str,
    world_size: int,
    source: Path,
    on_gpu: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """What :func:`complete` gives, and every mistake instead of an exception."""
    messages: list[str] = []
    # Under a token budget the number and size of microbatches differ from step to step, and the engine says which is
    # the last (runtime/zero_runner.py); DeepSpeed only asks that its three values fit together.
    micro_batch_size = plan.micro_batch_size or 1
    per_pass = micro_batch_size * world_size
    # a batch that is no whole number of microbatches is said by the plan itself, wherever it stands
    if plan.global_batch_size % micro_batch_size == 0 and plan.global_batch_size % per_pass:
        into = f"into microbatches of {micro_batch_size} on" if plan.micro_batch_size is not None else "over"
        messages.append(
            f"{plan_path}.global_batch_size: {plan.global_batch_size} does not divide {into} "
            f"{counted(world_size, 'rank')}; use a "
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
        "scheduler.params.cycle_max_lr": plan.learning_rate,
        "scheduler.params.warmup_num_steps": max(plan.warmup_steps, 1),  # DeepSpeed refuses 0
        "scheduler.params.total_num_steps": plan.max_steps,
        "bf16.enabled": precision == "bf16",
        "fp16.enabled": precision == "fp16",
    }
    result = with_sizes(config, None)
    messages += choose_optimizer(result, plan, plan_path, source, on_gpu=on_gpu)
    messages += _choose_schedule(result, plan, plan_path, source)
    # These must always reach DeepSpeed: it clips at 1.0 when nothing is said, and it needs the precision.
    for path in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        result.setdefault(path, "auto")
    result.setdefault("gradient_clipping", "auto")
    if precision != "fp32":
        result.setdefault(precision, {}).setdefault("enabled", "auto")
        # a microbatch adds a small share to the step's gradient: 8 bits of bf16 would lose the later ones
        result.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    result.setdefault("steps_per_print", 2**31 - 1)
    # it waits for the device in every forward pass and step
    result.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    for path, value in owned.items():
        node, key = _node_of(result, path)
        if node is None or key not in node:
            continue
        if node[key] == "auto":
            node[key] = value
        elif node[key] != value:
            messages.append(
                contradiction(
                    path, node[key], value, plan=plan, plan_path=plan_path, precision=precision, source=source
                )
            )
    _leave_to_deepspeed(result)
    messages += [
        f"{source}: {path}: 'auto' is not a value the recipe fills in; write a value" for path in _autos(result)
    ]
    if precision != "fp32" and zero_stage(result) == 0:
        messages.append(
            f"{source}: zero_optimization.stage: 0 with precision {precision}: DeepSpeed steps Adam once at start-up "
            "there, which makes the first updates wrong; use stage 1"
        )
    return result, messages


def _choose_schedule(result: dict[str, Any], plan: PhasePlan, plan_path: str, source: Path) -> list[str]:
    """See that the JSON's scheduler gets what the recipe owns, and that only one of the two schedules."""
    if "scheduler" not in result:
        if plan.schedule != "deepspeed":
            return []
        return [
            f"{plan_path}.schedule: 'deepspeed': {source} has no scheduler block; use linear, cosine or another, or "
            "add one"
        ]
    section = result["scheduler"]
    parameters = section.setdefault("params", {})
    known = SCHEDULERS.get(section["type"], frozenset())
    for name in ("warmup_max_lr", "warmup_num_steps", "total_num_steps"):
        if name in known:  # DeepSpeed would take a value of its own
            parameters.setdefault(name, "auto")
    if parameters.get("warmup_min_lr") == "auto":
        parameters["warmup_min_lr"] = 0.0
    messages = []
    if schedule_of(result, plan) != "deepspeed":
        messages.append(
            f"{plan_path}.schedule: {plan.schedule!r}: {source} has a scheduler block ({section['type']}), which says "
            "something else; remove one of the two"
        )
    if "warmup_num_steps" not in known and plan.warmup_steps:
        messages.append(
            f"{plan_path}.warmup_steps: {plan.warmup_steps}: {section['type']} of {source} does not use it; remove it"
        )
    return messages


def _node_of(config: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str]:
    *parents, key = path.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), key


def _leave_to_deepspeed(result: dict[str, Any]) -> None:
    """Take out the ``"auto"`` that DeepSpeed and transformers read as "as you like"."""
    zero = result.get("zero_optimization", {})
    parts = [zero, *(zero.get(part, {}) for part in OFFLOAD_PARTS)]
    for section in parts:
        for key in [key for key, value in section.items() if value == "auto" and key not in ("stage", "device")]:
            del section[key]


def _autos(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [found for key, child in node.items() for found in _autos(child, f"{path}.{key}" if path else key)]
    if isinstance(node, list):
        return [found for index, child in enumerate(node) for found in _autos(child, f"{path}[{index}]")]
    return [path] if node == "auto" else []
