"""What a teacher's predictions lose in fewer bits, and what is saved: beside its own in fp32, on held-out examples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.loader import Batch, evaluation_batches
from ted_ds.models.predictions import LossWeights, Predictions, predicted_of
from ted_ds.planning.hosting import USABLE
from ted_ds.planning.memory import frozen_bytes, gib
from ted_ds.planning.phase_memory import with_head
from ted_ds.runtime.free_memory import free_device_bytes
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.vetting.verdict import Verdict

CHECK = "teacher's precision"
NUM_EXAMPLES = 32
LARGEST_SHARE = 0.05
"""Of the teacher's own task loss, that its predictions may be off by: what a student learns from it is not closer."""
IN_FULL = "fp32"


class Way(NamedTuple):
    """A way to have the teacher."""

    precision: str
    """Of its activations, and of the weights that are not in 8 bits."""
    host: str

    @property
    def words(self) -> str:
        """Which it is."""
        return self.precision if self.host == "replica" else f"{self.host} ({self.precision})"


class Found(NamedTuple):
    """Over all examples of all ranks."""

    bias: float
    """The prediction term between the teacher so and the teacher in fp32, per prediction."""
    seconds: float
    """Of the forward passes, on the slowest rank."""


@torch.no_grad()
def vet_precision(build: Assembly, path: Path) -> Verdict:
    """How far the predictions of a teacher in fewer bits are from its own in fp32, and how long each takes.

    Every rank must call it.

    Args:
        build: Of the recipe, whose precision and host are judged; the others are told beside it.
        path: The teacher's folder.
    """
    recipe, world = build.recipe, build.world
    facts = build.teacher_facts
    if facts.quantisation is not None:
        return Verdict(CHECK, "skip", f"its weights are quantised ({facts.quantisation}): there are no others")
    whole = frozen_bytes(with_head(recipe, facts), host="replica", precision=IN_FULL, world_size=world.size)
    free = free_device_bytes(world)
    if 2 * whole > USABLE * free:
        return Verdict(CHECK, "skip", f"{gib(whole)} in {IN_FULL} and a copy do not fit into {gib(free)} free per rank")
    reader = build.readers.of("teacher")
    if not reader.data.heldout:
        return Verdict(CHECK, "skip", "no example is held out to compare it on")
    host = "int8" if build.hosting.host == "int8" else "replica"
    own = Way(build.hosting.precision or recipe.precision, host)
    ways = [*dict.fromkeys(one for one in (own, Way("bf16", "replica")) if one != Way(IN_FULL, "replica"))]
    batches = heldout_batches(build)
    reference = load(build, path, Way(IN_FULL, "replica"))
    loss, in_full = _own_loss(build, reference, batches), _seconds(build, reference, batches)
    found: dict[Way, Found] = {}
    for way in ways:
        model = load(build, path, way)
        found[way] = Found(bias(build, reference, model, batches), _seconds(build, model, batches))
        model.release()
    reference.release()
    # ranks of another machine may round in another way, but act on one verdict
    return world.gather(judge_precision(found, own, loss=loss, in_full=in_full, distance=build.terms.prediction_name))[
        0
    ]


def judge_precision(found: dict[Way, Found], own: Way, *, loss: float, in_full: float, distance: str) -> Verdict:
    """The verdict on the way that a run has its teacher.

    Args:
        found: Of each way but fp32.
        own: The run's.
        loss: The teacher's task loss in fp32.
        in_full: Seconds that its forward passes take so.
        distance: What the bias is measured by.
    """
    told = [
        f"{way.words} is off by {one.bias:.2g} and takes {one.seconds / in_full:.2f} of the time"
        for way, one in found.items()
    ]
    detail = f"beside {IN_FULL}, by {distance} (its task loss: {loss:.3g}): {'; '.join(told)}"
    if own in found and not found[own].bias <= LARGEST_SHARE * loss:
        return Verdict(CHECK, "warn", f"{detail}. More than {LARGEST_SHARE:.0%} of its loss: take more bits")
    return Verdict(CHECK, "pass", detail)


def heldout_batches(build: Assembly) -> list[Batch]:
    """The examples on which teachers are compared, this rank's share, on its device."""
    reader, world = build.readers.of("teacher"), build.world
    return [
        one.to(world.device)
        for one in evaluation_batches(
            reader.data.heldout[:NUM_EXAMPLES],
            reader.collate,
            micro_batch_size=build.recipe.evaluation.micro_batch_size,
            rank=world.rank,
            world_size=world.size,
        )
    ]


def load(build: Assembly, path: Path, way: Way) -> FrozenModel:
    """The teacher in a folder, so. Every rank must call it."""
    maker = build.models.as_if(precision=way.precision, host=way.host)
    return maker.frozen("teacher", path, new_head_allowed=True, compiles=False)


def _over_ranks(build: Assembly, total: Tensor, count: Tensor) -> float:
    sums = build.world.sum(torch.stack([total.double(), count.double()]))
    return float(sums[0] / sums[1].clamp(min=1))


def _own_loss(build: Assembly, model: FrozenModel, batches: list[Batch]) -> float:
    total, count = (torch.zeros((), dtype=torch.float64, device=build.world.device) for _ in range(2))
    for batch in batches:

        def read(predictions: Predictions | None, batch: Batch = batch) -> None:
            assert predictions is not None
            total.add_(sum(predictions.task_sums(build.terms, batch)))

        model(batch.inputs, read)
        count += build.terms.kept(batch.labels).sum()
    return _over_ranks(build, total, count)


def bias(build: Assembly, reference: FrozenModel, model: FrozenModel, batches: list[Batch]) -> float:
    """The prediction term between two teachers, per prediction, over all ranks' batches. Every rank must call it."""
    total, count = (torch.zeros((), dtype=torch.float64, device=build.world.device) for _ in range(2))
    weights = LossWeights(task=0.0, prediction=1.0)
    for batch in batches:

        def compare(theirs: Predictions | None, batch: Batch = batch) -> None:
            def read(own: Predictions | None) -> None:
                assert own is not None
                assert theirs is not None
                term = own.losses(build.terms, batch, weights, theirs).prediction
                assert term is not None
                total.add_(term)

            model(batch.inputs, read)

        reference(batch.inputs, compare)
        count += predicted_of(build.terms, batch).sum()
    return _over_ranks(build, total, count)


def _seconds(build: Assembly, model: FrozenModel, batches: list[Batch]) -> float:
    """Of forward passes, after one that nobody times."""
    model(batches[0].inputs, read_one)
    return max(build.world.gather(seconds_of(model, batches)))


def seconds_of(model: FrozenModel, batches: list[Batch]) -> float:
    """What its forward passes take on this rank."""
    started = time.perf_counter()
    for batch in batches:
        model(batch.inputs, read_one)
    return time.perf_counter() - started


def read_one(predictions: Predictions | None) -> None:
    """Wait for the device: what a forward pass ends with."""
    assert predictions is not None
    if torch.cuda.is_available():
        torch.cuda.synchronize()
