"""Whether a model's ``config.json`` and the shapes in its weight files speak of one model; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.folder import CONFIG_FILE

Shape = tuple[int, ...]
BLOCK = re.compile(r"(?:^|\.)(?:h|layers?)\.(\d+)\.")
TOKEN_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
POSITION_EMBEDDINGS = ("wpe.weight", "position_embeddings.weight")
LM_HEAD_MATRICES = ("lm_head.weight", "cls.predictions.decoder.weight")
CLASSIFIER_MATRICES = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
TOKEN_ID_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def refuse_other_shapes(config: Mapping[str, Any], shapes: Mapping[str, Shape], *, folder: Path, is_tied: bool) -> None:
    """Compare the config's numbers with those of the tensors that would be loaded under it, but for a classifier's.

    (Its head may start anew: :func:`classifier_rows`.)

    Args:
        config: The content of ``config.json``.
        shapes: Of all tensors in the weight files.
        folder: Where they are, for messages.
        is_tied: Whether an LM head is the embeddings.

    Raises:
        CheckpointError: They are of different models; lists all that differs.
    """
    wrong = [*_other_matrices(config, shapes, is_tied=is_tied), *_other_blocks(config, shapes)]
    if wrong:
        raise CheckpointError("\n".join(f"{folder / CONFIG_FILE}: {one}" for one in wrong))


def classifier_rows(shapes: Mapping[str, Shape]) -> int | None:
    """How many labels the head in the weights is for; None where there is none."""
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(CLASSIFIER_MATRICES) and len(shape) == 2]
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


def _other_matrices(config: Mapping[str, Any], shapes: Mapping[str, Shape], *, is_tied: bool) -> Iterator[str]:
    rows = _first(config, "vocab_size")
    width = _first(config, "embedding_size", "hidden_size", "n_embd")
    expected: list[tuple[Sequence[str], int, str, tuple[str, int] | None]] = [
        (TOKEN_EMBEDDINGS, 0, "rows", rows),
        (TOKEN_EMBEDDINGS, 1, "columns", width),
        (() if is_tied else LM_HEAD_MATRICES, 0, "rows", rows),
        (POSITION_EMBEDDINGS, 0, "rows", _first(config, "max_position_embeddings", "n_positions")),
    ]
    found: dict[tuple[str, int, int, str], list[str]] = {}
    for name, shape in shapes.items():
        for endings, axis, word, said in expected:
            if said is not None and name.endswith(tuple(endings)) and len(shape) == 2 and shape[axis] != said[1]:
                found.setdefault((*said, shape[axis], word), []).append(name)
    for (key, value, held, word), names in found.items():
        have = "has" if len(names) == 1 else "have"
        yield (
            f"{key} is {value}, but {' and '.join(names)} in the weights {have} {held} {word}; make it {held} if the "
            "weights are right, or use the weights that belong to this file"
        )


def _other_blocks(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Iterator[str]:
    said = _first(config, "num_hidden_layers", "n_layer")
    held = {int(block[1]) for name in shapes if (block := BLOCK.search(name))}
    if said is None or not held or held == set(range(said[1])):
        return
    key, count = said
    if max(held) >= count:
        yield (
            f"{key} is {count}, but the weights have {len(held)} blocks, up to number {max(held)} (from 0); make it "
            f"{max(held) + 1}, and leave blocks out of a student by student.from_teacher.blocks"
        )
    else:
        missing = min(set(range(count)) - held)
        yield (
            f"{key} is {count}, but the weights have no block {missing} (numbered from 0); use the weights that belong "
            "to this file"
        )
