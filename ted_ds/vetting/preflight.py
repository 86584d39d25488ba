"""Checks of the models themselves, before anything is trained: the cheap half of ``ted-ds doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.loader import Batch, evaluation_batches
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError
from ted_ds.models.predictions import Predictions
from ted_ds.models.tensor_files import weight_files
from ted_ds.runtime.device_faults import is_device_fault
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.guess import Guess
from ted_ds.vetting.baseline import NUM_EXAMPLES, Example, judge_against_guess, read_examples
from ted_ds.vetting.composition import judge_composition, mixed_lengths, numbers_of_rows
from ted_ds.vetting.verdict import Verdict
from ted_ds.vetting.weights import count_weights, judge_weights


def vet_weights(build: Assembly, name: str, folder: Path) -> Verdict:
    """The verdict on a model's files, which the ranks read in turns. Every rank must call it.

    Raises:
        TedError: A file cannot be read; on every rank.
    """
    mine = build.world.agree(lambda: count_weights(weight_files(folder)[build.world.rank :: build.world.size]))
    return judge_weights(name, build.world.gather(mine))


def vet_knowledge(build: Assembly, name: str, model: FrozenModel) -> Verdict:
    """Whether a model is better at the task than a guess, on real held-out examples. Every rank must call it.

    ``name`` is its side.
    """
    read = build.readers.of(name).data.heldout
    heldout = [one for one in read if not build.kind.are_labelled or one.label is not None]
    verdict: Verdict | None = None
    for count in NUM_EXAMPLES:
        if verdict is None or (verdict.status in ("fail", "warn") and len(heldout) > NUM_EXAMPLES[0]):
            verdict = _vet_on(build, name, model, heldout[:count])
    assert verdict is not None
    return verdict


@torch.no_grad()
def _vet_on(build: Assembly, name: str, model: FrozenModel, heldout: Sequence[Sample]) -> Verdict:
    world = build.world
    examples: list[Example] = []
    for batch in evaluation_batches(
        heldout,
        build.readers.of(name).collate,
        micro_batch_size=build.recipe.evaluation.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
    ):
        on_device = batch.to(world.device)

        def read(predictions: Predictions | None, rows: Batch = on_device) -> None:
            assert predictions is not None
            examples.extend(read_examples(predictions, rows, build.terms, classes=build.kind.one_class))

        model(on_device.inputs, read)
    everything = [example for of_rank in world.gather(examples) for example in of_rank]
    return judge_against_guess(name, everything, heldout_guess(build), labels=build.recipe.task.label_names)


def vet_quantised(build: Assembly, path: Path) -> FrozenModel:
    """Load a teacher whose weights are quantised, and run it once: that all it needs is installed is not yet to work.

    Every rank must call it.

    Raises:
        TedError: It does not work on this device, or the device failed; on every rank.
    """
    model = build.models.frozen("teacher", path)
    reader = build.readers.of("teacher")
    batches = evaluation_batches(reader.data.heldout, reader.collate, micro_batch_size=1, rank=0, world_size=1)
    with build.world.together():
        try:
            model(next(iter(batches)).to(build.world.device).inputs, lambda _: None)
        except Exception as error:  # kernels of many packages, which have no exceptions in common
            if is_device_fault(error):  # another attempt may go through
                raise
            raise CheckpointError(
                f"{path}: its weights are quantised ({build.teacher_facts.quantisation}) and cannot be computed with "
                f"on this device ({build.world.device.type}, {build.recipe.precision}): {error!s:.500}"
            ) from error
    return model


@torch.no_grad()
def vet_composition(build: Assembly, name: str, model: FrozenModel) -> Verdict:
    """Whether a model makes the same of an example whatever is beside it in a batch. Every rank must call it.

    ``name`` is its side.
    """
    reader = build.readers.of(name)
    samples = mixed_lengths(reader.data.heldout)
    found: list[list[float]] = []

    def look(rows: Sequence[Sample]) -> None:
        batch = reader.collate(rows).to(build.world.device)

        def read(predictions: Predictions | None) -> None:
            assert predictions is not None
            found.extend(numbers_of_rows(predictions, batch, build.terms))

        model(batch.inputs, read)

    for rows in (*([sample] for sample in samples), samples):  # by each rank alike: they may share a sharded model
        look(rows)
    alone, together = found[: len(samples)], found[len(samples) :]
    # ranks of another machine may round in another way, but act on one verdict
    return build.world.gather(judge_composition(name, alone, together, precision=build.recipe.precision))[0]


def heldout_guess(build: Assembly) -> Guess:
    """A guess at the held-out labels that has not seen the text."""
    labels = [build.kind.told(sample) for sample in build.data.heldout if sample.label is not None]
    facts = build.student_facts if build.readers.are_two else build.teacher_facts  # whose tokens are labels, if any are
    return build.kind.guess(labels, vocab_size=facts.vocab_size)


def act_on(build: Assembly, verdict: Verdict) -> None:
    """Say a verdict, or refuse to go on, as the recipe asks.

    Raises:
        CheckpointError: It failed, and ``preflight`` is ``refuse``; on every rank.
    """
    text = f"{verdict.check}: {verdict.detail}"
    if verdict.status == "fail" and build.recipe.preflight == "refuse":
        error = CheckpointError(f"{text} See ted-ds doctor; preflight: warn trains all the same")
        error.agreed = True  # a verdict is the same on every rank
        raise error
    build.screen.say(f"  {text}" if verdict.status == "pass" else f"  {verdict.status.upper()} {text}")
