"""Low-rank adapters on a model's linear maps (peft): put in, switched off, merged, written as peft reads them.

A map ``W`` with an adapter puts out ``W x + alpha / rank * B A dropout(x)`` (Hu et al. 2021, arXiv:2106.09685, section
4.1); ``B`` starts at 0, so a fresh adapter changes nothing. A head of labels gets a copy that trains; adapters that are
off mean the head as it was, too.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import CheckpointError
from ted_ds.models.adapter_folder import ADAPTER_WEIGHTS, BEFORE_ADAPTED
from ted_ds.models.adapter_targets import is_target, may_be_adapted
from ted_ds.models.family import Family, prefixes
from ted_ds.models.parts import has_part

NAME = "default"
"""Of the only adapter, in names of parameters."""


@dataclass(frozen=True)
class AdapterSettings:
    """What adapters are like."""

    rank: int
    alpha: int
    dropout: float
    targets: Sequence[str] | None
    """Names of linear maps in a block; None for all."""


def add_adapters(model: PreTrainedModel, family: Family, settings: AdapterSettings, fresh: Sequence[str]) -> None:
    """Freeze a model but for new adapters, its head of labels, and the ``fresh`` weights that no file holds.

    Weights may be sharded (ZeRO-3); those of adapters are whole, drawn from torch's generator as it is.

    Raises:
        CheckpointError: No linear map of its blocks is meant, or peft puts no adapter on one.
    """
    peft = _peft()
    linear = {
        name: family.name_in_block(f"{name}.").removesuffix(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and family.block_number(f"{name}.") is not None
    }
    maps = {
        name: model.get_submodule(name)
        for name, within in linear.items()
        if is_target(within, settings.targets) and may_be_adapted(within, family)
    }
    if not maps:
        raise CheckpointError(
            f"student.lora.targets: no linear map in a block of this {model.config.model_type} is called one of "
            f"{', '.join(settings.targets or ())}"
        )
    heads = [path for path in family.own_heads if has_part(model, path)]
    heads += [path for path in family.before_label_head if any(name.startswith(f"{path}.") for name in fresh)]
    # of a head within another, as RoBERTa's, that would be copied twice
    heads = [path for path in heads if not path.startswith(prefixes(heads))]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_pattern(maps, model, family),
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in maps.values()),
        modules_to_save=heads or None,
    )
    try:
        peft.inject_adapter_in_model(config, model, NAME)
    except ValueError as error:  # of parts and types of models that it knows to be nothing for adapters
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"student.lora.targets: peft puts no adapters on these linear maps of a {model.config.model_type}: "
            f"{reason:.300}; name others, or remove student.lora"
        ) from error
    others = sorted({path for path, _ in _adapted(model)} ^ maps.keys())
    if others:
        raise CheckpointError(
            f"student.lora.targets: peft puts adapters on other parts of this {model.config.model_type} than on its "
            f"linear maps of these names ({others[0]}); name maps of its attention alone"
        )
    in_heads = tuple(f"{head}." for head in heads)
    for name, parameter in model.named_parameters():
        if name in fresh and not name.startswith(in_heads):
            parameter.requires_grad_(True)


def _pattern(maps: Mapping[str, Any], model: PreTrainedModel, family: Family) -> list[str] | str:
    """What peft finds these maps by: names within a block, unless others end alike; else an expression."""
    ends = sorted({family.name_in_block(f"{name}.").removesuffix(".") for name in maps})
    meant = {name for name, _ in model.named_modules() if any(name == end or name.endswith(f".{end}") for end in ends)}
    if meant == maps.keys():
        return ends
    paths = {name[: -len(end)] for name in maps for end in ends if name.endswith(f".{end}")}
    beginnings = sorted({path[: path.rstrip(".").rindex(".")].replace(".", r"\.") for path in paths})
    return rf"({'|'.join(beginnings)})\.\d+\.({'|'.join(end.replace('.', chr(92) + '.') for end in ends)})"


def has_adapters(model: nn.Module) -> bool:
    """Whether any were put in."""
    return hasattr(model, "peft_config")


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """While this is open, the model computes as it did before there were adapters, to the last bit.

    (peft's own switch also changes which parameters train, in the middle of a step.)
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    assert parts, "it has no adapters"
    for part in parts:
        part._disable_adapters = True
    try:
        yield
    finally:
        for part in parts:
            part._disable_adapters = False


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model that computes what one with adapters does: ``W + alpha / rank * B A``.

    Summed in fp32, and rounded once to the dtype of ``W``.

    Args:
        model: With its adapters; only its modules are looked at.
        state: Its whole weights, by name.
    """
    result = dict(state)
    for path, layer in _adapted(model):
        a, b = (result.pop(f"{path}.lora_{which}.{NAME}.weight").float() for which in "AB")
        weight = result.pop(f"{path}.base_layer.weight")
        change = layer.scaling[NAME] * (b @ a)
        change = change.t() if layer.fan_in_fan_out else change
        result[f"{path}.weight"] = (weight.float() + change).to(weight.dtype)
        if f"{path}.base_layer.bias" in result:
            result[f"{path}.bias"] = result.pop(f"{path}.base_layer.bias")
    for path, _ in _heads(model):
        own = f"{path}.modules_to_save.{NAME}."
        for name in [name for name in result if name.startswith(f"{path}.")]:
            weight = result.pop(name)
            if name.startswith(own):
                result[f"{path}.{name.removeprefix(own)}"] = weight
    return result


def save_adapters(
    model: Any, state: Mapping[str, Tensor], folder: Path, *, base: str, task_type: str | None = None
) -> None:
    """Write the adapters and the head that trained with them as peft reads them.

    Args:
        model: With its adapters; only its modules are looked at.
        state: Its whole weights, by name.
        folder: To write into.
        base: What to call the model they are beside.
        task_type: peft's word for the model with its head, by which its Auto classes know it.
    """
    found = {
        f"{BEFORE_ADAPTED}{path}.lora_{which}.weight": state[f"{path}.lora_{which}.{NAME}.weight"]
        for path, _ in _adapted(model)
        for which in "AB"
    }
    for path, _ in _heads(model):
        own = f"{path}.modules_to_save.{NAME}."
        of_head = {name.removeprefix(own): weight for name, weight in state.items() if name.startswith(own)}
        found |= {f"{BEFORE_ADAPTED}{path}.{name}": weight for name, weight in of_head.items()}
    config = copy.deepcopy(model.peft_config[NAME])
    config.base_model_name_or_path, config.inference_mode, config.task_type = base, True, task_type
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each linear map that has an adapter, by its path."""
    return ((path, module) for path, module in model.named_modules() if hasattr(module, "lora_A"))


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each module that has a copy which trains, by its path."""
    return ((path, module) for path, module in model.named_modules() if "modules_to_save" in module._modules)


def _peft() -> Any:
    return importlib.import_module("peft")  # an optional package, and slow to import
