"""Models whose files hold quantised weights: by which method, what that needs here, and what the files amount to.

Read from ``config.json`` and the headers of the weight files alone, without torch. The packages are those that
transformers 5.23 asks for (``validate_environment`` in ``transformers/quantizers``).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ted_ds.errors import CheckpointError
from ted_ds.models.config_agreement import Shape
from ted_ds.models.family import Family

PACKAGES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm[cpu,gpu]"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitnet": {},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp8": {},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "metal": {"kernels": "kernels"},
    "mxfp4": {},
    "mxfp8": {},
    "nvfp4": {"kernels": "kernels"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
"""Of each method transformers loads: the modules it imports, and what pip calls them."""
BITS = {"fp8": 8, "mxfp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "nvfp4": 4, "fp_quant": 4, "eetq": 8}
DEFAULT_INT8_THRESHOLD = 6.0
OUTLIERS = (
    "quantization_config.llm_int8_threshold is {}, by which the columns to compute in 16 bits are chosen anew for each "
    "batch; set it to 0.0 in the model's config.json, or use a model in 4 bits"
)
"""LLM.int8 of bitsandbytes."""
ONE_SCALE = (
    "quantization_config scales the activations of a batch at once (input_activations: dynamic, strategy tensor); use "
    "a model that scales them by token"
)
"""A way of compressed-tensors."""
DEQUANTISED = ("fp8", "mxfp8")
"""Computed in the model's own precision where there is no GPU with 8-bit numbers: planned so."""
BITS_OF_TYPES = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "U32": 32,
    "I16": 16,
    "U16": 16,
    "F4": 4,
}
"""By the names of safetensors; all others have 8."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16", "BOOL")
WEIGHT_NAMES = ("weight", "qweight", "weight_packed", "_weight_qdata", "W_q")


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: Shape
    dtype: str
    """By its name in safetensors."""


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are quantised."""

    method: str
    bits: int | None = None
    """Of a weight; None where the config does not say."""
    outside_blocks: tuple[str, ...] = field(default=())
    """Quantised weights that belong to no block: embeddings, heads."""
    of_the_batch: str | None = None
    """What it chooses by all rows of a batch, so that each would depend on those beside it, and what to do."""

    def __str__(self) -> str:
        """In words."""
        return f"{self.method}, {self.bits} bits" if self.bits else self.method

    def missing_packages(self) -> list[str]:
        """What pip would have to install."""
        return [name for module, name in PACKAGES[self.method].items() if not _is_installed(module)]


@dataclass(frozen=True)
class Packed:
    """Weights that are not stored one number after the other."""

    numbers: int = 0
    """How many they stand for."""
    bytes: int = 0
    """Of them in the files, scales and the like included."""


NOTHING_PACKED = Packed()


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """How ``config.json`` says that weights are quantised; None where they are not.

    Raises:
        CheckpointError: transformers does not know the method, and would load the weights as if they were plain.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise CheckpointError("quantization_config is no mapping; copy config.json again")
    in_bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    method = str(settings.get("quant_method") or ("bitsandbytes" if in_bits else None))
    if method.removesuffix("_4bit").removesuffix("_8bit") == "bitsandbytes":
        bits = in_bits or (4 if method.endswith("_4bit") else 8)
        threshold = settings.get("llm_int8_threshold", DEFAULT_INT8_THRESHOLD) if bits == 8 else 0
        return Quantisation("bitsandbytes", bits, of_the_batch=OUTLIERS.format(threshold) if threshold else None)
    if method not in PACKAGES:
        raise CheckpointError(
            f"quantization_config.quant_method is {method!r}, which transformers does not load; use one of "
            f"{', '.join(PACKAGES)}, or a model in 16 or 32 bits"
        )
    found = BITS.get(method) or settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if method == "torchao" and "Int4" in str(settings.get("quant_type")):
        found = 4
    groups = [one for one in (settings.get("config_groups") or {}).values() if isinstance(one, dict)]
    activations = [one.get("input_activations") or {} for one in groups]
    by_tensor = any(one.get("dynamic") is True and one.get("strategy") == "tensor" for one in activations)
    bits = found if isinstance(found, int) else _bits_of_groups(groups)
    return Quantisation(method, bits, of_the_batch=ONE_SCALE if by_tensor else None)


def unpack(
    tensors: Mapping[str, Stored], quantisation: Quantisation | None, family: Family
) -> tuple[dict[str, Shape], Packed, tuple[str, ...]]:
    """What the tensors of a model's files stand for.

    Returns:
        The shapes of parameters (those of packed matrices as one column), what of them is packed, and the names of
        packed weights outside of blocks.
    """
    if quantisation is None:
        return {name: tensor.shape for name, tensor in tensors.items()}, NOTHING_PACKED, ()
    packed = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] in WEIGHT_NAMES
        # bitsandbytes may hide four bits in items of any type
        and (tensor.dtype not in PLAIN_TYPES or f"{name}.absmax" in tensors)
    }
    modules = {name.rpartition(".")[0] for name in packed}
    shapes: dict[str, Shape] = {}
    numbers, num_bytes = 0, 0
    for name, tensor in tensors.items():
        if name in packed:
            item = BITS_OF_TYPES.get(tensor.dtype, 8)
            # 8-bit types hold one number each, or as many as fit
            of_item = item / min(quantisation.bits or item, item)
            count = round(math.prod(tensor.shape) * of_item)
            shapes[name] = tensor.shape if of_item == 1 else (count, 1)
            numbers += count
            num_bytes += _bytes(tensor)
        elif _is_beside(name, modules, packed):  # scales, zero points, how it was packed
            num_bytes += _bytes(tensor)
        else:
            shapes[name] = tensor.shape
    outside = tuple(sorted(name for name in packed if family.block_number(name) is None))
    is_packed_here = quantisation.method not in DEQUANTISED
    return shapes, Packed(numbers, num_bytes) if is_packed_here else NOTHING_PACKED, outside


def _is_beside(name: str, modules: set[str], packed: Mapping[str, Stored]) -> bool:
    module, _, last = name.rpartition(".")
    if module in modules:
        return last != "bias"
    # bitsandbytes: weight.absmax, weight.quant_state.bitsandbytes__nf4
    return any(name.startswith(f"{parent}.") for parent in _parents(name) if parent in packed)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _bytes(tensor: Stored) -> int:
    return math.ceil(math.prod(tensor.shape) * BITS_OF_TYPES.get(tensor.dtype, 8) / 8)


def _bits_of_groups(groups: Sequence[Mapping[str, Any]]) -> int | None:
    """compressed-tensors says it for each group of layers."""
    found = [one["weights"].get("num_bits") for one in groups if isinstance(one.get("weights"), dict)]
    return found[0] if found and isinstance(found[0], int) else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it would be in is not there either
        return False
