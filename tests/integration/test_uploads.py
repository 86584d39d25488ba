"""Runs that keep their checkpoints at an S3 (moto's server), too: which misbehaves, and is all that is left of a run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import signal_at
from tests.runs import Run, differences, run, traces, with_dropout
from tests.stores import StoreServer, reach, reach_and
from tests.tiny import write_run

pytestmark = pytest.mark.lengthy

RANKS = 2
STEPS = 8


class Uploading:
    """A run that was never stopped and has no store, and others like it that have one."""

    def __init__(self, folder: Path, server: StoreServer) -> None:
        self.folder, self.server = folder, server
        recipe = with_dropout(write_run(folder, family="gpt2"))
        self._arguments = [
            "run",
            str(recipe),
            "filters.teacher.max_steps=2",
            "filters.student.max_steps=2",
            f"distill.max_steps={STEPS}",
            "distill.micro_batch_size=1",
            "checkpoint.every_steps=2",
            "evaluation.every_steps=3",
            "tracking.log_every_steps=1",
            "collective_timeout_s=60",
        ]
        run([*self._arguments, f"output_dir={folder / 'whole'}"])
        self.whole = traces(folder / "whole")
        self._number = 0

    def new(self) -> tuple[str, Path]:
        """The name of a run, which is that of its place at the store, and its folder."""
        self._number += 1
        name = f"run-{self._number}"
        return name, self.folder / name

    def arguments(self, name: str, *, timeout_s: float = 30.0) -> list[str]:
        place = f"{{to: '{self.server.url(f'runs/{name}')}', timeout_s: {timeout_s}}}"
        return [*self._arguments, f"output_dir={self.folder / name}", f"checkpoint.upload={place}"]

    def run(self, name: str, *, codes: int = 0, timeout_s: float = 30.0) -> str:
        arguments = self.arguments(name, timeout_s=timeout_s)
        return run(arguments, codes=codes, fault=reach, fault_arguments=(self.server.environment,))

    def start(self, name: str, *fault: Any, timeout_s: float = 30.0) -> Run:
        """One that ``fault`` breaks something in."""
        arguments = (self.server.environment, *fault)
        return Run(self.arguments(name, timeout_s=timeout_s), fault=reach_and, fault_arguments=arguments)

    def there(self, name: str) -> list[str]:
        """What the store has of a run."""
        return [one.removeprefix(f"runs/{name}/") for one in self.server.names(f"runs/{name}/")]

    def check(self, place: Path, *, after: int | None = None) -> None:
        """That a run came to what it would have without a store; ``after`` a step, where reports before are lost."""
        found, whole = traces(place), dict(self.whole)
        if after is not None:
            for one in (found, whole):
                one["reports"] = [r for r in one["reports"] if r["phase"] == "distill" and r["step"] > after]
            assert len(whole["reports"]) >= STEPS - after
        assert differences(whole, found) == []


@pytest.fixture(scope="module")
def uploading(tmp_path_factory):
    server = StoreServer()
    try:
        yield Uploading(tmp_path_factory.mktemp("uploads"), server)
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def in_order(uploading):
    """Each test begins with a server that does what it is asked."""
    uploading.server.do()


def whole_at(names: list[str], phase: str = "distill") -> list[int]:
    """Steps whose checkpoints have a manifest."""
    found = (re.fullmatch(rf"checkpoints/{phase}/step_(\d+)/manifest\.json", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def test_a_run_is_the_same_and_all_of_it_is_at_the_store(uploading):
    name, place = uploading.new()
    output = uploading.run(name)
    assert "WARN" not in output, output
    uploading.check(place)
    there = uploading.there(name)
    here = [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]
    phases = [one.split("/")[0] for one in here if one.endswith("/phase.json")]
    assert "distill" in phases
    for phase in phases:
        assert [one for one in there if one.startswith(f"{phase}/")] == sorted(
            one for one in here if one.startswith(f"{phase}/")
        )
    best = json.loads((place / "distill" / "phase.json").read_text())["result"]["best"]["step"]
    assert whole_at(there) == [step for step in (best,) if step != STEPS]
    assert json.loads(uploading.server.read(f"runs/{name}/run.json")) == json.loads((place / "run.json").read_text())
    # the machine is gone
    shutil.move(place, place.with_name("gone"))
    asked = len(uploading.server.asked())
    output = uploading.run(name)
    assert "distill: complete, skipped" in output
    assert "distill 1/" not in output
    puts = [one for one in uploading.server.asked()[asked:] if one.startswith("PUT")]
    assert not [one for one in puts if "safetensors" in one], "what is there is not put there again"
    gone = traces_without_reports(place.with_name("gone"))
    assert traces_without_reports(place) == gone


def traces_without_reports(place: Path) -> dict[str, Any]:
    files = sorted(file for file in place.rglob("*.safetensors") if "checkpoints" not in file.parts)
    return {str(file.relative_to(place)): file.read_bytes() for file in files}
