"""Cross-entropy and divergence over a vocabulary, from last hidden states: no model's logits of all tokens ever exist.

The losses and their gradients are computed together, chunk by chunk, in the forward pass; backward only scales them.
A chunk's logits turn into their own gradient in place. The plain twins are
:func:`ted_ds.numerics.losses.cross_entropy_sum` and :func:`~ted_ds.numerics.losses.divergence_sum`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ted_ds.numerics.chunks import (
    MIB,
    KeptRows,
    add_product,
    chunk_bytes,
    compute_dtype,
    exact_dtype,
    kept_rows,
    rows_per_chunk,
    scale_rows,
    select_rows,
    slices,
    write_logits,
)
from ted_ds.numerics.divergences import Block
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.losses import kept_labels
from ted_ds.numerics.teacher_predictions import OfKept, OnDisk, TeacherPredictions
from ted_ds.numerics.vocabulary_job import Job, Kernels, OwnRows, behind, sum_of

BLOCK_BYTES = {"cpu": 3 * MIB, "cuda": 64 * MIB}
"""Logits brought to fp32 at a time: on the CPU what stays in its caches, on a GPU enough to keep it busy."""


@dataclass(frozen=True)
class VocabularyTargets:
    """What a student's predictions are held against."""

    labels: Int[Tensor, "*batch"]
    """Where one is ignored, there is no cross-entropy."""
    task_weight: float = 1.0
    teacher: TeacherPredictions | OnDisk | None = None
    """Of predictions that were kept, those of the rows where logits are wanted, in their order."""
    max_chunk_bytes: int | None = None
    """For a chunk's logits; unset: what suits the device."""
    predicted: Bool[Tensor, "*batch"] | None = None
    """Where predictions are compared with the teacher's; None: where ``labels`` are kept. Neither model's logits are
    computed where none of the two is wanted."""
    kept: KeptRows | None = None
    """Where one of the two is wanted, if that is known: to find it, the host waits for the device."""
    kernels: Kernels = "torch"
    """``triton``: of logits that are made here, with a divergence of :mod:`ted_ds.numerics.divergences`."""


def vocabulary_losses(
    hidden: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    targets: VocabularyTargets,
    rule: LogitRule = PLAIN,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """``task_weight * CE + teacher.weight * D``, and the two sums, for reports.

    ``CE`` is the sum of ``-log softmax(rule(hidden weight^T + bias))[label]`` over kept labels, in nats, ``D`` that of
    the divergence of ``softmax(student / T)`` from ``softmax(teacher / T)``, over what is predicted, both added up in
    fp32. Gradient flows to ``hidden``, ``weight`` and ``bias``, from the first of the three alone, and once. 16-bit
    gradients of the weight are added up over chunks in fp32.

    Returns:
        The weighted sum, with graph; the sum of the cross-entropies and that of the divergences (0 without a teacher),
        without.
    """
    return _sums(hidden, weight, bias, targets, rule)[:3]


@torch.no_grad()
def vocabulary_scores(
    hidden: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, "*batch"],
    rule: LogitRule = PLAIN,
) -> Float[Tensor, " 2"]:
    """Over kept labels, the sum of the cross-entropies, and how many have the largest logit (the first, of several)."""
    _, cross_entropy, _, num_right = _sums(hidden, weight, bias, VocabularyTargets(labels), rule)
    return torch.stack([cross_entropy, num_right])


def _sums(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: VocabularyTargets, rule: LogitRule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    teacher, predicted = targets.teacher, targets.predicted
    if targets.kept is None:
        rows = kept_rows(kept_labels(targets.labels) if predicted is None else wanted(targets.labels, predicted))
    else:
        rows = targets.kept.rows
    labels = select_rows(targets.labels.unsqueeze(-1), rows)
    own_rows = None
    if predicted is not None:
        own_rows = OwnRows(kept_labels(labels), select_rows(predicted.unsqueeze(-1), rows))
        labels = labels.masked_fill(~own_rows.labelled, 0)
    with_grad = torch.is_grad_enabled()
    needs = tuple(with_grad and one is not None and one.requires_grad for one in (hidden, weight, bias))
    dtype = compute_dtype(weight)
    if teacher is not None and isinstance(teacher.weight, Tensor):
        teacher = replace(teacher, weight=teacher.weight.to(exact_dtype(dtype)))
    job = Job(
        labels=labels.squeeze(-1),
        rule=rule,
        own_rows=own_rows,
        teacher_hidden=select_rows(teacher.hidden, rows) if isinstance(teacher, TeacherPredictions) else None,
        teacher=teacher,
        task_weight=targets.task_weight,
        needs=needs,
        max_chunk_bytes=targets.max_chunk_bytes or chunk_bytes(hidden.device),
        dtype=dtype,
        kernels=targets.kernels,
    )
    return _VocabularyLosses.apply(select_rows(hidden, rows), weight, bias, job)


def wanted(labels: Int[Tensor, "*batch"], predicted: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Where logits are wanted: for a label, or to be compared with the teacher's."""
    return kept_labels(labels) | predicted


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            (cross_entropy, divergence, num_right, of_teacher), gradients = _walk(hidden, weight, bias, job)
        if job.dense_teacher is not None and job.dense_teacher.on_task_loss is not None:
            job.dense_teacher.on_task_loss(of_teacher)
        ctx.gradients, ctx.unit = gradients, job.unit
        weighted = job.task_weight * cross_entropy + (job.teacher.weight * divergence if job.teacher else 0.0)
        ctx.mark_non_differentiable(cross_entropy, divergence, num_right)
        return weighted, cross_entropy, divergence, num_right

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by place, never by name
        ctx: Any, upstream: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a vocabulary loss were used up by the first backward pass")
        scale = upstream * ctx.unit
        return *(None if one is None else scale_rows(one.values, scale, one.dtype) for one in gradients), None


class _Gradient(NamedTuple):
    values: Tensor
    dtype: torch.dtype
    """To be handed out as."""


def _walk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job
) -> tuple[tuple[Tensor, ...], tuple[_Gradient | None, ...]]:
    """The sums of :meth:`_LossesOfChunks.losses`, and the gradients of the weighted sum over its unit."""
    num_rows, vocab = hidden.shape[0], weight.shape[0]
    device, dtype = hidden.device, job.dtype
    factor = weight.detach().to(dtype)
    offset = None if bias is None else bias.detach().to(dtype)
    teacher = job.dense_teacher
    ids = vocab if teacher is None else vocab + teacher.head_weight.shape[0]
    size = rows_per_chunk(num_rows, ids * dtype.itemsize, job.max_chunk_bytes)
    is_split = size < num_rows
    of_hidden = torch.empty_like(hidden, dtype=dtype) if job.needs[0] else None
    sums_dtype = job.exact if is_split or dtype == torch.float16 else dtype
    of_weight = torch.zeros(weight.shape, dtype=sums_dtype, device=device) if job.needs[1] else None
    of_bias = torch.zeros(vocab, dtype=job.exact, device=device) if job.needs[2] else None
    sums = torch.zeros(4, dtype=job.exact, device=device)
    logits_buffer = torch.empty(min(size, num_rows), vocab, dtype=dtype, device=device)
    teacher_buffer = None
    if teacher is not None:
        teacher_shape = (len(logits_buffer), teacher.head_weight.shape[0])
        teacher_buffer = torch.empty(teacher_shape, dtype=teacher.head_weight.dtype, device=device)
    blocks = _blocks_of(job, len(logits_buffer), vocab, device)
    for start in range(0, num_rows, size):
        chunk = slice(start, min(start + size, num_rows))
        states = hidden[chunk].to(dtype)
        logits = logits_buffer[: states.shape[0]]
        write_logits(logits, states, factor, offset)
        teacher_logits = None
        if teacher is not None and teacher_buffer is not None and job.teacher_hidden is not None:
            teacher_logits = teacher_buffer[: states.shape[0]]
            teacher_states = job.teacher_hidden[chunk].to(teacher_logits.dtype)
            write_logits(teacher_logits, teacher_states, teacher.head_weight, teacher.head_bias)
        sums += blocks.losses(logits, teacher_logits, chunk, any(job.needs))
        if of_hidden is not None:
            torch.mm(logits, factor, out=of_hidden[chunk])
        if of_weight is not None:
            add_product(of_weight, logits, states, is_first=start == 0)
        if of_bias is not None:
            of_bias += logits.sum(0, dtype=job.exact)
    gradients = tuple(
        None if values is None or like is None else _Gradient(values, like.dtype)
        for values, like in zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
    )
    return tuple(one.clone() for one in sums), gradients


class _LossesOfChunks(Protocol):
    def losses(self, logits: Tensor, teacher_logits: Tensor | None, chunk: slice, with_gradient: bool) -> Tensor:
        """Over a chunk: cross-entropy, divergence, how many are right (without gradient), the teacher's (if wanted)."""
        ...


def _blocks_of(job: Job, num_rows: int, vocab: int, device: torch.device) -> _LossesOfChunks:
    if job.kernels == "torch":
        return _Blocks(num_rows, vocab, job, device)
    from ted_ds.numerics.triton_rows import TritonRows  # the package is an extra

    return TritonRows(job)


class _Blocks:
    """Brings logits to fp32 a few rows at a time, sums their losses, and puts their gradient in their place."""

    def __init__(self, num_rows: int, vocab: int, job: Job, device: torch.device) -> None:
        self._job = job
        num_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        self._rows = max(1, min(num_rows, num_bytes // (vocab * job.exact.itemsize)))
        self._student = torch.empty(self._rows, vocab, dtype=job.exact, device=device)
        self._scratch, self._target = torch.empty_like(self._student), torch.empty_like(self._student)

    def losses(self, logits: Tensor, teacher_logits: Tensor | None, chunk: slice, with_gradient: bool) -> Tensor:
        """See :class:`_LossesOfChunks`."""
        sums = torch.zeros(4, dtype=self._job.exact, device=logits.device)
        labels = self._job.labels[chunk]
        own_rows = None if self._job.own_rows is None else self._job.own_rows.part(chunk)
        for rows in slices(logits.shape[0], self._rows):
            student = self._student[: rows.stop - rows.start]
            self._job.rule.write(student.copy_(logits[rows]))
            student -= student.amax(-1, keepdim=True)
            picked = student.gather(-1, labels[rows, None])
            if not with_gradient:
                sums[2] += (student.argmax(-1) == labels[rows]).sum()
            of_each = None if own_rows is None else own_rows.part(rows)
            of_task = self._job.task_weight / self._job.unit
            if of_each is not None:
                of_task = of_each.labelled * of_task
            if self._job.teacher is None:
                student.exp_()
                norm = student.sum(-1, keepdim=True)
                if with_gradient:
                    student *= of_task / norm
            else:
                theirs = None if teacher_logits is None else teacher_logits[rows]
                norm, divergences = self._with_teacher(student, theirs, behind(chunk, rows), of_task, of_each)
                sums[1] += sum_of(divergences, None if of_each is None else of_each.predicted)
                dense = self._job.dense_teacher
                if theirs is not None and dense is not None and dense.on_task_loss is not None:
                    whole = dense.rule(theirs.to(self._job.exact))
                    losses = F.cross_entropy(whole, labels[rows], reduction="none").unsqueeze(-1)
                    sums[3] += sum_of(losses, None if of_each is None else of_each.labelled)
            sums[0] += sum_of(norm.log() - picked, None if of_each is None else of_each.labelled)
            if with_gradient:
                own = torch.full_like(picked, -1.0) * of_task
                student.scatter_add_(-1, labels[rows, None], own)
                if not self._job.rule.is_plain:
                    student *= self._job.rule.write_slopes(self._scratch[: len(student)].copy_(logits[rows]))
                logits[rows] = student
        return sums

    def _with_teacher(
        self, student: Tensor, theirs: Tensor | None, rows: slice, of_task: float | Tensor, of_each: OwnRows | None
    ) -> tuple[Tensor, Tensor]:
        """The norm of the softmax and the divergence of each row, ``[rows, 1]``.

        The gradient, but for that by the labels' own logits, replaces ``student``. ``theirs`` are the teacher's logits;
        None where these ``rows`` of its predictions were kept.
        """
        teacher = self._job.teacher
        assert teacher is not None
        own = student[:, : teacher.num_shared_ids]
        scratch = self._scratch[: len(student), : own.shape[1]]
        of_divergence = teacher.weight / (self._job.unit * teacher.temperature)
        if of_each is not None:
            of_divergence = of_each.predicted * of_divergence
        of_all = 1.0 if isinstance(of_divergence, Tensor) else of_divergence
        of_kept: OfKept | None = None
        if isinstance(teacher, TeacherPredictions):
            assert theirs is not None
            target = self._target[: len(student), : own.shape[1]]
            teacher.rule.write(target.copy_(theirs[:, : teacher.num_shared_ids]))
            target -= target.amax(-1, keepdim=True)
            starts_at_0 = own.shape[1] == student.shape[1]
            block = Block(own, target, scratch, teacher.temperature, student_starts_at_0=starts_at_0)
            divergences, slopes = teacher.divergence.compare(block, of_all)
        else:
            of_kept = teacher.compare(own, scratch, rows, of_all)
            divergences, slopes = of_kept.values, of_kept.slopes
        (student if of_kept is None or not of_kept.is_exponential else student[:, own.shape[1] :]).exp_()
        norm = student.sum(-1, keepdim=True)
        student *= of_task / norm
        for values, factors in slopes:
            own.addcmul_(values, factors * of_divergence if isinstance(of_divergence, Tensor) else factors)
        if of_kept is not None:
            at_ids = of_kept.at_ids * of_divergence if isinstance(of_divergence, Tensor) else of_kept.at_ids
            own.scatter_add_(-1, of_kept.ids, at_ids)
        return norm, divergences
