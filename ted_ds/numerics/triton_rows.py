"""Losses of a chunk of logits by the kernels of :mod:`ted_ds.numerics.triton_kernels`, which need Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] - an extra
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ted_ds.numerics.divergences import DIVERGENCES, Divergence, JensenShannon
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.triton_kernels import losses_kernel
from ted_ds.numerics.vocabulary_job import Job, sum_of

BLOCK, NUM_WARPS = 4096, 8
"""Ids that a program holds at a time, and warps that do: a guess, as none was timed on a GPU."""


class TritonRows:
    """Finds the losses of a chunk's rows, and puts their gradient in the place of the logits."""

    def __init__(self, job: Job) -> None:
        """Take what there is to be found.

        Raises:
            ValueError: There is no kernel for it; a recipe is refused before.
        """
        if job.teacher is not None and job.dense_teacher is None:
            raise ValueError("the triton kernels compare with logits of a teacher, not with what was kept of them")
        self._job = job
        self._measure = {"DIVERGENCE": "", "LOG_SHARE": 0.0, "LOG_REST": 0.0, "COOLING": 1.0}
        teacher = job.dense_teacher
        if teacher is not None:
            self._measure = {**_measure_of(teacher.divergence), "COOLING": 1 / teacher.temperature}
        rule_of_teacher = PLAIN if teacher is None else teacher.rule
        self._rules = {
            **_rule_of(job.rule),
            **{f"TEACHER_{name}": at for name, at in _rule_of(rule_of_teacher).items()},
        }

    def losses(self, logits: Tensor, teacher_logits: Tensor | None, chunk: slice, with_gradient: bool) -> Tensor:
        """Over a chunk: cross-entropy, divergence, 0 (which rows are right is not asked), the teacher's (if wanted)."""
        job, teacher = self._job, self._job.dense_teacher
        own_rows = None if job.own_rows is None else job.own_rows.part(chunk)
        labelled, predicted = (None, None) if own_rows is None else own_rows
        with_teacher_task = teacher is not None and teacher.on_task_loss is not None
        theirs = logits if teacher_logits is None else teacher_logits
        num_shared = min(logits.shape[1], theirs.shape[1])
        if teacher is not None and teacher.num_shared_ids is not None:
            num_shared = min(num_shared, teacher.num_shared_ids)
        values = torch.zeros(len(logits), 3, dtype=job.exact, device=logits.device)
        launch = losses_kernel[(len(logits),)]  # pyright: ignore[reportIndexIssue] - what the decorator makes of it
        launch(
            logits,
            theirs,
            job.labels[chunk],
            self._factors(job.task_weight / job.unit, labelled, values),
            self._factors(self._of_divergence, predicted, values),
            values,
            logits.shape[1],
            theirs.shape[1],
            num_shared,
            **self._measure,
            **self._rules,
            WITH_GRADIENT=with_gradient,
            WITH_TEACHER_TASK=with_teacher_task,
            EXACT=tl.float64 if job.exact == torch.float64 else tl.float32,
            BLOCK=min(BLOCK, triton.next_power_of_2(max(logits.shape[1], theirs.shape[1]))),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # else what a sum has lost is not found exactly
        )
        of_task, of_divergence, of_teacher = values.split(1, dim=-1)
        right = values.new_zeros(())
        return torch.stack(
            [sum_of(of_task, labelled), sum_of(of_divergence, predicted), right, sum_of(of_teacher, labelled)]
        )

    @property
    def _of_divergence(self) -> float | Tensor:
        teacher = self._job.dense_teacher
        return 0.0 if teacher is None else teacher.weight / (self._job.unit * teacher.temperature)

    @staticmethod
    def _factors(factor: float | Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
        """Of each row: 0 where a loss is not of it."""
        ones = like.new_ones(len(like)) if rows is None else rows.squeeze(-1).to(like.dtype)
        return ones * factor


def _rule_of(rule: LogitRule) -> dict[str, float]:
    return {"DIVISOR": float(rule.divisor), "BOUND": float(rule.bound or 0.0)}


def _measure_of(divergence: Divergence) -> dict[str, Any]:
    """How the kernels know a divergence.

    Raises:
        ValueError: It is none of ted_ds.
    """
    name = next((name for name, kind in DIVERGENCES.items() if type(divergence) is kind), None)
    if name is None:
        raise ValueError(f"the triton kernels do not know {divergence.name}")
    share = divergence.beta if isinstance(divergence, JensenShannon) else getattr(divergence, "alpha", 0.5)
    return {"DIVERGENCE": name, "LOG_SHARE": math.log(share), "LOG_REST": math.log1p(-share)}
