"""The process of a contender: does what it reads from its standard input, a line of JSON at a time."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import Spec
from benchmarks.report import installed

RIVAL_PACKAGES = ("datasets", "streaming", "torchdata")
UNTIMED_BATCHES = 4
"""At a window's start: those that a worker made ahead while nobody measured."""


def main(name: str, spec: Spec) -> None:
    """Load what it needs, then do what each line says; end with the input.

    ``{}`` is answered by the first batch, all other lines by batches for as long or as many tokens as they say.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        import torch

        module = importlib.import_module(f"benchmarks.contenders.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in RIVAL_PACKAGES:
            raise
        answer(missing=error.name)
        return
    torch.set_num_threads(1)
    answer(versions=installed(module.PACKAGES))
    sys.stdin.readline()
    converted_s = 0.0
    if hasattr(module, "convert") and not Path(spec.shards).exists():
        started = time.perf_counter()
        module.convert(spec.file, spec.shards)
        converted_s = time.perf_counter() - started
    started = time.perf_counter()
    batches = module.batches(spec)
    next(batches)
    answer(first_batch_s=time.perf_counter() - started, converted_s=converted_s)
    for line in sys.stdin:
        order = json.loads(line)
        tokens, seconds = _consume(batches, spec, seconds=order["seconds"], tokens=order["tokens"])
        answer(tokens=tokens, seconds=seconds, peak_mib=_peak_mib(os.getpid()))
    if hasattr(batches, "close"):
        batches.close()


def _consume(batches: Iterator[Any], spec: Spec, *, seconds: float, tokens: int) -> tuple[int, float]:
    """Take batches for that long and until that many tokens; returns how many, in what time."""
    for _ in range(UNTIMED_BATCHES):
        next(batches)
    taken, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or taken < tokens:
        next(batches)
        taken += spec.batch_size * spec.sequence_length
    return taken, elapsed


def _peak_mib(process: int) -> float:
    """The most resident memory a process and its descendants have each had, added up (shared pages more than once)."""
    own = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    peak_kib = sum(int(line.split()[1]) for line in own if line.startswith("VmHWM"))
    children = [
        int(child)
        for thread in Path(f"/proc/{process}/task").iterdir()
        for child in (thread / "children").read_text(encoding="utf-8").split()
    ]
    return peak_kib / 2**10 + sum(_peak_mib(child) for child in children)


if __name__ == "__main__":
    main(sys.argv[1], Spec(**json.loads(sys.argv[2])))
