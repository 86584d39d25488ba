"""The modules of a live model that its family names (:mod:`ted_ds.models.family`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ted_ds.models.family import DECODER, Family
from ted_ds.numerics.logits import LogitRule


def embeddings_of(model: nn.Module, family: Family) -> nn.Module:
    """The module whose output is hidden state 0; of a family without such a one, the embeddings of the tokens."""
    if family.behind_embeddings is not None and has_part(model, family.behind_embeddings):
        return model.get_submodule(family.behind_embeddings)
    return model.get_submodule(family.embeddings_path or family.token_embeddings_path)


def blocks_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The blocks, in order; of an encoder-decoder, a list of both stacks', of which it is no part."""
    blocks = model.get_submodule(family.blocks_path)
    assert isinstance(blocks, nn.ModuleList)
    if family.decoder_blocks_path is None:
        return blocks
    return nn.ModuleList([*blocks, *blocks_of(model, family.stacks[DECODER])])


def stacks_of(model: nn.Module, family: Family) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of an encoder-decoder."""
    encoder, decoder = (model.get_submodule(one.blocks_path.rpartition(".")[0]) for one in family.stacks.values())
    return encoder, decoder


def layers_of_blocks(model: nn.Module, family: Family) -> list[nn.Module]:
    """For each block, the module that puts out its layer."""
    modules: list[nn.Module] = list(blocks_of(model, family))
    parent, _, name = (family.behind_first_block or "").rpartition(".")
    behind_first = getattr(model.get_submodule(parent), name) if name else None
    return modules if behind_first is None else [behind_first, *modules[1:]]


def before_lm_head_of(model: nn.Module, family: Family) -> list[nn.Module]:
    """What a language model's states go through between its last block and its LM head, in order.

    The body's final norm and the map behind it, and what stands behind the body.
    """
    return [*behind_blocks_of(model, family), *behind_body_of(model, family)]


def behind_blocks_of(model: nn.Module, family: Family) -> list[nn.Module]:
    """Of that, what belongs to the body, whose last hidden states it puts out."""
    paths = (family.final_norm_path, family.behind_norm_path)
    return [model.get_submodule(path) for path in paths if path is not None and has_part(model, path)]


def behind_body_of(model: nn.Module, family: Family) -> list[nn.Module]:
    """What a language model's states go through between its body and its LM head, in order."""
    modules = [model.get_submodule(path) for path in family.before_lm_head]
    return modules if family.lm_activation is None else [modules[0], ACT2FN[family.lm_activation], *modules[1:]]


def give_lm_head(model: nn.Module, family: Family) -> None:
    """Put the LM head in its place where transformers computes it without a module of its own."""
    parent, _, name = family.lm_head_path.rpartition(".")
    if (
        family.lm_head_bias is None
        or not has_part(model, family.before_lm_head[0])
        or has_part(model, family.lm_head_path)
    ):
        return
    embeddings = model.get_submodule(family.token_embeddings_path)
    assert isinstance(embeddings, nn.Embedding)
    with torch.device("meta"):
        head = nn.Linear(embeddings.embedding_dim, embeddings.num_embeddings)
    head.weight, head.bias = embeddings.weight, model.get_parameter(family.lm_head_bias)
    setattr(model.get_submodule(parent), name, head)


def lm_head_of(model: nn.Module, family: Family) -> nn.Module:
    """The linear head of a language model."""
    return model.get_submodule(family.lm_head_path)


def added_to_logits(model: nn.Module, family: Family) -> Tensor | None:
    """What a language model adds to the products of its LM head, ``[vocab]``; None where it adds nothing."""
    if family.logits_bias_path is None:
        return None
    parent, _, name = family.logits_bias_path.rpartition(".")
    added: Tensor = getattr(model.get_submodule(parent), name)
    return added.view(-1)


def logit_rule_of(config: Any, family: Family) -> LogitRule:
    """What a language model with this config makes of its head's products."""

    def said(key: str | None) -> float | None:
        return None if key is None else getattr(config, key)

    divisor, factor = said(family.logits_divisor_key), said(family.logits_factor_key)
    if family.divides_logits_key is not None and said(family.divides_logits_key):
        divisor = math.sqrt(config.hidden_size)
    return LogitRule((1.0 if divisor is None else divisor) / (factor or 1.0), said(family.logits_cap_key))


def has_part(model: nn.Module, path: str) -> bool:
    """Whether a module is at a path."""
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
        if not isinstance(found, nn.Module):
            return False
    return True


def put_part(model: nn.Module, path: str, module: nn.Module | None) -> None:
    """Put a module in another's place."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
