"""The documents that one lane reads from one source: cleaned, shuffled within a window, tokenised."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ted_ds.config.redaction import without_secrets
from ted_ds.data.cleaning import Cleaner
from ted_ds.data.reading.listing import describe_position, read_extent
from ted_ds.data.reading.records import START, BadRecord, Item, Position
from ted_ds.data.stream.order import shuffled
from ted_ds.data.stream.settings import StreamSettings
from ted_ds.data.stream.units import Unit, Units
from ted_ds.errors import DataError

Encoder = Callable[[list[str]], list[list[int]]]
CHARACTERS_AT_ONCE, FEWEST_CHARACTERS_AT_ONCE = 2**20, 2**14
"""Tokenised together by all lanes: the more, the faster, but a first batch waits for it, and its tokens are held."""
OVERHEAD_BYTES = 256
"""What a held document costs beside its text."""
SMALLEST_WINDOW_BYTES = 2**14
PATIENCE_UNITS = 64


class Reference(NamedTuple):
    """Where a document is: by it alone it can be read again."""

    unit: int
    """Which unit of its lane."""
    ordinal: int
    block: int
    offset: int


class Document(NamedTuple):
    """A document of a lane, with the tokens that start it, if any, and the one that ends it."""

    reference: Reference
    tokens: list[int]


class LaneDocuments:
    """One source in one lane, from any state on.

    A window of consecutive records is read, cleaned and shuffled, then the next one. What is remembered is where the
    window starts and how many of its documents have been given out: to go on means to read one window again.
    """

    def __init__(
        self,
        settings: StreamSettings,
        source: int,
        lane: int,
        encode: Encoder,
        *,
        units: Units,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Start at the beginning, or where a :meth:`state` was."""
        self._settings, self._lane, self._encode, self._units = settings, lane, encode, units
        self._source, self._words = settings.sources[source], (settings.seed, "source", source, "lane", lane)
        self._window_bytes = max(
            settings.shuffle_bytes // (settings.num_lanes * len(settings.sources)), SMALLEST_WINDOW_BYTES
        )
        self._characters_at_once = max(CHARACTERS_AT_ONCE // settings.num_lanes, FEWEST_CHARACTERS_AT_ONCE)
        self._unit: int = state["unit"] if state else 0
        self._at = Position(*state["at"]) if state else START
        self._taken: int = state["taken"] if state else 0
        self._num_read: int = state["read"] if state else 0  # records before the window
        self._num_records: int = state["records"] if state else 0  # and with it
        self._next: tuple[int, Position, int] | None = None  # where the next window starts; None: nothing is loaded
        self._window: list[tuple[Reference, str]] = []
        self._ready: collections.deque[Document] = collections.deque()
        self._bad: dict[BadRecord, None] = {}  # each once, though an epoch may be read again

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON."""
        place = {"unit": self._unit, "at": list(self._at), "taken": self._taken, "read": self._num_read}
        return place | {"records": self._num_records, "epoch": self.epoch}

    @property
    def epoch(self) -> float:
        """How many times the source has been read up to the current window, all lanes alike."""
        return self._units.epoch(self._lane, self._unit)

    def next(self) -> Document | None:
        """The next document; None where the source has been read as often as it may.

        Raises:
            DataError: No document is left in it.
        """
        if self._ready:
            self._taken += 1
            return self._ready.popleft()
        if self._next is None:
            self._load()
        empty_since = self._unit
        while self._taken == len(self._window):
            assert self._next is not None
            unit, at, num_read = self._next
            if (unit, at) == (self._unit, self._at):
                return None
            self._unit, self._at, self._num_read, self._taken = unit, at, num_read, 0
            self._load()
            if self._unit - empty_since > max(PATIENCE_UNITS, 4 * len(self._units)):
                raise DataError(self._nothing_left())
        self._tokenise()
        self._taken += 1
        return self._ready.popleft()

    def again(self, references: Sequence[Reference]) -> list[Document]:
        """Documents that were given out before, read again.

        Raises:
            DataError: One cannot be read any more.
        """
        found: dict[Reference, str] = {}
        for index in {reference.unit for reference in references}:
            wanted = {r for r in references if r.unit == index}
            start = min(wanted)
            for item in self._items(self._units.unit(self._lane, index), Position(*start[1:])):
                reference = Reference(index, *item.start)
                if reference in wanted and item.fault is None:
                    found[reference] = item.row[self._settings.text_column]
                if wanted <= found.keys() or item.start.ordinal > max(wanted).ordinal:
                    break
        for reference in references:
            if reference not in found:
                url = self._units.unit(self._lane, reference.unit).extent.url
                raise DataError(f"{url}: cannot go on: the document at {reference[2:]} cannot be read any more")
        return self._documents([(reference, found[reference]) for reference in references])

    def take_bad(self) -> list[BadRecord]:
        """Records that were skipped since the last call."""
        bad, self._bad = [*self._bad], {}
        return bad

    def _nothing_left(self) -> str:
        why = "the files are empty or all is held out"
        if self._bad:
            one = next(iter(self._bad))
            why = f"{len(self._bad)} records cannot be used, such as {one.file}: {one.position}: {one.fault}"
        return f"{self._source.listing.name}: no documents are left to read; {why}"

    def _tokenise(self) -> None:
        """Make the next documents of the window ready."""
        end, num_characters = self._taken, 0
        while end < len(self._window) and num_characters < self._characters_at_once:
            num_characters += len(self._window[end][1])
            end += 1
        self._ready.extend(self._documents(self._window[self._taken : end]))

    def _documents(self, texts: Sequence[tuple[Reference, str]]) -> list[Document]:
        encoded = self._encode([text for _, text in texts])
        return [
            Document(reference, [*self._settings.start, *ids, self._settings.separator])
            for (reference, _), ids in zip(texts, encoded, strict=True)
        ]

    def _load(self) -> None:
        """Read the window that starts at the current place; it ends with its epoch at the latest."""
        cleaner = Cleaner(self._settings.cleaning, self._settings.heldout_fraction)
        window: list[tuple[Reference, str]] = []
        unit, at, num_read, size = self._unit, self._at, self._num_read, 0
        epoch = self._units.unit(self._lane, unit).epoch
        while size < self._window_bytes:
            current = self._units.unit(self._lane, unit)
            over = self._source.epochs is not None and current.epoch >= self._source.epochs
            if over or current.epoch != epoch:
                break
            for item in self._items(current, at):
                at = item.end
                if not current.holds(item.start.ordinal):
                    continue
                num_read += 1
                if item.fault is not None:
                    self._report(current, item)
                    continue
                text = item.row[self._settings.text_column]
                if cleaner.keeps(text):
                    window.append((Reference(unit, *item.start), text))
                    size += len(text) + OVERHEAD_BYTES
                    if size >= self._window_bytes:
                        break
            else:
                unit, at = unit + 1, START
        self._window = shuffled(window, *self._words, "window", self._unit, *self._at)
        self._next = (unit, at, num_read)
        self._num_records = num_read

    def _items(self, unit: Unit, start: Position) -> Iterator[Item]:
        columns = [self._settings.text_column]
        max_bytes = int(self._settings.cleaning.max_document_mib * 2**20)
        return read_extent(self._source.listing, unit.extent, start, columns, max_bytes=max_bytes)

    def _report(self, unit: Unit, item: Item) -> None:
        assert item.fault is not None
        place = describe_position(unit.extent, item.start, self._source.listing)
        self._bad[BadRecord(without_secrets(unit.extent.url), place, item.fault)] = None
        limit = self._settings.most_bad_records
        if len(self._bad) > limit:
            raise DataError(
                f"{unit.extent.url}: {place}: {item.fault}. Bad records on the way to one sequence: {len(self._bad)}, "
                f"more than data.bad_records allows (max_count {limit}); mend them, or raise the limit"
            )
