"""A student that was cut out of its teacher, healed block by block: the last linear map of each in closed form.

For a block whose output is ``rest + factor * (W x + b)``, a state ``h`` of the teacher's to come to and weights
``w = 1 / mean(h^2)`` of tokens, ``W`` and ``b`` are the ridge regression of ``(h - rest) / factor`` on ``x``, towards
what they were (:mod:`ted_ds.numerics.normal_equations`). ``x`` and ``rest`` are the student's own, with all blocks
before this one healed. Where a norm makes the block's output of that sum, the sum is brought to the teacher's before
the norm of its block, whose weights the student's norm takes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import Calibration, CalibrationBatch
from ted_ds.errors import NumericsError
from ted_ds.models.output_maps import OutputMap, output_map_of
from ted_ds.numerics.normal_equations import Fit, NormalEquations, fit, inverse_mean_square
from ted_ds.runtime.block_walk import BlockWalk, Heard
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import gathered

FITTED, HELDOUT = 0, 1
"""The rows of sums over both parts."""


@dataclass(frozen=True)
class Healed:
    """What became of a block."""

    block: int
    """Of the student, from 0."""
    teacher_layer: int
    """That it was brought to."""
    error_before: float
    """``mean |out - h|^2 / |h|^2`` of what the block puts out, over held-out tokens."""
    error_after: float
    strength: float | None
    """Of the ridge; None where the map stayed as it was."""
    was_raised: bool
    """Whether the sums could not be solved at the strength asked for."""
    condition: float | None
    """Of what was solved, at least."""
    num_tokens: int
    num_unknowns: int
    """Of each number that the map puts out."""

    def __str__(self) -> str:
        """In a line."""
        moved = (
            f"block {self.block} to the teacher's layer {self.teacher_layer}: relative error {self.error_before:.3g}"
        )
        if self.error_before == 0:
            return f"{moved}: it stays"
        if self.strength is None:
            return (
                f"{moved} -> {self.error_after:.3g}; its map stays, which no strength makes better on held-out tokens"
            )
        raised = ", raised, as the sums could not be solved at less" if self.was_raised else ""
        return f"{moved} -> {self.error_after:.3g}, strength {self.strength:g}{raised}, condition {self.condition:.1e}"


class _Errors:
    """Sums over tokens of ``w |out - h|^2`` and ``w |h|^2``, of both parts."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, 2, dtype=torch.float64, device=device)

    def add(self, part: int, outputs: Float[Tensor, "tokens hidden"], wanted: Float[Tensor, "tokens hidden"]) -> None:
        weights = inverse_mean_square(wanted).double()
        wanted = wanted.double()
        self.sums[part, 0] += (outputs.double() - wanted).square().sum(1) @ weights
        self.sums[part, 1] += wanted.square().sum(1) @ weights

    @property
    def relative(self) -> float:
        """Over held-out tokens."""
        error, total = self.sums[HELDOUT].tolist()
        return error / total if total else 0.0

    @property
    def is_zero(self) -> bool:
        """Whether nothing is wrong anywhere."""
        return not bool(self.sums[:, 0].any())


@dataclass
class _Sums:
    """What a pass through a block as it was comes to."""

    equations: tuple[NormalEquations, NormalEquations]
    """Of both parts."""
    errors: _Errors


@dataclass(frozen=True)
class _Solved:
    """How a map came about."""

    strength: float | None
    was_raised: bool
    condition: float


class Healer:
    """Heals a student's blocks, from the first to the last. Every rank must call everything."""

    def __init__(
        self,
        build: Assembly,
        teacher: FrozenModel,
        student: FrozenModel,
        calibration: Calibration,
        *,
        targets: Mapping[int, int],
        strengths: Sequence[float],
    ) -> None:
        """Begin before the first block.

        Args:
            build: The run's assembly.
            teacher: Of one stack of blocks.
            student: Cut out of it; its weights are changed.
            calibration: The texts.
            targets: For layers of the student, the layer of the teacher to come to; others stay as they are.
            strengths: To choose from.
        """
        self._world, self._strengths, self._targets = build.world, strengths, targets
        self._calibration = calibration.batches
        batches = [one.batch for one in calibration.batches]
        walk = functools.partial(
            BlockWalk, batches=batches, device=build.world.device, before_batch=build.stop_if_asked
        )
        self._teacher, self._student = walk(teacher), walk(student, goes_back=True)
        self._before_norm: list[Tensor] = []
        """What the norm of the teacher's block took, where there is one, of each microbatch, on the host."""
        self._not_finite = torch.zeros(1, dtype=torch.bool, device=build.world.device)

    def skip(self, number: int) -> None:
        """Go on behind the first blocks, which are healed already."""
        if number:
            self._student.go(number)

    def heal(self, number: int) -> Healed | None:
        """Heal block ``number``, from 0, behind those before it; None where it is left as it is.

        Raises:
            NumericsError: A state is not finite; on every rank.
            StopNow: Any rank was asked to stop, and the block is as it was; on every rank.
        """
        layer, tapped = number + 1, self._student.model.tapped
        wanted, own = self._targets.get(layer), output_map_of(tapped.model, tapped.family, number)
        if wanted is None or own is None:
            self._student.go(layer)
            return None
        self._ask_teacher(wanted)
        sums = self._sums_of(own, layer)
        before = sums.errors.relative
        fitted, heldout = sums.equations
        facts = (number, wanted, before)
        counts = (fitted.num_tokens, fitted.num_inputs)
        if sums.errors.is_zero:
            return Healed(*facts, before, None, False, None, *counts)
        weights, solved = self._solve(own, fitted, heldout, layer)
        if solved.strength is None and own.norm is None:
            return Healed(*facts, before, None, False, None, *counts)
        self._change(own, weights, wanted)
        self._student.back()
        after = self._errors_of(layer)
        return Healed(*facts, after.relative, solved.strength, solved.was_raised, solved.condition, *counts)

    # --- the teacher ------------------------------------------------------------------------------------------------

    def _ask_teacher(self, layer: int) -> None:
        """Bring the teacher to a layer."""
        walk = self._teacher
        if walk.layer == layer:
            return
        if walk.layer > layer:
            walk.restart()
        norm = self._norm_of_teacher(layer)
        self._before_norm = []

        def keep(number: int, state: Tensor, heard: Heard) -> None:
            self._note_if_not_finite(number, state)
            if norm is not None:
                self._before_norm.append(heard["norm"][0].to("cpu"))

        walk.go(layer, keep, listen={} if norm is None else {"norm": norm})
        self._refuse_not_finite(f"the teacher's layer {layer}")

    def _norm_of_teacher(self, layer: int) -> torch.nn.Module | None:
        """That at the end of the block which puts out a layer."""
        tapped = self._teacher.model.tapped
        own = output_map_of(tapped.model, tapped.family, layer - 1)
        return None if own is None else own.norm

    # --- a block of the student's -----------------------------------------------------------------------------------

    def _sums_of(self, own: OutputMap, layer: int) -> _Sums:
        """Go through a block, and sum up what its map is solved from."""
        device = self._world.device
        with gathered(own.parameters):
            num_targets, width = own.matrix.shape
        shape = functools.partial(NormalEquations, width - own.has_bias, num_targets, with_bias=own.has_bias)
        sums = _Sums((shape(device=device), shape(device=device)), _Errors(device))

        def take(number: int, state: Tensor, heard: Heard) -> None:
            self._note_if_not_finite(number, state)
            inputs, outputs = (tensor.flatten(0, -2) for tensor in heard["map"])
            wanted = self._teacher.states[number].to(device).flatten(0, -2)
            state = state.flatten(0, -2)
            is_sum, goal = state, wanted
            if own.norm is not None:
                is_sum = heard["norm"][0].flatten(0, -2)
                goal = self._before_norm[number].to(device).flatten(0, -2)
            for part, rows in enumerate(self._rows(self._calibration[number])):
                missing = (goal[rows].double() - is_sum[rows].double()) / own.factor
                targets = outputs[rows].double() + missing
                sums.equations[part].add(inputs[rows], targets, inverse_mean_square(goal[rows]))
                sums.errors.add(part, state[rows], wanted[rows])

        listen = {"map": own.module, **({} if own.norm is None else {"norm": own.norm})}
        self._student.go(layer, take, listen=listen)
        self._refuse_not_finite(f"the student's layer {layer}")
        for tensor in (sums.errors.sums, *(one for of_part in sums.equations for one in of_part.tensors)):
            self._world.sum(tensor)
        return sums

    def _solve(
        self, own: OutputMap, fitted: NormalEquations, heldout: NormalEquations, layer: int
    ) -> tuple[Tensor, _Solved]:
        """The map's new matrix, the same on every rank, and how it came about."""
        with gathered(own.parameters):
            start = own.matrix
        weights = torch.empty_like(start)

        def solve() -> _Solved:
            found = _fit(fitted, heldout, start, self._strengths, layer)
            is_better = found.strengths[found.strength] < heldout.relative_error(start)
            weights.copy_(found.weights if is_better else start)
            return _Solved(found.strength if is_better else None, found.was_raised and is_better, found.condition)

        solved = self._world.on_main(solve)
        return self._world.from_main(weights), solved

    def _change(self, own: OutputMap, weights: Tensor, wanted: int) -> None:
        """Give a block its new map, and the norm of the teacher's block."""
        with gathered(own.parameters, for_writing=True):
            own.put(weights)
        norm = self._norm_of_teacher(wanted)
        if own.norm is None or norm is None:
            return
        with gathered(list(norm.parameters())):
            values = [parameter.detach().clone() for parameter in norm.parameters()]
        with gathered(list(own.norm.parameters()), for_writing=True), torch.no_grad():
            for parameter, value in zip(own.norm.parameters(), values, strict=True):
                parameter.copy_(value)

    def _errors_of(self, layer: int) -> _Errors:
        """Go through a block, and see how far its output is from where it should be."""
        errors = _Errors(self._world.device)

        def take(number: int, state: Tensor, _heard: Heard) -> None:
            self._note_if_not_finite(number, state)
            wanted = self._teacher.states[number].to(self._world.device).flatten(0, -2)
            for part, rows in enumerate(self._rows(self._calibration[number])):
                errors.add(part, state.flatten(0, -2)[rows], wanted[rows])

        self._student.go(layer, take)
        self._refuse_not_finite(f"the student's layer {layer}, healed,")
        self._world.sum(errors.sums)
        return errors

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _rows(self, one: CalibrationBatch) -> tuple[Bool[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
        """Which flattened tokens are of either part."""
        fitted, heldout = (one.kept(part, 0).flatten().to(self._world.device) for part in (one.fitted, one.heldout))
        return fitted, heldout

    def _note_if_not_finite(self, number: int, state: Tensor) -> None:
        """Of tokens of the texts: padding may be anything."""
        fitted, heldout = self._rows(self._calibration[number])
        self._not_finite |= ~state.flatten(0, -2)[fitted | heldout].isfinite().all()

    def _refuse_not_finite(self, whose: str) -> None:
        """End on all ranks where a state of any is not finite.

        Raises:
            NumericsError: One is.
        """
        if self._world.highest(int(self._not_finite))[0]:
            error = NumericsError(
                f"student.heal: {whose} has states on the calibration data that are not finite, from which nothing is "
                "solved; use precision bf16 or fp32, or look at the weights with ted-ds doctor"
            )
            error.agreed = True
            raise error


def _fit(
    fitted: NormalEquations, heldout: NormalEquations, start: Tensor, strengths: Sequence[float], layer: int
) -> Fit:
    try:
        return fit(fitted, towards=start, strengths=strengths, heldout=heldout)
    except ValueError as error:
        raise NumericsError(
            f"student.heal: the map of the student's layer {layer} cannot be solved: {error}; give other "
            "student.calibration.tokens, or larger strengths"
        ) from error
