"""What a distillation step takes beside its floor, and beside the plain way to write it.

    python -m benchmarks.step_time [--quick] [--json FILE] [--only TEXT] [--frozen]

*Floor* is a forward pass of the teacher and a step of the student alone, each by itself. *By hand* is the plain way:
``output_hidden_states``, whole logits, a ``nn.Linear`` per filter, torch's losses. *With padding 50 %*, half of the
batch is padding, which the plain way compares as well. *A third frozen* is a student whose embeddings and first blocks
are its teacher's, beside the floor of one that trains whole; models drop nothing there. All take turns in one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, METHODS, SHAPES, ByHand, ByTedDs, Shape
from benchmarks.timing import in_turns, ratio
from ted_ds.runtime.host_allocator import keep_freed_memory

FLOOR_GOAL, HAND_GOAL = 1.05, 0.85
WATCHED, LOG_EVERY_STEPS, WATCHED_GOAL = "ted, looked at", 10, 1.01
"""The step of a report, how often there is one, and what a step may take longer by it on average."""
PADDED_BY_HAND, PADDED = "by hand, padding 50 %", "ted, padding 50 %"
FROZEN, FROZEN_GOAL = "ted, a third frozen", 0.85
ROUNDS = 7


def operations(run: Callable[[], object]) -> int:
    """Those of matrix products, counted one by one."""
    with FlopCounterMode(display=False) as counted:
        run()
    return counted.get_total_flops()


def measure(shape: Shape, dtype: str, device: torch.device) -> tuple[dict[str, list[float]], float]:
    """Seconds of each contender in each round, and what ``ted`` is beside its floor by operations alone."""
    by_hand, by_ted_ds = ByHand(shape, DTYPES[dtype], device), ByTedDs(shape, DTYPES[dtype], device)
    contenders = {
        "teacher": by_hand.run_teacher,
        "student": by_hand.train_student,
        "by hand": by_hand.distill,
        **{method: by_ted_ds.method(method) for method in METHODS},
        WATCHED: by_ted_ds.method("ted", watched=True),
        PADDED_BY_HAND: by_hand.distill_padded,
        PADDED: by_ted_ds.method("ted", padded=True),
    }
    of_ted, *of_floor = (operations(contenders[name]) for name in ("ted", "teacher", "student"))
    return in_turns(contenders, rounds=ROUNDS), of_ted / sum(of_floor)


def measure_frozen(shape: Shape, dtype: str, device: torch.device) -> dict[str, list[float]]:
    """The same of the floor, of a student that trains whole, and of one whose first third does not."""
    shape = shape.without_dropout
    num_frozen = max(shape.student.num_hidden_layers // 3, 1)
    by_hand = ByHand(shape, DTYPES[dtype], device)
    contenders = {
        "teacher": by_hand.run_teacher,
        "student": by_hand.train_student,
        "ted": ByTedDs(shape, DTYPES[dtype], device).method("ted"),
        FROZEN: ByTedDs(shape, DTYPES[dtype], device, num_frozen=num_frozen).method("ted"),
    }
    return in_turns(contenders, rounds=ROUNDS)


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", default="", help="shapes and precisions whose name holds this text")
    parser.add_argument("--frozen", action="store_true", help="of a third frozen alone")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()  # as a run does
    rows, frozen_rows, claims = [], [], []
    chosen = [(shape, dtype) for shape in SHAPES[options.quick] for dtype in DTYPES]
    for shape, dtype in chosen:
        name = f"{shape.name} {dtype}"
        if options.only not in name:
            continue
        if not options.frozen:
            taken, by_operations = measure(shape, dtype, device)
            rows.append([f"{name}, {shape.tokens}", *_milliseconds(taken)])
            to_floor = ratio(taken, "ted", "teacher", "student")
            to_hand = ratio(taken, "ted", "by hand")
            watched = 1 + (ratio(taken, WATCHED, "ted") - 1) / LOG_EVERY_STEPS
            padded = ratio(taken, PADDED, PADDED_BY_HAND)
            rows[-1] += [f"{to_floor:.2f}", f"{by_operations:.3f}", f"{to_hand:.2f}", f"{watched:.3f}", f"{padded:.2f}"]
            claims.append(at_most(f"with reports / without: {name}", watched, WATCHED_GOAL))
            claims.append(at_most(f"ted / floor: {name}", to_floor, FLOOR_GOAL))
            if shape.is_lm:
                claims.append(at_most(f"ted / by hand: {name}", to_hand, HAND_GOAL))
                claims.append(at_most(f"ted / by hand, padding 50 %: {name}", padded, HAND_GOAL))
        if shape.is_cut:
            taken = measure_frozen(shape, dtype, device)
            below = ratio(taken, FROZEN, "teacher", "student")
            frozen_rows.append([f"{name}, {shape.tokens}", *_milliseconds(taken), f"{below:.2f}"])
            claims.append(at_most(f"{FROZEN} / floor: {name}", below, FROZEN_GOAL))
    names = ["teacher", "student", "by hand", *METHODS, WATCHED, PADDED_BY_HAND, PADDED]
    names += [
        "ted / (teacher + student)",
        "the same by operations alone",
        "ted / by hand",
        f"with a report every {LOG_EVERY_STEPS} steps / without",
        "ted / by hand, padding 50 %",
    ]
    title = f"milliseconds of a step, median of {ROUNDS}"
    tables = [_by_case(title, names, rows)] if rows else []
    if frozen_rows:
        of_frozen = ["teacher", "student", "ted", FROZEN, f"{FROZEN} / (teacher + student)"]
        tables.append(_by_case(f"{title}, without dropout", of_frozen, frozen_rows))
    publish(tables, claims, versions=installed(("torch", "transformers")), json_path=options.json)


def _milliseconds(taken: Mapping[str, list[float]]) -> list[str]:
    return [f"{median(times) * 1000:,.0f}" for times in taken.values()]


def _by_case(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    cases, values = [row[0] for row in rows], [row[1:] for row in rows]
    return table(title, ["", *cases], [[name, *of_name] for name, *of_name in zip(names, *values, strict=True)])


if __name__ == "__main__":
    main()
