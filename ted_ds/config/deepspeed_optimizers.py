"""The optimizers and schedulers a DeepSpeed JSON may name, and their parameters.

Only optimizers whose steps are compared over ZeRO stages and ranks (``tests/distributed/test_optimizers.py``): one that
looks at a whole matrix (Muon, Lamb) sees a shard of it under ZeRO, and steps otherwise than on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.deepspeed_keys import offload_device, zero_stage
from ted_ds.config.finite_number import is_finite_number
from ted_ds.config.nearest import nearest
from ted_ds.config.phase_plan import PhasePlan

TYPED_SECTION_KEYS = ("type", "params", "legacy_fusion")
DEFAULT_OPTIMIZER: Mapping[str, Any] = {"type": "AdamW", "params": {"torch_adam": True}}
"""Where the JSON has none: what transformers takes then."""
TESTED_OPTIMIZERS = ("AdamW", "Adam", "SGD", "Adagrad")
_COMPILED = "DeepSpeed compiles its own for GPUs, and no test of ted_ds compares its steps over ranks and ZeRO stages"
_MUP = "it needs the package mup, and no test of ted_ds compares its steps over ranks and ZeRO stages"
OTHER_OPTIMIZERS: Mapping[str, str] = {
    "Lamb": "it scales each matrix's step by norms, of which a rank sees only its shard's under ZeRO",
    "Lion": _COMPILED,
    "Muon": "DeepSpeed clips its update under ZeRO 1 to 3, and its gradient under ZeRO 0: steps differ",
    "MuAdam": _MUP,
    "MuAdamW": _MUP,
    "MuSGD": _MUP,
}
"""DeepSpeed has them too, but"""
UNTESTED_OF_TORCH = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adamax",
    "LBFGS",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
)
"""DeepSpeed would take these by their names."""
PARAMETERS: Mapping[str, frozenset[str]] = {
    "torch.optim.AdamW": frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "fused"}),
    "torch.optim.Adam": frozenset({"lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "fused"}),
    "FusedAdam": frozenset({"lr", "bias_correction", "betas", "eps", "weight_decay", "set_grad_none"}),
    "DeepSpeedCPUAdam": frozenset({"lr", "bias_correction", "betas", "eps", "weight_decay"}),
    "torch.optim.SGD": frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov", "foreach", "fused"}),
    "torch.optim.Adagrad": frozenset(
        {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "foreach", "fused"}
    ),
}
"""By class; of what its constructor takes, what leaves the direction of a step to the recipe.
``tests/unit/config/test_deepspeed_optimizers.py`` holds it against the classes."""
ADAM_SWITCHES = frozenset({"torch_adam", "adam_w_mode", "fp32_optimizer_states"})
"""DeepSpeed takes these out of an Adam's parameters itself."""
UNSUPPORTED_PARAMETERS = frozenset(
    {"amsgrad", "adamw_mode", "capturable", "decoupled_weight_decay", "differentiable", "maximize"}
)
"""Some class takes them, but they would change what a step is, or fail later."""
SWITCHES = ADAM_SWITCHES | {
    "cycle_momentum",
    "amsgrad",
    "bias_correction",
    "foreach",
    "fused",
    "nesterov",
    "set_grad_none",
}
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


def steps_on_cpu(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer is offloaded."""
    return offload_device(config, "offload_optimizer") in ("cpu", "nvme")


def optimizer_class(config: Mapping[str, Any]) -> str:
    """The class DeepSpeed will take for the ``optimizer`` section, one of :data:`PARAMETERS`."""
    section = config["optimizer"]
    name, parameters, on_cpu = section["type"].lower(), section.get("params") or {}, steps_on_cpu(config)
    if name in ("adam", "adamw"):
        if parameters.get("torch_adam") is True:
            decoupled = name == "adamw" or parameters.get("adam_w_mode", True)
            return "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
        return "DeepSpeedCPUAdam" if on_cpu else "FusedAdam"
    return "torch.optim.Adagrad" if name == "adagrad" else "torch.optim.SGD"


def choose_optimizer(
    result: dict[str, Any], plan: PhasePlan, plan_path: str, source: Path, *, on_gpu: bool
) -> list[str]:
    """Decide what computes the optimizer's step, and say which of the recipe's values it does not know."""
    section = result["optimizer"]
    parameters = section.setdefault("params", {})
    torchs_own = parameters.keys() <= PARAMETERS["torch.optim.AdamW"] | ADAM_SWITCHES
    if not on_gpu and optimizer_class(result) == "FusedAdam" and "torch_adam" not in parameters and torchs_own:
        parameters["torch_adam"] = True  # the same steps, without compiling DeepSpeed's for this processor
    chosen = optimizer_class(result)
    says_how = {"fused", "foreach"} & parameters.keys()
    if on_gpu and parameters.get("torch_adam") is True and not says_how and not steps_on_cpu(result):
        parameters["fused"] = True
    messages = []
    for name in ("lr", "betas", "eps"):
        if name in PARAMETERS[chosen]:
            parameters.setdefault(name, "auto")
        elif name in plan.model_fields_set:
            messages.append(f"{plan_path}.{name}: {section['type']} of {source} does not use it; remove it")
    # DeepSpeed has not tested it under ZeRO; ted_ds has
    if chosen == "torch.optim.SGD" and result.setdefault("zero_allow_untested_optimizer", True) is False:
        messages.append(f"{source}: zero_allow_untested_optimizer: False: DeepSpeed would refuse SGD; remove it")
    return messages


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
    name, parameters = config["optimizer"]["type"], config["optimizer"].get("params", {})
    choice = f"use {', '.join(TESTED_OPTIMIZERS[:-1])} or {TESTED_OPTIMIZERS[-1]}"
    deepspeeds = {one.lower(): one for one in (*TESTED_OPTIMIZERS, *OTHER_OPTIMIZERS) if one != "SGD"}  # in any case
    known: str = deepspeeds.get(name.lower()) or name
    if known in OTHER_OPTIMIZERS:
        yield "optimizer.type", f"{name!r}: {OTHER_OPTIMIZERS[known]}; {choice}"
    elif known in UNTESTED_OF_TORCH:
        yield "optimizer.type", f"{name!r}: no test of ted_ds compares its steps over ranks and ZeRO stages; {choice}"
    elif known not in TESTED_OPTIMIZERS:
        close = nearest(name, TESTED_OPTIMIZERS)
        hint = f"did you mean {close}?" if close else choice
        yield "optimizer.type", f"{name!r}: {name} is not a supported DeepSpeed Optimizer; {hint}"
    elif known == "Adagrad" and zero_stage(config) != 0:
        yield "optimizer.type", f"{name!r}: DeepSpeed fails with it under ZeRO; use AdamW, Adam or SGD, or stage 0"
    else:
        owner = optimizer_class(config)
        more = ADAM_SWITCHES if "Adam" in owner else frozenset()
        yield from _check_parameters(parameters, "optimizer.params", known, PARAMETERS[owner] | more)
        if parameters.get("nesterov") is True and (not parameters.get("momentum") or parameters.get("dampening")):
            yield "optimizer.params.nesterov", "True: Nesterov momentum requires a momentum and zero dampening"


def _check_scheduler(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, parameters = section["type"], section.get("params", {})
    if name not in SCHEDULERS:
        *names, last = SCHEDULERS
        close = nearest(name, SCHEDULERS)
        hint = f"did you mean {close}?" if close else f"use {', '.join(names)} or {last};"
        why = f"DeepSpeed does not recognize LR scheduler {name}, or ted_ds does not support it"
        if name == "LRRangeTest":
            why = "it would leave the recipe's learning_rate without effect"
        yield "scheduler.type", f"{name!r}: {why}; {hint} or remove the section and use schedule of the recipe"
        return
    yield from _check_parameters(parameters, "scheduler.params", name, SCHEDULERS[name] | {"last_batch_iteration"})
    if name == "OneCycle":
        if parameters.get("cycle_momentum") is not False:
            why = "betas are the recipe's, and OneCycle would change them; write false"
            yield "scheduler.params.cycle_momentum", why
        for key in {"cycle_min_lr", "cycle_max_lr"} - parameters.keys():
            yield f"scheduler.params.{key}", "OneCycle requires it"


def _check_parameters(
    parameters: Mapping[str, Any], place: str, owner: str, known: frozenset[str]
) -> Iterator[tuple[str, str]]:
    for key, value in parameters.items():
        if key == "max_grad_norm":
            why = "not supported as an optimizer parameter; gradient_clipping of the recipe does it: remove it"
            yield f"{place}.{key}", why
        elif key in UNSUPPORTED_PARAMETERS and key not in known:
            if value is not False:
                yield f"{place}.{key}", f"{value!r}: not supported by ted_ds; remove it"
        elif key not in known:
            said = f"{owner}.__init__() got an unexpected keyword argument {key!r}"
            found = nearest(key, known)
            hint = f"did you mean {found}?" if found else f"it takes {', '.join(sorted(known))}"
            yield f"{place}.{key}", f"{said}; {hint}"
        elif value not in ("auto", None):
            rule, holds = next(((rule, holds) for names, rule, holds in VALUES if key in names), NOT_NEGATIVE)
            if not holds(value):
                yield f"{place}.{key}", f"{value!r}: {rule}"


def _are_betas(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_finite_number(one) and 0 <= one < 1 for one in value)


NOT_NEGATIVE: tuple[str, Callable[[Any], bool]] = (
    "use a number, 0 or more",
    lambda value: is_finite_number(value) and value >= 0,
)
VALUES: Sequence[tuple[frozenset[str], str, Callable[[Any], bool]]] = (
    (SWITCHES, "use true or false", lambda value: isinstance(value, bool)),
    (frozenset({"last_batch_iteration"}), "use -1: a run begins at its beginning", lambda value: value == -1),
    (frozenset({"betas"}), "use two numbers, from 0 to below 1", _are_betas),
    (frozenset({"warmup_type"}), "use log or linear", lambda value: value in ("log", "linear")),
    (
        frozenset({"warmup_num_steps", "total_num_steps"}),
        "must be a positive integer",
        lambda value: is_finite_number(value) and isinstance(value, int) and value > 0,
    ),
)
"""What these parameters may say; the others are numbers."""
