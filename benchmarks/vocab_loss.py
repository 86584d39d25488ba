"""What cross-entropy and KL over a vocabulary cost: chunk by chunk from hidden states, or from all logits.

    python -m benchmarks.vocab_loss [--quick] [--json FILE]

Forward and backward of task loss + KL to a teacher, from last hidden states and both LM heads, with gradients of the
student's hidden states and head. ``eager`` makes both models' logits and uses torch's own losses in fp32. Peaks are
those of processes of their own, above what inputs, gradients and the fp32 sum of one of them take.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch.nn import functional as F

from benchmarks.memory import in_own_process, peak_of
from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.timing import in_turns, ratio
from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.numerics.vocabulary_job import Kernels
from ted_ds.runtime.host_allocator import keep_freed_memory

TEMPERATURE, KL_WEIGHT = 2.0, 4.0
SLOWER_GOAL, FLAT_GOAL = 1.05, 1.25


class Shape(NamedTuple):
    """Tokens, ids, and the width of both models."""

    tokens: int
    vocab: int
    hidden: int
    dtype: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.tokens:,} x {self.vocab:,}, width {self.hidden}, {self.dtype}"


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GRID = {
    # (torch's own losses took more than 24 GiB at 8,192 x 32,000)
    False: [
        Shape(256, 32_000, 768, "bf16"),
        Shape(256, 152_064, 896, "bf16"),
        Shape(1024, 50_257, 768, "bf16"),
        Shape(1024, 152_064, 896, "bf16"),
        Shape(4096, 32_000, 768, "bf16"),
        Shape(256, 32_000, 768, "fp32"),
        Shape(1024, 50_257, 768, "fp32"),
        Shape(2048, 50_257, 768, "fp32"),
    ],
    True: [Shape(tokens, 32_000, 256, dtype) for tokens in (256, 1024) for dtype in DTYPES],
}
# eager, too, at the first; the others are several times as large
MEMORY = {
    False: [Shape(3072, 50_257, 768, "bf16"), Shape(8192, 50_257, 768, "bf16"), Shape(8192, 152_064, 768, "bf16")],
    True: [Shape(8192, 16_000, 128, "bf16"), Shape(8192, 64_000, 128, "bf16")],
}


def work_of(shape: Shape, contender: str, device: torch.device) -> Callable[[], None]:
    """Forward and backward of one contender: ``eager``, ``fused``, or ``triton``, which is that by its kernels."""
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[shape.dtype]

    def normal(*size: int, std: float = 1.0) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * std).to(device, dtype)

    hidden = normal(shape.tokens, shape.hidden).requires_grad_()
    weight = normal(shape.vocab, shape.hidden, std=0.05).requires_grad_()
    teacher_hidden = normal(shape.tokens, shape.hidden)
    teacher_weight = normal(shape.vocab, shape.hidden, std=0.05)
    labels = torch.randint(shape.vocab, (shape.tokens,), generator=generator).to(device)

    def eager() -> None:
        with torch.no_grad():
            teacher_logits = F.linear(teacher_hidden, teacher_weight).float()
        logits = F.linear(hidden, weight).float()
        task = F.cross_entropy(logits, labels, reduction="sum")
        mine, theirs = (F.log_softmax(one / TEMPERATURE, -1) for one in (logits, teacher_logits))
        kl = F.kl_div(mine, theirs, reduction="sum", log_target=True)
        (task + KL_WEIGHT * kl).backward()

    def fused(kernels: Kernels = "torch") -> None:
        teacher = TeacherPredictions(teacher_hidden, teacher_weight, None, TEMPERATURE, KL_WEIGHT)
        targets = VocabularyTargets(labels, 1.0, teacher, kernels=kernels)
        weighted, *_ = vocabulary_losses(hidden, weight, None, targets)
        weighted.backward()

    def forget(run: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            hidden.grad = weight.grad = None
            run()

        return step

    return forget({"eager": eager, "fused": fused, "triton": partial(fused, "triton")}[contender])


def peak_bytes(shape: Shape, contender: str) -> int:
    """The most memory a process needs for one step beyond what it had before, inputs and gradients included."""
    return in_own_process("benchmarks.vocab_loss", "--peak-of", contender, *map(str, shape))


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__)
    parser.add_argument("--peak-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.peak_of:
        contender, tokens, vocab, hidden, dtype = options.peak_of
        shape = Shape(int(tokens), int(vocab), int(hidden), dtype)
        print(peak_of(work_of(shape, contender, device)))
        return
    keep_freed_memory()  # as a run does; a peak of memory is measured without
    rows, slower = [], {}
    for shape in GRID[options.quick]:
        work = {name: work_of(shape, name, device) for name in ("eager", "fused")}
        taken = in_turns(work, rounds=7, seconds=0.0 if options.quick else 0.3)
        slower[shape.name] = ratio(taken, "fused", "eager")
        times = [f"{median(taken[name]) * 1000:,.0f}" for name in work]
        rows.append([shape.name, *times, f"{slower[shape.name]:.2f}"])
    memory_rows, peaks = [], []
    for shape in MEMORY[options.quick]:
        # what stays: both gradients; and what sums the 16-bit one of the head up, in fp32
        kept = 2 * shape.hidden * (shape.tokens + shape.vocab) + 4 * shape.hidden * shape.vocab
        peaks.append(peak_bytes(shape, "fused") - kept)
        eager = peak_bytes(shape, "eager") - kept if len(peaks) == 1 else None
        shown = ["", ""] if eager is None else [f"{eager / 2**20:,.0f}", f"{eager / peaks[0]:.1f}"]
        memory_rows.append([shape.name, shown[0], f"{peaks[-1] / 2**20:,.0f}", shown[1]])
    claims = [at_most(f"time, fused / eager: {name}", value, SLOWER_GOAL) for name, value in slower.items()]
    claims.append(at_most("working memory, the largest shape's / the smallest's", peaks[-1] / peaks[0], FLAT_GOAL))
    tables = [
        table("forward and backward, median of 7", ["tokens x ids", "eager, ms", "fused, ms", "ratio"], rows),
        table(
            "peak above inputs and gradients",
            ["tokens x ids", "eager, MiB", "fused, MiB", "eager / fused"],
            memory_rows,
        ),
    ]
    publish(tables, claims, versions=installed(("torch",)), json_path=options.json)


if __name__ == "__main__":
    main()
