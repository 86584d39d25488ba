"""Where some terms of Stage II look: the blocks of attention relations, and what gradients are compared on."""

from __future__ import annotations

from torch import nn

from ted_ds.assembly.assembly import Assembly
from ted_ds.errors import ConfigError
from ted_ds.models.relation_taps import RelationTap
from ted_ds.models.shared_block import last_shared_block
from ted_ds.models.taps import TappedModel
from ted_ds.objectives.relations import Relations
from ted_ds.planning.relations import relation_blocks


def relations_of(build: Assembly, **models: TappedModel) -> Relations:
    """Taps of the blocks whose attention is compared, of ``student`` and ``teacher``."""
    blocks = relation_blocks(build.recipe, build.facts("student"), build.facts("teacher"))
    taps = {side: RelationTap(tapped, blocks[side]) for side, tapped in models.items()}
    return Relations(**taps, num_heads=build.recipe.distill.relation_heads)


def balanced_parameters(tapped: TappedModel, relations: Relations | None) -> list[nn.Parameter]:
    """Those on which gradients of terms are compared: what trains of the last block that all terms reach.

    Raises:
        ConfigError: Nothing does.
    """
    related = [] if relations is None else [relations.student.number]
    trained = [one for one in last_shared_block(tapped, related).parameters() if one.requires_grad]
    if not trained:
        raise ConfigError(
            "distill.balance: nothing trains in the student's block on which gradients of its terms would be compared; "
            "let student.lora.targets name a map in it, or give weights without balance"
        )
    return trained
