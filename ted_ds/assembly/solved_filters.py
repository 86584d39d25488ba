"""Filters in closed form: the linear map from a layer's state to what a head reads, by ridge regression.

What that is for each of them is found here, by running the models on the calibration data; it is solved in
:mod:`ted_ds.assembly.filter_sums`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import CalibrationBatch, open_calibration
from ted_ds.assembly.filter_sums import FilterSums
from ted_ds.assembly.stages import probes_of, teacher_bank
from ted_ds.data.loader import Batch
from ted_ds.numerics.filters import FilterBank, pool
from ted_ds.numerics.layer_map import Layer
from ted_ds.planning.phase import Phase
from ted_ds.planning.ridge_filters import reads_texts, solves_towards_teacher
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.tasks.base import pooling_of

NUM_REPORTS = 10
"""Of how far the calibration data are read."""
Vet = Callable[[FrozenModel], None]


@dataclass(frozen=True)
class SolvedFilters:
    """The filters of one side, and what is to be said of them."""

    bank: FilterBank
    """On the host, in the precision of the weights; the same on every rank."""
    about: dict[str, dict[str, Any]]
    """How each was solved, and what it scores on held-out data (``scores``), by the name of its layer."""


def solve_filters(
    build: Assembly, phase: Phase, models: Mapping[str, Path], *, teacher_filters: Path | None, vet: Vet
) -> dict[str, SolvedFilters]:
    """The filters of a phase of Stage I by its sides, solved on the calibration data. Every rank must call it.

    Args:
        build: The run's assembly.
        phase: The phase.
        models: The folder of each side in it, and the teacher's where the student's filters are solved towards it.
        teacher_filters: The folder of its filters, where they are not solved in this phase, too.
        vet: Takes the teacher before it is used.

    Raises:
        NumericsError: A state is not finite; on every rank.
        StopNow: Any rank was asked to stop; on every rank.
        TedError: A model or the data cannot be loaded; on every rank.
    """
    return _Solver(build, phase, models, teacher_filters, vet).solve()


class _Solver:
    """Solves the filters of one phase."""

    def __init__(
        self, build: Assembly, phase: Phase, models: Mapping[str, Path], teacher_filters: Path | None, vet: Vet
    ) -> None:
        self._build, self._phase, self._models = build, phase, models
        self._teacher_filters, self._vet = teacher_filters, vet
        self._hosted: dict[str, FrozenModel] = {}
        self._found: dict[str, SolvedFilters] = {}

    def solve(self) -> dict[str, SolvedFilters]:
        """See :func:`solve_filters`."""
        self._build.stops.has_work(True)
        batches = open_calibration(self._build).batches
        try:
            if "teacher" in self._phase.frozen:
                self._solve("teacher", batches, self._add_own)
            if "student" in self._phase.frozen and solves_towards_teacher(self._build.recipe, self._phase):
                bank = self._teacher_bank()
                self._solve("student", batches, lambda sums, one: self._add_beside_teacher(sums, one, bank))
            elif "student" in self._phase.frozen:
                self._solve("student", batches, self._add_own)
        finally:
            for model in self._hosted.values():
                model.release()
            self._hosted.clear()
            collect_garbage()
        return self._found

    def _model(self, side: str) -> FrozenModel:
        """A side's model, tapped at its side of the layer map and behind its last block."""
        if side not in self._hosted:
            build = self._build
            layers = (*build.layers(side), build.facts(side).num_blocks)
            self._hosted[side] = build.models.frozen(side, self._models[side], layers, new_head_allowed=True)
            if side == "teacher":
                self._vet(self._hosted[side])
        return self._hosted[side]

    def _teacher_bank(self) -> FilterBank:
        """The teacher's filters on the device: those that were solved here, or those of the phase before."""
        build = self._build
        if "teacher" in self._found:
            return copy.deepcopy(self._found["teacher"].bank).to(build.world.device)
        bank = build.world.agree(lambda: teacher_bank(build, self._teacher_filters))
        assert bank is not None
        return bank

    @torch.no_grad()
    def _solve(
        self, side: str, batches: Sequence[CalibrationBatch], add: Callable[[FilterSums, CalibrationBatch], None]
    ) -> None:
        build = self._build
        self._model(side)
        sums = FilterSums(build, side)
        build.screen.start(f"{self._phase.name}, states of the {side}", len(batches))
        started, every = time.monotonic(), -(-len(batches) // NUM_REPORTS)
        try:
            for number, one in enumerate(batches, start=1):
                build.stop_if_asked()
                add(sums, one.to(build.world.device))
                if number % every == 0:
                    left = (time.monotonic() - started) / number * (len(batches) - number)
                    build.screen.update(number, {}, remaining_s=left)
        finally:
            build.screen.stop()
        prefix = f"{side}/" if len(self._phase.frozen) > 1 else ""
        unit = "texts" if add == self._add_own and reads_texts(build.recipe) else "tokens"
        bank, about = sums.solve(f"{self._phase.name}, {prefix}", unit)
        bank.to(build.world.device, build.dtype)
        for name, scores in zip(about, self._scores(side, bank), strict=True):
            about[name]["scores"] = scores
        self._found[side] = SolvedFilters(bank.to("cpu"), about)

    def _add_own(self, sums: FilterSums, one: CalibrationBatch) -> None:
        """Take in what the model's own head reads: each token's last state, or that of the token a text is read at."""
        build, batch = self._build, one.batch
        model, filters = self._model(sums.side), build.recipe.filters
        assert filters is not None
        *states, last = _states(model, batch)
        if not reads_texts(build.recipe):
            for place, (layer, state) in enumerate(zip(sums.layers, states, strict=True)):
                sums.add(place, state, last, _masks(one, layer))
            return
        unread_id = model.tapped.unread_id
        unread = None if unread_id is None else batch.input_ids == unread_id

        def read(state: Tensor, how: str) -> Tensor:
            return pool(state, batch.attention_mask, how=how, unread=unread)

        has_text = batch.kept_tokens.any(1)
        target = read(last, model.tapped.pooled_token)
        for place, state in enumerate(states):
            pooled = read(state, pooling_of(filters, model.tapped))
            sums.add(place, pooled, target, [rows & has_text for rows in (one.fitted, one.heldout)])

    def _add_beside_teacher(self, sums: FilterSums, one: CalibrationBatch, bank: FilterBank) -> None:
        """Take in what Stage II compares: each state of the student's, and its partner's as the teacher filters it."""
        teacher = _states(self._model("teacher"), one.batch)
        student = _states(self._model("student"), one.batch)
        for place, layer in enumerate(sums.layers):
            sums.add(place, student[place], bank.filters[place](teacher[place]), _masks(one, layer))

    def _scores(self, side: str, bank: FilterBank) -> list[dict[str, float]]:
        """What each filter scores on held-out data."""
        build, model = self._build, self._model(side)
        probes = probes_of(build, side, bank, model.tapped, self._models).to(build.world.device).eval()

        def forward(batch: Batch) -> dict[int, Tensor]:
            found: dict[int, Tensor] = {}

            def probe(place: int, state: Tensor) -> None:
                if place < len(bank.layers):
                    found[place] = probes.predict(place, state, batch.inputs).outputs(batch)

            model(batch.inputs, on_state=probe)
            return found

        return build.evaluate(forward)[0]


def _states(model: FrozenModel, batch: Batch) -> list[Tensor]:
    """The states ``[batch, seq, hidden]`` of the layers that a model is tapped at, in their order."""
    found: dict[int, Tensor] = {}
    model(batch.inputs, on_state=found.__setitem__)
    return [found[place] for place in sorted(found)]


def _masks(one: CalibrationBatch, layer: Layer) -> list[Tensor]:
    """True for the tokens to fit, and for those to judge by: of those whose states Stage II compares."""
    return [one.kept(rows, layer) & one.batch.compared(layer) for rows in (one.fitted, one.heldout)]
