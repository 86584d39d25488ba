"""The positions that a text has on its own, whatever is beside it in a batch and wherever its padding is.

Tables of positions may begin with rows for other things than a text's first token: RoBERTa counts from behind the row
of its padding id (Liu et al. 2019; the code of fairseq).

LongRoPE has two sets of frequencies, for texts up to the length of pre-training and for longer ones (Ding et al. 2024).
Transformers takes one of the two for a whole forward pass, by its highest position: a short text then has other
positions beside a long one than on its own. Here each text has those that it has on its own, which are those that a
user of the exported model will see. (``dynamic`` frequencies change beyond ``max_position_embeddings`` alone, where no
recipe may go.)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CHOSEN_BY_LENGTH = "longrope"
"""Transformers' name of the rule."""


def choose_by_text(model: nn.Module) -> bool:
    """Let each text choose its own frequencies in all rotary embeddings of a model; whether it has such a choice.

    The model must be given ``position_ids`` then (:func:`positions_in_row`).
    """
    found = False
    for module in model.modules():
        rule: Any = getattr(module, "rope_type", None)  # a name, or one for each type of layer
        if CHOSEN_BY_LENGTH in (rule.values() if isinstance(rule, Mapping) else (rule,)):
            module.forward = functools.partial(_chosen_by_text, module, module.forward)
            found = True
    return found


def positions_in_row(attention_mask: Tensor) -> Tensor:
    """Each kept token's place among those of its row, ``[batch, seq]``; padding has the place of the token before it.

    They are the positions a row has on its own.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def positions_behind(row_of_padding: int, arguments: Mapping[str, Any]) -> Tensor:
    """Rows of a table of positions in which a text's first token stands behind the row of padding, ``[batch, seq]``.

    As transformers counts them of a text alone: a token of it with the padding's own id is not counted, and has its
    row.
    """
    counted = (arguments["input_ids"] != row_of_padding).long() * attention_mask_of(arguments)
    return counted.cumsum(1) * counted + row_of_padding


def attention_mask_of(arguments: Mapping[str, Any]) -> Tensor:
    """Which tokens are no padding: all, where nothing else is said."""
    mask: Tensor | None = arguments.get("attention_mask")
    return torch.ones_like(arguments["input_ids"]) if mask is None else mask


def _chosen_by_text(module: Any, plain: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
    """The rotary embedding of ``position_ids`` ``[batch, seq]``, a text starting wherever they start again."""
    of_layer = {} if layer_type is None else {"layer_type": layer_type}
    rule = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if rule != CHOSEN_BY_LENGTH:
        return plain(x, position_ids, **of_layer)
    settings = module.config.rope_parameters
    longest_short: int = (settings if layer_type is None else settings[layer_type])["original_max_position_embeddings"]
    # the choice of the module itself, for positions that leave it none
    short = plain(x, position_ids.clamp(max=longest_short - 1), **of_layer)
    beyond = torch.full_like(position_ids[:, :1], longest_short)
    long = plain(x, torch.cat([position_ids, beyond], dim=1), **of_layer)
    is_long = (_last_positions(position_ids) >= longest_short).unsqueeze(-1)
    return tuple(torch.where(is_long, of_long[:, :-1], of_short) for of_short, of_long in zip(short, long, strict=True))


def _last_positions(position_ids: Tensor) -> Tensor:
    """For each token the highest position in its text."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    text = starts.long().cumsum(1) - 1
    highest = torch.zeros_like(position_ids).scatter_reduce(1, text, position_ids, reduce="amax")
    return highest.gather(1, text)
