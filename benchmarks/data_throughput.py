"""Reading, tokenising and packing a corpus: speed and memory beside the usual ways, and what a resume costs.

    python -m benchmarks.data_throughput [--quick] [--json FILE]

All contenders read the same file in the same run, each in a process of its own with one thread, in turns; compared are
the rates of the same turn. The rivals give token ids alone; ted_ds also splits off the held-out documents and makes
labels and the positions within documents.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.contender import Contender
from benchmarks.contenders import Spec
from benchmarks.corpus import Corpus, prepare_tokenizer
from benchmarks.report import Claim, at_least, at_most, installed, option_parser, publish, table
from benchmarks.resume import resume_seconds

MB = 10**6
SEQUENCE_LENGTH, SEQUENCES = 1024, 8
QUICKSTART_TOKENS_PER_S = 575.0
"""What one rank of the language model's quickstart trains on at most: its teacher's forward alone makes 1,149 tokens/s
on both ranks together (docs/results.md, "The quickstarts")."""
OURS = "ted_ds"
RIVALS = {"datasets": "hf_datasets", "torchdata": "torchdata_nodes", "mosaicml-streaming": "mosaicml"}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    corpus_bytes: int
    workers: tuple[int, ...]
    """Beside the process that takes the batches: a contest for each."""
    rounds: int
    window_s: float
    """Long enough in full mode for every lane to read more than one shuffle window."""
    shuffle_mib: float
    memory_bytes: tuple[int, ...]
    memory_tokens: int
    resume_steps: tuple[int, int]
    resume_repeats: int


FULL = Plan(100 * MB, (0, 1), 7, 8.0, 16, (10 * MB, 100 * MB, 2000 * MB), 8 * MB, (10, 1_000_000), 9)
QUICK = Plan(10 * MB, (0,), 5, 0.6, 1, (10 * MB, 60 * MB), MB // 2, (10, 20_000), 5)


def main() -> None:
    """Measure and report."""
    parser = option_parser(__doc__, quick="smaller files and shorter windows")
    parser.add_argument(
        "--mosaicml-python",
        metavar="PYTHON",
        help="interpreter that has mosaicml-streaming, which needs older packages than ted_ds",
    )
    arguments = parser.parse_args()
    plan, started = QUICK if arguments.quick else FULL, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tables, claims, versions = measure(plan, Path(folder), arguments.mosaicml_python)
    publish(tables, claims, versions=versions, json_path=arguments.json)
    print(f"{time.monotonic() - started:.0f} s in all")


def measure(plan: Plan, folder: Path, mosaicml_python: str | None) -> tuple[list[Table], list[Claim], dict[str, str]]:
    """Everything; files go to ``folder``, the large ones only while they are needed."""
    corpus, tokenizer = Corpus(), prepare_tokenizer(folder / "tokenizer")
    spec = Spec(
        file=str(corpus.write(folder / "corpus.jsonl", plan.corpus_bytes)),
        shards=str(folder / "shards"),
        tokenizer=str(tokenizer),
        end_id=AutoTokenizer.from_pretrained(tokenizer).eos_token_id,
        sequence_length=SEQUENCE_LENGTH,
        batch_size=SEQUENCES,
        num_workers=0,
        shuffle_mib=plan.shuffle_mib,
    )
    print(f"{corpus.description}; tokenizer {tokenizer.name}; shuffle window {plan.shuffle_mib:g} MiB")
    speed, claims, versions = _speed(plan, spec, mosaicml_python)
    resume, resume_claim = _resume(plan, spec)
    memory, memory_claims = _memory(plan, spec, corpus, folder)
    return [speed, resume, memory], [*claims, resume_claim, *memory_claims], versions


def _speed(plan: Plan, spec: Spec, mosaicml_python: str | None) -> tuple[Table, list[Claim], dict[str, str]]:
    rows, claims = [], []
    versions = installed(["ted_ds", "torch", "tokenizers"])
    for num_workers in plan.workers:
        contenders = _contest(plan, replace(spec, num_workers=num_workers), mosaicml_python)
        ours, others = contenders[0], [one for one in contenders[1:] if one.missing is None]
        where = "one worker" if num_workers else "in process"
        for one in contenders:
            rows.append([f"{one.name}, {where}", *_speed_row(one, ours)])
            versions |= {name: v for name, v in one.versions.items() if name not in versions}
            if one.versions.get("tokenizers", versions["tokenizers"]) != versions["tokenizers"]:
                versions[f"tokenizers of {one.name}"] = one.versions["tokenizers"]
        if others:
            slowest_lead = min(_ratio(ours, one) for one in others)
            claims.append(at_least(f"tokens/s beside the fastest other way, {where}", slowest_lead, 1))
        of_rank = median(window.rate for window in ours.windows) / QUICKSTART_TOKENS_PER_S
        claims.append(at_least(f"tokens/s beside a quickstart's rank, {where}", of_rank, 10))
    columns = ["reads, tokenises, packs", "tokens/s", "beside ted_ds", "first batch, s", "peak memory, MiB"]
    return (
        table(f"{plan.corpus_bytes // MB} MB, {SEQUENCES} x {SEQUENCE_LENGTH} tokens", columns, rows),
        claims,
        versions,
    )


def _contest(plan: Plan, spec: Spec, mosaicml_python: str | None) -> list[Contender]:
    """All contenders, ours first, after their rounds."""
    contenders = [Contender(OURS, "ted_stream", spec)]
    for name, module in RIVALS.items():
        contenders.append(Contender(name, module, spec))
        if module == "mosaicml" and mosaicml_python is not None:
            contenders[-1].python = mosaicml_python
    with ExitStack() as stack:
        for one in contenders:  # all load their packages at the same time, but make their first batches in turn
            stack.enter_context(one)
        running = [one for one in contenders if one.is_ready()]
        for one in running:
            one.begin()
        for round_number in range(plan.rounds):
            shift = round_number % len(running)
            for one in running[shift:] + running[:shift]:
                one.run(seconds=plan.window_s)
    return contenders


def _speed_row(one: Contender, ours: Contender) -> list[str]:
    if one.missing is not None:
        return ["not installed", "", "", ""]
    rates = sorted(window.rate for window in one.windows)
    note = f" + {one.converted_s:.1f} to convert" if one.converted_s else ""
    return [
        f"{median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})",
        f"{1 / _ratio(ours, one):.2f}",
        f"{one.first_batch_s:.1f}{note}",
        f"{one.windows[-1].peak_mib:.0f}",
    ]


def _ratio(ours: Contender, other: Contender) -> float:
    """How many times as fast ours is: the median over rounds."""
    return median(a.rate / b.rate for a, b in zip(ours.windows, other.windows, strict=True))


def _resume(plan: Plan, spec: Spec) -> tuple[Table, Claim]:
    """Short sequences, one a step: so many steps are then soon taken, each of them in truth."""
    few, many = plan.resume_steps
    short = replace(spec, sequence_length=16, batch_size=1)
    seconds = resume_seconds(short, plan.resume_steps, repeats=plan.resume_repeats)
    rows = [[f"step {number:,}", f"{seconds[number]:.3f}"] for number in plan.resume_steps]
    name = f"seconds to resume from step {many:,} beside step {few}"
    shown = table("resume: from a state to the next batch, 1 x 16 tokens a step", ["state after", "seconds"], rows)
    return shown, at_most(name, seconds[many] / seconds[few], 2)


def _memory(plan: Plan, spec: Spec, corpus: Corpus, folder: Path) -> tuple[Table, list[Claim]]:
    peaks: dict[int, list[float]] = {num_workers: [] for num_workers in plan.workers}
    for size in plan.memory_bytes:
        file = corpus.write(folder / "input.jsonl", size)
        for num_workers, of_sizes in peaks.items():
            sized = replace(spec, file=str(file), num_workers=num_workers)
            with Contender(OURS, "ted_stream", sized) as one:
                one.is_ready()
                one.begin()
                of_sizes.append(one.run(tokens=plan.memory_tokens).peak_mib)
    names = {0: "in process", 1: "one worker and the process that it is for"}
    rows = [[names[n], *(f"{peak:.1f}" for peak in of_sizes)] for n, of_sizes in peaks.items()]
    shown = table(
        f"peak memory in MiB after {plan.memory_tokens // MB or plan.memory_tokens / MB:g} M tokens",
        ["input", *(f"{size // MB} MB" for size in plan.memory_bytes)],
        rows,
    )
    span = f"{plan.memory_bytes[0] // MB} MB to {plan.memory_bytes[-1] // MB} MB"
    return shown, [
        at_most(f"peak memory from {span}, largest beside smallest, {names[n]}", max(of_sizes) / min(of_sizes), 1.05)
        for n, of_sizes in peaks.items()
    ]


if __name__ == "__main__":
    main()
