"""The training batches of a labelled set, which go on from any step without a replay."""

from __future__ import annotations

import functools
import hashlib
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ted_ds.data.epochs import Epochs
from ted_ds.data.grouping import by_token_budget, interleaved, steps_of_window
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.transfer import Transfer
from ted_ds.errors import DataError

VERSION = 1
OF_PLACE = ("version", "kind", "step")
"""What a state says of itself; all else is of the batches."""


def samples_sha256(samples: Sequence[Sample]) -> str:
    """A hash of the tokens and labels of a set, in its order."""
    digest = hashlib.sha256()
    for sample in samples:
        for sequence in sample.sequences:
            digest.update(array("q", [len(sequence.input_ids), *sequence.input_ids]).tobytes())
            if sequence.token_types is not None:
                digest.update(array("q", sequence.token_types).tobytes())
        digest.update(repr(sample.label).encode())
        if sample.candidates:
            digest.update(repr(sample.candidates).encode())
        if sample.of_teacher is not None:
            digest.update(samples_sha256([sample.of_teacher]).encode())
    return digest.hexdigest()


class LabelledStream(Iterator[list[Batch]]):
    """This rank's microbatches of each step, without end.

    Each epoch is a permutation of the samples, and steps go through epochs without a seam. What a step holds follows
    from the samples, the seed and the step's number alone: it is the same on any number of ranks, and a stream that
    goes on from a state computes one permutation, whatever came before. Samples without labels that are mixed in go
    through epochs of their own.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collate: Collator,
        division: StepDivision,
        *,
        seed: int,
        grouping_window_steps: int,
        state: Mapping[str, Any] | None,
        transfer: Transfer | None = None,
    ) -> None:
        """Start at the first step, or where a state was taken.

        Args:
            samples: The training set, held in memory.
            collate: Makes batches of samples.
            division: What of a step is this rank's, and in which microbatches.
            seed: Decides the permutations.
            grouping_window_steps: Of how many consecutive steps the samples are regrouped by length; 1 is none.
            state: What :meth:`state_dict` gave; None to start.
            transfer: Takes its share of each step, and ``samples`` the others; None for nothing else.

        Raises:
            DataError: The state is of other samples, another seed, batch size, grouping or share, or no state of this
                kind.
        """
        self._collate, self._seed, self._transfer = collate, seed, transfer
        self._own = Epochs(samples, f"{seed}")
        self._mixed_in = None if transfer is None else Epochs(transfer.samples, f"{seed} transfer")
        self._global_batch_size, self._window_steps = division.global_batch_size, grouping_window_steps
        self._division = division
        self._step = 0
        self._window: tuple[int, list[list[Sample]]] | None = None
        if state is not None:
            self._step = self._step_of(state)

    def __next__(self) -> list[Batch]:
        rows = self._global_batch(self._step)
        division = self._division
        if division.micro_batch_tokens is None:
            size = division.micro_batch_size
            assert size is not None  # the recipe gives exactly one of them
            share = interleaved(rows, micro_batch_size=size, rank=division.rank, world_size=division.world_size)
            batches = [self._collate(one) for one in share]
        else:
            of_ranks = by_token_budget(
                [sample.length for sample in rows],
                budget=division.micro_batch_tokens,
                multiple_of=self._collate.multiple_of,
                world_size=division.world_size,
            )
            batches = [
                self._collate([None if place is None else rows[place] for place in one])
                for one in of_ranks[division.rank]
            ]
        self._step += 1
        return batches

    @property
    def step(self) -> int:
        """How many steps have been given out."""
        return self._step

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """What is needed to go on after the steps given out, or after ``step``: JSON, the same on every rank."""
        return {
            "version": VERSION,
            "kind": "labelled",
            "step": self._step if step is None else step,
            **self._identity,
        }

    def progress(self) -> dict[str, float]:
        """This rank's share of ``data/epoch``, passes over the samples; sums over ranks are those of the run.

        And of ``data/transfer_epoch``, passes over those that are mixed in.
        """
        own, mixed_in = self._rows_before(self._step)
        found = {"data/epoch": own / len(self._own.samples) / self._division.world_size}
        if self._mixed_in is not None:
            found["data/transfer_epoch"] = mixed_in / len(self._mixed_in.samples) / self._division.world_size
        return found

    def take_bad_records(self) -> list[BadRecord]:
        """None: a labelled set is checked as it is loaded."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _global_batch(self, step: int) -> list[Sample]:
        """What a step holds, over all ranks."""
        number, place = divmod(step, self._window_steps)
        if self._window is None or self._window[0] != number:
            first = number * self._window_steps
            before = map(self._rows_before, range(first, first + self._window_steps + 1))
            own, mixed_in = zip(*before, strict=True)
            steps = self._grouped(self._own, own, number)
            if self._mixed_in is not None:
                more = self._grouped(self._mixed_in, mixed_in, number)
                steps = [[*one, *other] for one, other in zip(steps, more, strict=True)]
            self._window = (number, steps)
        return self._window[1][place]

    def _rows_before(self, step: int) -> tuple[int, int]:
        """How many rows of the steps before one are of the samples, and how many are mixed in."""
        mixed_in = 0 if self._transfer is None else self._transfer.rows_before(step, self._global_batch_size)
        return step * self._global_batch_size - mixed_in, mixed_in

    def _grouped(self, epochs: Epochs, bounds: Sequence[int], window: int) -> list[list[Sample]]:
        """The rows of each step of a window that come from ``epochs``: those between ``bounds``, in all steps.

        One step alone stays in the order of its permutation.
        """
        rows = epochs.between(bounds[0], bounds[-1])
        if self._window_steps == 1:
            return [rows]
        steps = steps_of_window(
            [sample.length for sample in rows],
            sizes=[stop - start for start, stop in itertools.pairwise(bounds)],
            seed=self._seed,
            window=window,
        )
        return [[rows[index] for index in one] for one in steps]

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for the steps to be the same."""
        found = {
            "num_samples": len(self._own.samples),
            "samples_sha256": samples_sha256(self._own.samples),
            "seed": self._seed,
            "global_batch_size": self._global_batch_size,
            "grouping_window_steps": self._window_steps,
        }
        if self._transfer is not None:
            found["num_transfer"] = len(self._transfer.samples)
            found["transfer_sha256"] = samples_sha256(self._transfer.samples)
            found["transfer_share"] = str(self._transfer.share)
        return found

    def _step_of(self, state: Mapping[str, Any]) -> int:
        kind, version, step = (state.get(key) for key in ("kind", "version", "step"))
        if (kind, version) != ("labelled", VERSION) or not isinstance(step, int) or step < 0:
            raise DataError(
                f"data state: kind {kind!r}, version {version!r}, step {step!r} is none that labelled data can go on "
                f"from (kind 'labelled', version {VERSION}, a step from 0); start the phase anew"
            )
        was, is_now = {name: one for name, one in state.items() if name not in OF_PLACE}, self._identity
        differing = [
            f"{name} was {was.get(name)!r} and is {is_now.get(name)!r}"
            for name in {**is_now, **was}
            if was.get(name) != is_now.get(name)
        ]
        if differing:
            raise DataError(
                f"data state: taken of other batches: {'; '.join(differing)}. A phase goes on only with the training "
                "data, seed, global_batch_size, data.length_grouping and data.transfer_share it began with: restore "
                "them, or start it anew"
            )
        return step
