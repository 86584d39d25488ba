"""Rows with a teacher's predictions as DistillKit and axolotl write them: made from the formats, not by the readers.

Bits are put together as text, and numbers by :mod:`struct`: slow, and easy to compare with what the formats say.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.tiny import VOCAB_SIZE

LETTERS = {"float16": "<e", "float32": "<f", "float64": "<d"}
Prediction = tuple[Sequence[int], Sequence[float]]
"""Ids, the most probable first, and the logs of their probabilities."""


def number(value: float, dtype: str) -> tuple[bytes, float]:
    """Its bytes, and what is left of it."""
    if dtype == "bfloat16":
        packed = struct.pack("<f", value)[2:]
        return packed, struct.unpack("<f", b"\0\0" + packed)[0]
    packed = struct.pack(LETTERS[dtype], value)
    return packed, struct.unpack(LETTERS[dtype], packed)[0]


def bits(values: Sequence[int], width: int) -> bytes:
    """Numbers one after the other, the highest bit first, filled up to bytes."""
    text = "".join(format(value, f"0{width}b") for value in values)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def compression(num_ids: int, k: int, **changes: Any) -> dict[str, Any]:
    """Settings by which nothing is lost."""
    usual = {"d": num_ids, "k": k, "exact_k": k, "exact_dtype": "float32", "polynomial_terms": None}
    return {**usual, "term_dtype": "float32", "residual_bins": [], "delta_encoding": False, **changes}


def packed_logs(
    how: Mapping[str, Any],
    exact: Sequence[float],
    coefficients: Sequence[float],
    bins: Sequence[tuple[float, Sequence[int]]],
) -> tuple[bytes, list[float]]:
    """The bytes of a place, and the logs that are in them."""
    packed, logs = b"", list[float]()
    for value in exact:
        own, left = number(value, how["exact_dtype"])
        packed += own
        logs.append(left)
    count = how["k"] - how["exact_k"]
    behind = [0.0] * count
    step = 1 / (count - 1) if how.get("normalize_t") else 1.0
    for term, value in zip(how["polynomial_terms"] or (), coefficients, strict=True):
        own, left = number(value, how["term_dtype"])
        packed += own
        for place in range(count):
            t = place * step
            behind[place] += left * {"sqrt": math.sqrt(t), "exp": math.exp(t)}.get(
                term, t**term if term not in ("sqrt", "exp") else 0
            )
    first = 0
    for one, (scale, numbers) in zip(how["residual_bins"], bins, strict=True):
        own, left = number(scale, one["scale_dtype"])
        packed += own + bits(numbers, one["element_bits"])
        for place, value in enumerate(numbers, first):
            middle = 2 ** (one["element_bits"] - 1)
            behind[place] += (2 * value - 1 if one["element_bits"] == 1 else value - middle) * left
        first += len(numbers)
    logs += behind
    if how["delta_encoding"]:
        for place in range(1, len(logs)):
            logs[place] += logs[place - 1]
    return packed, logs


def id_bits(num_ids: int) -> int:
    """Of an id below ``num_ids``."""
    return max(num_ids - 1, 1).bit_length()


def distillkit_row(
    ids: Sequence[int], predictions: Sequence[Prediction], how: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """A row whose predictions are of the tokens from the second on, all of them exact."""
    logs = [packed_logs(how, of_place, (), ())[0] for _, of_place in predictions]
    packed = [bits(of_place, id_bits(how["d"])) for of_place, _ in predictions]
    columns = {"compressed_logprobs": [[*one] for one in logs], "bytepacked_indices": [[*one] for one in packed]}
    return {"input_ids": [*ids], **columns, **more}


def axolotl_row(
    ids: Sequence[int], predictions: Sequence[Prediction | None], labels: Sequence[int], *, own: bool = False
) -> dict[str, Any]:
    """A row whose predictions, of the tokens from the second on, stand one place before them, or at their ``own``."""
    most = max(len(one[0]) for one in predictions if one is not None)
    filled = ([0] * most, [-1e9] * most, [0] * most)
    places = []
    for token, one in enumerate(predictions, start=1):
        is_learned = int(labels[token] != -100)
        places.append(filled if one is None else ([*one[0]], [*one[1]], [is_learned] * most))
    places = [filled, *places] if own else [*places, filled]
    target_ids, logs, mask = (list(column) for column in zip(*places, strict=True))
    return {
        "input_ids": [*ids],
        "labels": [*labels],
        "attention_mask": [1] * len(ids),
        "target_token_ids": target_ids,
        "target_logprobs": logs,
        "target_mask": mask,
    }


def renormalised(prediction: Prediction, temperature: float = 1.0) -> Prediction:
    """Logs at another temperature, made to add up to 1 among the ids."""
    ids, logs = prediction
    softened = [value / temperature for value in logs]
    total = math.log(sum(map(math.exp, softened)))
    return ids, [value - total for value in softened]


def said_by(teacher: Path, rows: Sequence[Sequence[int]], k: int) -> list[list[Prediction]]:
    """What a model predicts of the tokens of each row from the second on."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    found = []
    for ids in rows:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, :-1, :VOCAB_SIZE].double().log_softmax(-1)
        top = logs.topk(k, dim=-1)
        found.append([*zip(top.indices.tolist(), top.values.tolist(), strict=True)])
    return found


def token_rows(count: int = 40, *, seed: int = 0) -> list[list[int]]:
    """Rows of 4 to 14 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 15, (count,), generator=generator).tolist()
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def labels_of(ids: Sequence[int], index: int) -> list[int]:
    """The first part of a row is a prompt, longer in one row than in the next."""
    prompt = 1 + index % 3
    return [-100] * prompt + [*ids[prompt:]]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], *, per_group: int = 8) -> Path:
    """A table of the rows, some in each row group; bytes and ids as wide as the tools write them."""
    kinds = {
        "input_ids": pyarrow.list_(pyarrow.uint64()),
        "compressed_logprobs": pyarrow.list_(pyarrow.list_(pyarrow.uint8())),
        "bytepacked_indices": pyarrow.list_(pyarrow.list_(pyarrow.uint8())),
    }
    table = pyarrow.table({name: pyarrow.array([row.get(name) for row in rows], kinds.get(name)) for name in rows[0]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=per_group)
    return path


def write_distillkit(folder: Path, rows: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> Path:
    """A folder as DistillKit's capture leaves it."""
    write_parquet(folder / "data_0.parquet", rows)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump({**how}), encoding="utf-8")
    return folder


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
