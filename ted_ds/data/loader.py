"""Samples become this rank's microbatches, step by step, whatever the number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ted_ds.data.tasks import Sample
from ted_ds.numerics.losses import IGNORED_LABEL, next_token_labels


@dataclass(frozen=True)
class Batch:
    """A microbatch, padded on the right.

    ``labels`` stand where the logits that predict them stand: ``[batch]`` class ids, or ``[batch, seq]`` with each
    position's *next* token. -100 is ignored.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    labels: Int[Tensor, ...]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward takes."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples.

    Padding is known by ``attention_mask`` alone: ``pad_id`` may also be a real token (GPT-2 pads with its end token).
    """

    pad_id: int
    token_labels: bool
    """Whether the labels are the next tokens, or one class id per sample."""

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Pad to the longest; a ``None`` is a row of one padding token whose label is ignored."""
        length = max(len(sample.input_ids) if sample else 1 for sample in samples)
        input_ids = torch.full((len(samples), length), self.pad_id)
        attention_mask = torch.zeros((len(samples), length), dtype=torch.long)
        tokens = torch.full((len(samples), length), IGNORED_LABEL)
        classes = torch.full((len(samples),), IGNORED_LABEL)
        for row, sample in enumerate(samples):
            if sample is None:
                attention_mask[row, 0] = 1  # softmax over no key at all would be NaN
                continue
            ids = torch.tensor(sample.input_ids)
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            tokens[row, : len(ids)] = ids
            if sample.label is not None:
                classes[row] = sample.label
        return Batch(input_ids, attention_mask, next_token_labels(tokens) if self.token_labels else classes)


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

    Step s holds samples ``s * global_batch_size`` onwards, on any number of ranks: only who computes what differs.
    """
    while True:
        step = list(itertools.islice(samples, global_batch_size))
        micro = [step[i : i + micro_batch_size] for i in range(0, global_batch_size, micro_batch_size)]
        yield [collate(one) for one in micro[rank::world_size]]


def evaluation_batches(
    samples: Sequence[Sample], collate: Collator, *, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of a finite set; every rank gets as many batches, the last ones filled with empty rows.

    (Ranks that share a sharded model must run the same number of forward passes.)
    """
    per_round = micro_batch_size * world_size
    for start in range(rank * micro_batch_size, len(samples) + rank * micro_batch_size, per_round):
        window: list[Sample | None] = list(samples[start : start + micro_batch_size])
        yield collate(window + [None] * (micro_batch_size - len(window)))
