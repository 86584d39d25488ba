"""The layer-wise term of a pair, chunk by chunk, against the plain formula in fp64."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from ted_ds.data.text_sizes import text_sizes
from ted_ds.numerics import chunks
from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.feature_distances import MSE, FeatureDistance
from ted_ds.numerics.filters import Filter, FilterBank, IdentityFilter, Match
from ted_ds.numerics.fused import CHUNK_BYTES, apply_layers, filter_distance_sum
from ted_ds.numerics.losses import feature_mse_sum
from tests.device import DEVICE
from tests.parity.test_vocabulary import Largest, gradcheck
from tests.plain import plain_cka

HIDDEN, TEACHER_HIDDEN, DIM = 12, 20, 16
# of each gradient's norm; 16-bit filters cancel where both sides are alike
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def many_small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_ROWS", 5)


def layers_of(kind: str, width: int, dim: int, dtype: torch.dtype, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def affine(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        weight, bias = (
            torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3 for shape in ((rows, columns), (rows,))
        )
        return weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()

    return {
        "identity": lambda: [],
        "linear": lambda: [affine(dim, width)],
        "mlp": lambda: [affine(width, width), affine(dim, width)],
    }[kind]()


DISTANCES = [FeatureDistance(kind, normalise) for kind in ("mse", "cosine", "cka") for normalise in (False, True)]


@contextlib.contextmanager
def in_chunks_of(size: int | None):
    """While this is open, chunks hold so many bytes; with None, what suits the device."""
    with pytest.MonkeyPatch.context() as patch:
        if size is not None:
            patch.setitem(CHUNK_BYTES, DEVICE.type, size)
        yield


class Case:
    def __init__(
        self,
        num_tokens: int,
        *,
        student: str = "linear",
        teacher: str = "linear",
        keep: str = "some",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        dim = TEACHER_HIDDEN if teacher == "identity" else DIM

        def states(width: int) -> Tensor:
            return torch.randn(2, num_tokens, width, generator=generator, dtype=torch.float64).to(dtype)

        self.student_states = states(HIDDEN).requires_grad_()
        self.teacher_states = states(TEACHER_HIDDEN)
        self.student = layers_of(student, HIDDEN, dim, dtype, 1)
        self.teacher = layers_of(teacher, TEACHER_HIDDEN, dim, dtype, 2)
        self.keep = torch.ones(2, num_tokens, dtype=torch.bool)
        if keep == "some":
            self.keep = torch.rand(2, num_tokens, generator=generator) < 0.6
        elif keep == "none":
            self.keep[:] = False

    def fused(self, *, distance: FeatureDistance = MSE, size: int = 1) -> list[Tensor]:
        """The sum, and the gradients of 1.7 times it."""
        with in_chunks_of(size):
            student, teacher = (
                [(weight.to(DEVICE), bias.to(DEVICE)) for weight, bias in layers]
                for layers in (self.student, self.teacher)
            )
            rows = kept_rows(self.keep)
            total = filter_distance_sum(
                self.student_states.to(DEVICE),
                self.teacher_states.to(DEVICE),
                student_filter=student,
                teacher_filter=teacher,
                rows=None if rows is None else rows.to(DEVICE),
                sizes=text_sizes(self.keep),
                distance=distance,
            ).cpu()
        trained = [self.student_states, *(one for layer in self.student for one in layer)]
        return [total, *torch.autograd.grad(1.7 * total, trained)]

    def plain(self, *, distance: FeatureDistance = MSE) -> list[Tensor]:
        flat = [self.student_states, *(one for layer in self.student for one in layer)]
        leaves = [one.detach().double().requires_grad_() for one in flat]
        states, *rest = leaves
        mine = apply_layers(states, list(zip(rest[::2], rest[1::2], strict=True)))
        theirs = apply_layers(self.teacher_states.double(), [(w.double(), b.double()) for w, b in self.teacher])
        if distance.normalise:
            mine, theirs = (torch.nn.functional.layer_norm(one, one.shape[-1:]) for one in (mine, theirs))
        theirs = theirs.detach()
        of_texts = [plain_cka(m[keep], t[keep]) for m, t, keep in zip(mine, theirs, self.keep, strict=True)]
        mine, theirs = mine[self.keep], theirs[self.keep]
        if distance.kind == "cka":
            total = torch.stack(of_texts).sum()
        elif distance.kind == "cosine":
            total = (1 - (mine * theirs).sum(-1) / (mine.square().sum(-1) * theirs.square().sum(-1)).sqrt()).sum()
        else:
            total = (mine - theirs).square().mean(-1).sum()
        return [total, *torch.autograd.grad(1.7 * total, leaves)]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float, least: float = 1e-6) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.double() - other).norm() <= tolerance * max(other.norm().item(), least)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keep", ["all", "some", "none"])
@pytest.mark.parametrize("num_tokens", [1, 3, 47, 123])
def test_sums_and_gradients_are_those_of_all_features(num_tokens, keep, dtype):
    case = Case(num_tokens, keep=keep, dtype=dtype)
    assert_same(case.fused(), case.plain(), TOLERANCE[dtype])
    if keep == "none":
        assert case.fused()[0].item() == 0


@pytest.mark.parametrize("distance", DISTANCES, ids=str)
@pytest.mark.parametrize("teacher", ["identity", "linear", "mlp"])
@pytest.mark.parametrize("student", ["linear", "mlp"])
def test_every_kind_of_filter(student, teacher, distance):
    case = Case(23, student=student, teacher=teacher)
    # how tokens lie to each other hangs on no bias: its gradient is nothing but rounding
    least = 1e-2 if distance.is_of_texts else 1e-6
    assert_same(case.fused(distance=distance), case.plain(distance=distance), 1e-12, least)


@pytest.mark.parametrize("size", [1, 700, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_size_of_a_chunk_changes_nothing(size, dtype):
    case = Case(123, dtype=dtype)
    assert_same(case.fused(size=size), case.plain(), TOLERANCE[dtype])


def test_gradcheck():
    case = Case(3)
    weight, bias = case.student[0]

    def total(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters: dict[str, Any] = {"student_filter": [(weight, bias)], "teacher_filter": case.teacher}
        return filter_distance_sum(states, case.teacher_states, **filters, rows=kept_rows(case.keep))

    assert gradcheck(total, (case.student_states, weight, bias))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_what_is_not_kept_is_never_read(kind):
    case = Case(23, student=kind)
    expected = case.plain()
    with torch.no_grad():
        case.student_states[~case.keep] = torch.nan
        case.teacher_states[~case.keep] = torch.inf
    got = case.fused()
    assert_same(got, expected, 2e-6)
    assert got[1][~case.keep].abs().max() == 0


def test_a_second_backward_is_refused_and_not_wrong():
    case = Case(5)
    total = filter_distance_sum(
        case.student_states, case.teacher_states, student_filter=case.student, teacher_filter=case.teacher
    )
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by the first backward"):
        total.backward()


def test_autocast_computes_in_its_precision_and_keeps_the_weights():
    case = Case(47, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = case.fused()
    assert all(one.dtype == torch.float32 for one in got)
    assert_same(got, case.plain(), TOLERANCE[torch.bfloat16])


def test_filtered_states_of_all_tokens_never_exist():
    case = Case(400, keep="all")
    with Largest() as plain:
        case.plain()
    with Largest() as fused:
        case.fused()
    assert plain.numel >= 2 * 400 * DIM
    # the gradient of the student's states, and views of the teacher's
    assert fused.numel <= 2 * 400 * max(HIDDEN, TEACHER_HIDDEN)
    with Largest() as fused:
        Case(400, keep="all").fused(size=5 * DIM * 8)
    assert fused.numel <= 2 * 400 * TEACHER_HIDDEN


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_filter_module_matches_as_its_features_differ(kind):
    torch.manual_seed(0)
    mine = Filter(HIDDEN, DIM, kind=kind)
    theirs = FilterBank([1], TEACHER_HIDDEN, DIM, kind=kind).filters[0]
    states, teacher_states = torch.randn(2, 9, HIDDEN), torch.randn(2, 9, TEACHER_HIDDEN)
    keep = torch.rand(2, 9) < 0.5
    total = mine(states, Match(teacher_states, theirs, kept_rows(keep)))
    torch.testing.assert_close(total, feature_mse_sum(mine(states), theirs(teacher_states), keep=keep))


def test_two_sides_without_filters_are_compared_as_they_are():
    states, teacher_states = torch.randn(2, 9, HIDDEN), torch.randn(2, 9, HIDDEN)
    total = IdentityFilter()(states, Match(teacher_states, IdentityFilter(), None))
    keep = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(total, feature_mse_sum(states, teacher_states, keep=keep))


def test_fp16_sums_over_outliers_do_not_overflow():
    case = Case(8, teacher="identity", dtype=torch.float16, keep="all")
    with torch.no_grad():
        case.student_states[..., 0] = 1500
        case.teacher_states[..., 0] = 2500
    filters = {"student_filter": case.student, "teacher_filter": []}
    total = filter_distance_sum(case.student_states, case.teacher_states, **filters)
    share = 1 / case.keep.numel() / 1000
    trained = [case.student_states, *(one for layer in case.student for one in layer)]
    gradients = torch.autograd.grad(1.7 * total * share, trained)
    for one, other in zip(gradients, case.plain()[1:], strict=True):
        assert (one.double() - other * share).norm() < 4e-3 * (other * share).norm()


def test_a_scale_that_fp16_does_not_hold_scales_fp16():
    values = torch.tensor([[1e-4, 0.0]], dtype=torch.float16)
    assert chunks.scale_rows(values, torch.tensor(2.0**20), torch.float16).tolist() == [
        [pytest.approx(1e-4 * 2**20, rel=1e-3), 0]
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("identity", [True, False], ids=["lwd", "ted"])
def test_a_sum_of_millions_of_squares_hangs_neither_on_its_chunks_nor_on_its_batches(dtype, identity):
    # 2,048 tokens of width 768, as one chunk, several, and several batches; added one by one they differed by 1.6e-5
    # in fp32 and 1e-4 in bf16 (whose differences are rounded, and then summed in fp32)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2048, 768, generator=generator).to(dtype) for _ in range(2))
    weight, bias = torch.eye(768).to(dtype), torch.zeros(768).to(dtype)
    filters = {"student_filter": [(weight, bias)], "teacher_filter": [] if identity else [(weight, bias)]}
    exact = float((student - teacher).double().square().mean(1).sum())
    for num_batches in (1, 3, 32):
        for size in (None, 1 << 30, 1 << 20, 1 << 18):
            with in_chunks_of(size):
                sums = [
                    float(filter_distance_sum(own, theirs, **filters))
                    for own, theirs in zip(student.chunk(num_batches), teacher.chunk(num_batches), strict=True)
                ]
            assert sum(sums) == pytest.approx(exact, rel=2e-7 if dtype == torch.float32 else 1e-6)
