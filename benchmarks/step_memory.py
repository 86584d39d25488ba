"""How much memory a distillation step takes beside training the student alone, and beside the plain way to write it.

    python -m benchmarks.step_memory [--quick] [--json FILE]

Peaks of processes of their own, each with the models, Adam's states and two steps, above what the imported packages
take. *Needed* is the peak of training the student alone, with transformers' own loss, and the teacher's weights.
"""

from __future__ import annotations

import argparse
import os

import torch

from benchmarks.memory import in_own_process, in_use, peak_of
from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, SHAPES, ByHand, ByTedDs, Shape, new_model

NEEDED_GOAL, HAND_GOAL = 1.15, 0.5
CASES = ("student", "by hand", "ted")


def print_peak(shape: Shape, dtype: str, case: str, device: torch.device) -> None:
    """In a process of its own: the peak of one case."""
    since = in_use()
    print(peak_of(lambda: _two_steps(shape, DTYPES[dtype], case, device), since=since))


def _two_steps(shape: Shape, dtype: torch.dtype, case: str, device: torch.device) -> None:
    if case == "student":
        alone = ByHand(shape, dtype, device, with_teacher=False)
        step = alone.train_student
    elif case == "by hand":
        step = ByHand(shape, dtype, device).distill
    else:
        step = ByTedDs(shape, dtype, device).method(case)
    for _ in range(2):
        step()


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__)
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.peak_of:
        name, dtype, case = options.peak_of
        shape = next(shape for shapes in SHAPES.values() for shape in shapes if shape.name == name)
        print_peak(shape, dtype, case, device)
        return
    rows, claims = [], []
    for shape in SHAPES[options.quick]:
        for dtype in ("bf16",) if options.quick else DTYPES:
            weights = sum(
                parameter.numel()
                for parameter in new_model(shape, shape.teacher, DTYPES[dtype], torch.device("meta")).parameters()
            )
            teacher = weights * DTYPES[dtype].itemsize
            peaks = {
                case: in_own_process("benchmarks.step_memory", "--peak-of", shape.name, dtype, case) for case in CASES
            }
            needed = peaks["student"] + teacher
            name = f"{shape.name} {dtype}"
            numbers = [peaks["student"], teacher, peaks["by hand"], peaks["ted"]]
            to_needed, to_hand = peaks["ted"] / needed, peaks["ted"] / peaks["by hand"]
            shown = [f"{number / 2**20:,.0f}" for number in numbers]
            rows.append([f"{name}, {shape.tokens}", *shown, f"{to_needed:.2f}", f"{to_hand:.2f}"])
            claims.append(at_most(f"ted / (student + teacher's weights): {name}", to_needed, NEEDED_GOAL))
            if shape.is_lm:
                claims.append(at_most(f"ted / by hand: {name}", to_hand, HAND_GOAL))
    columns = ["MiB", "student", "teacher's weights", "by hand", "ted", "ted / needed", "ted / by hand"]
    packages = ("torch", "transformers")
    made = table("peaks of processes of their own", columns, rows)
    publish([made], claims, versions=installed(packages), json_path=options.json)


if __name__ == "__main__":
    main()
