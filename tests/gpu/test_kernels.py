"""What of a GPU no run shows by itself: which kernels, how exactly, what the host waits for, how time is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ted_ds.data.microbatch import to_device
from ted_ds.models.document_attention import takes_borders
from ted_ds.models.execution import ATTENTION
from ted_ds.numerics.chunks import chunk_bytes
from ted_ds.numerics.divergences import make_divergence
from ted_ds.numerics.feature_distances import MSE, FeatureDistance
from ted_ds.numerics.fused import filter_distance_sum
from ted_ds.numerics.keeping import Keeping, Kept, keep_drawn, keep_top
from ted_ds.numerics.losses import cross_entropy_sum
from ted_ds.numerics.teacher_predictions import DrawnPredictions, KeptPredictions, TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.runtime.bit_hash import ROW, ROWS_ON_A_GPU, hash_of_bits
from ted_ds.runtime.peak_memory import GIB, peak_gib
from ted_ds.runtime.step_clock import StepClock, timed
from tests.device import DEVICE, of_a_gpu
from tests.parity.test_packing import PAD, Collator, packed_samples, tapped_model
from tests.plain import DIVERGENCES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
WIDTH, VOCAB, TOKENS = 256, 4096, 512
# of each gradient's norm, four times what a CPU shows at these widths or more: to be replaced by what a GPU shows
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def vocabulary_case(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """States and head of the student and of the teacher, and labels, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(2, TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(2))
    weight, teacher_weight = ((torch.randn(VOCAB, WIDTH, generator=generator) * 0.1).to(dtype) for _ in range(2))
    labels = torch.randint(VOCAB, (2, TOKENS), generator=generator)
    labels[torch.rand(2, TOKENS, generator=generator) < 0.3] = -100
    return [hidden, weight], [teacher_hidden, teacher_weight], labels


def vocabulary_step(
    own: list[Tensor], theirs: list[Tensor], labels: Tensor, *, kind: str = "kl", kernels: Any = "torch"
) -> list[Tensor]:
    """The three sums, and both gradients."""
    states, head = (one.to(DEVICE).requires_grad_() for one in own)
    hidden, weight = (one.to(DEVICE) for one in theirs)
    divergence = make_divergence(kind, DIVERGENCES[kind])
    teacher = TeacherPredictions(hidden, weight, None, 2.0, 2.5, None, divergence)
    targets = VocabularyTargets(labels.to(DEVICE), 0.7, teacher, kernels=kernels)
    sums = vocabulary_losses(states, head, None, targets)
    return [*sums, *torch.autograd.grad(sums[0], (states, head))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_losses_of_a_vocabulary_are_those_of_fp64_on_a_cpu(dtype):
    own, theirs, labels = vocabulary_case(dtype)
    found = vocabulary_step(own, theirs, labels)
    leaves = [one.double().requires_grad_() for one in own]
    kept = labels != -100
    logits, teacher_logits = ((states.double() @ head.double().T)[kept] for states, head in (leaves, theirs))
    task = F.cross_entropy(logits, labels[kept], reduction="sum")
    student, teacher = (F.log_softmax(one / 2.0, -1) for one in (logits, teacher_logits))
    kl = F.kl_div(student, teacher, reduction="sum", log_target=True)
    weighted = 0.7 * task + 2.5 * kl
    expected = [weighted, task, kl, *torch.autograd.grad(weighted, leaves)]
    for one, other in zip(found, expected, strict=True):
        assert (one.detach().cpu().double() - other).norm() <= TOLERANCE[dtype] * other.norm()


@of_a_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_kernels_of_triton_find_what_torch_finds_in_fp64(kind, dtype):
    own, theirs, labels = vocabulary_case(dtype)
    found = vocabulary_step(own, theirs, labels, kind=kind, kernels="triton")
    in_fp64 = [[one.double() for one in side] for side in (own, theirs)]
    expected = vocabulary_step(*in_fp64, labels, kind=kind)
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= TOLERANCE[dtype] * other.norm()


def kept(*, drawn: bool) -> Kept:
    """What is kept of a teacher's predictions of all rows with a label."""
    _, (hidden, weight), labels = vocabulary_case(torch.bfloat16)
    rows = labels != -100
    asked = Keeping(40, VOCAB - 1, 2.0, drawn)
    head = (hidden[rows].to(DEVICE), weight.to(DEVICE), None, labels[rows].to(DEVICE), asked)
    starts = torch.rand(int(rows.sum()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return keep_drawn(*head, starts=starts.to(DEVICE)) if drawn else keep_top(*head)


def kept_step(*, drawn: bool) -> list[Tensor]:
    """The three sums beside what was kept, and both gradients."""
    own, _, labels = vocabulary_case(torch.bfloat16)
    states, head = (one.to(DEVICE).requires_grad_() for one in own)
    ids, numbers, _ = kept(drawn=drawn)
    teacher = (DrawnPredictions if drawn else KeptPredictions)(ids, numbers, 2.0, 2.5, VOCAB - 1)
    sums = vocabulary_losses(states, head, None, VocabularyTargets(labels.to(DEVICE), 0.7, teacher))
    return [*sums, *torch.autograd.grad(sums[0], (states, head))]


def filter_step(distance: FeatureDistance) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.1).to(DEVICE, torch.bfloat16)

    states, weight, bias = (normal(*shape).requires_grad_() for shape in ((4, 64, 96), (128, 96), (128,)))
    rows = torch.arange(0, 256, 3, device=DEVICE)
    total = filter_distance_sum(
        states,
        normal(4, 64, 160),
        student_filter=[(weight, bias)],
        teacher_filter=[(normal(128, 160), normal(128))],
        rows=rows,
        sizes=[43, 43],
        distance=distance,
    )
    return [total, *torch.autograd.grad(total, (states, weight, bias))]


def packed_step(dtype: torch.dtype) -> list[Tensor]:
    """Logits of kept tokens, and all gradients, by borders of documents."""
    model = tapped_model("llama", num_key_value_heads=2).to(DEVICE, dtype)
    model.model.config._attn_implementation = ATTENTION["packed"]
    assert takes_borders(ATTENTION["packed"], DEVICE, dtype)
    batch = Collator(PAD, "tokens", isolate_documents=True)(packed_samples())
    logits, _ = model(batch.inputs)
    cross_entropy_sum(logits, batch.labels).backward()
    gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    return [logits[batch.kept_tokens].detach(), gradients]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_documents_by_their_borders_are_those_by_masks_in_fp64(dtype):
    model = tapped_model("llama", num_key_value_heads=2).cpu()  # in fp64
    batch = Collator(PAD, "tokens", isolate_documents=True)(packed_samples()).to(torch.device("cpu"))
    logits, _ = model(batch.inputs)
    cross_entropy_sum(logits, batch.labels).backward()
    gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    for one, other in zip(packed_step(dtype), [logits[batch.kept_tokens].detach(), gradients], strict=True):
        error = (one.cpu().double() - other).norm() / other.norm()
        assert error <= {torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype], error


REPEATED: dict[str, Callable[[], list[Tensor]]] = {
    "vocabulary": lambda: vocabulary_step(*vocabulary_case(torch.bfloat16)),
    "triton": lambda: vocabulary_step(*vocabulary_case(torch.bfloat16), kind="jsd", kernels="triton"),
    "keeping ids": lambda: [*kept(drawn=False)],
    "drawing ids": lambda: [*kept(drawn=True)],
    "kept ids": lambda: kept_step(drawn=False),
    "drawn ids": lambda: kept_step(drawn=True),
    "filters": lambda: filter_step(MSE),
    "cosine": lambda: filter_step(FeatureDistance("cosine")),
    "cka": lambda: filter_step(FeatureDistance("cka")),
    "packed": lambda: packed_step(torch.bfloat16),
    "hash": lambda: [hash_of_bits(one) for one in vocabulary_step(*vocabulary_case(torch.bfloat16))],
}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("what", [pytest.param(one, marks=[of_a_gpu] * (one == "triton")) for one in REPEATED])
def test_all_terms_have_a_deterministic_way(what):
    first, second = REPEATED[what](), REPEATED[what]()
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64])
def test_the_hash_of_bits_is_that_of_a_cpu(dtype):
    values = torch.randn((ROWS_ON_A_GPU + 1) * ROW + 3, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert int(hash_of_bits(values.to(DEVICE))) == int(hash_of_bits(values))


@of_a_gpu
def test_borders_are_for_the_flash_kernel():
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        packed_step(torch.bfloat16)
    names = {one.key for one in profile.key_averages()}
    assert any("flash" in name for name in names), sorted(names)
    assert not any("efficient_attention" in name for name in names)


@of_a_gpu
def test_what_is_copied_may_be_written_over_at_once():
    value = torch.arange(1 << 20)
    moved = to_device(value, DEVICE)
    value.zero_()
    assert torch.equal(moved.cpu(), torch.arange(1 << 20))
    assert to_device(moved, DEVICE) is moved


@of_a_gpu
def test_a_clock_tells_the_time_of_the_gpu():
    clock = StepClock(DEVICE)
    work = torch.randn(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()
    started = time.perf_counter()
    with clock.step(lambda: 1):
        with timed("forward"):
            for _ in range(200):
                work = (work @ work).clamp(-1, 1)
        asked = time.perf_counter() - started
    torch.cuda.synchronize()
    took = time.perf_counter() - started
    taken = clock.take()
    assert taken["forward"] == pytest.approx(took, rel=0.1)
    assert asked < took / 2, "the host waited for what it asked for"


@of_a_gpu
def test_a_clock_tells_what_is_waited_for_on_another_stream():
    clock, other = StepClock(DEVICE), torch.cuda.Stream(DEVICE)
    work = torch.randn(4096, 4096, device=DEVICE)
    beside = work.clone()
    torch.cuda.synchronize()
    with clock.step(lambda: 1):
        with timed("backward"):
            with torch.cuda.stream(other):  # as a collective of ZeRO, some ten times as long as the work
                for _ in range(200):
                    beside = (beside @ beside).clamp(-1, 1)
            for _ in range(20):
                work = (work @ work).clamp(-1, 1)
            torch.cuda.default_stream(DEVICE).wait_stream(other)
        with timed("optimizer"):
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    taken = clock.take()
    assert taken["communication"] > taken["backward"] + taken["optimizer"]


@of_a_gpu
def test_a_peak_counts_what_was_taken():
    before = peak_gib(DEVICE)["device"]
    held = torch.cuda.memory_allocated() / GIB
    more = torch.empty(int((before - held + 0.5) * GIB), dtype=torch.uint8, device=DEVICE)
    assert peak_gib(DEVICE)["device"] == pytest.approx(before + 0.5, abs=0.05)
    del more


def test_chunks_are_cut_by_the_card_and_not_by_what_is_free():
    assert chunk_bytes(DEVICE) == chunk_bytes(DEVICE)
    assert chunk_bytes(torch.device("cpu")) == 512 * 2**20
    if DEVICE.type == "cuda":
        total: Any = torch.cuda.get_device_properties(DEVICE).total_memory
        assert chunk_bytes(DEVICE) == max(64 * 2**20, min(total // 64, 2**30))
