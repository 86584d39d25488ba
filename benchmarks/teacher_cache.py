"""What a step of Stage II takes whose teacher is read from a disk, beside plain fine-tuning, and what that takes there.

    python -m benchmarks.teacher_cache [--quick] [--json FILE] [--only TEXT]

*sft* is a step of the student alone. *kd* learns from predictions, *ted* from filtered layers, too: each from a teacher
that runs beside the student, and from one whose 64 most probable ids (of *ted* with states in 8 bits) are on the disk.
All take turns in one process; filling the cache is not in these times. Without a GPU they are processor time of one
thread: of what a step costs, and not of what else the machine does.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, SHAPES, TEMPERATURE, ByTedDs, Shape
from benchmarks.timing import in_turns, ratio
from ted_ds.models.predictions import Predictions, VocabularyPredictions
from ted_ds.numerics.chunks import select_rows
from ted_ds.numerics.keeping import Keeping, Kept, keep_top
from ted_ds.teacher_cache.cached_tokens import CachedTokens
from ted_ds.teacher_cache.store import PartWriter, Reader, finish
from ted_ds.teacher_cache.token_record import Answer, TokenRecord, checksum

NUM_KEPT, GOAL, MOST_BYTES = 64, 1.10, 300
ROUNDS = 7
CACHED = {"kd": "kd, cached", "ted": "ted, cached"}


def cached(by_ted_ds: ByTedDs, shape: Shape, method: str, folder: Path, dtype: torch.dtype) -> CachedTokens:
    """A teacher that is read from the disk, where what it says of the batch was written."""
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
    parts = zip(found[0].ids.chunk(shape.rows), found[0].numbers.chunk(shape.rows), strict=True)
    for row, (ids, numbers) in enumerate(parts):
        own = torch.stack([states[place][row] for place in sorted(states)]) if layers else torch.zeros(0, 1, 0)
        answer = Answer(ids, numbers, own, 0.0, checksum(batch.input_ids[row].cpu()))
        writer.add(row, record.pack(answer), tokens=shape.tokens_per_row)
    writer.close()
    finish(begun, folder / "cache", record, about={}, counts=[shape.rows])
    return CachedTokens(Reader(folder / "cache", record), dtype=dtype, temperature=TEMPERATURE)


def measure(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each contender in each round, and bytes of a token on the disk."""
    by_ted_ds = ByTedDs(shape, dtype, device)
    by_ted_ds.batch = replace(by_ted_ds.batch, samples=tuple(range(shape.rows)))
    contenders, sizes = {name: by_ted_ds.method(name) for name in ("sft", *CACHED)}, dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for method, name in CACHED.items():
            place = Path(folder) / method
            place.mkdir()
            teacher = cached(by_ted_ds, shape, method, place, dtype)
            contenders[name] = by_ted_ds.method(method, cached=teacher)
            sizes[name] = teacher.bytes_per_token
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        return in_turns(contenders, rounds=ROUNDS, clock=clock), sizes


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", default="", help="shapes and precisions whose name holds this text")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    rows, claims = [], []
    for shape in SHAPES[options.quick]:
        for dtype in DTYPES if shape.is_lm else ():
            name = f"{shape.name} {dtype}"
            if options.only not in name:
                continue
            taken, sizes = measure(shape, DTYPES[dtype], device)
            to_plain = {one: ratio(taken, one, "sft") for one in CACHED.values()}
            rows.append([f"{name}, {shape.tokens}", *(f"{median(times) * 1000:,.0f}" for times in taken.values())])
            rows[-1] += [f"{value:.2f}" for value in to_plain.values()] + [f"{size:,.0f}" for size in sizes.values()]
            for method, one in CACHED.items():
                claims.append(at_most(f"{method} from a cache / fine-tuning: {name}", to_plain[one], GOAL))
            claims.append(at_most(f"bytes a token, {NUM_KEPT} ids: {name}", sizes["kd, cached"], MOST_BYTES))
    columns = ["ms of a step", "sft", *CACHED, *CACHED.values()]
    columns += [f"{name} / sft" for name in CACHED.values()] + [f"{name}, bytes a token" for name in CACHED.values()]
    tables = [table("steps from a cache", columns, rows)]
    publish(tables, claims, versions=installed(["torch", "transformers"]), json_path=options.json)


if __name__ == "__main__":
    main()
