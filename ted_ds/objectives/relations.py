"""The term of attention relations: what a block of the student and one of the teacher make of a text's tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.relation_taps import Attended, RelationTap
from ted_ds.numerics.fused import filter_distance_sum
from ted_ds.numerics.relations import RelationDistance


@dataclass
class Relations:
    """Whose are compared."""

    student: RelationTap
    teacher: RelationTap
    num_heads: int
    """Into how many heads both are cut."""

    def begin(self) -> Attended:
        """What the student's pass, which was listened to, has put out; from here on the teacher's is."""
        own = self.student.take()
        self.teacher.listen()
        return own

    def sum(self, own: Attended, batch: Batch) -> Tensor:
        """Of queries, of keys and of values, the KL of the student's relations from the teacher's, over kept tokens.

        (MiniLMv2, Wang et al. 2021, equation 8, with all three alike.) Its gradient flows to the student's.
        """
        distance = RelationDistance(num_heads=self.num_heads)
        sums = [
            filter_distance_sum(
                student,
                teacher,
                student_filter=(),
                teacher_filter=(),
                rows=batch.token_rows,
                sizes=batch.text_sizes(0),
                distance=distance,
            )
            for student, teacher in zip(own, self.teacher.take(), strict=True)
        ]
        return sum(sums[1:], start=sums[0])
