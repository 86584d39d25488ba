"""How many parameters a model has, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ted_ds.models.config_agreement import Shape
from ted_ds.models.packed import NOTHING_PACKED, Packed
from ted_ds.models.share import Share


@dataclass(frozen=True)
class Parameters:
    """A model's parameters, by where they are."""

    of_blocks: tuple[tuple[Shape, ...], ...]
    embeddings: int
    """How many the token embeddings have."""
    lm_head: int
    """Of an LM head of its own; 0 where that is the embeddings, or where there is none."""
    others: tuple[Shape, ...]
    before_lm_head: tuple[Shape, ...] = ()
    """Of a masked LM, what has no part in its body or in the matrix of its LM head."""
    packed: Packed = NOTHING_PACKED
    """What of them is kept in fewer bits, as in the files."""
    maps: tuple[Mapping[str, Shape], ...] = ()
    """The matrices of each block's linear maps, by the map's name within it."""
    label_heads: tuple[Shape, ...] = ()
    """Of a head of labels; they are among the others."""

    @property
    def total(self) -> int:
        """All of them."""
        in_blocks = sum(math.prod(shape) for block in self.of_blocks for shape in block)
        outside = sum(math.prod(shape) for shape in (*self.others, *self.before_lm_head))
        return in_blocks + self.embeddings + self.lm_head + outside

    @property
    def in_matrices_of_blocks(self) -> int:
        """Those of the blocks' linear maps, without biases and norms."""
        return sum(math.prod(shape) for block in self.of_blocks for shape in block if len(shape) == 2)

    @property
    def sizes(self) -> list[int]:
        """How many each of them has."""
        shapes = [*(shape for block in self.of_blocks for shape in block), *self.others, *self.before_lm_head]
        return [size for size in (self.embeddings, self.lm_head, *map(math.prod, shapes)) if size]

    def cut(self, blocks: Sequence[int]) -> Parameters:
        """Of a model with these blocks only."""
        maps = tuple(self.maps[block] for block in blocks) if self.maps else ()
        return replace(self, of_blocks=tuple(self.of_blocks[block] for block in blocks), maps=maps)

    def of_share(self, share: Share, *, predicts_tokens: bool) -> Parameters:
        """Of a pipeline stage; small ones outside of blocks are counted where the embeddings are.

        An LM head tied to the embeddings is kept where it is used, too, if the model ``predicts_tokens``.
        """
        output = self.lm_head
        if predicts_tokens and not output and not share.has_embeddings:
            output = self.embeddings
        return Parameters(
            self.of_blocks[share.start : share.stop],
            self.embeddings if share.has_embeddings else 0,
            output if share.has_output else 0,
            self.others if share.has_embeddings else (),
            self.before_lm_head if share.has_output else (),
        )

    def as_classifier(self) -> Parameters:
        """Of a model without its LM head."""
        return replace(self, lm_head=0)

    def as_masked_lm(self, *, width: int, vocab_size: int, is_tied: bool) -> Parameters:
        """Of a masked LM, whatever of its head the files have.

        Behind the body it has a linear map, a norm and a bias for each token, besides the matrix of its LM head; one
        that is not tied to the embeddings has a second bias.
        """
        before = ((width, width), (width,), (width,), (width,), (vocab_size,))
        if is_tied:
            return replace(self, lm_head=0, before_lm_head=before)
        return replace(self, lm_head=vocab_size * width, before_lm_head=(*before, (vocab_size,)))
