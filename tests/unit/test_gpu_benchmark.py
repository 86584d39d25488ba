"""The one command for a GPU, rehearsed on a CPU: each part runs, none costs another, and its JSON is as all are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.check import worse
from benchmarks.gpu_packages import needed
from benchmarks.gpu_parts import PARTS, Setting
from benchmarks.gpu_tests import FILES
from benchmarks.report import ROOT
from tests.dist import run_ranks
from tests.optional import OPTIONAL

MEASURED = ("vocabulary", "jsd", "steps", "attention")
QUICK = Setting(torch.device("cpu"), quick=True)


def claims_and_rows(name: str) -> tuple[list[str], list[int]]:
    found = PARTS[name](QUICK)
    assert all(isinstance(claim.value, float | int) for claim in found.claims)
    for _, columns, rows in found.tables:
        assert all(len(row) <= len(columns) for row in rows)
    return [claim.name for claim in found.claims], [len(rows) for _, _, rows in found.tables]


def of_engine() -> tuple[list[str], list[int]]:
    return claims_and_rows("engine")


def test_each_part_has_a_bound_and_each_bound_a_part() -> None:
    assert [*gpu.BOUNDS] == [*PARTS]
    assert sum(gpu.BOUNDS[name] for name in ("kernels", *MEASURED, "engine")) < gpu.BUDGET_S < 600
    assert all((ROOT / file).is_file() for files in FILES.values() for file in files)


@pytest.mark.parametrize("name", MEASURED)
def test_a_part_makes_claims_and_tables(name: str) -> None:
    claims, rows = claims_and_rows(name)
    assert claims
    assert all(rows)


def test_steps_go_through_an_engine() -> None:
    ((claims, rows),) = run_ranks(of_engine, 1, joins=False)
    assert claims == [f"waits of the host in a step of 4: ZeRO-{stage}" for stage in (1, 2, 3)]
    assert rows[0] > 3


def test_the_command_writes_what_the_guard_reads(tmp_path: Path) -> None:
    place = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", "jsd", "--json", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    content: Any = json.loads(place.read_text())
    assert {*content} == {"hardware", "versions", "commit", "claims", "parts"}
    assert content["hardware"]["gpu"] == gpu.device_name()
    assert content["parts"]["jsd"]["outcome"] == "done"
    assert [claim["name"] for claim in content["claims"]] == ["tokens/s: tiny, jsd, 2 x 16"]
    assert worse(content, content) == {}
    assert "JSD alone" in done.stdout


def test_a_part_that_fails_or_hangs_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "gpu.json"
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("raise SystemExit('broken here')")
    assert gpu.run_part("jsd", 0.2, rehearse=True)["outcome"] == "not done within 0 s"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse", "--only", "jsd,steps", "--json", str(place)])
    assert gpu.main() == 1
    parts = json.loads(place.read_text())["parts"]
    assert {part["outcome"] for part in parts.values()} == {"ended with 1"}
    assert all("broken here" in "\n".join(part["said"]) for part in parts.values())


def test_without_a_gpu_it_says_what_to_do() -> None:
    if gpu.device_name() is not None:
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "there is no NVIDIA GPU here" in done.stderr
    assert "--rehearse" in done.stderr


def test_packages_to_carry_are_all_but_torchs() -> None:
    found = needed(["ted_ds", "pytest"])
    assert {"deepspeed", "transformers", "pydantic", "pydantic-core", "hjson"} <= found.keys()
    assert not any(name.startswith(("torch", "nvidia", "triton")) for name in found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_in_one_command(tmp_path: Path) -> None:
    place = tmp_path / "gpu.json"
    command = ["bash", "benchmarks/gpu.sh", "--rehearse", "--json", str(place)]
    beside = {"PYTHONPATH": str(OPTIONAL)}  # torchao, so that nothing is missing
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **beside}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    content: Any = json.loads(place.read_text())
    assert {name: part["outcome"] for name, part in content["parts"].items()} == dict.fromkeys(PARTS, "done")
    failing = [one for one in content["claims"] if one["name"].startswith("tests") and not one["holds"]]
    assert failing == []
