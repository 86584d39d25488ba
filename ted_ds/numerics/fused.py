"""The layer-wise term of one pair, from the states of both sides: no filtered state of all tokens ever exists.

Loss and gradients are computed together, chunk by chunk, in the forward pass; backward only scales them. The plain
twin is :meth:`ted_ds.numerics.feature_distances.FeatureDistance.sum` of filtered states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ted_ds.numerics.chunks import (
    MIB,
    compute_dtype,
    exact_dtype,
    product_of_gradients,
    rows_per_chunk,
    scale_rows,
    select_rows,
    slices,
)
from ted_ds.numerics.feature_distances import MSE, FeatureDistance

Layers = Sequence[tuple[Tensor, Tensor]]
"""A filter: weight and bias of each affine layer, with GELU in between; empty for the identity."""
CHUNK_BYTES = {"cpu": 4 * MIB, "cuda": 64 * MIB}
"""Of differences: on the CPU about what its caches hold."""


def apply_layers(states: Float[Tensor, "*batch hidden"], layers: Layers) -> Float[Tensor, "*batch dim"]:
    """The plain filter."""
    for index, (weight, bias) in enumerate(layers):
        states = F.linear(F.gelu(states) if index else states, weight, bias)
    return states


def filter_distance_sum(
    student_states: Float[Tensor, "*batch hidden"],
    teacher_states: Float[Tensor, "*batch hidden"],
    *,
    student_filter: Layers,
    teacher_filter: Layers,
    rows: Tensor | None = None,
    sizes: Sequence[int] | None = None,
    distance: FeatureDistance = MSE,
) -> Float[Tensor, ""]:
    """Sum over kept tokens of how far both sides' filtered states are apart (TED, the layer-wise term: their MSE).

    Gradient flows to ``student_states`` and ``student_filter``, once; 16-bit gradients of the filter are added up over
    chunks in fp32. Where both filters are affine only their difference is computed, in place, for a plain MSE; others
    go through the plain formula chunk by chunk.

    Args:
        student_states: The student's block output.
        teacher_states: The teacher's, in any precision.
        student_filter: Trained.
        teacher_filter: Frozen.
        rows: Which of the flattened tokens are kept (:func:`~ted_ds.numerics.chunks.kept_rows`); None for all.
        sizes: How many kept tokens each text has, in their order; for a distance that is of whole texts.
        distance: What is measured of a token, or of a text.
    """
    parameters = [one for layer in student_filter for one in layer]
    with_grad = torch.is_grad_enabled()
    job = _Job(
        teacher_states=select_rows(teacher_states, rows),
        teacher_filter=[(weight.detach(), bias.detach()) for weight, bias in teacher_filter],
        distance=distance,
        sizes=sizes if distance.is_of_texts else None,
        needs=[with_grad and one.requires_grad for one in (student_states, *parameters)],
        max_chunk_bytes=CHUNK_BYTES.get(student_states.device.type, CHUNK_BYTES["cuda"]),
        dtype=compute_dtype(parameters[0] if parameters else student_states),
    )
    return _FilterDistance.apply(select_rows(student_states, rows), job, *parameters)


@dataclass(frozen=True)
class _Job:
    teacher_states: Tensor
    teacher_filter: Layers
    distance: FeatureDistance
    sizes: Sequence[int] | None
    """Of chunks that may not be cut otherwise."""
    needs: list[bool]
    """Gradients of the student's states, and of each parameter of its filter."""
    max_chunk_bytes: int
    dtype: torch.dtype
    """Of the products."""

    @property
    def is_affine(self) -> bool:
        """Whether the difference of the filtered states is one affine map of both states."""
        return len(self.needs) == 3 and len(self.teacher_filter) < 2 and self.distance.is_plain_mse

    def chunks(self, num_rows: int, bytes_per_row: int) -> Iterator[slice]:
        """Which rows go together."""
        if self.sizes is None:
            yield from slices(num_rows, rows_per_chunk(num_rows, bytes_per_row, self.max_chunk_bytes))
            return
        start = 0
        for size in self.sizes:
            yield slice(start, start + size)
            start += size


class _FilterDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, job: _Job, *parameters: Tensor) -> Tensor:
        device = states.device
        detached = [one.detach().to(job.dtype) for one in parameters]
        teacher_filter = [(weight.to(job.dtype), bias.to(job.dtype)) for weight, bias in job.teacher_filter]
        of_states = torch.empty_like(states, dtype=job.dtype) if job.needs[0] else None
        of_parameters = [
            torch.zeros(one.shape, dtype=exact_dtype(job.dtype), device=device) if needed else None
            for one, needed in zip(parameters, job.needs[1:], strict=True)
        ]
        total = torch.zeros((), dtype=exact_dtype(job.dtype), device=device)
        dim = parameters[-1].shape[0] if parameters else states.shape[-1]
        width = dim * (1 if job.is_affine else 8)  # what autograd keeps of the plain formula
        with torch.autocast(device.type, enabled=False):
            for chunk in job.chunks(states.shape[0], width * job.dtype.itemsize):
                student, teacher = states[chunk].to(job.dtype), job.teacher_states[chunk].to(job.dtype)
                one_chunk = _affine if job.is_affine else _plain
                loss, of_student, of_each = one_chunk(student, teacher, detached, teacher_filter, job)
                total += loss
                if of_states is not None and of_student is not None:
                    of_states[chunk] = of_student
                for whole, part in zip(of_parameters, of_each, strict=True):
                    if whole is not None and part is not None:
                        whole += part
        ctx.gradients = [of_states, None, *of_parameters]
        ctx.dtypes = [states.dtype, None, *(one.dtype for one in parameters)]
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by place, never by name
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a filter loss were used up by the first backward pass")
        return tuple(
            None if one is None else scale_rows(one, upstream, dtype)
            for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        )


Chunk = tuple[Tensor, Tensor | None, Sequence[Tensor | None]]
"""The sum, and the gradients of the states and of the filter's parameters."""


def _affine(student: Tensor, teacher: Tensor, parameters: Sequence[Tensor], teacher_filter: Layers, job: _Job) -> Chunk:
    weight, bias = parameters
    if teacher_filter:
        ((teacher_weight, teacher_bias),) = teacher_filter
        difference = torch.addmm(bias - teacher_bias, student, weight.T)
        difference.addmm_(teacher, teacher_weight.T, alpha=-1)
    else:
        difference = torch.addmm(bias, student, weight.T)
        difference -= teacher
    dim = difference.shape[1]
    # by rows: a norm adds its squares up one by one, and of millions the sum hangs on how they are cut into chunks
    by_row = torch.linalg.vector_norm(difference, dim=1, dtype=exact_dtype(job.dtype)).square()
    loss = by_row.sum() / dim
    if not any(job.needs):
        return loss, None, (None, None)
    difference *= 2 / dim
    return (
        loss,
        difference @ weight if job.needs[0] else None,
        (
            product_of_gradients(difference, student) if job.needs[1] else None,
            difference.sum(0, dtype=exact_dtype(job.dtype)) if job.needs[2] else None,
        ),
    )


def _plain(student: Tensor, teacher: Tensor, parameters: Sequence[Tensor], teacher_filter: Layers, job: _Job) -> Chunk:
    leaves = [
        one.detach().requires_grad_(needed) for one, needed in zip((student, *parameters), job.needs, strict=True)
    ]
    with torch.set_grad_enabled(any(job.needs)):
        own, *flat = leaves
        keep = torch.ones(student.shape[0], dtype=torch.bool, device=student.device)
        both = (apply_layers(own, list(zip(flat[::2], flat[1::2], strict=True))), apply_layers(teacher, teacher_filter))
        if job.sizes is not None:  # the chunk is one text
            both, keep = (both[0].unsqueeze(0), both[1].unsqueeze(0)), keep.unsqueeze(0)
        loss = job.distance.sum(*both, keep=keep)
    if not any(job.needs):
        return loss, None, [None] * len(parameters)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted))
    of_student, *of_parameters = (next(found) if leaf.requires_grad else None for leaf in leaves)
    return loss.detach(), of_student, of_parameters
