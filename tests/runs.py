"""Real runs of ``ted-ds``, started quickly: one real process a rank, forked from a server that has the heavy imports.

Their signals, exits and files are those of a run that was started by hand; what each rank prints is kept in a file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.dist import CONTEXT, free_port

TIMEOUT_S = 180.0
OF_THE_MACHINE = ("perf/", "time")
"""What differs between two runs that are the same begins with these."""


class Run:
    """A run that was started."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        num_ranks: int = 2,
        fault: Callable[..., None] | None = None,
        fault_arguments: Sequence[Any] = (),
    ) -> None:
        """Start ``ted-ds ARGUMENTS``. ``fault(rank, *fault_arguments)`` may break something in each rank first."""
        self.logs = [Path(f"{_scratch(arguments)}.rank{rank}.log") for rank in range(num_ranks)]
        port = free_port()
        self.processes = [
            CONTEXT.Process(
                target=_rank, args=(rank, num_ranks, port, [*arguments], self.logs[rank], fault, fault_arguments)
            )
            for rank in range(num_ranks)
        ]
        for process in self.processes:
            process.start()

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int | None]:
        """The exit codes; those of ranks that do not end are None, and they are killed."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def wait_for(self, text: str, *, rank: int = 0, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a rank prints something."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output(rank):
            assert self.processes[rank].is_alive(), f"rank {rank} ended before {text!r}:\n{self.output(rank)}"
            assert time.monotonic() < deadline, f"no {text!r} in time:\n{self.output(rank)}"
            time.sleep(0.005)

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join(10)

    def output(self, rank: int | None = None) -> str:
        """What one rank, or all of them, printed."""
        logs = self.logs if rank is None else [self.logs[rank]]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())


def run(arguments: Sequence[str], *, num_ranks: int = 2, codes: int | None = 0, **options: Any) -> str:
    """A run to its end; its output. All ranks must exit with ``codes``, unless that is None."""
    started = Run(arguments, num_ranks=num_ranks, **options)
    found = started.wait()
    assert codes is None or found == [codes] * num_ranks, f"exit codes {found}:\n{started.output()}"
    return started.output()


def traces(output_dir: Path) -> dict[str, Any]:
    """What two runs that are the same must have in common: every report, and every file of weights, to the last bit."""
    records = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    reports = [
        {k: v for k, v in one.items() if not k.startswith(OF_THE_MACHINE) and not k.endswith("tokens_per_s")}
        for one in records
    ]
    weights = {
        str(file.relative_to(output_dir)): file.read_bytes()
        for file in sorted(output_dir.rglob("*.safetensors"))
        if "checkpoints" not in file.parts
    }
    scores = json.loads((output_dir / "evaluate" / "evaluation.json").read_text())
    for values in scores.values():
        values.pop("perf/tokens_per_s")
    return {"reports": reports, "weights": weights, "scores": scores}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two traces differ, in words."""
    found = [
        f"file {name}"
        for name in one["weights"].keys() | other["weights"].keys()
        if one["weights"].get(name) != other["weights"].get(name)
    ]
    if len(one["reports"]) != len(other["reports"]):
        found.append(f"{len(one['reports'])} reports against {len(other['reports'])}")
    for a, b in zip(one["reports"], other["reports"], strict=False):
        wrong = [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
        if wrong:
            found.append(
                f"{a['phase']} step {a['step']}: {', '.join(f'{k} {a.get(k)!r} {b.get(k)!r}' for k in wrong[:3])}"
            )
    if one["scores"] != other["scores"]:
        found.append("scores")
    return found


LOOKED_AT = {"fp32": 2e-5, "bf16": 5e-2}
"""Of how alike layers are, in parts of 1 or of the number itself."""


def is_looked_at(name: str, one: float, other: float, precision: str) -> bool:
    """Whether a metric is of what is only looked at, and so held to a rule of its own, which is checked here.

    The share of a gap is a quotient of differences of losses that nearly agree: little is left of their digits.
    """
    if name.startswith("match/"):
        assert abs(one - other) <= LOOKED_AT[precision] * max(abs(one), 1.0), (name, one, other)
    return name.startswith("match/") or name == "gap/closed"


def copy_run(source: Path, target: Path) -> Path:
    """A copy of an output folder, to go on from in more than one way."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def with_dropout(recipe: Path) -> Path:
    """Every model of a run drops one in ten activations."""
    config = recipe.parent / "teacher" / "config.json"
    values = json.loads(config.read_text())
    names = [name for name in values if name.endswith(("_pdrop", "dropout", "dropout_prob"))]
    assert names, "this family has no dropout"
    config.write_text(json.dumps({**values, **dict.fromkeys(names, 0.1)}))
    return recipe


def _scratch(arguments: Sequence[str]) -> Path:
    recipe = next(Path(word) for word in arguments if word.endswith(".yaml"))
    return recipe.with_name(f"run-{time.monotonic_ns()}")


def _rank(
    rank: int, size: int, port: int, arguments: list[str], log: Path, fault: Any, fault_arguments: Sequence[Any]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WANDB_MODE="disabled", WANDB_SILENT="true")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["ted-ds", *arguments]
    import torch

    from ted_ds import cli

    torch.set_num_threads(1)
    if fault is not None:
        fault(rank, *fault_arguments)
    cli.entry()
