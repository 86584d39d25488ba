"""Which part of a model one pipeline stage holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Consecutive blocks of a model, with the embeddings before the first and the output behind the last of them."""

    start: int
    """Blocks before these: the number of the layer whose state arrives."""
    stop: int
    """Layer number of the last of these blocks' output (:mod:`ted_ds.numerics.layer_map`)."""
    has_embeddings: bool
    has_output: bool
    """Whether what comes after the last block is here: final norm and head."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to other stages."""
        return self.has_embeddings and self.has_output

    @property
    def is_empty(self) -> bool:
        """Whether a state leaves it as it arrived."""
        return self.start == self.stop and not (self.has_embeddings or self.has_output)

    @classmethod
    def whole(cls, num_blocks: int) -> Share:
        """All of a model."""
        return cls(0, num_blocks, has_embeddings=True, has_output=True)
