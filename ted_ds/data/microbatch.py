"""A microbatch: tensors of a few rows, on the host as it is made or on the device that computes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ted_ds.data.text_sizes import text_sizes
from ted_ds.models.document_mask import DOCUMENTS, Documents
from ted_ds.models.family import DECODER
from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.layer_map import Layer, stack_of
from ted_ds.numerics.losses import kept_labels


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host goes on meanwhile.

    A GPU copies from pinned memory alone beside other work: for a larger tensor of other memory the host would wait
    until all that was asked for before is done.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


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
    checksums: tuple[int, ...] = ()
    """Of each row's tokens (:func:`ted_ds.data.loader.checksum`), which nobody need fetch from a device for it."""
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
    _documents: list[Documents] = field(default_factory=list, init=False, repr=False, compare=False)
    """Where isolated documents begin, once that was found."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = replace(
            self,
            **{name: to_device(value, device) for name, value in tensors.items()},
            of_teacher=None if self.of_teacher is None else self.of_teacher.to(device),
        )
        # found here: to find them there, the host would wait for the device in every microbatch
        of_outputs = {} if self.predicted is None else {"outputs": self.output_rows}
        of_outputs |= {} if self.kept_targets is None else {"targets": self.target_rows}
        for name, rows in {"tokens": self.token_rows, "labels": self.label_rows, **of_outputs}.items():
            moved._rows[name] = None if rows is None else to_device(rows, device)
        moved._sizes.update(self._sizes)
        if self.documents is not None:
            moved._documents.append(self.documents.to(lambda one: to_device(one, device)))
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
    def documents(self) -> Documents | None:
        """Where isolated documents begin; None where there are none."""
        if not self.isolated or self.position_ids is None:
            return None
        if not self._documents:
            self._documents.append(Documents.of(self.position_ids))
        return self._documents[0]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a tapped model's forward takes.

        Isolated documents go without a mask: transformers then finds them by where positions start again, and makes
        the block-diagonal mask of its attention implementation; or they go by their borders, where that takes these.
        """
        inputs = {"input_ids": self.input_ids}
        if not self.isolated:
            inputs["attention_mask"] = self.attention_mask
        if self.documents is not None:
            inputs[DOCUMENTS] = self.documents.as_tensor
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        if self.target_ids is not None:
            inputs["target_ids"] = self.target_ids
        return inputs
