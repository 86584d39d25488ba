"""Tests as parts of :mod:`benchmarks.gpu`: how many pass, and which do not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.report import ROOT, Claim, at_least, at_most
from tests.device import KERNELS_VARIABLE, OF_KERNELS, ON_BOTH, VARIABLE

FILES = {
    "kernels": ("tests/gpu/test_kernels.py", "tests/gpu/test_faults.py", "tests/parity/test_waiting.py"),
    "parity": tuple(file for file in ON_BOTH if "test_waiting" not in file),
    "triton": OF_KERNELS,
    "runs": ("tests/gpu/test_runs.py",),
    "ranks": ("tests/gpu/test_ranks.py",),
}
IN_SHORT = {
    "kernels": "deterministic_way",
    "parity": "borders_are_those",
    "triton": "head_with_a_bias",
    "runs": "8_bits",
    "ranks": "stages0",
}
"""What is run of each where a rehearsal is to end soon."""
MORE = {"triton": {KERNELS_VARIABLE: "triton"}}
"""In the environment."""
MOST_AT_ONCE = 4


def test_part(name: str, device: str, *, quick: bool) -> tuple[list[Claim], list[list[str]]]:
    """Claims about the tests of a part, and how many came to what, with the names of those that failed."""
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return [], [["NOT RUN: triton is not installed", ""]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES[name]]
    command += ["-k", IN_SHORT[name]] if quick else []
    if importlib.util.find_spec("xdist") is not None and not quick:
        command += ["-n", str(min(MOST_AT_ONCE, len(os.sched_getaffinity(0)))), "--dist", "load"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = {**os.environ, VARIABLE: device, **MORE.get(name, {})}
        if name == "triton" and device == "cpu":
            environment["TRITON_INTERPRET"] = "1"
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environment)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode}, and without a report")
        cases = [*ElementTree.parse(report).getroot().iter("testcase")]  # noqa: S314 - pytest wrote it
    outcomes = {
        kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")
    }
    wrong = [*outcomes["failure"], *outcomes["error"]]
    passed = len(cases) - len(wrong) - len(outcomes["skipped"])
    rows = [["passed", str(passed)], ["skipped", str(len(outcomes["skipped"]))], ["failed", str(len(wrong))]]
    rows += [[f"    {case.get('classname')}::{case.get('name')}", ""] for case in wrong]
    return [at_most(f"tests that fail: {name}", len(wrong), 0), at_least(f"tests that pass: {name}", passed, 1)], rows
