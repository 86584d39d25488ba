"""Whether a model's ``config.json`` and the shapes in its weight files speak of one model; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError, counted
from ted_ds.models.family import Family
from ted_ds.models.folder import CONFIG_FILE

Shape = tuple[int, ...]
TOKEN_ID_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def refuse_other_shapes(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], family: Family, *, folder: Path
) -> None:
    """Compare the config's numbers with those of the tensors that would be loaded under it, but for a classifier's.

    (Its head may start anew: :func:`classifier_rows`.)

    Args:
        config: The content of ``config.json``.
        shapes: Of all tensors in the weight files.
        family: The model's.
        folder: Where they are, for messages.

    Raises:
        CheckpointError: They are of different models; lists all that differs.
    """
    wrong = [*_other_matrices(config, shapes, family), *_other_blocks(config, shapes, family)]
    if wrong:
        raise CheckpointError("\n".join(f"{folder / CONFIG_FILE}: {one}" for one in wrong))


def classifier_rows(shapes: Mapping[str, Shape], family: Family) -> int | None:
    """How many labels the head in the weights is for; None where there is none."""
    matrices = [f"{path}.weight" for path in family.own_heads]
    rows = [shape[0] for name, shape in shapes.items() if name in matrices and len(shape) == 2]
    return rows[0] if rows else None


def token_ids(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The ids of special tokens that a ``config.json`` or ``generation_config.json`` names, by key."""
    found: dict[str, tuple[int, ...]] = {}
    for key in TOKEN_ID_KEYS:
        value = config.get(key)
        ids = tuple(one for one in (value if isinstance(value, list) else [value]) if type(one) is int)
        if ids:
            found[key] = ids
    return found


def _first(config: Mapping[str, Any], *keys: str) -> tuple[str, int] | None:
    return next(((key, config[key]) for key in keys if isinstance(config.get(key), int)), None)


def _other_matrices(config: Mapping[str, Any], shapes: Mapping[str, Shape], family: Family) -> Iterator[str]:
    rows = _first(config, "vocab_size")
    by_default = {} if family.embedding_width is None else {"embedding_size": family.embedding_width}
    width = _first({**by_default, **config}, *family.keys("embedding_size"), *family.keys("hidden_size"))
    positions = _first(config, *family.keys("max_position_embeddings"))
    expected = [
        (_matrix_at(family.token_embeddings_path), 0, "rows", 0, rows),
        (_matrix_at(family.token_embeddings_path), 1, "columns", 0, width),
    ]
    if not family.is_tied(config, shapes):
        expected.append((family.lm_head_matrix, 0, "rows", 0, rows))
    if family.position_embeddings_path is not None:
        before = family.rows_before_positions
        word = f"rows, {before} of them before the first position" if before else "rows"
        expected.append((_matrix_at(family.position_embeddings_path), 0, word, before, positions))
    found: dict[tuple[str, int, int, str, int], list[str]] = {}
    for name, shape in shapes.items():
        for ending, axis, word, more, said in expected:
            if said is not None and name.endswith(ending) and len(shape) == 2 and shape[axis] != said[1] + more:
                found.setdefault((*said, shape[axis], word, more), []).append(name)
    for (key, value, held, word, more), names in found.items():
        have = "has" if len(names) == 1 else "have"
        yield (
            f"{key} is {value}, but {' and '.join(names)} in the weights {have} {held} {word}; make it {held - more} "
            "if the weights are right, or use the weights that belong to this file"
        )


def _matrix_at(path: str) -> str:
    """The end of a matrix's name in files, of a bare body as well."""
    return f"{path.rpartition('.')[2]}.weight"


def _other_blocks(config: Mapping[str, Any], shapes: Mapping[str, Shape], family: Family) -> Iterator[str]:
    if family.is_stacked:
        depths = family.depths(config)
        for name, stack in family.stacks.items():
            yield from _other_blocks({**config, stack.own_names["num_hidden_layers"]: depths[name]}, shapes, stack)
        return
    shared = family.num_shared_key
    said = _first({shared: 1, **config}, shared) if shared else _first(config, *family.keys("num_hidden_layers"))
    held = {block for name in shapes if (block := family.block_number(name)) is not None}
    if said is None or not held or held == set(range(said[1])):
        return
    key, count = said
    if max(held) >= count:
        cut = "" if shared else ", and leave blocks out of a student by student.from_teacher.blocks"
        yield (
            f"{key} is {count}, but the weights have {counted(len(held), 'block')}, up to number {max(held)} (from "
            "0); make it "
            f"{max(held) + 1}{cut}"
        )
    else:
        missing = min(set(range(count)) - held)
        yield (
            f"{key} is {count}, but the weights have no block {missing} (numbered from 0); use the weights that belong "
            "to this file"
        )
