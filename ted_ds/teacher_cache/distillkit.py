"""Predictions as DistillKit keeps them: the most probable ids of each place, and their log-probabilities in few bytes.

The format is that of arcee-ai/DistillKit as seen at commits a61c2e7 (``distillkit/compression``), 897bd13 (its
``config.py``), 40198e1 (``sample_common.py``: the columns) and 03b326e (``sample_logits_vllm.py``: which place is of
which token), in November 2026. A row has ``input_ids``, and for each place j a list of bytes in two columns:

``bytepacked_indices``
    k ids, the most probable first, each in the ``ceil(log2(d))`` bits that ids below ``d`` need. Bits follow each other
    from the highest of the first id on, in bytes whose highest bit is the first; the last is filled up with zeros.
``compressed_logprobs``
    First ``exact_k`` numbers of ``exact_dtype``; then a coefficient of ``term_dtype`` for each of ``polynomial_terms``;
    then, for each of ``residual_bins``, its scale and ``num_elements`` whole numbers of ``element_bits`` bits, packed
    as ids are. Numbers are little-endian. The logs at t = 0, 1, ... behind the exact ones (from 0 to 1 with
    ``normalize_t``) are the sum of coefficient times term, t to a power, its square root or e to it, and the residual
    of the bins, as far as these reach: (q - 2^(bits-1)) times the scale, or +-1 times it with one bit. With
    ``delta_encoding`` all of them are differences, to be added up.

Place j is of token j + 1, as the first token of a prompt is predicted by nobody: so a row has as many places as tokens,
or one less. The settings stand in ``compression_config.yaml`` beside the files. Here all is computed in fp64, where
DistillKit rounds to ``exact_dtype``. Its older format (``packed_indices``, ``exact_values``, ``coeffs``) is not read:
it keeps centred logits, of which nobody knows what all others had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ted_ds.errors import DataError
from ted_ds.teacher_cache.given_predictions import Bytes, Given, UnreadableRow, rows_of_bytes

COLUMNS = ("bytepacked_indices", "compressed_logprobs")
OLDER = ("packed_indices", "exact_values", "coeffs")
SETTINGS_FILE = "compression_config.yaml"
DType = Literal["float16", "bfloat16", "float32", "float64"]
BYTES: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SPECIAL = {"sqrt": np.sqrt, "exp": np.exp}


class ResidualBin(BaseModel):
    """Whole numbers with a scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale_dtype: DType
    element_bits: int = Field(gt=0, le=32)
    num_elements: int = Field(gt=0)

    @property
    def num_bytes(self) -> int:
        """Without the scale."""
        return -(-self.element_bits * self.num_elements // 8)


class Compression(BaseModel):
    """How predictions are packed, by DistillKit's own names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    d: int = Field(gt=1)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: DType = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: DType = "float32"
    residual_bins: list[ResidualBin]
    delta_encoding: bool = True
    error_diffusion: bool = False
    """How numbers were rounded, which is not undone."""
    normalize_t: bool = False

    @model_validator(mode="after")
    def _parts_make_the_whole(self) -> Compression:
        if self.exact_k > self.k:
            raise ValueError(f"exact_k ({self.exact_k}) must be at most k ({self.k})")
        if sum(one.num_elements for one in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("residual_bins have more elements than k - exact_k")
        if self.exact_k < self.k and not (self.polynomial_terms or self.residual_bins):
            raise ValueError("exact_k is below k: polynomial_terms or residual_bins must say the others")
        return self

    @property
    def id_bits(self) -> int:
        """Of an id."""
        return int(np.ceil(np.log2(np.float32(self.d))))  # in fp32, as there

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of a place in both columns."""
        bins = sum(BYTES[one.scale_dtype] + one.num_bytes for one in self.residual_bins)
        terms = len(self.polynomial_terms or ()) * BYTES[self.term_dtype]
        return -(-self.k * self.id_bits // 8), self.exact_k * BYTES[self.exact_dtype] + terms + bins


def read_compression(file: Path) -> Compression:
    """The settings in a file.

    Raises:
        DataError: It is not there, or says something else.
    """
    try:
        return Compression.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror or error}; give DistillKit's {SETTINGS_FILE} as teacher.cache.rows.compression"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file}: {place + ': ' if place else ''}{first['msg']}; these are no settings of DistillKit"
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: {' '.join(str(error).split())[:200]}; it must be YAML or JSON") from error


@dataclass(frozen=True)
class OfDistillKit:
    """Reads the predictions of a row."""

    compression: Compression
    columns = COLUMNS

    @property
    def most(self) -> int:
        """Ids of a prediction."""
        return self.compression.k

    def __call__(self, row: Mapping[str, Any]) -> Given:
        """Ids and log-probabilities at all places.

        Raises:
            UnreadableRow: They are packed in another way.
        """
        if all(row.get(name) is None for name in COLUMNS) and any(row.get(name) is not None for name in OLDER):
            raise UnreadableRow(
                f"columns {', '.join(OLDER)} are of DistillKit's older format, which keeps logits and is not read; "
                "capture anew with its logprob_compressor"
            )
        packed, logs = (
            rows_of_bytes(row, name, size) for name, size in zip(COLUMNS, self.compression.sizes, strict=True)
        )
        ids = whole_numbers(packed, self.compression.id_bits, self.compression.k)
        if len(ids) != len(logs):
            raise UnreadableRow(f"{COLUMNS[0]} has {len(ids)} places, {COLUMNS[1]} has {len(logs)}")
        return Given(ids, log_probabilities(logs, self.compression))


def whole_numbers(packed: Bytes, bits: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """So many numbers of so many bits out of each row of bytes, the highest bit first: ``[rows, count]``."""
    found = np.unpackbits(packed, axis=-1, count=count * bits).reshape(len(packed), count, bits)
    numbers = np.zeros((len(packed), count), np.int64)
    for bit in range(bits):
        numbers = (numbers << 1) | found[:, :, bit]
    return numbers


def log_probabilities(packed: Bytes, how: Compression) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Logs of probabilities out of each row of bytes: ``[rows, k]``."""
    exact, rest = _numbers(packed, how.exact_k, how.exact_dtype)
    behind = np.zeros((len(packed), how.k - how.exact_k))
    if how.polynomial_terms:
        coefficients, rest = _numbers(rest, len(how.polynomial_terms), how.term_dtype)
        behind += coefficients @ _terms(how).T
    first = 0
    for one in how.residual_bins:
        scale, rest = _numbers(rest, 1, one.scale_dtype)
        numbers = whole_numbers(rest[:, : one.num_bytes], one.element_bits, one.num_elements)
        rest = rest[:, one.num_bytes :]
        centred = 2 * numbers - 1 if one.element_bits == 1 else numbers - 2 ** (one.element_bits - 1)
        behind[:, first : first + one.num_elements] += centred * scale
        first += one.num_elements
    logs = np.concatenate([exact, behind], -1)
    return logs.cumsum(-1) if how.delta_encoding else logs


def _terms(how: Compression) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each place behind the exact ones: ``[places, terms]``."""
    count = how.k - how.exact_k
    t = np.linspace(0, 1, count) if how.normalize_t else np.arange(count, dtype=np.float64)
    terms = how.polynomial_terms or ()
    return np.stack([SPECIAL[term](t) if isinstance(term, str) else t**term for term in terms], -1)


def _numbers(packed: Bytes, count: int, dtype: str) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Bytes]:
    """The first numbers of each row, and the bytes behind them."""
    size = count * BYTES[dtype]
    own = np.ascontiguousarray(packed[:, :size])
    if dtype == "bfloat16":  # the upper half of a number of 32 bits
        values = (own.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = own.view(np.dtype(dtype).newbyteorder("<"))
    return values.astype(np.float64).reshape(len(packed), count), packed[:, size:]
