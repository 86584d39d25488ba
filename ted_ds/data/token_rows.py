"""Rows that hold tokens, as tools keep them that prepared their data; without torch or transformers.

==================  ================================================================================================
column              what it holds
==================  ================================================================================================
``input_ids``       the tokens
``labels``          for each token: it again, where it is learned, or -100; none of them: all are
``attention_mask``  1 for each token, and 0 before or behind them, where there is padding
``position_ids``    looked at: where positions start again there are several texts in a row, which are not told apart
==================  ================================================================================================
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ted_ds.data.reading.listing import Listing
from ted_ds.data.reading.tables import arrow_schema, parquet_metadata
from ted_ds.data.samples import UNLABELLED, BadRow, Example, Sample

TOKENS = "input_ids"
COLUMNS = (TOKENS, "labels", "attention_mask", "position_ids")
SAID_BY = ("labels", "attention_mask", "all tokens")
"""What says which tokens are learned."""
Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class TokenRow(Example):
    """The tokens of a row, between its padding; its label is the place in :data:`SAID_BY`."""

    ids: Sequence[int] = ()
    learned: Sequence[bool] = ()
    """Of each token."""
    start: int = 0
    """Places of padding before the first."""
    num_places: int = 0
    """All places of the row, with padding."""


def columns_of(listing: Listing, more: Sequence[str] = ()) -> list[str]:
    """The columns of a table with tokens and what is said about them, and those of ``more`` that are there.

    None of them where the files are no tables, or hold no tokens: then all of a row is read, to say what is wrong.
    """
    first = next((file.url for file in listing.files if file.size), None)
    if first is None or listing.format not in ("parquet", "arrow"):
        return []
    schema = parquet_metadata(first).schema.to_arrow_schema() if listing.format == "parquet" else arrow_schema(first)
    return [name for name in (*COLUMNS, *more) if name in schema.names] if TOKENS in schema.names else []


def read_tokens(row: Mapping[str, Any]) -> TokenRow:
    """The tokens in a row.

    Raises:
        BadRow: There are none, or what stands beside them does not fit.
    """
    if row.get(TOKENS) is None:
        raise BadRow(f"no tokens in columns {', '.join(map(str, row)) or 'none'}; a row needs {TOKENS}")
    ids = _numbers(row, TOKENS)
    if not len(ids):
        raise BadRow(f"{TOKENS} is empty")
    if (ids < 0).any():
        raise BadRow(f"{TOKENS} holds {int(ids[ids < 0][0])}; ids are 0 or above")
    beside = {name: _numbers(row, name) for name in COLUMNS[1:] if row.get(name) is not None}
    for name, values in beside.items():
        if len(values) != len(ids):
            raise BadRow(f"{name} has {len(values)} places, {TOKENS} has {len(ids)}; they must be as many")
    start, end = _within(beside.get("attention_mask"), len(ids))
    positions = beside.get("position_ids")
    if positions is not None and (np.diff(positions[start:end]) <= 0).any():
        raise BadRow("position_ids start again: there are several texts in the row; give each a row of its own")
    labels, said_by = beside.get("labels"), 0
    if labels is None:
        learned, said_by = np.ones(end - start, bool), 1 if "attention_mask" in beside else 2
    else:
        _refuse_other_labels(ids, labels)
        learned = labels[start:end] != UNLABELLED
    own = ids[start:end]
    text = " ".join(map(str, own.tolist()))  # by which copies are known
    return TokenRow(
        text, said_by, ids=array("i", own.tolist()), learned=learned.tolist(), start=start, num_places=len(ids)
    )


def _numbers(row: Mapping[str, Any], column: str) -> Ids:
    values = row[column]
    if not isinstance(values, list | tuple | np.ndarray):
        raise BadRow(f"{column} holds {values!r:.50}; it must be a list of whole numbers")
    try:
        found = np.asarray(values)
    except ValueError:  # of several lengths
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iub"):
        raise BadRow(f"{column} holds {values!r:.50}; it must be a list of whole numbers")
    return found.astype(np.int64)


def _within(mask: Ids | None, length: int) -> tuple[int, int]:
    """Where tokens begin and end."""
    if mask is None:
        return 0, length
    if not ((mask == 0) | (mask == 1)).all():
        raise BadRow(f"attention_mask holds {int(mask.max())}; 1 is for tokens, 0 for padding")
    places = np.flatnonzero(mask)
    if not len(places):
        raise BadRow("attention_mask is 0 everywhere")
    start, end = int(places[0]), int(places[-1]) + 1
    if end - start != len(places):
        raise BadRow("attention_mask is 0 between tokens; padding stands before or behind them")
    return start, end


def _refuse_other_labels(ids: Ids, labels: Ids) -> None:
    """A label is the token itself."""
    given = labels != UNLABELLED
    wrong = np.flatnonzero(given & (labels != ids))
    if not len(wrong):
        return
    place = int(wrong[0])
    shifted = given[:-1].any() and (labels[:-1] == ids[1:])[given[:-1]].all()
    hint = (
        "they stand one place before their tokens: move them one place on" if shifted else "use -100 to learn nothing"
    )
    raise BadRow(f"labels: place {place} has {int(labels[place])}, {TOKENS} has {int(ids[place])} there; {hint}")


def sample_of(row: TokenRow, *, num_ids: int, padding: int | None, length: int) -> list[Sample] | str:
    """The row as models take it, cut to ``length``; nothing where nothing is left to learn, or what is wrong with it.

    Args:
        row: Its tokens.
        num_ids: How many the tokenizer has.
        padding: The id of its padding, if that ends no text: of a row that says nothing of what is learned, such at its
            end are no tokens.
        length: The most.
    """
    ids = np.asarray(row.ids)
    if ids.max() >= num_ids:
        place = int(np.flatnonzero(ids >= num_ids)[0])
        return (
            f"{TOKENS}: place {row.start + place} has {int(ids[place])}, and the tokenizer has {num_ids:,} ids, from 0 "
            "on; the row is of another tokenizer"
        )
    if SAID_BY[row.label if isinstance(row.label, int) else 0] == SAID_BY[2] and padding is not None:
        others = np.flatnonzero(ids != padding)
        ids = ids[: int(others[-1]) + 1 if len(others) else 0]
    length = min(len(ids), length)
    spans = spans_of(np.asarray(row.learned, bool)[:length])
    return [Sample(array("i", ids[:length].tolist()), spans, document_lengths=[length])] if spans else []


def spans_of(learned: np.ndarray[Any, Any]) -> list[int]:
    """Where tokens that are learned begin and end, in twos; nothing comes before the first, which is not predicted."""
    edges = np.diff(np.concatenate([[False, False], learned[1:], [False]]).astype(np.int8))
    return np.flatnonzero(edges).tolist()


def places_of(sample: Sample, *, alone: bool) -> Ids:
    """The places of tokens whose predictions are compared: those of completions ``alone``, or all but the first."""
    if not alone:
        return np.arange(1, len(sample.input_ids))
    assert isinstance(sample.label, Sequence)
    pairs = zip(sample.label[::2], sample.label[1::2], strict=True)
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(int(first), int(behind)) for first, behind in pairs)])


def key_of(sample: Sample) -> bytes:
    """What is the same of rows with the same tokens of which the same are learned, and of no others."""
    assert isinstance(sample.label, Sequence)
    digest = hashlib.blake2b(np.asarray(sample.input_ids, np.int64).tobytes(), digest_size=12)
    digest.update(np.asarray([-1, *sample.label], np.int64).tobytes())
    return digest.digest()
