"""Which of the teacher's blocks become the student, where that is measured on the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import Calibration, CalibrationBatch, open_calibration
from ted_ds.config.cut import CutFromTeacher
from ted_ds.errors import NumericsError
from ted_ds.models.predictions import Predictions
from ted_ds.numerics.block_choice import BY_NUMBER, Round, most_influential, search
from ted_ds.numerics.importance import influence_sum
from ted_ds.planning.cut_facts import known_blocks, rounds_in, staying_blocks
from ted_ds.runtime.frozen import FrozenModel


@dataclass(frozen=True)
class Choice:
    """The parts of the teacher that become the student."""

    blocks: Mapping[str, Sequence[int]]
    """Of each stack, by its name."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What they were chosen by; nothing where the recipe says which they are."""

    @property
    def result(self) -> dict[str, Any]:
        """Both for a manifest: the blocks of the only stack, or those of each."""
        return {"blocks": self.blocks.get("", self.blocks), **({"choice": self.measured} if self.measured else {})}


def choose_student(
    build: Assembly,
    teacher: Path,
    *,
    vet: Callable[[FrozenModel], None] = lambda _: None,
    new_head_allowed: bool = False,
) -> Choice:
    """Choose what the recipe says, on every rank the same. Every rank must call it.

    Args:
        build: The run's.
        teacher: Its folder.
        vet: Looks at the teacher before anything is measured of it.
        new_head_allowed: Whether its head may start random.

    Raises:
        DataError: There is too little calibration data; on every rank.
        NumericsError: The teacher's states are not finite; on every rank.
        StopNow: Any rank was asked to stop; on every rank.
    """
    cut = build.recipe.student.from_teacher
    assert cut is not None
    known = known_blocks(cut, build.teacher_facts)
    if known is not None:
        return Choice(known)
    build.stops.has_work(True)  # a batch may take long, and all see the request after it
    calibration = open_calibration(build)
    layers = range(build.teacher_facts.num_blocks + 1)
    model = build.models.frozen("teacher", teacher, layers, new_head_allowed=new_head_allowed)
    try:
        vet(model)
        return _Chooser(build, cut, calibration, model).choose()
    finally:
        model.release()


@dataclass(frozen=True)
class _Chooser:
    """Chooses blocks of one teacher, tapped at all its layers."""

    build: Assembly
    cut: CutFromTeacher
    calibration: Calibration
    model: FrozenModel

    def choose(self) -> Choice:
        """The blocks, and what they were chosen by."""
        count, depth = self.cut.num_blocks, self.build.teacher_facts.num_blocks
        assert count is not None
        stay = staying_blocks(self.build.teacher_facts)
        influence = self._influence()
        shown = ", ".join(f"{block} {value:.4f}" for block, value in enumerate(influence))
        self._say(f"influence of blocks over {self.calibration.num_tokens:,} tokens: {shown}")
        choices = {name: choose(depth, count) for name, choose in BY_NUMBER.items()}
        choices["influence"] = most_influential(influence, count, stay=stay)
        rounds: list[Round] = []
        if self.cut.choose == "search":
            tried = rounds_in(self.build.recipe, self.cut, self.build.teacher_facts)
            for one in search(influence, self._loss, tried, stay=stay):
                rounds.append(one)
                loss = f", held-out loss {one.losses[one.left_out]:.4f}" if one.losses else ""
                self._say(f"search, round {len(rounds)} of {len(tried)}: without block {one.left_out}{loss}")
            choices["search"] = [*rounds[-1].kept] if rounds else [*range(depth)]
        losses = {name: self._loss(blocks) for name, blocks in {"all": [*range(depth)], **choices}.items()}
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        self._say(f"held-out loss with {count} of {depth} blocks over {self._num_heldout:,} tokens: {shown}")
        chosen = self.cut.choose
        if chosen == "search":  # which may miss what another has
            chosen = min([*choices][::-1], key=losses.__getitem__)
        blocks = choices[chosen]
        self._say(f"blocks of the teacher that become the student, by {chosen}: {' '.join(map(str, blocks))}")
        measured = {"by": chosen, "influence": influence, "heldout_loss": losses, "choices": choices}
        if self.cut.choose == "search":
            measured["rounds"] = [{"left_out": one.left_out, "losses": dict(one.losses)} for one in rounds]
        return Choice({"": blocks}, measured)

    @property
    def _num_heldout(self) -> int:
        return self.calibration.num_heldout_tokens

    def _say(self, line: str) -> None:
        self.build.screen.say(f"  {line}")

    def _influence(self) -> list[float]:
        """Of each block, over the tokens to fit.

        Raises:
            NumericsError: A layer's states are not finite; on every rank.
        """
        build, depth = self.build, self.build.teacher_facts.num_blocks
        sums = torch.zeros(depth, dtype=torch.float64, device=build.world.device)
        broken = torch.zeros(depth + 1, dtype=torch.bool, device=build.world.device)
        for one in self.calibration.batches:
            build.stop_if_asked()
            here = one.to(build.world.device)
            kept = here.kept(here.fitted, layer=0)
            before: list[Tensor] = []

            def take(layer: int, state: Tensor, kept: Tensor = kept, before: list[Tensor] = before) -> None:
                own = state[kept]
                broken[layer] |= ~own.isfinite().all()
                if before:
                    sums[layer - 1] += influence_sum(before.pop(), own)
                before.append(own)

            self.model(here.batch.inputs, on_state=take)
        of_ranks = build.world.gather((sums.tolist(), broken.tolist()))
        for layer, wrong in enumerate(zip(*(one for _, one in of_ranks), strict=True)):
            if any(wrong):
                error = NumericsError(
                    f"student.from_teacher.choose: {self.cut.choose}: the teacher's states of layer {layer} are not "
                    "finite on the calibration data; ted-ds doctor looks at its weights, and precision: fp32 or bf16 "
                    "has room for states that are too large for fp16"
                )
                error.agreed = True
                raise error
        columns = zip(*(of_rank for of_rank, _ in of_ranks), strict=True)
        return [math.fsum(column) / self.calibration.num_tokens for column in columns]

    def _loss(self, blocks: Sequence[int]) -> float:
        """The teacher's task loss with these blocks alone, per kept label of the held-out tokens."""
        build = self.build
        total, count = 0.0, 0
        with self.model.without_blocks({*range(build.teacher_facts.num_blocks)} - {*blocks}):
            for one in self._heldout_batches():
                build.stop_if_asked()
                here = one.to(build.world.device)
                labels = here.batch.labels
                rows = here.heldout[:: build.recipe.task.rows_per_example].tolist()
                found: list[float] = []

                def read(predictions: Predictions | None, found: list[float] = found, here: Any = here) -> None:
                    assert predictions is not None
                    found += predictions.task_sums(build.terms, here.batch)

                self.model(here.batch.inputs, read, on_state=_ignore)
                kept = build.terms.kept(labels).reshape(len(labels), -1).sum(1).tolist()
                total += math.fsum(loss for loss, is_heldout in zip(found, rows, strict=True) if is_heldout)
                count += sum(number for number, is_heldout in zip(kept, rows, strict=True) if is_heldout)
        losses, counts = zip(*build.world.gather((total, count)), strict=True)
        loss = math.fsum(losses) / max(sum(counts), 1)
        return loss if math.isfinite(loss) else math.inf

    def _heldout_batches(self) -> list[CalibrationBatch]:
        """Those with held-out rows; as many on every rank, as ranks may share a sharded model."""
        build, own = self.build, [one for one in self.calibration.batches if one.heldout.any()]
        nothing = build.collate([None])
        rows = torch.zeros(len(nothing.input_ids), dtype=torch.bool)
        return own + [CalibrationBatch(nothing, rows, rows)] * (build.world.highest(len(own))[0] - len(own))


def _ignore(_layer: int, _state: Tensor) -> None:
    """States that only a choice by influence looks at."""
