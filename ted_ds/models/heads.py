"""Stage I: filters with heads on top, so that the task loss can train them. The heads are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from ted_ds.errors import CheckpointError
from ted_ds.models.family import path_in_body
from ted_ds.models.found import family_of_folder
from ted_ds.models.loading import EARLY_NAMES, auto_class
from ted_ds.models.parts import before_lm_head_of, give_lm_head, lm_head_of, logit_rule_of
from ted_ds.models.predictions import DensePredictions, Predictions, VocabularyHead, VocabularyPredictions
from ted_ds.models.taps import TappedModel
from ted_ds.models.tensor_files import weight_files
from ted_ds.numerics.filters import INITIAL_STD, FilterBank, PooledClassifier, pool

Result = TypeVar("Result")
Prober = Callable[[int, Tensor, Mapping[str, Tensor]], Predictions]
"""Of a place in the layer map, its state ``[batch, seq, hidden]`` and what the model was given."""


class FilterProbes(nn.Module):
    """A filter bank and one head per filter: K independent probes on a frozen body."""

    def __init__(
        self, bank: FilterBank, heads: Sequence[nn.Module], *, pooling: str | None, unread_id: int | None = None
    ) -> None:
        super().__init__()
        self.bank = bank
        self.heads = nn.ModuleList(heads)
        self.pooling = pooling
        self.unread_id = unread_id

    def keep(self, places: Sequence[int]) -> None:
        """Drop the filters and heads of other places in the layer map than these."""
        self.bank.keep(places)
        for place in set(range(len(self.heads))) - set(places):
            self.heads[place] = nn.Identity()

    def forward(self, then: Callable[[Prober], Result]) -> Result:
        """What ``then`` makes of these probes, within this forward pass."""
        return then(self.predict)

    def predict(self, place: int, state: Tensor, inputs: Mapping[str, Tensor]) -> Predictions:
        """What the filter and head of a place in the layer map read out of its state."""
        features = self.features(place, state, inputs)
        head = self.heads[place]
        if isinstance(head, OwnOutput):
            return DensePredictions(head(features, inputs))
        if isinstance(head, VocabularyHead):
            return VocabularyPredictions(features, head)
        if isinstance(head, FrozenLmHead):
            return VocabularyPredictions(head(features), head.lm_head)
        return DensePredictions(head(features))

    def features(self, place: int, state: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """What a head reads of a place in the layer map: its filtered state, or what is pooled of it."""
        features: Tensor = self.bank.filters[place](state)
        if self.pooling is not None:
            unread = None if self.unread_id is None else inputs["input_ids"] == self.unread_id
            features = pool(features, inputs["attention_mask"], how=self.pooling, unread=unread)
        return features


class ProbesOfModels(nn.Module):
    """The one trainable module of Stage I: the probes of each model whose filters are learned."""

    def __init__(self, sides: Mapping[str, FilterProbes]) -> None:
        super().__init__()
        self.sides = nn.ModuleDict(dict(sides))

    def forward(self, then: Callable[[Mapping[str, Any]], Result]) -> Result:
        """What ``then`` makes of the probes by side, within this forward pass."""
        return then(dict(self.sides.items()))


class FrozenLmHead(nn.Module):
    """A model's own LM head and what stands before it, frozen, behind a map to its width where the filter's differs.

    What stands before is the final norm, or what a masked LM has there. Both are shared by all probes; only the map
    (``dim -> hidden``) trains.
    """

    def __init__(self, dim: int, hidden_size: int, norm: nn.Module, lm_head: VocabularyHead) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(dim, hidden_size) if dim != hidden_size else nn.Identity()
        if isinstance(self.to_hidden, nn.Linear):
            nn.init.eye_(self.to_hidden.weight)
            nn.init.zeros_(self.to_hidden.bias)
        self.norm = norm
        self.lm_head = lm_head

    def forward(self, features: Tensor) -> Tensor:
        """What the LM head takes, ``[batch, seq, hidden]``, of features ``[batch, seq, dim]``."""
        return self.norm(self.to_hidden(features))


class OwnOutput(nn.Module):
    """A model's own output, frozen: all that stands behind its last block, which it takes features for the state of."""

    def __init__(self, output: TappedModel) -> None:
        """Read by ``output``, a share of a model without embeddings and blocks."""
        super().__init__()
        self.output = output

    def train(self, mode: bool = True) -> OwnOutput:  # noqa: ARG002 - as torch calls it
        """It never does: what its head reads is not dropped."""
        return super().train(False)

    def forward(self, features: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of features ``[batch, seq, hidden]``, or of one ``[batch, hidden]`` that stands at every token."""
        if features.dim() == 2:
            features = features.unsqueeze(1).expand(-1, inputs["input_ids"].shape[1], -1)
        self.output.arrive(features)
        logits, _ = self.output(inputs)
        return logits


def own_probes(bank: FilterBank, output: TappedModel, *, mean: bool) -> FilterProbes:
    """Probes that a model's own output reads, as they stand or by the ``mean`` over each text's tokens."""
    return FilterProbes(bank, [OwnOutput(output) for _ in bank.layers], pooling="mean" if mean else None)


def classification_probes(
    bank: FilterBank, *, dim: int, num_labels: int, pooling: str, unread_id: int | None = None
) -> FilterProbes:
    """Probes for sequence classification: a classifier per filter on its ``first``, ``last`` or ``mean`` feature.

    ``unread_id`` is the model's own (:attr:`ted_ds.models.taps.TappedModel.unread_id`).
    """
    heads = [PooledClassifier(dim, num_labels) for _ in bank.layers]
    return FilterProbes(bank, heads, pooling=pooling, unread_id=unread_id)


class SpanHead(nn.Linear):
    """A linear head on each token: how likely an answer starts, and how likely it ends there."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2)
        nn.init.normal_(self.weight, std=INITIAL_STD)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Features ``[batch, seq, dim]`` to logits ``[batch, 2, seq]``."""
        return super().forward(input).transpose(1, 2)


def span_probes(bank: FilterBank, *, dim: int) -> FilterProbes:
    """Probes for answers to questions: a linear head each on every token's feature."""
    return FilterProbes(bank, [SpanHead(dim) for _ in bank.layers], pooling=None)


def lm_probes(bank: FilterBank, *, dim: int, model_path: Path, kind: str, dtype: torch.dtype) -> FilterProbes:
    """Probes of a vocabulary: the model's own LM head, frozen (``frozen``), or a new linear head each (``new``)."""
    heads = frozen_or_new_heads(len(bank.layers), dim=dim, model_path=model_path, kind=kind, dtype=dtype)
    return FilterProbes(bank, heads, pooling=None)


def frozen_or_new_heads(number: int, *, dim: int, model_path: Path, kind: str, dtype: torch.dtype) -> list[nn.Module]:
    """The heads of so many probes of a vocabulary."""
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    if kind == "new":
        return [_new_lm_head(dim, config.vocab_size) for _ in range(number)]
    norm, lm_head = load_lm_output(model_path, dtype)
    norm.requires_grad_(False)
    lm_head.requires_grad_(False)
    return [FrozenLmHead(dim, config.hidden_size, norm, lm_head) for _ in range(number)]


def _new_lm_head(dim: int, vocab_size: int) -> VocabularyHead:
    head = VocabularyHead(dim, vocab_size, bias=False)
    nn.init.normal_(head.weight, std=INITIAL_STD)
    return head


def load_lm_output(model_path: Path, dtype: torch.dtype) -> tuple[nn.Module, VocabularyHead]:
    """A copy of a model's LM head and of what stands before it, read from its files.

    That is its final norm, or a masked LM's transform. From the files, not from a live model: that one may be sharded
    over the ranks.

    Raises:
        CheckpointError: The files lack these weights.
    """
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    family = family_of_folder(model_path)
    with torch.device("meta"):
        skeleton = auto_class(family.language_model).from_config(config, dtype=dtype)
    skeleton.tie_weights()
    give_lm_head(skeleton, family)
    parts = before_lm_head_of(skeleton, family)
    before = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    head: Any = lm_head_of(skeleton, family)
    names = [*skeleton.named_parameters(remove_duplicate=False)]
    wanted: dict[str, list[str]] = {}
    for own, parameter in nn.Sequential(before, head).named_parameters():
        # a tied one has several names, the embeddings' first
        wanted[own] = [name for name, one in names if one is parameter]
        if parameter is head.weight:
            place = 0 if family.is_untied_by_files else len(wanted[own])
            wanted[own].insert(place, family.lm_head_matrix)
    state = read_first(model_path, wanted, dtype)
    lacking = [names[0] for own, names in wanted.items() if own not in state]
    if lacking:
        raise CheckpointError(f"{model_path}: its files lack {', '.join(lacking)}; the filter heads need them")
    # the skeleton has no memory of its own
    nn.Sequential(before, head).load_state_dict(state, assign=True)
    own_head = VocabularyHead.of(head, logit_rule_of(config, family))
    if family.logits_bias_path is not None:
        added = read_first(model_path, {"added": [family.logits_bias_path]}, dtype)
        if added:
            own_head.bias = nn.Parameter(added["added"].view(-1))
    return before, own_head


def read_first(model_path: Path, wanted: Mapping[str, Sequence[str]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Of each thing wanted, the tensor in a model's files under the first of its names that they have."""
    found: dict[str, Tensor] = {}
    names = {own: [one for name in of_own for one in _in_files(name)] for own, of_own in wanted.items()}
    for file in weight_files(model_path):
        with safe_open(file, framework="pt") as weights:
            for name in set(weights.keys()) & {one for of_own in names.values() for one in of_own}:
                found[name] = weights.get_tensor(name).to(dtype)
    first = {own: next((one for one in of_own if one in found), None) for own, of_own in names.items()}
    return {own: found[one] for own, one in first.items() if one is not None}


def _in_files(name: str) -> Iterator[str]:
    """What files may call a parameter."""
    yield name
    if name.count(".") > 1:  # those of a bare body lack the first part of the path
        yield path_in_body(name)
    for now, before in EARLY_NAMES.items():
        if name.endswith(now):
            yield name.removesuffix(now) + before
