"""How large a student is to be, as a recipe has it."""

from __future__ import annotations

from ted_ds.errors import ConfigError
from ted_ds.models.files import ModelFacts


def size_in_recipe(blocks: int | None, share: float | None, teacher: ModelFacts) -> int | str:
    """The student's number of blocks, or its share of the teacher's.

    Args:
        blocks: As many, or None.
        share: That, or None: half of them.
        teacher: What is known of it.

    Raises:
        ConfigError: The teacher has not more.
    """
    whole = teacher.num_blocks
    if blocks is None:
        return "half" if share is None else f"{100 * share:g}%"
    if not 1 <= blocks < whole:
        raise ConfigError(f"--blocks {blocks}: the teacher has {whole} blocks; use 1 to {whole - 1}")
    return blocks
