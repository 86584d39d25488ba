"""How many parameters a model has, and where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ted_ds.models.adapter_targets import may_be_adapted
from ted_ds.models.config_agreement import Shape
from ted_ds.models.family import Family, path_in_body, prefixes
from ted_ds.models.packed import NOTHING_PACKED, Packed
from ted_ds.models.share import Share


@dataclass(frozen=True)
class Parameters:
    """A model's parameters, by where they are."""

    of_blocks: tuple[tuple[Shape, ...], ...]
    """Of each block that is held."""
    embeddings: int
    """How many the token embeddings have."""
    lm_head: int
    """Of an LM head of its own; 0 where that is the embeddings, or where there is none."""
    others: tuple[Shape, ...]
    before_lm_head: tuple[Shape, ...] = ()
    """Of a masked LM, what has no part in its body or in the matrix of its LM head."""
    blocks_by_layer: tuple[int, ...] | None = None
    """The number of the block that puts out each layer; None where each has its own."""
    packed: Packed = NOTHING_PACKED
    """What of them is kept in fewer bits, as in the files."""
    maps: tuple[Mapping[str, Shape], ...] = ()
    """The matrices of each block's linear maps that may be adapted, by the map's name within it."""
    label_heads: tuple[Shape, ...] = ()
    """Of a head of labels; they are among the others."""
    of_first: Mapping[int, tuple[Shape, ...]] = field(default_factory=dict)
    """Of the first block of each stack, by its number here: what of it whichever block is the first has."""
    behind_first: tuple[Shape, ...] = ()
    """What stands behind the first block, and goes with it; they are among the others."""
    behind_blocks: tuple[Shape, ...] = ()
    """What stands behind all blocks, such as a norm or a head of labels; they are among the others."""

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

    @property
    def of_layers(self) -> tuple[tuple[Shape, ...], ...]:
        """Of the block that puts out each layer: a shared one comes several times."""
        if self.blocks_by_layer is None:
            return self.of_blocks
        return tuple(self.of_blocks[block] for block in self.blocks_by_layer)

    def sizes_behind(self, number: int) -> list[int]:
        """How many each has of those that the state behind the first ``number`` blocks does not hang on.

        An LM head that is the embeddings is none of them. For models whose layers have a block each.
        """
        shapes = [shape for block in self.of_blocks[number:] for shape in block]
        shapes += [*self.behind_blocks, *self.before_lm_head]
        return [size for size in (self.lm_head, *map(math.prod, shapes)) if size]

    def cut(self, blocks: Sequence[int]) -> Parameters:
        """Of a model with these blocks only, where several layers are put out by one: with so many layers."""
        if self.blocks_by_layer is not None:
            return replace(self, blocks_by_layer=tuple(self.blocks_by_layer[block] for block in blocks))
        maps = tuple(self.maps[block] for block in blocks) if self.maps else ()
        of_blocks = [self.of_blocks[block] for block in blocks]
        of_first: dict[int, tuple[Shape, ...]] = {}
        for start, shapes in self.of_first.items():
            stop = min((other for other in self.of_first if other > start), default=len(self.of_blocks))
            of_stack = [new for new, block in enumerate(blocks) if start <= block < stop]
            for new in (new for new in of_stack if blocks[new] == start):
                of_blocks[new] = _without(of_blocks[new], shapes)
            of_blocks[of_stack[0]] = (*of_blocks[of_stack[0]], *shapes)
            of_first[of_stack[0]] = shapes
        has_behind_first = blocks[0] == 0
        return replace(
            self,
            of_blocks=tuple(of_blocks),
            others=self.others if has_behind_first else _without(self.others, self.behind_first),
            maps=maps,
            of_first=of_first,
            behind_first=self.behind_first if has_behind_first else (),
        )

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
            maps=self.maps[share.start : share.stop],
            label_heads=self.label_heads if share.has_embeddings else (),
            behind_blocks=self.behind_blocks if share.has_embeddings else (),
        )

    def as_classifier(self, *, keeps_transform: bool) -> Parameters:
        """Of a model without its LM head; with what stands before that, where that stands before labels, too."""
        return replace(self, lm_head=0, before_lm_head=self.before_lm_head if keeps_transform else ())

    def as_masked_lm(self, before: tuple[Shape, ...], *, matrix: Shape, is_tied: bool) -> Parameters:
        """Of a masked LM, whatever of its head the files have.

        ``before`` is all that it has behind its body, but for the matrix of its LM head, ``[vocab, width]``.
        """
        return replace(self, lm_head=0 if is_tied else math.prod(matrix), before_lm_head=before)


def paths_behind_blocks(family: Family) -> tuple[str, ...]:
    """The modules that states go through behind the last block: no block hangs on them. Some may not be there."""
    norms = [path for path in (family.final_norm_path, family.behind_norm_path) if path is not None]
    heads = (*family.before_label_head, *family.own_heads, *family.before_lm_head, family.lm_head_path)
    return tuple(dict.fromkeys((*norms, *family.behind_blocks, *heads)))


def _without(shapes: Sequence[Shape], gone: Sequence[Shape]) -> tuple[Shape, ...]:
    """All but one of each that is gone."""
    left = [*shapes]
    for shape in gone:
        left.remove(shape)
    return tuple(left)


def behind_the_body(
    config: Mapping[str, Any], family: Family, held: tuple[Shape, ...], *, width: int, matrix: Shape
) -> tuple[Shape, ...]:
    """What a masked LM has behind its body, but for the matrix of its LM head, ``[vocab, width of embeddings]``.

    That is a linear map from the body's ``width`` and a norm, as in its files where those are ``held``, and a bias for
    each token; where the head is not tied to the embeddings, a second one may be left over.
    """
    vocab_size, of_embeddings = matrix
    of_map, of_norm, of_head = family.lm_biases(config)
    vectors = ((of_embeddings,),) * (1 + of_map + of_norm)
    biases = of_head + (family.unread_lm_bias is not None and not family.is_tied(config))
    return (*(held or ((of_embeddings, width), *vectors)), *(((vocab_size,),) * biases))


def sort_parameters(shapes: Mapping[str, Shape], config: Mapping[str, Any], family: Family) -> Parameters:
    """The parameters of these names and shapes, as in files, by where a model with this ``config.json`` has them."""
    by_layer = family.block_of_layers(config)
    stacks = family.stacks
    depths = {name: int(depth or 0) for name, depth in family.depths(config).items()}
    if family.num_shared_key is not None:
        depths = {"": max(by_layer, default=-1) + 1}
    by_stack: dict[str, list[list[Shape]]] = {name: [[] for _ in range(depth)] for name, depth in depths.items()}
    maps: dict[str, list[dict[str, Shape]]] = {name: [{} for _ in range(depth)] for name, depth in depths.items()}
    shapes = family.with_experts_together(shapes)
    before_lm_head: list[Shape] = []
    embeddings, lm_head, others, behind_first, behind_blocks = 0, 0, [], [], []
    is_tied, lm_heads = family.is_tied(config, shapes), prefixes(family.lm_heads_in_files)
    paths = paths_behind_blocks(family)
    behind = prefixes((*paths, *(path_in_body(path) for path in paths if "." in path)))
    of_first: dict[str, list[Shape]] = {name: [] for name, one in stacks.items() if one.parts_of_first_block}
    label_heads = tuple(shape for name, shape in shapes.items() if name.startswith(prefixes(family.own_heads)))
    for name, shape in shapes.items():
        if name.endswith(family.buffers):
            continue
        numbers = ((stack, one.block_number(name)) for stack, one in stacks.items())
        of_stack, block = next(((stack, number) for stack, number in numbers if number is not None), ("", None))
        if block is not None and block < depths[of_stack]:
            by_stack[of_stack][block].append(shape)
            within = family.name_in_block(name).removesuffix(".weight")
            if block == 0 and within in family.parts_of_first_block:
                of_first[of_stack].append(shape)
            if len(shape) == 2 and name.endswith(".weight") and may_be_adapted(within, family):
                maps[of_stack][block][within] = shape
        elif name.startswith(prefixes(family.before_lm_head)):
            before_lm_head.append(shape)
        elif name.startswith(lm_heads):
            is_matrix = len(shape) == 2 and shape[0] == config["vocab_size"]
            lm_head += 0 if is_tied and is_matrix else math.prod(shape)
        elif len(shape) == 2 and shape[0] == config["vocab_size"]:
            embeddings += math.prod(shape)
        else:
            others.append(shape)
            if name.startswith(behind):
                behind_blocks.append(shape)
            if family.behind_first_block is not None and f".{path_in_body(family.behind_first_block)}." in f".{name}":
                behind_first.append(shape)
    firsts = dict(zip(stacks, itertools.accumulate(depths.values(), initial=0), strict=False))
    return Parameters(
        tuple(tuple(block) for blocks in by_stack.values() for block in blocks),
        embeddings,
        lm_head,
        tuple(others),
        tuple(before_lm_head),
        by_layer if family.num_shared_key is not None else None,
        maps=tuple(block for blocks in maps.values() for block in blocks),
        label_heads=label_heads,
        of_first={firsts[stack]: tuple(shapes) for stack, shapes in of_first.items()},
        behind_first=tuple(behind_first),
        behind_blocks=tuple(behind_blocks),
    )
