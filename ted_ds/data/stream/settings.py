"""Everything that decides what a stream holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ted_ds.config.data import Cleaning, Data
from ted_ds.config.tasks import DocumentTask
from ted_ds.data.masking import Masker
from ted_ds.data.reading.listing import Listing
from ted_ds.data.stream.units import extent_bytes


@dataclass(frozen=True)
class SourceSettings:
    """One source of a stream."""

    name: str
    """In metrics."""
    listing: Listing
    weight: float | Sequence[tuple[int, float]]
    """As in the recipe, with sizes known."""
    epochs: int | None
    """How often it may be read; None: without end."""
    max_tokens: int | None
    """Tokens it may give; None: without end."""

    def fingerprint(self, num_lanes: int) -> dict[str, Any]:
        """What decides its documents and their order, wherever its files are."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}
        listing = self.listing
        files = [listing.identity(), [(file.division, file.num_pieces) for file in listing.files]]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
        about = [listing.format, listing.text_documents, len(listing.files), digest, *listing.form.identity()]
        return own | {"listing": about, "extent_bytes": extent_bytes(listing, num_lanes)}


@dataclass(frozen=True)
class StreamSettings:
    """A stream of packed sequences; one and the same on every rank."""

    sources: tuple[SourceSettings, ...]
    num_lanes: int
    """Sequences of a step; each is the next of a lane of its own."""
    seed: int
    text_column: str
    sequence_length: int
    separator: int
    """The id that ends each document."""
    start: tuple[int, ...]
    """The ids that each document starts with, before its own."""
    isolate_documents: bool
    packing: str
    packing_window: int
    shuffle_bytes: int
    """Text that all lanes together hold to shuffle."""
    temperature: float
    cleaning: Cleaning
    heldout_fraction: float
    """Of documents that are left out; 0 where held-out data has sources of its own."""
    most_bad_records: int
    """On the way to one sequence; decides no content."""
    masker: Masker | None = None
    """What hides tokens of each sequence; None where the models see all."""

    def fingerprint(self) -> dict[str, Any]:
        """What a state must have been saved with; files by what they are, so that a corpus may move."""
        others = ("most_bad_records", "masker")
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        if not self.start:
            del own["start"]  # states from before there was such a thing are of streams without it
        if self.masker is not None:
            own["masking"] = self.masker.fingerprint()
        sources = [source.fingerprint(self.num_lanes) for source in self.sources]
        return json.loads(json.dumps(own | {"cleaning": self.cleaning.model_dump(), "sources": sources}))


def stream_settings(
    data: Data,
    task: DocumentTask,
    listings: tuple[Listing, ...],
    *,
    seed: int,
    num_lanes: int,
    separator: int,
    start: tuple[int, ...] = (),
) -> StreamSettings:
    """The training stream of a recipe, with ``num_lanes`` sequences per step."""
    names = source_names([source.path for source in data.train])
    sources = tuple(
        SourceSettings(
            name,
            listing,
            float(listing.num_bytes) if isinstance(source.weight, str) else source.weight,
            source.epochs,
            source.max_tokens,
        )
        for name, source, listing in zip(names, data.train, listings, strict=True)
    )
    return StreamSettings(
        sources=sources,
        num_lanes=num_lanes,
        seed=seed,
        text_column=task.text_column,
        sequence_length=task.sequence_length,
        separator=separator,
        start=start,
        isolate_documents=task.packing.isolate_documents,
        packing=task.packing.method,
        packing_window=task.packing.window,
        shuffle_bytes=int(data.shuffle_mib * 2**20),
        temperature=data.mixture_temperature,
        cleaning=data.cleaning,
        heldout_fraction=0.0 if data.heldout_sources is not None else data.heldout_fraction,
        most_bad_records=data.bad_records.max_count,
    )


def source_names(paths: list[str]) -> list[str]:
    """Short names for sources, distinct from each other."""
    names: list[str] = []
    for path in paths:
        stem = path.rstrip("/").rpartition("/")[2].partition(".")[0].replace("*", "") or "source"
        earlier = sum(name == stem or name.startswith(f"{stem}_") for name in names)
        names.append(f"{stem}_{earlier + 1}" if stem in names else stem)
    return names
