"""Stage I: filters with heads on top, so that the task loss can train them. The heads are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from ted_ds.errors import CheckpointError
from ted_ds.models.families import Family, family_of
from ted_ds.numerics.filters import INITIAL_STD, FilterBank, PooledClassifier, pool


class FilterProbes(nn.Module):
    """A filter bank and one head per filter: K independent probes on a frozen body.

    ``forward`` takes the tapped states and returns one logits tensor per filter.
    """

    def __init__(self, bank: FilterBank, heads: Sequence[nn.Module], *, pooled_token: str | None) -> None:
        super().__init__()
        self.bank = bank
        self.heads = nn.ModuleList(heads)
        self.pooled_token = pooled_token

    def forward(self, states: Sequence[Tensor], attention_mask: Tensor) -> tuple[Tensor, ...]:
        features = self.bank(states)
        if self.pooled_token is not None:
            features = tuple(pool(one, attention_mask, position=self.pooled_token) for one in features)
        return tuple(head(one) for head, one in zip(self.heads, features, strict=True))


class FrozenLmHead(nn.Module):
    """A model's own final norm and LM head, frozen, behind a map to its width where the filter's width differs.

    The norm and head are shared by all probes; only the map (``dim -> hidden``) trains.
    """

    def __init__(self, dim: int, hidden_size: int, output: nn.Module) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(dim, hidden_size) if dim != hidden_size else nn.Identity()
        if isinstance(self.to_hidden, nn.Linear):
            nn.init.eye_(self.to_hidden.weight)
            nn.init.zeros_(self.to_hidden.bias)
        self.output = output

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.to_hidden(features))


def classification_probes(bank: FilterBank, *, dim: int, num_labels: int, family: Family) -> FilterProbes:
    """Probes for sequence classification: a pooled classifier per filter."""
    heads = [PooledClassifier(dim, num_labels) for _ in bank.layers]
    return FilterProbes(bank, heads, pooled_token=family.pooled_token)


def lm_probes(bank: FilterBank, *, dim: int, model_path: Path, kind: str, dtype: torch.dtype) -> FilterProbes:
    """Probes for causal LM: the model's frozen norm and head (``frozen``), or a new linear head each (``new``)."""
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    heads: list[nn.Module]
    if kind == "new":
        heads = [nn.Linear(dim, config.vocab_size, bias=False) for _ in bank.layers]
        for head in heads:
            nn.init.normal_(head.weight, std=INITIAL_STD)
    else:
        output = load_lm_output(model_path, dtype).requires_grad_(False)
        heads = [FrozenLmHead(dim, config.hidden_size, output) for _ in bank.layers]
    return FilterProbes(bank, heads, pooled_token=None)


def load_lm_output(model_path: Path, dtype: torch.dtype) -> nn.Sequential:
    """A copy of a model's final norm and LM head, read from its files.

    From the files, not from a live model: that one may be sharded over the ranks.

    Raises:
        CheckpointError: The files lack these weights.
    """
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    family = family_of(config.model_type)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    skeleton.tie_weights()
    norm, head = family.final_norm(skeleton), family.head(skeleton)
    tied = skeleton.get_input_embeddings().weight is head.weight
    embeddings_name = next(n for n, m in skeleton.named_modules() if m is skeleton.get_input_embeddings())
    norm.to_empty(device="cpu")
    # tied heads share a meta parameter with the embeddings: give this copy one of its own
    head.weight = nn.Parameter(torch.empty_like(head.weight, device="cpu"))
    wanted: dict[str, Any] = {f"{family.final_norm_path}.{name}": p for name, p in norm.named_parameters()}
    wanted[f"{embeddings_name if tied else family.lm_head_path}.weight"] = head.weight
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(torch.empty_like(head.bias, device="cpu"))
        wanted[f"{family.lm_head_path}.bias"] = head.bias
    # checkpoints of a bare body lack the first part of the path
    by_name = wanted | {name.split(".", 1)[1]: p for name, p in wanted.items() if name.count(".") > 1}
    filled = set()
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in set(weights.keys()) & set(by_name):
                with torch.no_grad():
                    by_name[name].copy_(weights.get_tensor(name))
                filled.add(id(by_name[name]))
    if len(filled) != len(wanted):
        raise CheckpointError(f"{model_path}: its files lack {', '.join(wanted)}; the filter heads need them")
    return nn.Sequential(norm, head)
