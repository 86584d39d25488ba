"""The calibration data of a run: the first samples of its training data, and the next ones to judge by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.batches import Batches
from ted_ds.data.loader import Batch
from ted_ds.data.step_division import StepDivision
from ted_ds.errors import DataError, counted
from ted_ds.models.family import DECODER
from ted_ds.numerics.layer_map import Layer, stack_of

SAMPLES_AT_ONCE = 64
"""Read by all ranks together; as many lanes has a corpus then. It decides which samples are the first of a corpus."""


@dataclass(frozen=True)
class CalibrationBatch:
    """A microbatch, and to which part each of its rows belongs: to one of them, or to none."""

    batch: Batch
    fitted: Bool[Tensor, " batch"]
    heldout: Bool[Tensor, " batch"]

    def to(self, device: torch.device) -> CalibrationBatch:
        """The same on another device."""
        return CalibrationBatch(self.batch.to(device), self.fitted.to(device), self.heldout.to(device))

    def kept(self, rows: Bool[Tensor, " batch"], layer: Layer) -> Bool[Tensor, "batch seq"]:
        """True for tokens of some of its rows that have a state at a layer; never for padding.

        Those of a decoder in an encoder-decoder are the targets'.
        """
        of_decoder = stack_of(layer) == DECODER
        kept = self.batch.kept_targets if of_decoder else self.batch.kept_tokens
        assert kept is not None, "there is no decoder that reads it"
        return kept & rows.unsqueeze(1)


@dataclass(frozen=True)
class Calibration:
    """This rank's share of the calibration data, on the host."""

    batches: tuple[CalibrationBatch, ...]
    """As many on every rank, the last ones without a token where there are too few."""
    num_tokens: int
    """To fit, over all ranks."""
    num_heldout_tokens: int
    """To judge by, over all ranks."""


@dataclass
class _Division:
    """Gives samples, in their order over all ranks, to one of the two parts while these lack tokens."""

    tokens: int
    heldout_tokens: int | None
    """None: all that is left."""
    num_tokens: int = 0
    num_heldout_tokens: int = 0

    @property
    def is_complete(self) -> bool:
        has_heldout = self.heldout_tokens is not None and self.num_heldout_tokens >= self.heldout_tokens
        return self.num_tokens >= self.tokens and has_heldout

    def part_of(self, length: int) -> str:
        """The part of the next sample; one without a token is of none."""
        if not length or self.is_complete:
            return ""
        if self.num_tokens < self.tokens:
            self.num_tokens += length
            return "fitted"
        self.num_heldout_tokens += length
        return "heldout"


def open_calibration(build: Assembly) -> Calibration:
    """Read ``student.calibration``: the same samples in the same parts on any number of ranks. Every rank must call it.

    A sample's part follows from its place in the training stream, and from the tokens before it. Where the recipe says
    nothing and the training data has fewer tokens, all of it is taken, in parts of the same proportion.

    Raises:
        DataError: The training data has fewer tokens than the recipe says, or cannot be read; on every rank.
        StopNow: Any rank was asked to stop; on every rank.
    """
    settings = build.recipe.student.calibration
    division = _Division(settings.tokens, settings.heldout_tokens)
    found = _read(build, division)
    if found is None:
        there = division.num_tokens + division.num_heldout_tokens
        if settings.are_given or not there:
            raise _too_few(build, there)
        share = settings.tokens / (settings.tokens + settings.heldout_tokens)
        division = _Division(int(there * share), None)
        build.screen.say(
            f"  data.train has {counted(there, 'token')}: all are taken, where student.calibration would take more"
        )
        found = _read(build, division)
        assert found is not None
    return Calibration(tuple(found), division.num_tokens, division.num_heldout_tokens)


def _read(build: Assembly, division: _Division) -> list[CalibrationBatch] | None:
    """This rank's microbatches; None where the data end before the division is complete."""
    settings, world = build.recipe.student.calibration, build.world
    stream = build.data.stream(
        build.collate,
        StepDivision(SAMPLES_AT_ONCE, settings.micro_batch_size, rank=world.rank, world_size=world.size),
        seed=build.recipe.seed,
        num_workers=0,
        timeout_s=build.recipe.collective_timeout_s,
    )
    num_samples, rows_per_sample = build.data.num_rows, build.recipe.task.rows_per_example
    found: list[CalibrationBatch] = []
    try:
        for first in itertools.count(step=SAMPLES_AT_ONCE):
            build.stop_if_asked()
            batches = world.agree(lambda: next(stream))
            of_ranks = world.gather([_lengths(batch, rows_per_sample) for batch in batches])
            left = None if num_samples is None else num_samples - first  # behind them, the first ones come again
            lengths = _in_order([list(itertools.chain(*one)) for one in of_ranks])[:left]
            parts = [division.part_of(length) for length in lengths]
            found += _with_parts(batches, parts[world.rank :: world.size], rows_per_sample)
            if division.is_complete:
                break
            if not any(lengths) or (left is not None and left <= SAMPLES_AT_ONCE):
                if division.heldout_tokens is not None:
                    return None
                break
        _warn_of_repeats(build, stream)
    finally:
        stream.close()
    most = world.highest(len(found))[0]
    nothing = build.collate([None])
    rows = torch.zeros(len(nothing.input_ids), dtype=torch.bool)
    return found + [CalibrationBatch(nothing, rows, rows)] * (most - len(found))  # ranks may share a sharded model


def _lengths(batch: Batch, rows_per_sample: int) -> list[int]:
    """The tokens of each sample of a microbatch."""
    return batch.kept_tokens.sum(1).reshape(-1, rows_per_sample).sum(1).tolist()


def _in_order(of_ranks: Sequence[Sequence[int]]) -> list[int]:
    """What ranks have of samples that are dealt to them in turns, in the order of the samples."""
    return [one for turn in itertools.zip_longest(*of_ranks) for one in turn if one is not None]


def _with_parts(batches: Sequence[Batch], parts: Sequence[str], rows_per_sample: int) -> list[CalibrationBatch]:
    """This rank's microbatches with the parts of their samples, in turn; those of which none has one are left out."""
    found, rest = [], iter(parts)
    for batch in batches:
        num_samples = len(batch.input_ids) // rows_per_sample
        own = [part for part in itertools.islice(rest, num_samples) for _ in range(rows_per_sample)]
        own += [""] * (len(batch.input_ids) - len(own))
        fitted, heldout = (torch.tensor([part == name for part in own]) for name in ("fitted", "heldout"))
        if bool((fitted | heldout).any()):
            found.append(CalibrationBatch(batch, fitted, heldout))
    return found


def _warn_of_repeats(build: Assembly, stream: Batches) -> None:
    """Say which sources have come to their beginning again: what is judged by was then fitted, too."""
    epochs: dict[str, float] = {}
    for numbers in build.world.gather(stream.progress()):
        for name, value in numbers.items():
            epochs[name] = epochs.get(name, 0) + value
    again = [name.split("/")[1] for name, value in epochs.items() if name.endswith("/epochs") and value > 1]
    if again:
        build.screen.say(
            f"  WARN student.calibration: {', '.join(again)}: read more than once, so that held-out tokens are among "
            "the fitted ones; lower tokens and heldout_tokens, or give more data"
        )


def _too_few(build: Assembly, there: int) -> DataError:
    settings = build.recipe.student.calibration
    error = DataError(
        f"student.calibration: tokens: {settings.tokens:,} and heldout_tokens: {settings.heldout_tokens:,} are more "
        f"than the {there:,} that data.train has; lower them, or give more data"
    )
    error.agreed = True
    return error
