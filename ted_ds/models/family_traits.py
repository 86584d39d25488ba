"""Parts of a family's record that stand by themselves: experts, dropouts, output maps, token types. Without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    """What files and ``config.json`` call experts and routers; of a family without them, nothing."""

    num_experts_keys: tuple[str, ...] = ()
    """The names of the entry that says how many experts a block has; none where blocks have no experts."""
    num_chosen_key: str = "num_experts_per_tok"
    """The entry that says how many of them each token goes through."""
    sparse_step_key: str | None = None
    """The entry by which only each so many-th block has experts."""
    dense_blocks_key: str | None = None
    """The entry that lists blocks without experts, whatever that says."""
    expert_marker: str = ".experts."
    """In the names of what belongs to experts, in files and in a model."""
    balance_switch: str = "output_router_logits"
    """The entry by which a language model adds its routers' auxiliary loss to its own."""
    balance_weight_key: str = "router_aux_loss_coef"
    """The entry with the weight of that loss."""
    balance_weight_by_default: float = 0.001
    """That weight where the config does not say."""

    def balance_weight(self, config: Mapping[str, Any]) -> float:
        """The weight of the routers' auxiliary loss, by a ``config.json``; 0 where a language model goes without."""
        if not self.num_experts_keys or not config.get(self.balance_switch):
            return 0.0
        return float(config.get(self.balance_weight_key, self.balance_weight_by_default))

    def num_experts(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """How many experts a block of such a model has, and how many of them a token goes through; 0 without."""
        held = next((config[key] for key in self.num_experts_keys if config.get(key) is not None), 0)
        return held, config.get(self.num_chosen_key, 0) if held else 0

    def with_experts_together(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The tensors of files as a live model has them: those of a block's experts are one, ``[experts, ...]``."""
        if not self.num_experts_keys:
            return dict(shapes)
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            together, is_one = re.subn(rf"{re.escape(self.expert_marker)}\d+\.", self.expert_marker, name)
            count = found[together][0] if together in found else 0
            found[together] = (count + 1, *shape) if is_one else shape
        return found


@dataclass(frozen=True, kw_only=True)
class Dropouts:
    """What ``config.json`` calls the probabilities of dropout."""

    hidden_dropouts: tuple[str, ...] = ()
    """Entries with the probabilities that states are dropped by."""
    attention_dropouts: tuple[str, ...] = ()
    """Those that attention is dropped by."""
    label_dropouts: Mapping[str, str] = field(default_factory=dict)
    """That before a head of labels, by the model's architecture (what follows ``AutoModelFor``)."""

    @property
    def block_dropouts(self) -> tuple[str, ...]:
        """The entries of what is dropped before the last block puts out its state."""
        return (*self.hidden_dropouts, *self.attention_dropouts)

    def dropout_keys(self, what: str, architecture: str) -> tuple[str, ...]:
        """The entries of the config with the dropout of ``hidden`` states, ``attention`` or the ``classifier``.

        None where models of this architecture have no such dropout.
        """
        if what == "classifier":
            return (self.label_dropouts[architecture],) if architecture in self.label_dropouts else ()
        return self.hidden_dropouts if what == "hidden" else self.attention_dropouts


@dataclass(frozen=True, kw_only=True)
class OutputMaps:
    """Where a block has the linear map whose output is added to what the block puts out, in the end."""

    output_map: str | None = None
    """Its path within a block; None where a block has none, or it is not looked for."""
    mlp_path: str | None = None
    """The module within a block that its MLP begins with: what is computed from there to ``output_map`` is computed of
    each token by itself. None where that is not known, and the MLP is always run whole."""
    output_factor_key: str | None = None
    """The entry of the config that its output is multiplied by."""
    norm_behind_map: str | None = None
    """The path within a block of the norm that their sum goes through, where blocks end with one; None where they put
    out the sum."""
    is_normed_before_key: str | None = None
    """The entry of the config by which there is none all the same, unless it is false."""

    def output_factor(self, config: Mapping[str, Any]) -> float:
        """What the map's output is multiplied by, by a ``config.json``."""
        return float(config.get(self.output_factor_key or "", 1.0))

    def norm_behind(self, config: Mapping[str, Any]) -> str | None:
        """The norm at the end of a block, by a ``config.json``."""
        is_before = self.is_normed_before_key is not None and config.get(self.is_normed_before_key, True)
        return None if is_before else self.norm_behind_map


@dataclass(frozen=True, kw_only=True)
class TokenTypes:
    """How many types of tokens a model tells apart."""

    token_types_key: str | None = None
    """The entry of the config that says how many types of tokens it tells apart by embeddings: those of the two texts
    of a pair, as a rule; None where it has no such embeddings."""
    token_types_by_default: int = 0
    """How many where the config does not say."""

    def num_token_types(self, config: Mapping[str, Any]) -> int:
        """How many types of tokens a model tells apart, by a ``config.json``."""
        if self.token_types_key is None:
            return 0
        return int(config.get(self.token_types_key, self.token_types_by_default))


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Which linear maps of a block put out what its attention reads; of a family without such ones, nothing."""

    attention_maps: tuple[str, ...] = ()
    """By their names within a block: those of queries, keys and values, or one that puts out as many of each, one after
    the other, all heads of queries first."""
