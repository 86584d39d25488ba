"""A lane: the endless row of sequences that one place in every global batch is filled from."""

from __future__ import annotations

from typing import Any, NamedTuple

from ted_ds.data.masking import make_sample
from ted_ds.data.packing import Packer, Piece, joined
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.samples import Sample
from ted_ds.data.stream.documents import Encoder, LaneDocuments, Reference
from ted_ds.data.stream.mixture import first_credits, most_due, settle, shares_at
from ted_ds.data.stream.settings import StreamSettings
from ted_ds.data.stream.units import Units


class LaneItem(NamedTuple):
    """A lane's sequence of one step."""

    lane: int
    sample: Sample | None
    """None where the lane's sources have been read as often as they may."""
    state: dict[str, Any]
    """The lane after it."""
    bad: list[BadRecord]
    """Found on the way to it."""


def make_units(settings: StreamSettings) -> list[Units]:
    """The units of each source, for all lanes."""
    return [
        Units(source.listing, num_lanes=settings.num_lanes, words=(settings.seed, "source", index))
        for index, source in enumerate(settings.sources)
    ]


class Lane:
    """Draws documents from a mixture of sources and packs them, from any state on.

    Sequence s of lane l is sequence l of step s, whatever rank or process makes it.
    """

    def __init__(
        self,
        settings: StreamSettings,
        lane: int,
        encode: Encoder,
        *,
        units: list[Units],
        state: dict[str, Any] | None = None,
    ) -> None:
        """Start at the beginning, or where the lane's ``state`` was.

        Raises:
            DataError: A document that is half used cannot be read again.
        """
        self._settings, self._lane = settings, lane
        of_sources: list[Any] = state["sources"] if state else [None] * len(settings.sources)
        self._documents = [
            LaneDocuments(settings, index, lane, encode, units=units[index], state=one)
            for index, one in enumerate(of_sources)
        ]
        self._tokens: list[int] = [one["tokens"] if one else 0 for one in of_sources]
        self._is_over: list[bool] = [one["over"] if one else False for one in of_sources]
        self._credits: list[float] = [one["credit"] for one in of_sources] if state else first_credits(settings, lane)
        self._step: int = state["step"] if state else 0
        self._shares: list[float] | None = None  # of this step, once they are asked for
        self._packer = Packer(
            self._draw, length=settings.sequence_length, method=settings.packing, window=settings.packing_window
        )
        if state:
            self._packer.pool = self._restored(state["pool"])

    def next(self) -> LaneItem:
        """The sequence of the next step.

        Raises:
            DataError: A source has no documents, or too much of it cannot be read.
        """
        sample, settings = None, self._settings
        words = (settings.seed, "masks of lane", self._lane, "step", self._step)
        while sample is None and (pieces := self._packer.next()):
            sample = make_sample(
                joined(pieces),
                *words,
                isolate_documents=settings.isolate_documents,
                masker=settings.masker,
                index=self._step * settings.num_lanes + self._lane,
            )
        self._step, self._shares = self._step + 1, None
        return LaneItem(self._lane, sample, self.state(), self.take_bad())

    def take_bad(self) -> list[BadRecord]:
        """Records that were skipped since the last sequence."""
        return [record for documents in self._documents for record in documents.take_bad()]

    def state(self) -> dict[str, Any]:
        """Where the lane is, as JSON."""
        return {
            "step": self._step,
            "sources": [
                {**documents.state(), "tokens": tokens, "credit": credit, "over": over}
                for documents, tokens, credit, over in zip(
                    self._documents, self._tokens, self._credits, self._is_over, strict=True
                )
            ],
            "pool": [[*piece.origin, piece.begin, len(piece.tokens)] for piece in self._packer.pool],
        }

    def _draw(self) -> Piece | None:
        while True:
            if self._shares is None:
                self._shares = shares_at(self._settings, self._step, [not over for over in self._is_over])
            shares = self._shares
            source = most_due(self._credits, shares)
            if source is None:
                return None
            document = self._documents[source].next()
            if document is None:
                self._end_source(source)
                continue
            num_tokens = len(document.tokens)
            settle(self._credits, shares, source, num_tokens)
            self._tokens[source] += num_tokens
            budget = self._settings.sources[source].max_tokens
            if budget is not None and self._tokens[source] * self._settings.num_lanes >= budget:
                self._end_source(source)
            return Piece((source, *document.reference), 0, document.tokens)

    def _end_source(self, source: int) -> None:
        self._is_over[source], self._shares = True, None

    def _restored(self, pool: list[list[int]]) -> list[Piece]:
        """The packer's pieces, read again."""
        tokens: dict[tuple[int, ...], list[int]] = {}
        for source, documents in enumerate(self._documents):
            references = sorted({Reference(*place) for of, *place, _, _ in pool if of == source})
            for document in documents.again(references):
                tokens[source, *document.reference] = document.tokens
        return [
            Piece(tuple(origin), begin, tokens[tuple(origin)][begin : begin + length])
            for *origin, begin, length in pool
        ]
