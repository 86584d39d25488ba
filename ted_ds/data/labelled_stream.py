"""The training batches of a labelled set, which go on from any step without a replay."""

from __future__ import annotations

import functools
import hashlib
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ted_ds.data.grouping import by_token_budget, interleaved, steps_of_window
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.errors import DataError

VERSION = 1


def samples_sha256(samples: Sequence[Sample]) -> str:
    """A hash of the tokens and labels of a set, in its order."""
    digest = hashlib.sha256()
    for sample in samples:
        for sequence in sample.sequences:
            digest.update(array("q", [len(sequence.input_ids), *sequence.input_ids]).tobytes())
            if sequence.token_types is not None:
                digest.update(array("q", sequence.token_types).tobytes())
        digest.update(repr(sample.label).encode())
    return digest.hexdigest()


class LabelledStream(Iterator[list[Batch]]):
    """This rank's microbatches of each step, without end.

    Each epoch is a permutation of the samples, and steps go through epochs without a seam. What a step holds follows
    from the samples, the seed and the step's number alone: it is the same on any number of ranks, and a stream that
    goes on from a state computes one permutation, whatever came before.
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
    ) -> None:
        """Start at the first step, or where a state was taken.

        Args:
            samples: The training set, held in memory.
            collate: Makes batches of samples.
            division: What of a step is this rank's, and in which microbatches.
            seed: Decides the permutations.
            grouping_window_steps: Of how many consecutive steps the samples are regrouped by length; 1 is none.
            state: What :meth:`state_dict` gave; None to start.

        Raises:
            DataError: The state is of other samples, another seed, batch size or grouping, or no state of this kind.
        """
        self._samples, self._collate, self._seed = samples, collate, seed
        self._global_batch_size, self._window_steps = division.global_batch_size, grouping_window_steps
        self._division = division
        self._step = 0
        self._epoch_order: tuple[int, list[int]] | None = None
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
                [len(sample.input_ids) for sample in rows],
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
        """This rank's share of ``data/epoch``, passes over the samples; sums over ranks are those of the run."""
        return {"data/epoch": self._step * self._global_batch_size / len(self._samples) / self._division.world_size}

    def take_bad_records(self) -> list[BadRecord]:
        """None: a labelled set is checked as it is loaded."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _global_batch(self, step: int) -> list[Sample]:
        """What a step holds, over all ranks."""
        number, place = divmod(step, self._window_steps)
        if self._window is None or self._window[0] != number:
            size = self._window_steps * self._global_batch_size
            samples = self._between(number * size, (number + 1) * size)
            # one step alone stays in the order of its permutation
            steps = (
                [range(size)]
                if self._window_steps == 1
                else steps_of_window(
                    [len(sample.input_ids) for sample in samples],
                    global_batch_size=self._global_batch_size,
                    seed=self._seed,
                    window=number,
                )
            )
            self._window = (number, [[samples[index] for index in one] for one in steps])
        return self._window[1][place]

    def _between(self, start: int, stop: int) -> list[Sample]:
        """The samples at these places of all epochs, one after the other."""
        found: list[Sample] = []
        while start < stop:
            epoch, begin = divmod(start, len(self._samples))
            end = min(begin + stop - start, len(self._samples))
            found += [self._samples[index] for index in self._order(epoch)[begin:end]]
            start += end - begin
        return found

    def _order(self, epoch: int) -> list[int]:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = list(range(len(self._samples)))
            random.Random(f"{self._seed} {epoch}").shuffle(order)
            self._epoch_order = (epoch, order)
        return self._epoch_order[1]

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for the steps to be the same."""
        return {
            "num_samples": len(self._samples),
            "samples_sha256": samples_sha256(self._samples),
            "seed": self._seed,
            "global_batch_size": self._global_batch_size,
            "grouping_window_steps": self._window_steps,
        }

    def _step_of(self, state: Mapping[str, Any]) -> int:
        kind, version, step = (state.get(key) for key in ("kind", "version", "step"))
        if (kind, version) != ("labelled", VERSION) or not isinstance(step, int) or step < 0:
            raise DataError(
                f"data state: kind {kind!r}, version {version!r}, step {step!r} is none that labelled data can go on "
                f"from (kind 'labelled', version {VERSION}, a step from 0); start the phase anew"
            )
        differing = [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise DataError(
                f"data state: taken of other batches: {'; '.join(differing)}. A phase goes on only with the training "
                "data, seed, global_batch_size and data.length_grouping it began with: restore them, or start it anew"
            )
        return step
