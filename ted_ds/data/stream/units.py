"""Which pieces of a source each lane reads, epoch after epoch."""

from __future__ import annotations

from dataclasses import dataclass

from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.listing import EXTENT_BYTES, Listing
from ted_ds.data.sources import is_remote
from ted_ds.data.stream.order import permuted

EXTENTS_PER_LANE = 64
"""So many that lanes get about the same number of bytes of a small source."""
SMALLEST_EXTENT_BYTES, SMALLEST_REMOTE_EXTENT_BYTES = 64, 2**14


def extent_bytes(listing: Listing, num_lanes: int) -> int:
    """How large the pieces are that a source is divided into for so many lanes."""
    smallest = SMALLEST_EXTENT_BYTES
    if any(is_remote(file.url) for file in listing.files):
        smallest = SMALLEST_REMOTE_EXTENT_BYTES  # each is a request
    return min(max(listing.num_bytes // (EXTENTS_PER_LANE * num_lanes), smallest), EXTENT_BYTES)


@dataclass(frozen=True)
class Unit:
    """What a lane reads at a time: an extent, or every n-th record of it."""

    epoch: int
    extent: Extent
    part: int
    num_parts: int

    def holds(self, ordinal: int) -> bool:
        """Whether a record of the extent is in this unit."""
        return ordinal % self.num_parts == self.part


class Units:
    """All units of a source, in one order over all epochs, dealt to lanes in turns.

    Each epoch permutes them anew. As the turns go on from one epoch to the next, no lane is left without, however few
    units there are.
    """

    def __init__(self, listing: Listing, *, num_lanes: int, words: tuple[object, ...]) -> None:
        """Divide a source for ``num_lanes`` lanes, in an order that ``words`` decide."""
        self._num_lanes, self._words = num_lanes, words
        self._extents = listing.extents(extent_bytes(listing, num_lanes))
        # what cannot be divided by place is divided by record: each lane then reads past the records of the others
        self._num_parts = 1 if listing.is_divisible else -(-num_lanes // max(len(self._extents), 1))

    def __len__(self) -> int:
        return len(self._extents) * self._num_parts

    def unit(self, lane: int, index: int) -> Unit:
        """The ``index``-th unit of a lane."""
        epoch, place = divmod(lane + index * self._num_lanes, len(self))
        extent, part = divmod(permuted(place, len(self), *self._words, "epoch", epoch), self._num_parts)
        return Unit(epoch, self._extents[extent], part, self._num_parts)

    def epoch(self, lane: int, index: int) -> float:
        """How many epochs of the source lie before the ``index``-th unit of a lane."""
        return (lane + index * self._num_lanes) / len(self)
