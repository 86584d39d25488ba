"""Pipeline parallelism, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ted_ds.config.distill import Distill
from ted_ds.config.pair import Student, Teacher
from ted_ds.config.section import Section


class Pipeline(Section):
    """Pipeline parallelism: student and teacher are cut into stages, one rank each (times data parallelism)."""

    stages: int = Field(default=1, gt=0)
    """How many; a stage holds student blocks and the teacher blocks they are matched with. The other ranks repeat the
    stages for more data (data parallelism): ranks = stages x replicas."""

    def mistakes_beside(self, teacher: Teacher, student: Student, distill: Distill, precision: str) -> Iterator[str]:
        """What other sections say that no pipeline does."""
        if self.stages == 1:
            return
        if teacher.cache is not None:
            yield (
                "teacher.cache: with pipeline.stages above 1 each stage runs its blocks of the teacher; remove one of "
                "the two"
            )
        if distill.balance is not None and distill.needs.teacher:
            yield (
                f"distill.balance: {distill.balance}: with pipeline.stages above 1 no stage sees the gradients of all "
                "terms; remove it and give weights, or use pipeline.stages: 1 (ZeRO 0-3)"
            )
        if precision == "fp16":
            yield (
                "precision: fp16: with pipeline.stages above 1 DeepSpeed does not sum up the gradients of tied weights "
                "there; use bf16 or fp32"
            )
        if teacher.host not in ("auto", "replica", "int8"):
            yield (
                f"teacher.host: {teacher.host}: with pipeline.stages above 1 each stage holds its own blocks of the "
                "teacher; use auto, replica or int8"
            )
        if distill.needs.relations:
            yield (
                "distill.relation_weight: blocks of both models would have to be on one stage; remove it, or use "
                "pipeline.stages: 1"
            )
        if student.lora is not None:
            yield "student.lora: adapters are not cut into the stages of a pipeline; use pipeline.stages: 1 (ZeRO 0-3)"
