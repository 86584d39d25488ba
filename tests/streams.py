"""Training streams of opened corpora, made in the test's own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.loader import Collator
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.corpus_stream import CorpusStream


def open_stream(
    data: CorpusData,
    *,
    num_lanes: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    state: Mapping[str, Any] | None = None,
) -> CorpusStream:
    """One rank's steps, each in one microbatch."""
    return data.stream(
        Collator(pad_id=0, labels="tokens"),
        StepDivision(num_lanes, num_lanes // world_size, rank=rank, world_size=world_size),
        seed=seed,
        num_workers=0,
        timeout_s=60,
        state=state,
    )
