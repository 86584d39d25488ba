"""Of which units a model's parameters are, so that a narrower model can have some of each. Without torch.

Units are the channels of the states between blocks (``hidden``), the neurons of a block's MLP (``inner``), its heads
of queries (``heads``), and those of keys and values (``key_value_heads``), each of which serves as many of queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ted_ds.models.family import Family

Shape = tuple[int, ...]
HIDDEN, INNER, HEADS, KEY_VALUE_HEADS = KINDS = ("hidden", "inner", "heads", "key_value_heads")
ENTRIES = {
    HIDDEN: "hidden_size",
    INNER: "intermediate_size",
    HEADS: "num_attention_heads",
    KEY_VALUE_HEADS: "num_key_value_heads",
}
"""transformers' general names for how many a model has."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """What goes over which units; of a family whose width is not cut, nothing."""

    units_of_maps: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a block's linear maps, by their names within it: the units of what they put out, and of what they take. Where
    one puts out what several would, these follow each other."""
    norms_of_blocks: tuple[str, ...] = ()
    """Norms over channels, by their names within a block."""
    embeddings_norm_path: str | None = None
    """The one between embeddings and the first block."""
    maps_are_transposed: bool = False
    """Whether matrices of blocks stand as ``[in, out]``."""
    heads_fill_hidden: bool = False
    """Whether all heads together are as wide as the states, as the config has no entry for the width of one."""
    fixed_widths: Mapping[str, str] = field(default_factory=dict)
    """Kinds of units that are not left out all the same, and why."""

    @property
    def shares_keys(self) -> bool:
        """Whether a head of keys and values may serve several of queries."""
        return any(KEY_VALUE_HEADS in out.split() for out, _ in self.units_of_maps.values())

    def map_reading(self, kind: str) -> str:
        """The map of a block that takes its ``inner`` units, or the outputs of its ``heads``."""
        return next(name for name, (_, into) in self.units_of_maps.items() if into == kind)


@dataclass(frozen=True)
class Widths:
    """How many units a model has."""

    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_dim: int
    """How wide one head is."""

    def number(self, kind: str) -> int:
        """Of a kind."""
        return getattr(self, kind)

    def width(self, kind: str) -> int:
        """Of one unit of a kind: how many numbers stand for it along an axis."""
        return self.head_dim if kind in (HEADS, KEY_VALUE_HEADS) else 1


def widths_of(maps: Mapping[str, Shape], config: Mapping[str, Any], family: Family) -> Widths:
    """Of a model, by its ``config.json`` and the shapes of a block's matrices by their names within it."""
    hidden, heads = (int(family.entry(config, ENTRIES[kind])[1]) for kind in (HIDDEN, HEADS))

    def size(name: str, *, of_inputs: bool) -> int:
        return maps[name][1 if of_inputs != family.maps_are_transposed else 0]

    head_dim = size(family.map_reading(HEADS), of_inputs=True) // heads
    key_value_heads = heads
    for name, (out, _) in family.units_of_maps.items():
        kinds = out.split()
        if KEY_VALUE_HEADS in kinds:
            rest = size(name, of_inputs=False) // head_dim - heads * kinds.count(HEADS)
            key_value_heads = rest // kinds.count(KEY_VALUE_HEADS)
    return Widths(hidden, size(family.map_reading(INNER), of_inputs=True), heads, key_value_heads, head_dim)


def axes_of(name: str, shape: Shape, family: Family) -> tuple[tuple[str, ...], ...]:
    """The kinds of units that follow each other along each axis of a parameter, by its name in files; none for others.

    Outside of blocks, the last axis of a matrix is over channels, and the rows of norms and of what stands between the
    last state and a head.
    """
    if name.endswith(family.buffers):
        return ((),) * len(shape)
    if family.block_number(name) is None:
        rows = (HIDDEN,) if _puts_out_channels(name, family) else ()
        return (rows,) if len(shape) < 2 else (rows, *((),) * (len(shape) - 2), (HIDDEN,))
    module = family.name_in_block(name).rpartition(".")[0]
    if module in family.norms_of_blocks:
        return ((HIDDEN,),)
    if module not in family.units_of_maps:
        return ((),) * len(shape)
    out, into = (tuple(kinds.split()) for kinds in family.units_of_maps[module])
    if len(shape) < 2:
        return (out,)
    return (into, out) if family.maps_are_transposed else (out, into)


def is_at(name: str, path: str, family: Family) -> bool:
    """Whether a parameter in files, of a bare body as well, is in the module at a path outside of blocks."""
    body = family.blocks_path.split(".")[0]
    names = (name, f"{body}.{name}") if family.body_has_own_name else (name,)
    return any(one.startswith(f"{path}.") for one in names)


def paths_of_channels(family: Family) -> tuple[str, ...]:
    """Modules outside of blocks that put out channels: norms, and what stands between the last state and a head."""
    of_norms = [path for path in (family.embeddings_norm_path, family.final_norm_path) if path is not None]
    return (*of_norms, *family.before_lm_head, *family.before_label_head)


def narrowed_shape(name: str, shape: Shape, family: Family, before: Widths, after: Widths) -> Shape:
    """The shape of a parameter of files in a model of other widths."""
    sizes = list(shape)
    for axis, kinds in enumerate(axes_of(name, shape, family)):
        for kind in kinds:
            sizes[axis] -= (before.number(kind) - after.number(kind)) * before.width(kind)
    return tuple(sizes)


def narrowed_config(config: Mapping[str, Any], family: Family, widths: Widths) -> dict[str, Any]:
    """The ``config.json`` of a model of other widths, in which a head is as wide as before."""
    wanted = {ENTRIES[kind]: widths.number(kind) for kind in (HIDDEN, INNER, HEADS)}
    if family.shares_keys:
        wanted[ENTRIES[KEY_VALUE_HEADS]] = widths.key_value_heads
    if not family.heads_fill_hidden:
        wanted["head_dim"] = widths.head_dim
    result = dict(config)
    for name, value in wanted.items():
        key = next((key for key in family.keys(name) if key in config), family.keys(name)[-1])
        result[key] = value
    return result


def _puts_out_channels(name: str, family: Family) -> bool:
    return any(is_at(name, path, family) for path in paths_of_channels(family))
