"""Microbatches of samples that a test makes up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ted_ds.data.grouping import interleaved
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample


def training_steps(
    samples: Iterator[Sample],
    collate: Collator,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[list[Batch]]:
    """For each step, this rank's microbatches of the step's global batch.

    Step s holds samples ``s * global_batch_size`` onwards, on any number of ranks: only who computes what differs (see
    :func:`~ted_ds.data.grouping.interleaved`). Where samples end, the last step is filled up with empty rows.
    """
    while real := list(itertools.islice(samples, global_batch_size)):
        step: list[Sample | None] = [*real, *[None] * (global_batch_size - len(real))]
        share = interleaved(step, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        yield [collate(one) for one in share]
