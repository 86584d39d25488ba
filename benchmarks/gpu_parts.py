"""What :mod:`benchmarks.gpu` measures on one GPU, part by part; each runs in a process of its own.

    python -m benchmarks.gpu_parts NAME --json FILE [--device cpu] [--quick]

Models have random weights, made from configs of published ones; nothing is fetched. ``--quick`` takes tiny shapes, to
see on a CPU that a part runs: what it measures there says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig

from benchmarks.engine_step import engine_steps
from benchmarks.gpu_case import Found, Setting, fits, flops_of, forget, ms, peak_during, peak_tflops
from benchmarks.gpu_tests import test_part
from benchmarks.report import Claim, at_least, at_most
from benchmarks.steps import ByHand, ByTedDs, Shape, llama, new_batch
from benchmarks.timing import in_turns, ratio
from benchmarks.vocab_loss import Shape as Vocabulary
from benchmarks.vocab_loss import work_of
from ted_ds.data.loader import Batch
from ted_ds.models.document_attention import NAME as PACKED
from ted_ds.numerics import vocabulary

VOCABULARY_OF_LLAMA_3 = 128_256
FLOOR_GOAL, MFU_GOAL = 1.05, 0.27
VOCABULARY_GIB = 8.7e9 / 2**30
PUBLISHED_TOKENS_PER_S = 26_800
"""Of one H100: Llama-3.2-1B from itself by a JSD, 32 x 1,024 tokens, bf16 (trl, issue 6942), at 27 % of its peak."""


LLAMA_8B = llama(32, 4096, 14336, 32, 8, VOCABULARY_OF_LLAMA_3, tied=False)
LLAMA_3B = llama(28, 3072, 8192, 24, 8, VOCABULARY_OF_LLAMA_3)
LLAMA_1B = llama(16, 2048, 8192, 32, 8, VOCABULARY_OF_LLAMA_3)


def tiny(blocks: int, width: int) -> LlamaConfig:
    """Of the same kind, to rehearse with."""
    return llama(blocks, width, 2 * width, 4, 2, 500)


# --- parts ------------------------------------------------------------------------------------------------------------


def vocabulary_part(setting: Setting) -> Found:
    """Cross-entropy and KL over 128k ids: time beside torch's own at 1,024 tokens, and peak memory at 8,192."""
    found, rows, by_kernels = Found(), [], []
    shapes = [Vocabulary(tokens, 128_256, 2048, "bf16") for tokens in (1024, 4096, 8192)]
    if setting.quick:
        shapes = [Vocabulary(tokens, 500, 32, "bf16") for tokens in (32, 64)]
    for shape in shapes:
        work = {"fused": work_of(shape, "fused", setting.device)}
        peak = peak_during(work["fused"], setting.device)
        eager = work_of(shape, "eager", setting.device)
        if fits(eager):
            work["eager"] = eager
        taken = in_turns(work, rounds=setting.rounds, seconds=0.0 if setting.quick else 0.2)
        slower = ratio(taken, "fused", "eager") if "eager" in taken else float("nan")
        shown = ms(taken["eager"]) if "eager" in taken else "out of memory"
        rows.append([shape.name, shown, ms(taken["fused"]), f"{slower:.2f}", f"{peak:.2f}"])
        if shape is shapes[0]:
            found.claims.append(at_most(f"time, fused / eager: {shape.name}", slower, 1.0))
        if shape is shapes[-1]:
            found.claims.append(at_most(f"peak with inputs and gradients, GiB: {shape.name}", peak, VOCABULARY_GIB))
        if setting.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            by_kernels.append(_by_kernels(shape, work["fused"], setting))
        del work, eager
        forget()
    found.add("cross-entropy and KL", ["tokens x ids", "eager, ms", "fused, ms", "ratio", "fused, peak GiB"], rows)
    if by_kernels:
        columns = ["tokens x ids", "torch, ms", "triton, ms", "ratio", "triton, peak GiB"]
        found.add("the same by distill.kernels: triton", columns, by_kernels)
    plain, rows = vocabulary.BLOCK_BYTES["cuda"], []
    for megabytes in (4, 16, 64, 256):
        vocabulary.BLOCK_BYTES["cuda"] = megabytes * 2**20
        step = work_of(shapes[-1], "fused", setting.device)
        rows.append([f"{megabytes} MiB", ms(in_turns({"fused": step}, rounds=setting.rounds)["fused"])])
    vocabulary.BLOCK_BYTES["cuda"] = plain
    found.add(f"rows brought to fp32 at a time, {shapes[-1].name}", ["block", "fused, ms"], rows)
    return found


def _by_kernels(shape: Vocabulary, fused: Callable[[], None], setting: Setting) -> list[str]:
    """Torch's operations and the kernels of Triton, in turns; the first run compiles them."""
    step = work_of(shape, "triton", setting.device)
    step()
    peak = peak_during(step, setting.device)
    taken = in_turns({"fused": fused, "triton": step}, rounds=setting.rounds, seconds=0.2)
    times = (ms(taken["fused"]), ms(taken["triton"]))
    return [shape.name, *times, f"{ratio(taken, 'triton', 'fused'):.2f}", f"{peak:.2f}"]


def jsd_part(setting: Setting) -> Found:
    """The published shape: a 1B from a 1B by the JSD, 32 x 1,024 tokens, a whole step."""
    shape = Shape("Llama-3.2-1B from itself", LLAMA_1B, LLAMA_1B, 32, 1024)
    if setting.quick:
        shape = Shape("tiny", tiny(2, 32), tiny(2, 32), 2, 16)
    models = ByTedDs(shape, setting.dtype, setting.device)
    step = models.method("kd", divergence="jsd")
    peak = peak_during(step, setting.device)
    operations = flops_of(step)
    seconds = in_turns({"jsd": step}, rounds=setting.rounds)["jsd"]
    speed = shape.rows * shape.tokens_per_row / median(seconds)
    found = Found([at_least(f"tokens/s: {shape.name}, jsd, {shape.tokens}", speed, PUBLISHED_TOKENS_PER_S)])
    found.claims += _mfu(shape.name, operations, median(seconds), setting)
    row = [shape.name, ms(seconds), f"{speed:,.0f}", f"{operations / median(seconds) / 1e12:,.1f}", f"{peak:.1f}"]
    found.add("JSD alone", ["", "step, ms", "tokens/s", "TFLOP/s", "peak GiB"], [row])
    return found


def _mfu(name: str, operations: float, seconds: float, setting: Setting) -> list[Claim]:
    peak = peak_tflops(setting.device)
    return [] if peak is None else [at_least(f"MFU: {name}", operations / seconds / 1e12 / peak, MFU_GOAL)]


def steps_part(setting: Setting) -> Found:
    """A TED step beside its floor (teacher forward, student alone) and beside the plain way, 8B to 3B and smaller."""
    shapes = [
        Shape("Llama 1B>1B", LLAMA_1B, LLAMA_1B, 4, 2048),
        Shape("Llama 8B>3B", LLAMA_8B, LLAMA_3B, 2, 2048),
    ]
    if setting.quick:
        shapes = [Shape("tiny", tiny(4, 32), tiny(2, 32), 2, 16)]
    found, rows = Found(), []
    for shape in shapes:
        forget()
        work: dict[str, Callable[[], None]] = {}
        ours = ByTedDs(shape, setting.dtype, setting.device)
        work["ted"] = ours.method("ted")
        peak = peak_during(work["ted"], setting.device)
        operations = flops_of(work["ted"])
        # of one pair of models alone: two would not fit beside each other
        taken = in_turns(work, rounds=setting.rounds)
        del ours, work
        forget()
        by_hand = ByHand(shape, setting.dtype, setting.device)
        work = {"teacher": by_hand.run_teacher, "student": by_hand.train_student}
        peaks = {}
        if fits(by_hand.distill):
            work["by hand"] = by_hand.distill
            peaks["by hand"] = peak_during(by_hand.distill, setting.device)
        taken |= in_turns(work, rounds=setting.rounds)
        del by_hand, work
        to_floor = median(taken["ted"]) / (median(taken["teacher"]) + median(taken["student"]))
        found.claims.append(at_most(f"ted / floor: {shape.name} bf16", to_floor, FLOOR_GOAL))
        found.claims += _mfu(shape.name, operations, median(taken["ted"]), setting)
        if "by hand" in peaks:
            found.claims.append(at_most(f"peak, ted / by hand: {shape.name} bf16", peak / peaks["by hand"], 1.0))
        names = ("teacher", "student", "by hand", "ted")
        shown = [ms(taken[name]) if name in taken else "out of memory" for name in names]
        rate = f"{operations / median(taken['ted']) / 1e12:,.1f}"
        rows.append([f"{shape.name}, {shape.tokens}", *shown, f"{to_floor:.2f}", rate, f"{peak:.1f}"])
    columns = ["milliseconds", "teacher", "student", "by hand", "ted", "ted / floor", "TFLOP/s", "peak GiB"]
    found.add("steps with AdamW, without an engine", columns, rows)
    return found


def packed_batch(shape: Shape, device: torch.device, documents: int) -> Batch:
    """Rows of so many isolated documents."""
    plain = new_batch(shape, torch.device("cpu"))
    length = shape.tokens_per_row // documents
    positions = (torch.arange(shape.tokens_per_row) % length).expand_as(plain.input_ids).contiguous()
    return Batch(
        plain.input_ids, plain.attention_mask, plain.labels, plain.kept_tokens, position_ids=positions, isolated=True
    ).to(device)


def attention_part(setting: Setting) -> Found:
    """Isolated documents by masks (``sdpa``) and by their borders (``packed``): time and peak of a TED step."""
    shape, counts = Shape("Llama 1B>1B", LLAMA_1B, LLAMA_1B, 4, 4096), (1, 8, 32)
    if setting.quick:
        shape, counts = Shape("tiny", tiny(2, 32), tiny(2, 32), 2, 32), (1, 4)
    models = ByTedDs(shape, setting.dtype, setting.device)
    found, rows = Found(), []
    for documents in counts:
        models.batch = packed_batch(shape, setting.device, documents)
        work, peaks = {}, {}
        for name in ("sdpa", PACKED):
            work[name] = _attending(models, name, models.method("ted"))
            peaks[name] = peak_during(work[name], setting.device)
        taken = in_turns(work, rounds=setting.rounds)
        faster = ratio(taken, PACKED, "sdpa")
        shown = [f"{peaks[name]:.1f}" for name in work]
        rows.append([f"{documents} in a row", *(ms(taken[name]) for name in work), f"{faster:.2f}", *shown])
        if documents == counts[-1]:
            found.claims.append(at_most(f"packed / sdpa: {documents} documents in {shape.tokens}", faster, 0.9))
    columns = [f"{shape.name}, {shape.tokens}", "sdpa, ms", "packed, ms", "ratio", "sdpa, GiB", "packed, GiB"]
    found.add("isolated documents", columns, rows)
    return found


def _attending(models: ByTedDs, attention: str, step: Callable[[], None]) -> Callable[[], None]:
    both = (models.teacher.tapped.model, models.module.tapped.model)

    def run() -> None:
        for model in both:
            model.config._attn_implementation = attention
        step()

    return run


def engine_part(setting: Setting) -> Found:
    """A step through DeepSpeed's engine: what it adds to the bare one, and how often the host waits in it."""
    shape = Shape("Llama 1B>1B", LLAMA_1B, LLAMA_1B, 2, 2048)
    if setting.quick:
        shape = Shape("tiny", tiny(2, 32), tiny(2, 32), 2, 16)
    found, rows = Found(), []
    num_micro = 4
    for stage in (1, 2, 3):
        forget()
        seconds, waits = engine_steps(shape, stage, num_micro, rounds=setting.rounds)
        rows.append([f"ZeRO-{stage}, {num_micro} x {shape.tokens}", ms(seconds), str(len(waits))])
        rows += [[f"    {place}", "", str(count)] for place, count in _counted(waits)]
        # transformers looks once a model and microbatch whether rows are padded, and from stage 2 on DeepSpeed waits
        # behind each; the rest is of the whole step
        most = (2 if stage == 1 else 3) * num_micro + 12
        found.claims.append(at_most(f"waits of the host in a step of {num_micro}: ZeRO-{stage}", len(waits), most))
    found.add("steps through the engine", ["", "step, ms", "waits"], rows)
    return found


def _counted(places: Sequence[str]) -> list[tuple[str, int]]:
    ordered = sorted(places)
    counts = [(place, len([*same])) for place, same in itertools.groupby(ordered)]
    return sorted(counts, key=lambda one: -one[1])[:12]


def _tests(name: str) -> Callable[[Setting], Found]:
    def part(setting: Setting) -> Found:
        claims, rows = test_part(name, setting.device.type, quick=setting.quick)
        found = Found(claims)
        found.add(f"tests: {name}", ["", "count"], rows)
        return found

    return part


PARTS: Mapping[str, Callable[[Setting], Found]] = {
    "kernels": _tests("kernels"),
    "runs": _tests("runs"),
    "ranks": _tests("ranks"),
    "vocabulary": vocabulary_part,
    "jsd": jsd_part,
    "steps": steps_part,
    "engine": engine_part,
    "attention": attention_part,
    "parity": _tests("parity"),
    "triton": _tests("triton"),
}


def main() -> int:
    """Run a part, and write down what it has come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    started = time.perf_counter()
    found = PARTS[options.name](Setting(torch.device(options.device), options.quick))
    content = {
        "seconds": time.perf_counter() - started,
        "claims": [asdict(claim) for claim in found.claims],
        "tables": [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in found.tables],
    }
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
