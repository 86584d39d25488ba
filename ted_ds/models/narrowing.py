"""A model's weights with some of its units alone (:mod:`ted_ds.models.units`), tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.models.family import Family
from ted_ds.models.unit_scores import SHARES, Place
from ted_ds.models.units import HEADS, HIDDEN, INNER, KEY_VALUE_HEADS, Widths, axes_of, is_at
from ted_ds.numerics.unit_choice import heads_in_groups, highest


@dataclass(frozen=True)
class KeptUnits:
    """The units that a narrower model has."""

    before: Widths
    after: Widths
    hidden: Sequence[int]
    """Channels; the same everywhere, as they are what goes from block to block."""
    of_blocks: Mapping[int, Mapping[str, Sequence[int]]]
    """The others, by block, numbered as before the cut, and kind."""
    norms: Mapping[Place, float] = field(default_factory=dict)
    """What the weights of norms are multiplied by, so that what is kept of a state has the size behind them that it had
    in the whole: the root of what is kept of the mean square of what a norm takes, over its share of channels."""

    def of(self, kind: str, block: int | None) -> Sequence[int]:
        """Those of a kind, of a block unless they are channels."""
        if kind == HIDDEN:
            return self.hidden
        assert block is not None
        return self.of_blocks[block][kind]

    def share_of(self, kind: str, sums: Mapping[tuple[str, Place], Sequence[float]]) -> float:
        """Of all that units of a kind do by :class:`~ted_ds.models.unit_scores.UnitScores`, what these do."""
        kept, total = 0.0, 0.0
        for (one, (block, _)), values in sums.items():
            if one == kind and (block is None or block in self.of_blocks):
                kept += sum(values[unit] for unit in self.of(kind, block))
                total += sum(values)
        return kept / total if total else 1.0


def choose_units(
    sums: Mapping[tuple[str, Place], Sequence[float]],
    before: Widths,
    after: Widths,
    *,
    blocks: Sequence[int],
    num_tokens: int,
) -> KeptUnits:
    """Keep those units of a model that do most.

    Args:
        sums: What :class:`~ted_ds.models.unit_scores.UnitScores` has, over all ranks.
        before: How many units there are.
        after: How many are kept.
        blocks: Those that the narrower model has: channels are chosen by what they do in these, and behind them.
        num_tokens: Of the sums.
    """
    channels = [0.0] * before.hidden
    of_blocks: dict[int, dict[str, Sequence[int]]] = {}
    for (kind, (block, _)), values in sums.items():
        if block is not None and block not in blocks:
            continue
        if kind == HIDDEN:
            channels = [one + other for one, other in zip(channels, values, strict=True)]
        elif kind == INNER and block is not None:
            of_blocks.setdefault(block, {})[INNER] = highest(values, after.inner)
        elif kind == HEADS and block is not None:
            heads, shared = heads_in_groups(
                values, before.key_value_heads, keep_groups=after.key_value_heads, keep_heads=after.heads
            )
            of_blocks.setdefault(block, {}).update({HEADS: heads, KEY_VALUE_HEADS: shared})
    hidden = highest(channels, after.hidden)
    norms = {
        place: math.sqrt(before.hidden / after.hidden * share / num_tokens)
        for (kind, place), values in sums.items()
        if kind == SHARES and after.hidden < before.hidden and (share := sum(values[channel] for channel in hidden))
    }
    return KeptUnits(before, after, hidden, of_blocks, norms)


def narrowed(name: str, weight: Tensor, units: KeptUnits, family: Family) -> Tensor:
    """A parameter of a model's files with what is kept of it.

    Raises:
        CheckpointError: It has another size than units of its kind.
    """
    block = family.block_number(name)
    result = weight
    for axis, kinds in enumerate(axes_of(name, tuple(weight.shape), family)):
        if not kinds:
            continue
        kept: list[int] = []
        start = 0
        for kind in kinds:
            width = units.before.width(kind)
            kept += [start + unit * width + place for unit in units.of(kind, block) for place in range(width)]
            start += units.before.number(kind) * width
        if start != weight.shape[axis]:
            raise CheckpointError(
                f"{name} has {weight.shape[axis]} entries along axis {axis}, and not {start} ({', '.join(kinds)}), as "
                "the config says; a model of other widths in each block is not cut in width"
            )
        if len(kept) < start:
            result = result.index_select(axis, torch.tensor(kept))
    factor = _factor(name, block, units, family)
    if factor == 1.0:
        return result
    return (result.to(torch.promote_types(result.dtype, torch.float32)) * factor).to(result.dtype)


def _factor(name: str, block: int | None, units: KeptUnits, family: Family) -> float:
    """What a parameter is multiplied by."""
    if not name.endswith(".weight"):
        return 1.0
    if block is not None:
        return units.norms.get((block, family.name_in_block(name).rpartition(".")[0]), 1.0)
    found = (one for (number, path), one in units.norms.items() if number is None and is_at(name, path, family))
    return next(found, 1.0)
