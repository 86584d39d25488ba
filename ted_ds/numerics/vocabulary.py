"""Cross-entropy and divergence over a vocabulary, from last hidden states: no model's logits of all tokens ever exist.

The losses and their gradients are computed together, chunk by chunk, in the forward pass; backward only scales them.
A chunk's logits turn into their own gradient in place. The plain twins are
:func:`ted_ds.numerics.losses.cross_entropy_sum` and :func:`~ted_ds.numerics.losses.divergence_sum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ted_ds.numerics.chunks import (
    MIB,
    KeptRows,
    chunk_bytes,
    compute_dtype,
    exact_dtype,
    kept_rows,
    product_of_gradients,
    rows_per_chunk,
    scale_rows,
    select_rows,
)
from ted_ds.numerics.divergences import KL, Block, Divergence
from ted_ds.numerics.losses import kept_labels

BLOCK_BYTES = {"cpu": 3 * MIB, "cuda": 64 * MIB}
"""Logits brought to fp32 at a time: on the CPU what stays in its caches, on a GPU enough to keep it busy."""
HEAD_ROWS = {"cpu": 1024}
"""Of a head, multiplied at a time: a block that stays in the caches of a CPU makes its fp32 logits a quarter faster."""
GRADIENT_ROWS = 16384
"""Of the vocabulary, whose 16-bit gradient of a chunk is made before it is added up in fp32."""


@dataclass(frozen=True)
class TeacherPredictions:
    """What the teacher predicts, before its LM head."""

    hidden: Float[Tensor, "*batch hidden"]
    """Its last hidden states, as its head takes them."""
    head_weight: Float[Tensor, "vocab hidden"]
    """Of its LM head."""
    head_bias: Float[Tensor, " vocab"] | None
    temperature: float
    weight: float
    """Of the divergence in the weighted sum."""
    num_shared_ids: int | None = None
    """The divergence is over the first so many ids: vocabularies of one family are padded to different sizes."""
    divergence: Divergence = KL


@dataclass(frozen=True)
class VocabularyTargets:
    """What a student's predictions are held against."""

    labels: Int[Tensor, "*batch"]
    """Where one is ignored, neither model's logits are computed."""
    task_weight: float = 1.0
    teacher: TeacherPredictions | None = None
    max_chunk_bytes: int | None = None
    """For a chunk's logits; unset: what suits the device."""
    kept: KeptRows | None = None
    """Where ``labels`` are kept, if that is known: to find it, the host waits for the device."""


def vocabulary_losses(
    hidden: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    targets: VocabularyTargets,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """``task_weight * CE + teacher.weight * D``, and the two sums over kept labels, for reports.

    ``CE`` is the sum of ``-log softmax(hidden weight^T + bias)[label]``, in nats, ``D`` that of the divergence of
    ``softmax(student / T)`` from ``softmax(teacher / T)``, both accumulated in fp32. Gradient flows to ``hidden``,
    ``weight`` and ``bias``, from the first of the three alone, and once. 16-bit gradients of the weight are added up
    over chunks in fp32.

    Returns:
        The weighted sum, with graph; the sum of the cross-entropies and that of the divergences (0 without a teacher),
        without.
    """
    teacher = targets.teacher
    rows = kept_rows(kept_labels(targets.labels)) if targets.kept is None else targets.kept.rows
    labels = targets.labels.flatten() if rows is None else targets.labels.flatten().index_select(0, rows)
    with_grad = torch.is_grad_enabled()
    needs = tuple(with_grad and one is not None and one.requires_grad for one in (hidden, weight, bias))
    job = _Job(
        labels=labels,
        teacher_hidden=None if teacher is None else select_rows(teacher.hidden, rows),
        teacher=teacher,
        task_weight=targets.task_weight,
        needs=needs,
        max_chunk_bytes=targets.max_chunk_bytes or chunk_bytes(hidden.device),
        dtype=compute_dtype(weight),
    )
    return _VocabularyLosses.apply(select_rows(hidden, rows), weight, bias, job)


@dataclass(frozen=True)
class _Job:
    labels: Tensor
    teacher_hidden: Tensor | None
    teacher: TeacherPredictions | None
    task_weight: float
    needs: tuple[bool, ...]
    """Gradients of hidden states, weight, bias."""
    max_chunk_bytes: int
    dtype: torch.dtype
    """Of the products."""

    @property
    def unit(self) -> float:
        """Gradients are computed for the weighted sum divided by this: near 1, where fp16 does not underflow."""
        return max(self.task_weight, self.teacher.weight if self.teacher else 0.0) or 1.0

    @property
    def exact(self) -> torch.dtype:
        """What sums and exponentials are computed in."""
        return exact_dtype(self.dtype)


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            cross_entropy, divergence, gradients = _walk(hidden, weight, bias, job)
        ctx.gradients, ctx.unit = gradients, job.unit
        weighted = job.task_weight * cross_entropy + (job.teacher.weight * divergence if job.teacher else 0.0)
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return weighted, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by place, never by name
        ctx: Any, upstream: Tensor, _cross_entropy: Tensor, _divergence: Tensor
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
    hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job
) -> tuple[Tensor, Tensor, tuple[_Gradient | None, ...]]:
    """The two sums, and the gradients of the weighted sum over its unit."""
    num_rows, vocab = hidden.shape[0], weight.shape[0]
    device, dtype = hidden.device, job.dtype
    factor = weight.detach().to(dtype)
    offset = None if bias is None else bias.detach().to(dtype)
    teacher = job.teacher
    ids = vocab if teacher is None else vocab + teacher.head_weight.shape[0]
    size = rows_per_chunk(num_rows, ids * dtype.itemsize, job.max_chunk_bytes)
    is_split = size < num_rows
    of_hidden = torch.empty_like(hidden, dtype=dtype) if job.needs[0] else None
    sums_dtype = job.exact if is_split or dtype == torch.float16 else dtype
    of_weight = torch.zeros(weight.shape, dtype=sums_dtype, device=device) if job.needs[1] else None
    of_bias = torch.zeros(vocab, dtype=job.exact, device=device) if job.needs[2] else None
    sums = torch.zeros(2, dtype=job.exact, device=device)
    logits_buffer = torch.empty(min(size, num_rows), vocab, dtype=dtype, device=device)
    teacher_buffer = None
    if teacher is not None:
        teacher_shape = (len(logits_buffer), teacher.head_weight.shape[0])
        teacher_buffer = torch.empty(teacher_shape, dtype=teacher.head_weight.dtype, device=device)
    blocks = _Blocks(len(logits_buffer), vocab, job, device)
    for start in range(0, num_rows, size):
        chunk = slice(start, min(start + size, num_rows))
        states = hidden[chunk].to(dtype)
        logits = logits_buffer[: states.shape[0]]
        _write_logits(logits, states, factor, offset)
        teacher_logits = None
        if teacher is not None and teacher_buffer is not None and job.teacher_hidden is not None:
            teacher_logits = teacher_buffer[: states.shape[0]]
            teacher_states = job.teacher_hidden[chunk].to(teacher_logits.dtype)
            _write_logits(teacher_logits, teacher_states, teacher.head_weight, teacher.head_bias)
        sums += blocks.losses(logits, teacher_logits, job.labels[chunk], any(job.needs))
        if of_hidden is not None:
            torch.mm(logits, factor, out=of_hidden[chunk])
        if of_weight is not None:
            _add_product(of_weight, logits, states, is_first=start == 0)
        if of_bias is not None:
            of_bias += logits.sum(0, dtype=job.exact)
    gradients = tuple(
        None if values is None or like is None else _Gradient(values, like.dtype)
        for values, like in zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
    )
    return sums[0].clone(), sums[1].clone(), gradients


def _write_logits(logits: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """``logits = states weight^T + bias``."""
    rows = HEAD_ROWS.get(logits.device.type, weight.shape[0])
    for ids in _slices(weight.shape[0], rows):
        if bias is None:
            torch.mm(states, weight[ids].T, out=logits[:, ids])
        else:
            torch.addmm(bias[ids], states, weight[ids].T, out=logits[:, ids])


def _add_product(total: Tensor, logits: Tensor, states: Tensor, *, is_first: bool) -> None:
    """``total += logits^T states``."""
    if total.dtype == logits.dtype:
        torch.addmm(total, logits.T, states, beta=0 if is_first else 1, out=total)
        return
    for ids in _slices(total.shape[0], GRADIENT_ROWS):
        total[ids] += product_of_gradients(logits[:, ids], states)


class _Blocks:
    """Brings logits to fp32 a few rows at a time, sums their losses, and puts their gradient in their place."""

    def __init__(self, num_rows: int, vocab: int, job: _Job, device: torch.device) -> None:
        self._job = job
        num_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        self._rows = max(1, min(num_rows, num_bytes // (vocab * job.exact.itemsize)))
        self._student = torch.empty(self._rows, vocab, dtype=job.exact, device=device)
        self._scratch, self._target = torch.empty_like(self._student), torch.empty_like(self._student)

    def losses(self, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, with_gradient: bool) -> Tensor:
        """The sums of cross-entropy and divergence."""
        sums = torch.zeros(2, dtype=self._job.exact, device=logits.device)
        for rows in _slices(logits.shape[0], self._rows):
            student = self._student[: rows.stop - rows.start]
            student.copy_(logits[rows])
            student -= student.amax(-1, keepdim=True)
            picked = student.gather(-1, labels[rows, None]).squeeze(-1)
            if teacher_logits is None:
                student.exp_()
                norm = student.sum(-1, keepdim=True)
                sums[0] += (norm.squeeze(-1).log() - picked).sum()
                if with_gradient:
                    student *= self._relative_task_weight / norm
            else:
                cross_entropies, divergences = self._with_teacher(student, teacher_logits[rows], picked)
                sums[0] += cross_entropies.sum()
                sums[1] += divergences.sum()
            if with_gradient:
                own = torch.full_like(picked, -self._relative_task_weight)
                logits[rows] = student.scatter_add_(-1, labels[rows, None], own[:, None])
        return sums

    @property
    def _relative_task_weight(self) -> float:
        return self._job.task_weight / self._job.unit

    def _with_teacher(self, student: Tensor, teacher_logits: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (given each label's logit) and divergence of each row; its gradient replaces ``student``."""
        teacher = self._job.teacher
        assert teacher is not None
        shared = slice(teacher.num_shared_ids)
        own = student[:, shared]
        target = self._target[: len(student), : own.shape[1]]
        target.copy_(teacher_logits[:, shared])
        target -= target.amax(-1, keepdim=True)
        block = Block(
            own,
            target,
            self._scratch[: len(student), : own.shape[1]],
            teacher.temperature,
            student_starts_at_0=own.shape[1] == student.shape[1],
        )
        of_divergence = teacher.weight / (self._job.unit * teacher.temperature)
        divergences, slopes = teacher.divergence.compare(block, of_divergence)
        student.exp_()
        norm = student.sum(-1, keepdim=True)
        student *= self._relative_task_weight / norm
        for values, factors in slopes:
            own.addcmul_(values, factors)
        return norm.squeeze(-1).log() - picked, divergences.squeeze(-1)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
