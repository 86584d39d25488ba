"""What one step shows of student and teacher beside what the student learns from: how near they are to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ted_ds.numerics.likeness import CKA, ERROR, SUMS, likeness_of

OF_TASK = ("student", "teacher", "count")
"""What is added up of predictions: both task losses over the same labels, and how many these are."""
STUDENT_TASK, TEACHER_TASK = "gap/task_loss_student", "gap/task_loss_teacher"
"""Of the labels of the step that is looked at, and of no other."""
GAP_CLOSED = "gap/closed"


class TeacherView:
    """Sums of a step that is looked at, on this rank; they add up over ranks and stages of a pipeline."""

    def __init__(self, layers: Sequence[str], *, with_task: bool) -> None:
        """Look at ``layers``, by their names, and at predictions if the teacher makes some."""
        self._sizes = {name: len(SUMS) for name in layers}
        if with_task:
            self._sizes["task"] = len(OF_TASK)
        self.is_open = False
        """Whether the step that is going on is looked at."""
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, sums: Tensor) -> None:
        """Add what a microbatch comes to."""
        self._sums[name] = self._sums.get(name, 0) + sums.detach().double()

    def of_layer(self, name: str) -> Callable[[Tensor], None]:
        """Takes the sums of a layer."""
        return partial(self.add, name)

    def add_task(self, student: Tensor, teacher: Tensor, count: Tensor) -> None:
        """Add both sums of the task loss over a microbatch, and the number of its labels."""
        self.add("task", torch.stack([student.double(), teacher.double(), count.double()]))

    def take(self, device: torch.device) -> Tensor:
        """All sums in one row, 0 where this rank has none, and begin anew."""
        parts = [
            self._sums.get(name, torch.zeros(size, dtype=torch.float64, device=device))
            for name, size in self._sizes.items()
        ]
        self._sums = {}
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=device)

    def told(self, sums: Sequence[float]) -> dict[str, float]:
        """The metrics that the sums of all ranks come to; without those of nothing."""
        rest, found = list(sums), dict[str, float]()
        by_metric: dict[str, list[float]] = {ERROR: [], CKA: []}
        for name, size in self._sizes.items():
            own, rest = rest[:size], rest[size:]
            if name == "task":
                student, teacher, count = own
                found |= {STUDENT_TASK: student / count, TEACHER_TASK: teacher / count} if count else {}
                continue
            for metric, value in likeness_of(own).items():
                found[f"match/{metric}/{name}"] = value
                by_metric[metric].append(value)
        means = {f"match/{metric}": sum(values) / len(values) for metric, values in by_metric.items() if values}
        return {**means, **found}
