"""The exported student is scored by tasks of lm-eval."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.config.evaluation import is_task_file
from ted_ds.errors import ConfigError
from ted_ds.output.phase_folder import PhaseFolder, file_sha256
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase

JOB = "ted_ds.phases.lm_eval_job"
RESULTS_FILE = "lm_eval.json"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "PMIX_", "MV2_")
"""How variables begin by which lm-eval would take its process for one of several."""
POLL_S = 0.2
LAST_LINES = 5


@dataclass(frozen=True)
class Job:
    """What lm-eval is to do, for :mod:`ted_ds.phases.lm_eval_job`."""

    model: str
    tasks: list[str]
    dtype: str
    device: str
    batch_size: int
    results: str


class SignsOfLife:
    """Whether a log still grows: a process that hangs says nothing more."""

    def __init__(self, log: Path, limit_s: float) -> None:
        """Give it so many seconds of silence."""
        self._log, self._limit_s = log, limit_s
        self._size, self._grew_at = -1, time.monotonic()
        self.missing_s: float | None = None
        """How long it had been silent, once that was too long."""

    def are_missing(self) -> bool:
        """Whether nothing came for too long."""
        size, now = self._log.stat().st_size, time.monotonic()
        if size != self._size:
            self._size, self._grew_at = size, now
        elif now - self._grew_at > self._limit_s:
            self.missing_s = now - self._grew_at
        return self.missing_s is not None


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    tasks = inputs.recipe.evaluation.lm_eval or []
    return {
        "student": inputs.folders.identity_in_run(inputs.folders.distilled_path()),
        "tasks": {Path(task).name if is_task_file(task) else task: _identity(task) for task in tasks},
        "precision": inputs.recipe.precision,
    }


def _identity(task: str) -> str:
    return file_sha256(Path(task)) if is_task_file(task) else "lm-eval's"


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build = kit.build
    evaluation = build.recipe.evaluation
    build.stops.has_work(True)  # tasks may take long, and a request to stop is looked for all the while
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        job = Job(
            model=str(kit.folders.plain_export_path()),
            tasks=[*(evaluation.lm_eval or [])],
            dtype=DTYPES[build.recipe.precision],
            device=str(build.world.device),
            batch_size=evaluation.micro_batch_size,
            results=str(place / RESULTS_FILE),
        )
        process = _start(job, place) if build.world.is_main else None
        build.screen.say(f"  {phase.name}: {', '.join(job.tasks)}, by lm-eval in a process of its own")
        signs = SignsOfLife(place / "log", build.recipe.collective_timeout_s)
        try:
            # the others wait for a second at a time, however long the tasks take
            while build.world.highest(process is not None and process.poll() is None)[0]:
                build.stop_if_asked()
                if build.world.highest(process is not None and signs.are_missing())[0]:
                    break  # it is killed, and that is said below
                time.sleep(POLL_S)
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

        def read() -> dict[str, float]:
            assert process is not None
            if signs.missing_s is not None:
                raise ConfigError(
                    f"evaluation.lm_eval: lm-eval said nothing for {signs.missing_s:.0f} s and was ended; raise "
                    f"collective_timeout_s, or leave out what hangs of {', '.join(job.tasks)}"
                )
            if process.returncode != 0:
                lines = (place / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise ConfigError(
                    f"evaluation.lm_eval: lm-eval ended with code {process.returncode}; its last lines: "
                    f"{' | '.join(lines[-LAST_LINES:])}; mend the task, or remove it"
                )
            return json.loads(Path(job.results).read_text(encoding="utf-8"))

        results = build.world.on_main(read)
    kit.journal.rewind(phase.name, -1)
    kit.journal.track(phase.name, 0, results)
    for name, value in results.items():
        build.screen.say(f"  {phase.name}: {name} {value:.4g}")

    def write(unfinished: Path) -> dict[str, Any]:
        (unfinished / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        return results

    kit.write(folder, write)


def _start(job: Job, place: Path) -> subprocess.Popen[bytes]:
    settings = place / "settings.json"
    settings.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    with (place / "log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - a module of ours
            [sys.executable, "-m", JOB, str(settings)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )


WORK = Work(_inputs, _run)
