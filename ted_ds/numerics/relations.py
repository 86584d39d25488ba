"""How the tokens of a text attend to each other by their queries, keys or values, of two models of any widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ted_ds.numerics.feature_distances import FeatureDistance


@dataclass(frozen=True)
class RelationDistance(FeatureDistance):
    """The KL between self-attention relations of a text's tokens (MiniLMv2: Wang et al. 2021, section 3.1)."""

    kind: str = "relation"
    num_heads: int = 1
    """Into how many heads each side's vectors are cut anew, whatever heads its own attention has."""

    @property
    def is_of_texts(self) -> bool:
        """It is."""
        return True

    def sum(
        self,
        student_features: Float[Tensor, "batch seq dim"],
        teacher_features: Float[Tensor, "batch seq other"],
        *,
        keep: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, ""]:
        """Sum over kept tokens ``i`` of the mean over heads of ``KL(R_T[i] || R_S[i])``, in fp32 nats; a row is a text.

        ``R = softmax(x x^T / sqrt(width of a head))``, over the kept tokens of the text, with ``x`` the queries, the
        keys or the values of all of them. Only ``student_features`` receive gradient.
        """
        student, teacher = (self._relations(one, keep) for one in (student_features, teacher_features.detach()))
        apart = (teacher.exp() * (teacher - student)).sum(-1).mean(1)
        return torch.where(keep, apart, 0.0).sum()

    def _relations(
        self, vectors: Float[Tensor, "batch seq dim"], keep: Bool[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch heads seq seq"]:
        """Logs of them; of a token that is not kept, none is to be read."""
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        heads = wide.masked_fill(~keep.unsqueeze(-1), 0).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = heads @ heads.mT / math.sqrt(heads.shape[-1])
        # finite, as what a token that is not kept stands in is multiplied by a probability of 0
        return scores.masked_fill(~keep[:, None, None], -1e9).log_softmax(-1)
