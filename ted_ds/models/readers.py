"""Stage I of encoder-decoders: what a filter of the encoder knows of a target, read by attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ted_ds.errors import CheckpointError
from ted_ds.models.family import ENCODER, path_in_body
from ted_ds.models.found import family_of_folder
from ted_ds.models.heads import FilterProbes, frozen_or_new_heads, read_first
from ted_ds.models.two_stacks import shifted
from ted_ds.numerics.filters import INITIAL_STD, FilterBank
from ted_ds.numerics.layer_map import stack_of


class TargetReader(nn.Module):
    """One head of attention over a source's features, asked by each token of the target that the decoder reads.

    The query of a target's token is a linear map of its embedding (the model's own, frozen); keys and values are the
    features themselves. What a head makes of the feature that is so read thus comes through the filter alone: of the
    target it knows the one token before. A filter of the encoder is trained by the task's own loss, at the price of
    one attention; to hand its features to the frozen decoder in the place of the encoder's states would cost a pass of
    all decoder blocks, forwards and backwards, for each filter, and asks of features that they have the width and the
    form of those states.
    """

    def __init__(self, dim: int, embeddings: nn.Embedding, start_id: int) -> None:
        super().__init__()
        self.query = nn.Linear(embeddings.embedding_dim, dim)
        nn.init.normal_(self.query.weight, std=INITIAL_STD)
        nn.init.zeros_(self.query.bias)
        self.embeddings, self.start_id = embeddings, start_id

    def forward(self, features: Tensor, attention_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Features ``[batch, seq, dim]`` to those read at each place of the target, ``[batch, targets, dim]``."""
        query = self.query(self.embeddings(shifted(target_ids, self.start_id)))
        scores = query @ features.transpose(1, 2) / math.sqrt(features.shape[-1])
        unseen = ~attention_mask.bool().unsqueeze(1)
        weights = scores.float().masked_fill(unseen, -torch.inf).softmax(-1)
        return weights.to(features.dtype) @ features


class TargetProbes(FilterProbes):
    """Probes on both stacks: those of the encoder read with a reader each."""

    def __init__(self, bank: FilterBank, heads: Sequence[nn.Module], readers: Sequence[nn.Module]) -> None:
        super().__init__(bank, heads, pooling=None)
        self.readers = nn.ModuleList(readers)

    def features(self, place: int, state: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The filtered state, as it was read at each place of the target."""
        features = super().features(place, state, inputs)
        reader: Callable[..., Tensor] = self.readers[place]
        if stack_of(self.bank.layers[place]) != ENCODER:
            return features
        return reader(features, inputs["attention_mask"], inputs["target_ids"])


def seq2seq_probes(bank: FilterBank, *, dim: int, model_path: Path, kind: str, dtype: torch.dtype) -> TargetProbes:
    """Probes of a vocabulary on both stacks, as :func:`~ted_ds.models.heads.lm_probes` has them on one.

    Raises:
        CheckpointError: The model's files lack weights that they need.
    """
    heads = frozen_or_new_heads(len(bank.layers), dim=dim, model_path=model_path, kind=kind, dtype=dtype)
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    embeddings = _frozen_embeddings(model_path, dtype)
    readers = [
        TargetReader(dim, embeddings, config.decoder_start_token_id) if stack_of(layer) == ENCODER else nn.Identity()
        for layer in bank.layers
    ]
    return TargetProbes(bank, heads, readers)


def _frozen_embeddings(model_path: Path, dtype: torch.dtype) -> nn.Embedding:
    """A copy of a model's token embeddings, read from its files: the live ones may be sharded over the ranks."""
    config = AutoConfig.from_pretrained(model_path, local_files_only=True)
    family = family_of_folder(model_path)
    path = family.token_embeddings_path
    names = [f"{path}.weight", *([path_in_body(f"{path}.weight")] if family.body_has_own_name else [])]
    if family.is_tied(config.to_dict()):  # under the one name that the files may have
        names.append(family.lm_head_matrix)
    found = read_first(model_path, {"weight": names}, dtype)
    if not found:
        raise CheckpointError(f"{model_path}: its files lack {names[0]}; the filter heads need it")
    return nn.Embedding.from_pretrained(found["weight"], freeze=True)
