"""What a phase holds in memory on each rank, by arithmetic: weights, gradients, optimizer state, the teacher.

How many bytes DeepSpeed holds for a parameter is written down here as it was measured: ``benchmarks/zero_memory.py``
holds this against the tensors of real engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ted_ds.config.deepspeed_keys import offload_device, zero_stage
from ted_ds.models.files import ModelFacts
from ted_ds.models.parameters import Parameters

SHARDED_HOSTS = ("zero3", "cpu_offload", "nvme_offload")
"""Of the teacher's hosts, those where an engine of ZeRO-3 holds its weights."""
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATES_BYTES = 8
"""Of the two fp32 moments of an Adam-like optimizer."""
MASTER_BYTES = 4
"""Of the fp32 weights that the optimizer updates."""
PERSISTENCE_THRESHOLD = 100_000
"""ZeRO-3 keeps smaller parameters whole on every rank (DeepSpeed's default)."""
BUCKET_SIZE = 500_000_000
"""Numbers in a bucket of gradients (DeepSpeed's default)."""
ROW_SCALE_BYTES = 5
"""Of a quantised matrix's row: a scale in fp32 and a zero point."""
BLOCK_ACTIVATIONS = 34
"""Bytes at 16 bits that a transformer block of the usual width keeps for its backward pass, by token and hidden unit,
attention scores left out (Korthikanti et al. 2022, arXiv:2205.05198, equation 1)."""
SCORE_ACTIVATIONS = 5
"""And by token, head and position attended to, where attention scores are kept (the same equation)."""


@dataclass(frozen=True)
class Trained:
    """Bytes of one rank for what an engine trains, between accumulating gradients and the optimizer's step."""

    parameters: int
    gradients: int
    optimizer: int
    """The moments, and above stage 0 the fp32 copy of the weights that it updates."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer


def trained_bytes(
    sizes: Sequence[int], *, config: Mapping[str, Any], precision: str, world_size: int, num_frozen: int = 0
) -> Trained:
    """What an engine of DeepSpeed holds on the rank that holds most, in device and host memory together.

    Args:
        sizes: Of each trained parameter, in the module's order.
        config: The DeepSpeed JSON.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        world_size: Data-parallel ranks.
        num_frozen: Parameters of the same module that do not train.
    """
    count, item, stage = sum(sizes), ITEM_BYTES[precision], zero_stage(config)
    states = _states_bytes(config["optimizer"])
    share = math.ceil(count / world_size)
    if stage == 0:
        return Trained((count + num_frozen) * item, count * 4, count * states)
    if stage == 3:
        kept_whole = sum(size for size in sizes if size < _persistence_threshold(config)) if world_size > 1 else 0
        parameters = (share + math.ceil(num_frozen / world_size) + kept_whole) * item
        return Trained(parameters, share * 4, share * (states + MASTER_BYTES))
    gradients = (_overlapping_share(sizes, world_size) if precision == "fp32" else share) * 4
    if stage == 1 and precision == "bf16":  # an optimizer of its own, which sums whole gradients beside the model's
        gradients = count * (4 + item)
    return Trained((count + num_frozen) * item, gradients, share * (states + MASTER_BYTES))


def on_device(trained: Trained, config: Mapping[str, Any]) -> Trained:
    """What of it is on the device, where that is not the host: the rest is offloaded."""
    if offload_device(config, "offload_param") != "none":
        trained = replace(trained, parameters=0)
    if offload_device(config, "offload_optimizer") != "none":
        trained = replace(trained, gradients=0, optimizer=0)
    return trained


def bucket_bytes(config: Mapping[str, Any], precision: str, *, in_pipeline: bool = False) -> int:
    """DeepSpeed's buffers for gradients on their way between ranks, which do not depend on the model's size.

    On a CPU they cost nothing until they are filled. In a pipeline they never overlap with backward, and there is a
    second one beside the first, which stays empty.
    """
    zero, stage = config.get("zero_optimization") or {}, zero_stage(config)
    if stage == 0 or (stage == 1 and precision == "bf16") or not zero.get("contiguous_gradients", True):
        return 0
    size = zero.get("reduce_bucket_size", BUCKET_SIZE)
    is_double = in_pipeline or (zero.get("overlap_comm", False) and stage < 3)
    return int(BUCKET_SIZE if size == "auto" else size) * ITEM_BYTES[precision] * (2 if is_double else 1)


def frozen_bytes(parameters: Parameters, *, host: str, precision: str, world_size: int) -> int:
    """What a frozen model holds on a rank's device, between its forward passes.

    Args:
        parameters: The model's.
        host: One of :data:`ted_ds.planning.hosting.HOSTS`.
        precision: Of its weights.
        world_size: Ranks that share it.
    """
    item, total = ITEM_BYTES[precision], parameters.total
    if host == "replica":
        return (total - parameters.packed.numbers) * item + parameters.packed.bytes
    if host == "int8":
        matrices = [shape for block in parameters.of_blocks for shape in block if len(shape) == 2]
        scales = ROW_SCALE_BYTES * sum(shape[0] for shape in matrices)
        quantised = parameters.in_matrices_of_blocks
        return (total - quantised) * item + quantised + scales
    kept_whole = sum(size for size in parameters.sizes if size < PERSISTENCE_THRESHOLD)
    if host == "zero3":
        return (math.ceil(total / world_size) + (kept_whole if world_size > 1 else 0)) * item
    return kept_whole * item  # offloaded


def activation_bytes(
    facts: ModelFacts,
    *,
    tokens: int,
    row_tokens: int,
    precision: str,
    keeps_scores: bool,
    checkpointing: bool,
    under_way: int = 1,
) -> int:
    """About what a model keeps of its microbatches for their backward pass; the losses add little.

    Args:
        facts: The model's.
        tokens: Of the microbatch, padding included.
        row_tokens: Of one sequence.
        precision: Of the activations.
        keeps_scores: Whether attention keeps its scores (eager attention).
        checkpointing: Whether only the blocks' inputs are kept; then those of one block are there for a while.
        under_way: Microbatches that wait for it at once.
    """
    scale = ITEM_BYTES[precision] / 2
    of_block = BLOCK_ACTIVATIONS * tokens * facts.hidden_size
    if keeps_scores:
        of_block += SCORE_ACTIVATIONS * tokens * facts.num_heads * row_tokens
    if checkpointing:
        inputs = 2 * facts.num_blocks * tokens * facts.hidden_size
        return int(scale * (under_way * inputs + (of_block if facts.num_blocks else 0)))
    return int(scale * under_way * facts.num_blocks * of_block)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def _states_bytes(optimizer: Mapping[str, Any]) -> int:
    """Of an optimizer, per parameter: two numbers of Adam, one of Adagrad and a momentum."""
    name = optimizer["type"].lower()
    if name == "sgd":
        return STATES_BYTES // 2 if optimizer.get("params", {}).get("momentum") else 0
    return STATES_BYTES if "adam" in name else STATES_BYTES // 2


def _persistence_threshold(config: Mapping[str, Any]) -> float:
    value = config["zero_optimization"].get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    return PERSISTENCE_THRESHOLD if value == "auto" else value


def _overlapping_share(sizes: Sequence[int], world_size: int) -> int:
    """The most that one rank's share of the flattened parameters touches, parameters on its borders counted whole.

    Gradients in fp32 are kept as views, which keep the whole of them.
    """
    share = math.ceil(sum(sizes) / world_size)
    held, start = [0] * world_size, 0
    for size in sizes:
        for rank in range(start // share, (start + size - 1) // share + 1):
            held[rank] += size
        start += size
    return max(held)
