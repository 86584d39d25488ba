"""A teacher in fewer bits than the recipe's, where a run is to find out in how many: what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.distill import Distill
from ted_ds.config.pair import Student, Teacher
from ted_ds.config.tasks import Task

PLACE = "teacher.precision: auto"


def precision_mistakes(
    teacher: Teacher, student: Student, distill: Distill, task: Task, *, num_stages: int
) -> Iterator[str]:
    """Where there is nothing to measure, or what is measured is not what is learned from."""
    if not distill.needs.teacher:
        yield f"{PLACE}: distill.method: sft has no teacher; remove it"
    elif not distill.needs.predictions:
        yield f"{PLACE}: is chosen by the teacher's predictions, and distill.kl_weight is 0; remove it"
    elif distill.needs.relations:
        yield (
            f"{PLACE}: is chosen by the teacher's predictions, which say nothing of the queries and keys that "
            "distill.relation_weight compares; remove one of the two"
        )
    if not task.softened:
        yield f"{PLACE}: {task.kind} outputs are numbers, of which there is no KL; remove it"
    if teacher.speaks_from_rows:
        yield f"{PLACE}: with teacher.cache.rows no teacher runs; remove it"
    if num_stages > 1:
        yield (
            f"{PLACE}: with pipeline.stages above 1 no rank holds all of the teacher to measure it; remove it, or use "
            "pipeline.stages: 1"
        )
    if student.lora is not None:
        yield f"{PLACE}: with student.lora the teacher may be the student's own base, in its precision; remove it"
    if student.freeze_blocks is not None:
        yield (
            f"{PLACE}: both models run student.freeze_blocks ({student.freeze_blocks}) once, in one precision; remove "
            "one of the two"
        )
