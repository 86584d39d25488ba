"""What a frozen teacher and parts of it make of the calibration data: influence of blocks, losses, scores of units."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import Calibration, CalibrationBatch
from ted_ds.errors import NumericsError
from ted_ds.models.predictions import Predictions
from ted_ds.models.unit_scores import UnitScores
from ted_ds.numerics.importance import influence_sum
from ted_ds.runtime.frozen import FrozenModel

Key = TypeVar("Key")


class MeasuredTeacher:
    """A teacher tapped at all its layers, and the data to run it on. Every rank must call everything."""

    def __init__(self, build: Assembly, model: FrozenModel, calibration: Calibration) -> None:
        """Measure ``model`` on ``calibration``."""
        self._build, self.model, self._calibration = build, model, calibration
        self._depth, self._device = build.teacher_facts.num_blocks, build.world.device
        self.num_tokens, self.num_heldout_tokens = calibration.num_tokens, calibration.num_heldout_tokens

    def influence(self, scores: UnitScores | None = None) -> list[float]:
        """Of each block, over the tokens to fit; ``scores`` take in what goes through the model meanwhile.

        Raises:
            NumericsError: A layer's states are not finite; on every rank.
        """
        sums = torch.zeros(self._depth, dtype=torch.float64, device=self._device)
        broken = torch.zeros(self._depth + 1, dtype=torch.bool, device=self._device)
        for one in self._calibration.batches:
            self._build.stop_if_asked()
            here = one.to(self._device)
            kept = here.kept(here.fitted, layer=0)
            before: list[Tensor] = []

            def take(layer: int, state: Tensor, kept: Tensor = kept, before: list[Tensor] = before) -> None:
                own = state[kept]
                broken[layer] |= ~own.isfinite().all()
                if before:
                    sums[layer - 1] += influence_sum(before.pop(), own)
                before.append(own)

            with contextlib.nullcontext() if scores is None else scores.listening(kept):
                self.model(here.batch.inputs, _ignore_predictions, on_state=take)
        of_ranks = self._build.world.gather((sums.tolist(), broken.tolist()))
        for layer, wrong in enumerate(zip(*(one for _, one in of_ranks), strict=True)):
            if any(wrong):
                error = NumericsError(
                    f"student.from_teacher: the teacher's states of layer {layer} are not finite on the calibration "
                    "data; ted-ds doctor looks at its weights, and precision: fp32 or bf16 has room for states that "
                    "are too large for fp16"
                )
                error.agreed = True
                raise error
        columns = zip(*(of_rank for of_rank, _ in of_ranks), strict=True)
        return [math.fsum(column) / self.num_tokens for column in columns]

    def over_ranks(self, sums: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The sums of all ranks. Each has the same ones."""
        return {key: self._build.world.sum(one.clone()) for key, one in sums.items()}

    def loss_of(self, blocks: Sequence[int]) -> float:
        """The task loss with these blocks alone, per kept label of the held-out tokens; infinity if not finite."""
        build = self._build
        total, count = 0.0, 0
        with self.model.without_blocks({*range(self._depth)} - {*blocks}):
            for one in self._heldout_batches():
                build.stop_if_asked()
                here = one.to(self._device)
                labels = here.batch.labels
                rows = here.heldout[:: build.recipe.task.rows_per_example].tolist()
                found: list[float] = []

                def read(predictions: Predictions | None, found: list[float] = found, here: Any = here) -> None:
                    assert predictions is not None
                    found += predictions.task_sums(build.terms, here.batch)

                self.model(here.batch.inputs, read, on_state=_ignore_state)
                kept = build.terms.kept(labels).reshape(len(labels), -1).sum(1).tolist()
                total += math.fsum(loss for loss, is_heldout in zip(found, rows, strict=True) if is_heldout)
                count += sum(number for number, is_heldout in zip(kept, rows, strict=True) if is_heldout)
        losses, counts = zip(*build.world.gather((total, count)), strict=True)
        loss = math.fsum(losses) / max(sum(counts), 1)
        return loss if math.isfinite(loss) else math.inf

    def _heldout_batches(self) -> list[CalibrationBatch]:
        """Those with held-out rows; as many on every rank, as ranks may share a sharded model."""
        build, own = self._build, [one for one in self._calibration.batches if one.heldout.any()]
        nothing = build.collate([None])
        rows = torch.zeros(len(nothing.input_ids), dtype=torch.bool)
        return own + [CalibrationBatch(nothing, rows, rows)] * (build.world.highest(len(own))[0] - len(own))


def _ignore_state(_layer: int, _state: Tensor) -> None:
    """Of states that nobody looks at."""


def _ignore_predictions(_predictions: Predictions | None) -> None:
    """Of predictions that nobody looks at: what stands before an LM head runs all the same, and is listened to."""
