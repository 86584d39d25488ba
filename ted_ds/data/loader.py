"""Samples become this rank's microbatches, step by step, whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ted_ds.data.samples import Label, Sample
from ted_ds.data.text_sizes import text_sizes
from ted_ds.models.family import DECODER
from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.layer_map import Layer, stack_of
from ted_ds.numerics.losses import IGNORED_LABEL, kept_labels

Labels = Literal["tokens", "class", "numbers", "token_classes", "spans", "targets"]


@dataclass(frozen=True)
class Batch:
    """A microbatch.

    ``labels`` stand where the logits that predict them stand: ``[batch]`` class ids, ``[batch, outputs]`` numbers,
    ``[batch, seq]`` with each position's *next* token, ``[batch, targets]`` with the tokens of what a decoder is to
    write, or ``[batch, 2]`` with the positions where an answer starts and ends. Ids of -100 and numbers of NaN are
    ignored.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    labels: Int[Tensor, ...] | Float[Tensor, "batch outputs"]
    kept_tokens: Bool[Tensor, "batch seq"]
    """True for tokens of the data: not for padding, nor for the one token an empty row attends to."""
    position_ids: Int[Tensor, "batch seq"] | None = None
    """Each token's place in its document; None where it is its place in the row."""
    isolated: bool = False
    """Whether documents in one row are kept apart."""
    token_type_ids: Int[Tensor, "batch seq"] | None = None
    """Which text of a pair each token is of, 0 for padding; None where the tokenizer does not say."""
    samples: tuple[int, ...] = ()
    """Each row's :attr:`~ted_ds.data.samples.Sample.index`; -1 for an empty row."""
    predicted: Bool[Tensor, "batch seq"] | None = None
    """True where predictions are compared with the teacher's; None where that follows from the other tensors."""
    matched: Bool[Tensor, "batch seq"] | None = None
    """True for tokens whose states are compared with the teacher's; None for all that are kept."""
    target_ids: Int[Tensor, "batch targets"] | None = None
    """What a decoder is to write, padded on the right; None where there is none."""
    kept_targets: Bool[Tensor, "batch targets"] | None = None
    """True for tokens of these, at each of which the decoder has a state."""
    candidates: Bool[Tensor, "batch seq"] | None = None
    """Of labels that are positions: True for those that have a probability at all; None with other labels."""
    facts: tuple[Any, ...] = ()
    """What a scorer must know of each row beside its label, where samples say it; None of an empty row."""
    of_teacher: Batch | None = None
    """The same rows as the teacher's own tokenizer reads them; None where one tokenizer reads for both models."""
    _rows: dict[str, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Which are kept, once that was found."""
    _sizes: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = replace(
            self,
            **{name: value.to(device, non_blocking=True) for name, value in tensors.items()},
            of_teacher=None if self.of_teacher is None else self.of_teacher.to(device),
        )
        # found here: to find them there, the host would wait for the device in every microbatch
        of_outputs = {} if self.predicted is None else {"outputs": self.output_rows}
        of_outputs |= {} if self.kept_targets is None else {"targets": self.target_rows}
        for name, rows in {"tokens": self.token_rows, "labels": self.label_rows, **of_outputs}.items():
            moved._rows[name] = None if rows is None else rows.to(device, non_blocking=True)
        moved._sizes.update(self._sizes)
        return moved

    def read_by(self, side: str) -> Batch:
        """The rows in the tokens of the ``teacher`` or the ``student``."""
        return self.of_teacher if side == "teacher" and self.of_teacher is not None else self

    @property
    def texts(self) -> Bool[Tensor, " batch"]:
        """True for rows that hold a text."""
        return self.kept_tokens.any(-1)

    @property
    def matched_tokens(self) -> Bool[Tensor, "batch seq"]:
        """True for tokens whose states are compared with the teacher's."""
        return self.kept_tokens if self.matched is None else self.matched

    @property
    def token_rows(self) -> Int[Tensor, " kept"] | None:
        """Which of the flattened tokens have states that are compared; None for all."""
        if "tokens" not in self._rows:
            self._rows["tokens"] = kept_rows(self.matched_tokens)
        return self._rows["tokens"]

    def compared(self, layer: Layer) -> Bool[Tensor, "batch seq"]:
        """True for tokens whose states of a layer are compared with the teacher's: of a decoder's, those of targets."""
        if stack_of(layer) != DECODER:
            return self.matched_tokens
        assert self.kept_targets is not None, "there is no decoder that reads it"
        return self.kept_targets

    def compared_rows(self, layer: Layer) -> Int[Tensor, " kept"] | None:
        """Which of the flattened tokens those are; None for all."""
        return self.target_rows if stack_of(layer) == DECODER else self.token_rows

    def text_sizes(self, layer: Layer) -> tuple[int, ...]:
        """How many tokens of each text those are (:func:`ted_ds.data.text_sizes.text_sizes`)."""
        stack = stack_of(layer)
        if stack not in self._sizes:
            positions = None if stack == DECODER else self.position_ids
            self._sizes[stack] = text_sizes(self.compared(layer), positions)
        return self._sizes[stack]

    @property
    def target_rows(self) -> Int[Tensor, " kept"] | None:
        """Which of the flattened targets have states of a decoder that are compared; None for all."""
        assert self.kept_targets is not None, "there is no decoder that reads it"
        if "targets" not in self._rows:
            self._rows["targets"] = kept_rows(self.kept_targets)
        return self._rows["targets"]

    @property
    def label_rows(self) -> Int[Tensor, " kept"] | None:
        """Which of the flattened labels are kept, of those that are one class each; None for all."""
        if "labels" not in self._rows:
            self._rows["labels"] = kept_rows(kept_labels(self.labels))
        return self._rows["labels"]

    @property
    def output_rows(self) -> Int[Tensor, " kept"] | None:
        """Which of the flattened labels are kept, or stand where predictions are compared; None for all."""
        if self.predicted is None:
            return self.label_rows
        if "outputs" not in self._rows:
            self._rows["outputs"] = kept_rows(kept_labels(self.labels) | self.predicted)
        return self._rows["outputs"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward takes.

        Isolated documents go without a mask: transformers then finds them by where positions start again, and makes
        the block-diagonal mask of its attention implementation.
        """
        inputs = {"input_ids": self.input_ids}
        if not self.isolated:
            inputs["attention_mask"] = self.attention_mask
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        if self.target_ids is not None:
            inputs["target_ids"] = self.target_ids
        return inputs


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
        starts, ascending = list[int](), np.arange(shape[1])
        for row, sample in enumerate(sequences):
            own = sample.input_ids if sample else []
            end = shape[1] if self.side == "left" else len(own)
            start = end - len(own)
            ids[row, start:end] = own
            kept[row, start:end] = True
            starts.append(start)
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
