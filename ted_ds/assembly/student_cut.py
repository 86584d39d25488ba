"""The student that a recipe makes, cut out of its teacher or random: written to stay, or for a look."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.student_choice import Choice, choose_student
from ted_ds.assembly.student_random import make_random_student
from ted_ds.models.cutting import cut


def cut_student(build: Assembly, teacher: Path, place: Path, choice: Choice) -> None:
    """Write the student that is cut out of a teacher. On one rank only."""
    family = build.teacher_facts.family
    cut(teacher, place, blocks=choice.blocks, family=family, origins=build.origins, units=choice.units)


@contextlib.contextmanager
def made_for_now(build: Assembly, teacher: Path) -> Iterator[Path]:
    """The student that the recipe makes, in a folder that is removed afterwards. Every rank must call it."""
    output, number = build.recipe.output_dir, build.world.on_main(lambda: secrets.token_hex(4))
    place = output.with_name(f".{output.name}.{number}")  # next to the output: all nodes see it
    is_new = not place.parent.exists()

    choice = None
    if build.recipe.student.from_teacher is not None:
        choice = choose_student(build, teacher, for_now=True)

    def write() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if choice is None:
            make_random_student(build, place)
        else:
            cut_student(build, teacher, place, choice)

    def remove() -> None:
        if build.world.is_main:
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):  # somebody else uses it by now
                if is_new:
                    place.parent.rmdir()

    build.stops.before_end.append(remove)
    try:
        build.world.on_main(write)
        yield place
    finally:
        remove()
