"""Which parts of the teacher become the student, where that is measured on the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import open_calibration
from ted_ds.assembly.measured_teacher import MeasuredTeacher
from ted_ds.config.cut import CutFromTeacher
from ted_ds.models.narrowing import KeptUnits, choose_units
from ted_ds.models.unit_scores import UnitScores
from ted_ds.models.units import HEADS, HIDDEN, INNER, Widths
from ted_ds.numerics.block_choice import BY_NUMBER, Round, most_influential, search
from ted_ds.planning.cut_facts import known_blocks, rounds_in, staying_blocks
from ted_ds.planning.width_facts import student_widths
from ted_ds.runtime.frozen import FrozenModel

SHOWN = {
    HIDDEN: ("channels", "what norms put out"),
    INNER: ("neurons of each block", "the size of what all put out"),
    HEADS: ("heads of each block", "the size of what all put out"),
}
"""Units, and what those that are kept have a part of, in words."""


@dataclass(frozen=True)
class Choice:
    """The parts of the teacher that become the student."""

    blocks: Mapping[str, Sequence[int]]
    """Of each stack, by its name."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What they were chosen by; nothing where the recipe says which they are."""
    units: KeptUnits | None = None
    """What is kept of each block, and of all else; None for all."""
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    """What the units were chosen by, and which they are, by name."""

    @property
    def result(self) -> dict[str, Any]:
        """What a manifest says of it: the blocks of the only stack, or those of each, and what they were chosen by."""
        return {"blocks": self.blocks.get("", self.blocks), **({"choice": self.measured} if self.measured else {})}


def choose_student(
    build: Assembly, teacher: Path, *, vet: Callable[[FrozenModel], None] | None = None, for_now: bool = False
) -> Choice:
    """Choose what the recipe says, on every rank the same. Every rank must call it.

    Args:
        build: The run's.
        teacher: Its folder.
        vet: Looks at it before anything is measured, where it is to teach.
        for_now: Whether the teacher may have yet to be fine-tuned: where its head is random, influence chooses.

    Raises:
        DataError: There is too little calibration data; on every rank.
        NumericsError: The teacher's states are not finite; on every rank.
        StopNow: Any rank was asked to stop; on every rank.
    """
    cut = build.recipe.student.from_teacher
    assert cut is not None
    known = known_blocks(cut, build.teacher_facts)
    if known is not None and not cut.widths:
        return Choice(known)
    build.stops.has_work(True)  # a batch may take long, and all see the request after it
    calibration = open_calibration(build)
    layers = range(build.teacher_facts.num_blocks + 1)
    model = build.models.frozen("teacher", teacher, layers, new_head_allowed=for_now)
    try:
        if vet is not None and build.recipe.distill.needs.teacher:
            vet(model)
        with torch.compiler.set_stance("force_eager"):  # other blocks pass on states in every round
            return _Chooser(build, cut, MeasuredTeacher(build, model, calibration), teacher).choose(known)
    finally:
        model.release()


@dataclass(frozen=True)
class _Chooser:
    """Chooses the parts of one teacher."""

    build: Assembly
    cut: CutFromTeacher
    teacher: MeasuredTeacher
    folder: Path

    def choose(self, known: Mapping[str, Sequence[int]] | None) -> Choice:
        """The parts, and what they were chosen by; the blocks where these are ``known``."""
        facts = self.build.teacher_facts
        widths: tuple[Widths, Widths] | None = None
        scores: UnitScores | None = None
        if self.cut.widths:
            widths = student_widths(self.cut.widths, facts, self.folder)
            tapped = self.teacher.model.tapped
            scores = UnitScores(tapped.model, tapped.family, widths[0])
        influence = self.teacher.influence(scores)
        measured: dict[str, Any] = {}
        if known is None:
            measured = self._measured(influence)
            known = {"": measured["choices"][measured["by"]]}
        if widths is None or scores is None:
            return Choice(known, measured)
        return self._with_units(Choice(known, measured), scores, *widths)

    def _measured(self, influence: Sequence[float]) -> dict[str, Any]:
        """The choices of blocks there are, their losses, and by which of them the student is cut."""
        depth = self.build.teacher_facts.num_blocks
        count = self.cut.number_of(depth)
        stay, teacher = staying_blocks(self.build.teacher_facts), self.teacher
        shown = ", ".join(f"{block} {value:.4f}" for block, value in enumerate(influence))
        self._say(f"influence of blocks over {teacher.num_tokens:,} tokens: {shown}")
        choices = {name: choose(depth, count) for name, choose in BY_NUMBER.items()}
        choices["influence"] = most_influential(influence, count, stay=stay)
        chosen = "influence" if teacher.model.fresh_parameters else self.cut.choose
        rounds: list[Round] = []
        if chosen == "search":
            tried = rounds_in(self.build.recipe, self.cut, self.build.teacher_facts)
            for one in search(influence, teacher.loss_of, tried, stay=stay):
                rounds.append(one)
                loss = f", held-out loss {one.losses[one.left_out]:.4f}" if one.losses else ""
                self._say(f"search, round {len(rounds)} of {len(tried)}: without block {one.left_out}{loss}")
            choices["search"] = [*rounds[-1].kept] if rounds else [*range(depth)]
        losses: dict[str, float] = {}
        if not teacher.model.fresh_parameters:  # else there is nothing to compare
            losses = {name: teacher.loss_of(blocks) for name, blocks in {"all": [*range(depth)], **choices}.items()}
            shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            over = f"over {teacher.num_heldout_tokens:,} tokens"
            self._say(f"held-out loss with {count} of {depth} blocks {over}: {shown}")
        if chosen == "search":  # which may miss what another has
            chosen = min([*choices][::-1], key=losses.__getitem__)
        self._say(f"blocks of the teacher that become the student, by {chosen}: {' '.join(map(str, choices[chosen]))}")
        measured = {"by": chosen, "influence": [*influence], "heldout_loss": losses, "choices": choices}
        if rounds:
            measured["rounds"] = [{"left_out": one.left_out, "losses": dict(one.losses)} for one in rounds]
        return measured

    def _with_units(self, choice: Choice, scores: UnitScores, before: Widths, after: Widths) -> Choice:
        """The same with the units that are kept."""
        sums, count = self.teacher.over_ranks(scores.sums), self.teacher.num_tokens
        values = {key: one.tolist() for key, one in sums.items()}
        units = choose_units(values, before, after, blocks=choice.blocks[""], num_tokens=count)
        found: dict[str, Tensor] = {"kept.hidden": torch.tensor(units.hidden)}
        for (kind, (block, name)), one in sums.items():
            found[f"{kind}.{'' if block is None else f'{block}.'}{name}"] = one.cpu() / count
        for block, kinds in units.of_blocks.items():
            found |= {f"kept.{kind}.{block}": torch.tensor(kept) for kind, kept in kinds.items()}
        for kind, what in SHOWN.items():
            left = units.after.number(kind), units.before.number(kind)
            if left[0] < left[1]:
                share = 100 * units.share_of(kind, values)
                self._say(f"{left[0]:,} of {left[1]:,} {what[0]} become the student's, with {share:.3g} % of {what[1]}")
        return Choice(choice.blocks, choice.measured, units, found)

    def _say(self, line: str) -> None:
        self.build.screen.say(f"  {line}")
