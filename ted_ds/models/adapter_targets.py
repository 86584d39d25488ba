"""Which linear maps of a block get an adapter, by their names within it; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ted_ds.models.config_agreement import Shape
from ted_ds.models.family import Family

NO_LINEAR_MAPS = re.compile(r"expert|(^|\.)gate$|router|bias_table|relative_attention_bias|embed")
"""In names of matrices in files that are no linear map by itself in transformers: of a mixture of experts, tables."""

LIKE_EXPERTS = re.compile(r"(^|\.)(gate|up|down)_proj$")
"""Names of maps in a mixture's blocks without experts: peft takes them for those of experts in other blocks."""


def may_be_adapted(name: str, family: Family) -> bool:
    """Whether an adapter can stand beside the linear map of a name within a block, which experts may share."""
    return not (family.num_experts_keys and LIKE_EXPERTS.search(name))


def is_target(name: str, targets: Sequence[str] | None) -> bool:
    """Whether the linear map of a name is one of those that are meant: by all of the name or its last parts."""
    return targets is None or any(name == target or name.endswith(f".{target}") for target in targets)


def linear_maps(matrices: Mapping[str, Shape]) -> dict[str, Shape]:
    """Of a block's matrices in files, those of linear maps."""
    return {name: shape for name, shape in matrices.items() if not NO_LINEAR_MAPS.search(name)}


def adapter_sizes(maps: Iterable[Mapping[str, Shape]], targets: Sequence[str] | None, rank: int) -> list[int]:
    """Of the parameters of all adapters: of each target map, one ``[rank, in]`` and one ``[out, rank]``."""
    return [
        rank * size
        for of_block in maps
        for name, shape in linear_maps(of_block).items()
        if is_target(name, targets)
        for size in reversed(shape)
    ]
