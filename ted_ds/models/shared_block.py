"""The block of a student on which the gradients of its terms are compared."""

from __future__ import annotations

from torch import nn

from ted_ds.models.family import DECODER
from ted_ds.models.parts import blocks_of
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.layer_map import number_of, stack_of


def last_shared_block(tapped: TappedModel) -> nn.Module:
    """The last block that the terms of all tapped layers reach, and those of the predictions.

    It is the block of the first tapped layer: what is behind it has no part in that layer. (An encoder is before its
    decoder; the embeddings, layer 0, are behind no block and do not count.) Without tapped layers, the last block.
    """
    model, family = tapped.model, tapped.family
    layers = [layer for layer in tapped.layers if number_of(layer) > 0]
    if not layers:
        return blocks_of(model, family)[-1]
    first = min(layers, key=lambda layer: (stack_of(layer) == DECODER, number_of(layer)))
    if family.is_stacked:
        return blocks_of(model, family.stacks[stack_of(first)])[number_of(first) - 1]
    # several layers may be put out by one block
    return blocks_of(model, family)[family.block_of_layers(model.config.to_dict())[number_of(first) - 1]]
