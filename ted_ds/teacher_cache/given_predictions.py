"""Predictions that rows of data hold: which of them are of which tokens, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ted_ds.config.kept_rows import KeptRows
from ted_ds.data.samples import Sample
from ted_ds.data.token_rows import TokenRow, places_of
from ted_ds.numerics.losses import NO_CANDIDATE

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
ABSENT = -1
"""In the place of an id where there is none."""
MOST_ABOVE_1 = 0.02
"""What probabilities may add up to beyond 1 by rounding: 16 bits and polynomials leave about so much of the last of a
hundred ids."""
NOTHING_LEFT = 1e-6
"""Of 1, what is rounding: the rest then has no probability at all."""
FEWEST_TO_TELL, MOSTLY = 16, 0.5
"""Places, and the share of them whose own token is among the kept ids, that say which token predictions are of."""


class UnreadableRow(Exception):
    """What is wrong with the predictions of a row."""


class Given(NamedTuple):
    """What a row says of each of its places."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    """``[places, most]``; :data:`ABSENT` where there are fewer."""
    logs: np.ndarray[Any, np.dtype[np.float64]]
    """Of their probabilities."""


class ReadsPredictions(Protocol):
    """A format."""

    @property
    def columns(self) -> tuple[str, ...]:
        """That a row may have them in."""
        ...

    @property
    def most(self) -> int | None:
        """Ids of each prediction, where the format says so for all."""
        ...

    def __call__(self, row: Mapping[str, Any]) -> Given:
        """What a row says.

        Raises:
            UnreadableRow: Nothing that can be read.
        """
        ...


def rows_of_bytes(row: Mapping[str, Any], name: str, size: int) -> Bytes:
    """The lists of bytes in a column, one of ``size`` for each place: ``[places, size]``.

    Raises:
        UnreadableRow: There are none, or they are of other lengths.
    """
    lists = row.get(name)
    if lists is None:
        raise UnreadableRow(f"no predictions in column {name!r}; it has {', '.join(map(str, row)) or 'none'}")
    if not isinstance(lists, list) or not all(isinstance(one, list | bytes) for one in lists):
        raise UnreadableRow(f"{name} holds {lists!r:.50}; it must be a list of bytes for each place")
    other = next((place for place, one in enumerate(lists) if len(one) != size), None)
    if other is not None:
        raise UnreadableRow(
            f"{name}: place {other} has {len(lists[other])} bytes, and the settings of compression make {size}; they "
            "must be those that the predictions were packed by"
        )
    try:
        return np.array([bytes(one) for one in lists], f"S{size}").view(np.uint8).reshape(len(lists), size)
    except (ValueError, TypeError) as error:
        raise UnreadableRow(f"{name}: {error}; it must be a list of bytes for each place") from error


@dataclass(frozen=True)
class Wanted:
    """What is taken of them."""

    rows: KeptRows
    num_kept: int
    num_ids: int
    """Of the vocabulary."""
    temperature: float
    """At which they are compared."""
    of_completions: bool
    """Whether of completions alone."""


def taken(given: Given, row: TokenRow, sample: Sample, wanted: Wanted) -> Given:
    """The most probable ids where predictions are compared, and their logs with that of the rest, which is the last.

    Raises:
        UnreadableRow: A token has no prediction, or a wrong one.
    """
    tokens = places_of(sample, alone=wanted.of_completions)
    ids, logs = _at(given, row, tokens, 1 if wanted.rows.row_is_of == "next" else 0)
    where = [f"token {row.start + token} of input_ids" for token in tokens.tolist()]
    _refuse(where, np.isnan(logs) | (logs == np.inf), lambda at: f"the log of a probability is {logs[at]}")
    is_there = (ids != ABSENT) & (logs > -np.inf)
    counts = is_there.sum(-1)
    _refuse(where, counts == 0, lambda _: "no prediction; every token that is compared needs one")
    _refuse(
        where,
        counts < wanted.num_kept,
        lambda at: f"{counts[at]} ids of {wanted.num_kept} (teacher.cache.top_k); use top_k: {counts[at]} or fewer",
    )
    of_others = is_there & ((ids < 0) | (ids >= wanted.num_ids))
    _refuse(where, of_others, lambda at: f"id {ids[at]}, and the vocabulary has {wanted.num_ids:,}, from 0 on")
    in_order = np.sort(np.where(is_there, ids, -1 - np.arange(ids.shape[-1])), axis=-1)
    doubled = np.diff(in_order, axis=-1) == 0
    _refuse(where, doubled, lambda at: f"id {in_order[at]} is there twice")
    sums = np.where(is_there, np.exp(np.minimum(logs, 700)), 0).sum(-1)
    too_much = sums > 1 + MOST_ABOVE_1
    _refuse(where, too_much, lambda at: f"probabilities add up to {sums[at]:.4g}, which is more than 1")
    order = np.argsort(np.where(is_there, -logs, np.inf), axis=-1, kind="stable")[:, : wanted.num_kept]
    top_ids, top = np.take_along_axis(ids, order, -1), np.take_along_axis(logs, order, -1)
    if wanted.rows.rest_is_known:
        left = 1 - np.exp(top).sum(-1, keepdims=True)
        is_nothing = (left <= NOTHING_LEFT) | (wanted.num_kept == wanted.num_ids)
        rest = np.where(is_nothing, NO_CANDIDATE, np.log(np.where(is_nothing, 1, left)))
    else:
        top = top * (wanted.rows.temperature / wanted.temperature)
        top = top - np.logaddexp.reduce(top, axis=-1, keepdims=True)
        rest = np.full((len(top), 1), float(NO_CANDIDATE))
    return Given(top_ids, np.concatenate([top, rest], -1))


def _at(given: Given, row: TokenRow, tokens: np.ndarray[Any, Any], shift: int) -> Given:
    """What is said of some tokens, ``shift`` places before each.

    Raises:
        UnreadableRow: There are fewer places than tokens, or more.
    """
    if not row.num_places - shift <= len(given.ids) <= row.num_places:
        or_less = f", or {row.num_places - shift}" if shift else ""
        raise UnreadableRow(
            f"predictions at {len(given.ids)} places, and input_ids has {row.num_places}; they must be as many{or_less}"
        )
    places = row.start + tokens - shift
    return Given(given.ids[places], given.logs[places])


def _refuse(where: Sequence[str], wrong: np.ndarray[Any, Any], what: Callable[[tuple[Any, ...]], str]) -> None:
    """Name the first that is wrong.

    Raises:
        UnreadableRow: One is.
    """
    found = np.argwhere(wrong)
    if len(found):
        at = tuple(found[0].tolist())
        raise UnreadableRow(f"{where[at[0]]}: {what(at)}")


def hits(given: Given, row: TokenRow, sample: Sample, wanted: Wanted) -> tuple[int, int, int]:
    """Of tokens that are compared: how many are among the ids kept of them, among those of the other place, and in all.

    The other place is what ``row_is_of`` says where it says it wrongly; tokens without one are left out.
    """
    tokens = places_of(sample, alone=wanted.of_completions)
    shift = 1 if wanted.rows.row_is_of == "next" else 0
    tokens = tokens[row.start + tokens - (1 - shift) < len(given.ids)]
    own = np.asarray(sample.input_ids)[tokens][:, None]
    found = [int((given.ids[row.start + tokens - one] == own).any(-1).sum()) for one in (shift, 1 - shift)]
    return found[0], found[1], len(tokens)


def seem_shifted(here: int, elsewhere: int, count: int) -> bool:
    """Whether tokens are so much more often among the ids of the other place that these must be theirs."""
    return count >= FEWEST_TO_TELL and elsewhere > MOSTLY * count and elsewhere > 2 * here
