"""How an encoder-decoder is run: its encoder on the texts, its decoder on the targets, each shifted by one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.models.family import ENCODER, Family
from ted_ds.models.parts import blocks_of, stacks_of
from ted_ds.numerics.layer_map import Layer


def layers_of_stacks(model: nn.Module, family: Family, first_state: nn.Module) -> dict[Layer, nn.Module]:
    """What puts out each layer's state, by its name; ``first_state`` that of the encoder's embeddings.

    What the decoder's embeddings put out is no layer.
    """
    found: dict[Layer, nn.Module] = {f"{ENCODER}.0": first_state}
    for name, stack in family.stacks.items():
        found |= {f"{name}.{number}": block for number, block in enumerate(blocks_of(model, stack), start=1)}
    return found


def shifted(target_ids: Tensor, start_id: int) -> Tensor:
    """What a decoder reads to predict ``target_ids``, ``[batch, targets]``: the start id, then all but the last."""
    start = torch.full_like(target_ids[:, :1], start_id)
    return torch.cat([start, target_ids[:, :-1]], dim=1)


def with_decoder_inputs(arguments: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The arguments with what the decoder reads in the place of the targets, as the model itself shifts its labels."""
    rest = {name: value for name, value in arguments.items() if name != "target_ids"}
    return {**rest, "decoder_input_ids": shifted(arguments["target_ids"], config.decoder_start_token_id)}


def run_stacks(model: PreTrainedModel, family: Family, arguments: Mapping[str, Any]) -> Any:
    """What the decoder puts out: ``last_hidden_state``, ``[batch, targets, hidden]``, behind its final norm.

    Padding stands behind the targets, where no token of them sees it: the decoder goes without a mask for it, as it
    does where transformers is given labels.
    """
    encoder, decoder = stacks_of(model, family)
    mask = arguments.get("attention_mask")
    memory = encoder(input_ids=arguments["input_ids"], attention_mask=mask).last_hidden_state
    return decoder(
        input_ids=arguments["decoder_input_ids"],
        encoder_hidden_states=memory,
        encoder_attention_mask=mask,
        use_cache=False,
    )
