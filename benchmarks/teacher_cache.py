"""What a step of Stage II takes whose teacher is read from a disk, beside plain fine-tuning, and what that takes there.

    python -m benchmarks.teacher_cache [--quick] [--json FILE] [--only TEXT]

*sft* is a step of the student alone. *kd* learns from predictions, *ted* from filtered layers, too: each from a teacher
that runs beside the student, and from one whose 64 most probable ids (of *ted* with states in 8 bits) are on the disk.
All take turns in one process; filling the cache is not in these times. Without a GPU they are processor time of one
thread: of what a step costs, and not of what else the machine does.

A step's answers are read by themselves, too, by the clock, with a step of the student before each: from memory, from a
disk whose pages the system has forgotten, and from one that was told a step before what will be read, as a run does.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, SHAPES, TEMPERATURE, ByTedDs, Shape
from benchmarks.timing import in_turns, ratio, synchronise
from ted_ds.data.loader import Batch, checksum
from ted_ds.models.predictions import Predictions, Taught, VocabularyPredictions
from ted_ds.numerics.chunks import select_rows
from ted_ds.numerics.keeping import Keeping, Kept, keep_top
from ted_ds.teacher_cache.cached_tokens import CachedTokens
from ted_ds.teacher_cache.parts import PartWriter
from ted_ds.teacher_cache.store import Reader, finish
from ted_ds.teacher_cache.token_record import Answer, TokenRecord

NUM_KEPT, GOAL, MOST_BYTES = 64, 1.10, 300
ROUNDS = 7
STEPS = ROUNDS + 1
"""Whose answers are on the disk."""
WAYS = ("in memory", "cold", "cold, told a step before")
"""Where a step's answers are read from."""
CACHED = {"kd": "kd, cached", "ted": "ted, cached"}


class Fill:
    """A teacher that is read from the disk, where what it says of the batch was written for as many steps as there are.

    The next step's is read each time, and after the last the first one's.
    """

    def __init__(self, place: Path, record: TokenRecord, rows: int, dtype: torch.dtype, *, is_told: bool) -> None:
        self.parts, self._rows = [*place.glob("*.bin")], rows
        ahead = rows if is_told else None
        self.cached = CachedTokens(Reader(place, record), dtype=dtype, temperature=TEMPERATURE, ahead=ahead)
        self._steps = itertools.cycle(range(STEPS))

    def teach(self, batch: Batch, then: Callable[[Taught | None], None], **wanted: Any) -> None:
        """See :class:`ted_ds.runtime.teacher.Teacher`."""
        first = next(self._steps) * self._rows
        self.cached.teach(replace(batch, samples=tuple(range(first, first + self._rows))), then, **wanted)

    def forget(self) -> None:
        """Let the system forget what it has of the files."""
        for part in self.parts:
            descriptor = os.open(part, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def fill(by_ted_ds: ByTedDs, shape: Shape, method: str, folder: Path) -> tuple[Path, TokenRecord]:
    """A cache of what the teacher says of the batch, as many times as there are steps, and how it is read."""
    layers = len(by_ted_ds.teacher_filters.layers) if method == "ted" else 0
    width, vocab = shape.teacher.hidden_size if layers else 0, shape.teacher.vocab_size
    record, batch = TokenRecord(layers, width, "int8", NUM_KEPT, vocab), by_ted_ds.batch
    states: dict[int, Tensor] = {}
    found: list[Kept] = []

    def keep(predictions: Predictions | None) -> None:
        assert isinstance(predictions, VocabularyPredictions)
        hidden = select_rows(predictions.hidden, batch.label_rows)
        labels = select_rows(batch.labels.unsqueeze(-1), batch.label_rows).squeeze(-1)
        keeping = Keeping(NUM_KEPT, vocab, TEMPERATURE)
        found.append(Kept(*predictions.head(hidden, lambda w, b: keep_top(hidden, w, b, labels, keeping))))

    def keep_state(place: int, state: Tensor) -> None:
        states[place] = by_ted_ds.teacher_filters.filters[place](state)

    with torch.no_grad():
        by_ted_ds.teacher.teach(batch, keep, with_predictions=True, on_state=keep_state if layers else None)
    begun = folder / "begun"
    begun.mkdir()
    writer = PartWriter(begun, 0)
    answers = list[bytes]()
    parts = zip(found[0].ids.chunk(shape.rows), found[0].numbers.chunk(shape.rows), strict=True)
    for row, (ids, numbers) in enumerate(parts):
        own = torch.stack([states[place][row] for place in sorted(states)]) if layers else torch.zeros(0, 1, 0)
        answers.append(record.pack(Answer(ids, numbers, own, 0.0, batch.checksums[row])))
    for sample, packed in enumerate(answers * STEPS):
        writer.add(sample, packed, tokens=shape.tokens_per_row)
    writer.close()
    finish(begun, folder / "cache", record, about={}, counts=[STEPS] * shape.rows)
    return folder / "cache", record


def reading(fill_of: Callable[[bool], Fill], batch: Batch, layers: int, student: Callable[[], None]) -> list[float]:
    """Milliseconds to read a step's answers in each of the ways, medians over steps."""
    taken = []
    on_state = (lambda *_: None) if layers else None
    for way in WAYS:
        own = fill_of(way == WAYS[2])
        own.forget()
        times = []
        for step in range(STEPS):
            if way == WAYS[1]:
                own.forget()
            if way == WAYS[0]:
                for part in own.parts:
                    part.read_bytes()
            student()
            synchronise()
            started = time.perf_counter()
            own.teach(batch, lambda _: None, with_predictions=True, on_state=on_state)
            synchronise()
            if step:  # nobody told of the first one
                times.append(time.perf_counter() - started)
        taken.append(median(times) * 1000)
    return taken


def measure(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, list[float]]]:
    """Seconds of each contender in each round, bytes of a token on the disk, and milliseconds of reading a step's."""
    by_ted_ds = ByTedDs(shape, dtype, device)
    batch = by_ted_ds.batch
    checksums = tuple(checksum(row.tolist()) for row in batch.input_ids)
    by_ted_ds.batch = batch = replace(batch, samples=tuple(range(shape.rows)), checksums=checksums)
    contenders, sizes = {name: by_ted_ds.method(name) for name in ("sft", *CACHED)}, dict[str, float]()
    student, of_reading = contenders["sft"], dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        for method, name in CACHED.items():
            (Path(folder) / method).mkdir()
            place, record = fill(by_ted_ds, shape, method, Path(folder) / method)

            def of(is_told: bool, place: Path = place, record: TokenRecord = record) -> Fill:
                return Fill(place, record, shape.rows, dtype, is_told=is_told)

            teacher = of(True)
            contenders[name] = by_ted_ds.method(method, cached=teacher)
            sizes[name] = teacher.cached.bytes_per_token
            of_reading[method] = reading(of, batch, record.num_layers, student)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        return in_turns(contenders, rounds=ROUNDS, clock=clock), sizes, of_reading


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", default="", help="shapes and precisions whose name holds this text")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    rows, of_disk, claims = [], [], []
    for shape in SHAPES[options.quick]:
        for dtype in DTYPES if shape.is_lm else ():
            name = f"{shape.name} {dtype}"
            if options.only not in name:
                continue
            taken, sizes, of_reading = measure(shape, DTYPES[dtype], device)
            to_plain = {one: ratio(taken, one, "sft") for one in CACHED.values()}
            rows.append([f"{name}, {shape.tokens}", *(f"{median(times) * 1000:,.0f}" for times in taken.values())])
            rows[-1] += [f"{value:.2f}" for value in to_plain.values()] + [f"{size:,.0f}" for size in sizes.values()]
            for method, one in CACHED.items():
                claims.append(at_most(f"{method} from a cache / fine-tuning: {name}", to_plain[one], GOAL))
            step_ms = median(taken["sft"]) * 1000
            for method, times in of_reading.items():
                mib = sizes[CACHED[method]] * shape.rows * shape.tokens_per_row / 2**20
                of_disk.append(
                    [f"{name}, {method}", f"{mib:.2f}", *(f"{one:,.2f}" for one in times), f"{step_ms:,.0f}"]
                )
                added = (times[2] - times[0]) / step_ms
                claims.append(at_most(f"{method}: what a cold cache adds / fine-tuning: {name}", added, GOAL - 1))
            claims.append(at_most(f"bytes a token, {NUM_KEPT} ids: {name}", sizes["kd, cached"], MOST_BYTES))
    columns = ["ms of a step", "sft", *CACHED, *CACHED.values()]
    columns += [f"{name} / sft" for name in CACHED.values()] + [f"{name}, bytes a token" for name in CACHED.values()]
    tables = [
        table("steps from a cache", columns, rows),
        table("ms to read a step's answers, by the clock", ["", "MiB", *WAYS, "a step of sft"], of_disk),
    ]
    publish(tables, claims, versions=installed(["torch", "transformers"]), json_path=options.json)


if __name__ == "__main__":
    main()
