"""The verb ``families``: which models can be used and what for, from the records alone, without torch or a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ted_ds.errors import CheckpointError
from ted_ds.models.families import FAMILIES
from ted_ds.models.family import Family
from ted_ds.models.folder import CONFIG_FILE, read_config
from ted_ds.models.found import family_of_config
from ted_ds.output.wrapped import below, columns_of
from ted_ds.planning.width_facts import KIND_OF_KEY

COLUMNS = (
    "type",
    "language model",
    "tap",
    "cut",
    "width",
    "ZeRO-3",
    "pipeline",
    "isolated documents",
    "int8 teacher",
    "adapters",
    "heal",
    "heads",
)
LANGUAGE_MODELS = {"CausalLM": "causal", "MaskedLM": "masked", "Seq2SeqLM": "sequence to sequence"}
HEADS = {
    "SequenceClassification": "texts",
    "TokenClassification": "tokens",
    "QuestionAnswering": "spans",
    "MultipleChoice": "choices",
}
"""What a head of labels is for, by what follows ``AutoModelFor``."""
GENERIC = ("generic (by structure)", "if it verifies", "yes", "if it verifies", "no", *("if it verifies",) * 7)
INTRODUCTION = """# Families of models

Written by `ted-ds families --markdown > docs/families.md`; a test compares them.

A model of a type in this table is used by its record in `ted_ds/models/families/`, which the tests hold against
transformers. A model of any other type that transformers has is looked at: its blocks, embeddings, final norm and head
are found by the tensors that go from one to the next, and a small random model of its `config.json` is then compared
with transformers: states, logits, losses, gradients, padding, cutting, stages of a pipeline, adapters. `ted-ds check`
prints what was found, and refuses a recipe that asks for what could not be verified; `ted-ds families FOLDER` says it
of one model.

"""


def show_families(folder: Path | None, *, as_markdown: bool) -> None:
    """Print the table, or what is known of the model in a folder.

    Raises:
        CheckpointError: The folder is no model, or of no family that can be used.
    """
    if folder is None:
        print(markdown() if as_markdown else table(columns_of(sys.stdout)), end="")
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a transformers model")
    family = family_of_config(read_config(folder), folder / CONFIG_FILE)
    lines = [*zip(COLUMNS, _row(family), strict=True), *(("found", line) for line in family.found)]
    print(_labelled(lines, columns_of(sys.stdout)), end="")


def rows() -> Iterator[Sequence[str]]:
    """Of each family, and of those without a record."""
    yield from (_row(family) for family in FAMILIES)
    yield GENERIC


def table(columns: int | None) -> str:
    """All of them: a line each, or, where so few columns have no room for that, a paragraph."""
    lines = [*_aligned([COLUMNS, *rows()])]
    if columns is None or max(map(len, lines)) <= columns:
        return "".join(f"{line}\n" for line in lines)
    return "\n".join(_labelled(zip(COLUMNS, row, strict=True), columns) for row in rows())


def markdown() -> str:
    """The page ``docs/families.md``."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows()]
    return INTRODUCTION + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(family: Family) -> Sequence[str]:
    is_causal = family.language_model == "CausalLM"
    language_model = "no" if family.language_model in family.refused else LANGUAGE_MODELS[family.language_model]
    heads = [word for architecture, word in HEADS.items() if _has(family, architecture)]
    return (
        ", ".join(family.model_types),
        language_model,
        "yes",
        _can(family, "cut"),
        _width(family),
        _can(family, "zero3"),
        _can(family, "pipeline") if family.unstaged is None else "no",
        _can(family, "isolated documents") if is_causal else "no",
        _can(family, "int8"),
        _can(family, "adapters"),
        _can(family, "heal"),
        ", ".join(heads) or "none",
    )


def _can(family: Family, use: str) -> str:
    return "no" if use in family.refused else "yes"


def _width(family: Family) -> str:
    """Whether a student may be narrower than its teacher, and in what not."""
    fixed = [key for key, kind in KIND_OF_KEY.items() if kind in family.fixed_widths]
    if not family.units_of_maps:
        return "no"
    return f"but for {' and '.join(fixed)}" if fixed else "yes"


def _has(family: Family, architecture: str) -> bool:
    is_there = architecture not in family.lacks and architecture not in family.refused
    return is_there and (architecture != "QuestionAnswering" or family.span_head is not None)


def _labelled(lines: Iterable[tuple[str, str]], columns: int | None) -> str:
    return "".join(f"{below(f'{name:19} ', value, columns)}\n" for name, value in lines)


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
