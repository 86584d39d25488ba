"""Samples become this rank's microbatches, step by step, whatever the number of ranks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ted_ds.data.microbatch import Batch
from ted_ds.data.samples import Label, Sample
from ted_ds.numerics.losses import IGNORED_LABEL

Labels = Literal["tokens", "class", "numbers", "token_classes", "spans", "targets"]


def checksum(ids: Sequence[int] | np.ndarray) -> int:
    """Of a sequence's tokens, by which what was kept of another sequence is found out."""
    return zlib.crc32(np.asarray(ids, np.int64).tobytes())


class OfCompletions(NamedTuple):
    """Which terms run over completions alone; the others run over all tokens."""

    task: bool
    predictions: bool
    features: bool


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples.

    Padding is known by ``attention_mask`` alone: ``pad_id`` may also be a real token (GPT-2 pads with its end token).
    """

    pad_id: int
    labels: Labels
    """The next tokens, one class id per sample, a list of numbers per sample, a class id per token, two tokens, or a
    target: tokens that a decoder is to write."""
    num_outputs: int = 1
    """How many ``numbers``."""
    side: Literal["right", "left"] = "right"
    """Where padding goes."""
    multiple_of: int = 1
    """Pad to the longest, rounded up to a multiple of this."""
    isolate_documents: bool = False
    """Keep documents of one row apart: positions start again, and none predicts the first token of the next."""
    with_token_types: bool = False
    """Whether samples say which text of a pair each token is of."""
    rows_per_sample: int = 1
    """Sequences of each sample; all of them are rows, one after the other."""
    of_completions: OfCompletions | None = None
    """Where a sample's label says which of its tokens are completions: the first of each, and that behind its last."""
    predict_all: bool = False
    """Compare the predictions for every token with the teacher's, whether it has a label or not."""
    of_teacher: Collator | None = None
    """Makes the same rows of what the teacher's own tokenizer made of samples; None where there is no such thing."""

    @property
    def masks(self) -> tuple[str, ...]:
        """The masks that its batches have beside those that all have."""
        if self.labels == "spans":
            return ("candidates",)
        terms = self.of_completions
        if terms is None:
            return ("predicted",) if self.predict_all else ()
        differ = {"predicted": terms.predictions != terms.task, "matched": terms.features}
        return tuple(name for name, is_there in differ.items() if is_there)

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Pad to one length; a ``None`` is a row of one padding token of which nothing is kept."""
        sequences = self._sequences(samples)
        longest = max(len(sequence.input_ids) if sequence else 1 for sequence in sequences)
        shape = (len(sequences), -(-longest // self.multiple_of) * self.multiple_of)
        # filled in NumPy, which takes a list and a short slice in a tenth of torch's time
        ids, kept = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
        of_tokens, positions = np.full(shape, IGNORED_LABEL, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64) if self.with_token_types else None
        completes, candidates = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        starts, checksums, ascending = list[int](), list[int](), np.arange(shape[1])
        for row, sample in enumerate(sequences):
            own = sample.input_ids if sample else []
            end = shape[1] if self.side == "left" else len(own)
            start = end - len(own)
            ids[row, start:end] = own
            kept[row, start:end] = True
            starts.append(start)
            checksums.append(checksum(ids[row, start:end]))
            for places in sample.candidates if sample else ():
                candidates[row, start + places.start : min(start + places.stop, end)] = True
            if types is not None and sample is not None and sample.token_types is not None:
                types[row, start:end] = sample.token_types
            if self.labels == "tokens":
                of_tokens[row, start : max(end - 1, start)] = ids[row, start + 1 : end]
            for length in self._pieces(sample):
                positions[row, start : start + length] = ascending[:length]
                start += length
                of_tokens[row, start - 1] = IGNORED_LABEL  # the last token of a piece has no next one
            if self.of_completions is not None and sample is not None:
                # as labels stand: one place before their tokens
                for first, behind in _pairs(sample.label):
                    completes[row, max(end - len(own) + first - 1, 0) : end - len(own) + behind - 1] = True
            if self.labels == "token_classes" and sample is not None and sample.label is not None:
                of_tokens[row, end - len(own) : end] = np.asarray(sample.label)[: len(own)]
        masks = {"candidates": torch.from_numpy(candidates)} if self.labels == "spans" else {}
        if self.of_completions is not None:
            of_tokens, masks = self._for_terms(self.of_completions, of_tokens, completes)
        input_ids, kept_tokens, token_labels, position_ids = map(torch.from_numpy, (ids, kept, of_tokens, positions))
        masks |= {"predicted": kept_tokens} if self.predict_all else {}
        masks |= self._targets(samples) if self.labels == "targets" else {}
        attention_mask = kept_tokens.long()
        attention_mask[~kept_tokens.any(1), -1 if self.side == "left" else 0] = 1  # no key at all: softmax is NaN
        positions_differ = self.isolate_documents or self.side == "left"
        return Batch(
            input_ids,
            attention_mask,
            token_labels if "token" in self.labels else self._given_labels(samples, starts, masks),
            kept_tokens,
            position_ids if positions_differ else None,
            self.isolate_documents,
            None if types is None else torch.from_numpy(types),
            tuple(-1 if sample is None else sample.index for sample in samples for _ in range(self.rows_per_sample)),
            tuple(checksums),
            facts=tuple(None if sample is None else sample.facts for sample in samples),
            of_teacher=None
            if self.of_teacher is None
            else self.of_teacher([one and one.of_teacher for one in samples]),
            **masks,
        )

    def _sequences(self, samples: Sequence[Sample | None]) -> Sequence[Sample | None]:
        if self.rows_per_sample == 1:
            return samples
        nothing = (None,) * self.rows_per_sample
        return [one for sample in samples for one in (nothing if sample is None else sample.sequences)]

    def _for_terms(
        self, alone: OfCompletions, of_tokens: np.ndarray, completes: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The labels of the task term, and the masks of the others."""
        follows = of_tokens != IGNORED_LABEL
        completes &= follows
        predicted, matched = (completes if one else follows for one in (alone.predictions, alone.features))
        masks = {"predicted": torch.from_numpy(predicted), "matched": torch.from_numpy(matched)}
        labels = np.where(completes, of_tokens, IGNORED_LABEL) if alone.task else of_tokens
        return labels, {name: masks[name] for name in self.masks}

    def _pieces(self, sample: Sample | None) -> Sequence[int]:
        if sample is None:
            return ()
        if self.isolate_documents:
            return sample.document_lengths
        return (len(sample.input_ids),)

    def _targets(self, samples: Sequence[Sample | None]) -> dict[str, Tensor]:
        """What a decoder is to write, padded on the right to one length of at least 1."""
        given: list[Any] = [sample.label if sample else () for sample in samples]
        longest = max(1, *map(len, given))
        shape = (len(given), -(-longest // self.multiple_of) * self.multiple_of)
        ids, kept = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
        for row, own in enumerate(given):
            ids[row, : len(own)] = own
            kept[row, : len(own)] = True
        return {"target_ids": torch.from_numpy(ids), "kept_targets": torch.from_numpy(kept)}

    def _given_labels(
        self, samples: Sequence[Sample | None], starts: Sequence[int], masks: Mapping[str, Tensor]
    ) -> Tensor:
        if self.labels == "targets":
            return masks["target_ids"].masked_fill(~masks["kept_targets"], IGNORED_LABEL)
        if self.labels == "spans":
            return torch.tensor([_places(*of_row) for of_row in zip(samples, starts, strict=True)])
        given = [sample.label if sample else None for sample in samples]
        if self.labels == "class":
            return torch.tensor([IGNORED_LABEL if label is None else label for label in given])
        return torch.tensor([[math.nan] * self.num_outputs if label is None else label for label in given])


def _places(sample: Sample | None, start: int) -> list[int]:
    """The positions, in a row whose tokens begin at ``start``, of tokens; a label is ignored where one is cut off."""
    places: Any = None if sample is None else sample.label
    if sample is None or places is None or max(places) >= len(sample.input_ids):
        return [IGNORED_LABEL, IGNORED_LABEL]
    return [start + place for place in places]


def _pairs(spans: Label | None) -> Iterator[tuple[int, int]]:
    """Of numbers that stand together in twos."""
    assert isinstance(spans, Sequence)
    numbers = map(int, spans)
    return zip(numbers, numbers, strict=True)


Collate = Callable[[Sequence[Sample | None]], Batch]


def evaluation_batches(
    samples: Sequence[Sample], collate: Collate, *, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of a finite set; every rank gets as many batches, the last ones filled with empty rows.

    (Ranks that share a sharded model must run the same number of forward passes.)
    """
    per_round = micro_batch_size * world_size
    for start in range(rank * micro_batch_size, len(samples) + rank * micro_batch_size, per_round):
        window: list[Sample | None] = list(samples[start : start + micro_batch_size])
        yield collate(window + [None] * (micro_batch_size - len(window)))
