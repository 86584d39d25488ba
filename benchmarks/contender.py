"""The parent's side of a contender: starts its process, tells it how long to run, and reads what it measured."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from benchmarks.contenders import Spec
from benchmarks.report import ROOT

ANSWER_LIMIT_S = 600
LAST_WAIT_S = 20


class Window(NamedTuple):
    """What a contender did in a while."""

    tokens: int
    seconds: float
    peak_mib: float
    """The most memory its processes have had so far, each at its own time."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass
class Contender:
    """A running contender; it waits between windows."""

    name: str
    module: str
    spec: Spec
    python: str = sys.executable
    """The interpreter, for packages that cannot be installed beside the others."""
    missing: str | None = None
    """The package it lacks."""
    first_batch_s: float = 0.0
    """Without the loading of packages."""
    converted_s: float = 0.0
    """For rewriting the corpus before that."""
    versions: dict[str, str] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)

    def __enter__(self) -> Self:
        command = [self.python, "-m", "benchmarks.contenders", self.module, json.dumps(asdict(self.spec))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LAST_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def is_ready(self) -> bool:
        """Wait until it has loaded its packages; False where one is not installed."""
        self._note(self._answer())
        return self.missing is None

    def begin(self) -> None:
        """Let it make its first batch."""
        self._note(self._ask({}))

    def run(self, *, seconds: float = 0.0, tokens: int = 0) -> Window:
        """Let it run for so long, and until so many tokens."""
        self.windows.append(Window(**self._ask({"seconds": seconds, "tokens": tokens})))
        return self.windows[-1]

    def _note(self, answer: dict[str, Any]) -> None:
        for name, value in answer.items():
            setattr(self, name, value)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise RuntimeError(f"{self.name}: no answer for {ANSWER_LIMIT_S} s; run it alone to see where it waits")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with exit code {self._process.wait()}; see above")
        return json.loads(line)


def _environment() -> dict[str, str]:
    """One thread per process for all, and memory as the system gives it: allocator settings would hide its peak."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    single = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return kept | single | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
