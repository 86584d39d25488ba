"""The recipe's ``student.from_teacher``: which parts of the teacher become the student."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ted_ds.config.section import Section, rule

BlockNumber = Annotated[int, Field(ge=0)]
SHARES = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
"""Of the teacher's blocks, by what they are called."""
PERCENT = re.compile(r"(\d{1,2}(?:\.\d+)?) ?%")
MEASURED = ("influence", "search")
"""Ways to choose blocks by what the teacher makes of the calibration data."""
WIDTHS = ("hidden_size", "intermediate_size", "num_heads", "num_key_value_heads")


def _is_number_or_share(value: Any) -> Any:
    """One rule in words, where a union would give a message per member."""
    is_number = type(value) is int and value > 0
    if value is not None and not is_number and not (isinstance(value, str) and _share(value)):
        raise ValueError(
            f"use a whole number above 0, or a share of the teacher's blocks: {', '.join(SHARES)}, or such as 40%"
        )
    return value


def _share(text: str) -> Fraction | None:
    """The share of blocks that a text says; None where it says none."""
    percent = PERCENT.fullmatch(text)
    return SHARES.get(text) or (Fraction(percent[1]) / 100 if percent else None) or None


def part_of(share: Fraction, depth: int) -> int:
    """How many of some blocks a share of them is: rounded, halves up, and at least one."""
    return max(math.floor(share * depth + Fraction(1, 2)), 1)


class CutFromTeacher(Section):
    """Which blocks of the teacher become the student, and what of each."""

    blocks: list[BlockNumber] | None = Field(default=None, min_length=1)
    """Blocks of the teacher to copy, numbered from 0 as in its parameter names; one may come more than once."""
    encoder_blocks: list[BlockNumber] | None = Field(default=None, min_length=1)
    """Of an encoder-decoder, instead: those of its encoder."""
    decoder_blocks: list[BlockNumber] | None = Field(default=None, min_length=1)
    """And those of its decoder."""
    any_order: bool = False
    """Whether a block may come before one of a lower number."""
    num_blocks: Annotated[int | str | None, BeforeValidator(_is_number_or_share)] = None
    """Instead of ``blocks``: how many of them, which are then chosen; or ``half``, ``third``, ``quarter`` or another
    share of them (``40%``), rounded. Of an encoder-decoder, a share of each stack."""
    choose: Literal["spread", "ends", "influence", "search"] = "spread"
    """How: evenly over the depth (``spread``); the first and the last ones (``ends``); those that change the state most
    on the calibration data (``influence``); or by leaving out, one after the other, the block without which the
    teacher's loss on held-out calibration data is lowest (``search``)."""
    search_tokens: int = Field(default=262_144, gt=0)
    """For ``search``: how many tokens its rounds may run through the teacher, the held-out ones again and again. The
    fewer, the more of the choice follows influence."""

    hidden_size: int | None = Field(default=None, gt=0)
    """How many channels of the teacher's states are kept; unset: all."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """How many neurons of each block's MLP."""
    num_heads: int | None = Field(default=None, gt=0)
    """How many heads of each block; each is as wide as before."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """How many heads of keys and values, where several of queries share one; unset: all, or as many as heads."""

    @rule
    def _of_one_stack_or_of_both(self) -> Iterator[str]:
        names = ("blocks", "num_blocks", "encoder_blocks", "decoder_blocks")
        given = [name for name in names if getattr(self, name) is not None]
        all_blocks = [[]] if self.widths else []
        if given not in (["blocks"], ["num_blocks"], ["encoder_blocks", "decoder_blocks"], *all_blocks):
            yield (
                "give blocks, or num_blocks, or encoder_blocks and decoder_blocks of an encoder-decoder, or a width; "
                f"given: {' and '.join(given) or 'none of them'}"
            )

    @rule
    def _ascending(self) -> Iterator[str]:
        for stack, blocks in self.of_stacks.items():
            if sorted(blocks) != blocks and not self.any_order:
                yield (
                    f"{stack + '_' if stack else ''}blocks must be in ascending order (one may come more than once), "
                    f"got {blocks}; where this order is meant, set any_order: true"
                )

    @rule
    def _what_is_given_is_not_chosen(self) -> Iterator[str]:
        given = self.model_fields_set
        if "choose" in given and self.num_blocks is None:
            yield f"choose: {self.choose}: chooses num_blocks of them; give num_blocks, or remove it"
        if "search_tokens" in given and not (self.num_blocks is not None and self.choose == "search"):
            yield "search_tokens: is the bound on choose: search; remove it"
        if self.any_order and self.num_blocks is not None:
            yield "any_order: blocks that are chosen keep their order; remove it"

    @property
    def is_measured(self) -> bool:
        """Whether blocks are chosen by what the teacher makes of the calibration data."""
        return self.num_blocks is not None and self.choose in MEASURED

    @property
    def widths(self) -> dict[str, int]:
        """Those that are given."""
        return {name: number for name in WIDTHS if (number := getattr(self, name)) is not None}

    @property
    def of_stacks(self) -> dict[str, list[int]]:
        """The blocks of each stack by its name; of a model of one, under no name; none where the recipe lists none."""
        given = {"": self.blocks, "encoder": self.encoder_blocks, "decoder": self.decoder_blocks}
        return {stack: blocks for stack, blocks in given.items() if blocks is not None}

    @property
    def is_share(self) -> bool:
        """Whether ``num_blocks`` is a share of those that the teacher has."""
        return isinstance(self.num_blocks, str)

    def number_of(self, depth: int) -> int:
        """``num_blocks``, of a teacher's or a stack's ``depth`` blocks."""
        if isinstance(self.num_blocks, int):
            return self.num_blocks
        share = None if self.num_blocks is None else _share(self.num_blocks)
        assert share is not None, "nobody asks where blocks are listed"
        return part_of(share, depth)

    def deciding_values(self, depth: int) -> dict[str, Any]:
        """What decides what is kept, beside blocks that are known, where any of it is measured.

        ``depth`` is the teacher's number of blocks.
        """
        chosen = {"num_blocks": self.number_of(depth), "choose": self.choose} if self.is_measured else {}
        bound = {"search_tokens": self.search_tokens} if self.is_measured and self.choose == "search" else {}
        return {**chosen, **bound, **self.widths}
