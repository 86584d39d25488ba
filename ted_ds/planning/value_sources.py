"""Where each value of a recipe is from: a line of a file, the command line, or what it follows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ted_ds.config.extends import Chain
from ted_ds.config.schema import Recipe
from ted_ds.config.yaml_lines import lines_of
from ted_ds.errors import counted
from ted_ds.planning.deepspeed_choice import describe_choice
from ted_ds.planning.operations import known_training
from ted_ds.planning.plan import Plan

BY_DEFAULT = "default"
BLOCKS = "student.from_teacher.num_blocks"


@dataclass(frozen=True)
class Sources:
    """Of one recipe."""

    recipe: Recipe
    plan: Plan
    num_ranks: int
    _lines: dict[Path, dict[str, int]] = field(default_factory=dict)

    def of(self, place: str, *, is_set: bool) -> str:
        """Where the value at a place is from, and what it comes to.

        Args:
            place: In the recipe.
            is_set: Whether it is given, by whomever.
        """
        comes_to = self._comes_to(place)
        return f"{self._origin(place, is_set=is_set)}{f'; {comes_to}' if comes_to else ''}"

    def is_by_glue(self, place: str, *, is_set: bool) -> bool:
        """Whether ``data.glue`` put it there."""
        chain = self.plan.chain
        is_given = place in chain.origins or place in self.plan.reasons or chain.is_from_command_line(place)
        return is_set and self.recipe.data.glue is not None and not is_given

    def _origin(self, place: str, *, is_set: bool) -> str:
        chain: Chain = self.plan.chain
        if place in self.plan.reasons:
            return f"{BY_DEFAULT}: {self.plan.reasons[place]}"
        if not is_set:
            return BY_DEFAULT
        if chain.is_from_command_line(place):
            return "command line"
        if self.is_by_glue(place, is_set=is_set):
            return f"data.glue: {self.recipe.data.glue}"
        file = chain.file_of(place)
        if file not in self._lines:
            self._lines[file] = lines_of(file)
        line = self._lines[file].get(place)
        written = f" says {chain.followed[place]}, from its folder" if place in chain.followed else ""
        return f"{file}{'' if line is None else f':{line}'}{written}"

    def _comes_to(self, place: str) -> str:
        """What a value in words, or epochs, come to, as far as that is known."""
        plan, teacher = self.plan, self.plan.teacher
        cut = self.recipe.student.from_teacher
        if place == "deepspeed" and plan.chooses_deepspeed:
            return describe_choice(self.recipe, plan, num_ranks=self.num_ranks).partition("auto: ")[2].strip()
        if place == BLOCKS and teacher is not None and cut is not None and cut.is_share:
            stacks = teacher.blocks_of_stacks.items()
            return " and ".join(f"{cut.number_of(depth)} of {depth} {stack}".strip() for stack, depth in stacks)
        phase, _, key = place.rpartition(".")
        training: Any = self.recipe.phase_plans().get(phase)
        if key == "epochs" and training is not None and training.epochs is not None:
            steps = known_training(self.recipe, plan, training).max_steps
            return "" if steps is None or plan.num_rows is None else f"{plan.num_rows.how}{counted(steps, 'step')}"
        return ""
