"""All there is to ask of one GPU, within ten minutes: tests, then claims at the shapes that GPUs are for.

    python -m benchmarks.gpu [--only NAME,...] [--json FILE] [--budget SECONDS]
    python -m benchmarks.gpu --rehearse [--json FILE]      # tiny shapes on a CPU: whether each part runs

``bash benchmarks/gpu.sh`` is the same on a bare machine. Parts (:mod:`benchmarks.gpu_parts`) are processes of their
own, each with a bound on its time, so that one that fails or hangs costs no other; what is known so far is in the JSON
after each. Nothing was measured yet: this project was built where there was no GPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, Claim, commit, hardware, installed, option_parser, publish, table

BOUNDS = {
    "kernels": 100,
    "runs": 180,
    "ranks": 120,
    "vocabulary": 60,
    "jsd": 60,
    "steps": 120,
    "engine": 60,
    "attention": 60,
    "parity": 120,
    "triton": 60,
}
"""Parts in their order, and the most seconds of each: in all more than there are, so what tells most is first."""
BUDGET_S, LEAST_S = 570.0, 20.0
TIMES_OF_A_REHEARSAL = 3
PACKAGES = ("torch", "transformers", "deepspeed", "torchao", "triton")
SHOWN_LINES = 15


def run_part(name: str, seconds: float, *, rehearse: bool) -> dict[str, Any]:
    """What a part has come to: its ``outcome`` (``done``, or why not), and its seconds, claims and tables."""
    device = "cpu" if rehearse else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        place, log = Path(folder) / "part.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--json", str(place), "--device", device]
        environment = {**os.environ, "DS_ACCELERATOR": device, "PYTHONPATH": _with_root()}
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command + (["--quick"] if rehearse else []),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        found: dict[str, Any] = {"seconds": time.monotonic() - started, "claims": [], "tables": []}
        said = log.read_text(errors="replace").splitlines()
        if code == 0:
            return {**found, **json.loads(place.read_text(encoding="utf-8")), "outcome": "done"}
    why = f"not done within {seconds:.0f} s" if code is None else f"ended with {code}"
    return {**found, "outcome": why, "said": said[-SHOWN_LINES:]}


def _with_root() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started; they are a group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(30)


def device_name() -> str | None:
    """What the GPU is called; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip().splitlines()[0]


def folder_of(device: str) -> str:
    """A folder's name for results of this GPU."""
    return re.sub(r"[^a-z0-9]+", "-", device.split(",")[0].lower()).strip("-")


def contents(parts: Mapping[str, Mapping[str, Any]], device: str | None) -> dict[str, Any]:
    """All parts as the JSON of a benchmark, with each part's tables and outcome beside it."""
    return {
        "hardware": {**hardware(), "gpu": device},
        "versions": installed(PACKAGES),
        "commit": commit(),
        "claims": [claim for part in parts.values() for claim in part["claims"]],
        "parts": {name: {key: part[key] for key in part if key != "claims"} for name, part in parts.items()},
    }


def main() -> int:
    """Run the parts; 1 where one of them did not come to its end."""
    parser = option_parser(__doc__, quick="the same as --rehearse")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--only", default=",".join(BOUNDS), help="parts, with commas between them")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="for all parts together")
    options = parser.parse_args()
    rehearse, device = options.rehearse or options.quick, device_name()
    names = options.only.split(",")
    unknown = sorted({*names} - {*BOUNDS})
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; use {', '.join(BOUNDS)}")
    if not rehearse and device is None:
        parser.error("there is no NVIDIA GPU here (nvidia-smi finds none); --rehearse runs tiny shapes on a CPU")
    place = options.json
    if place is None and device is not None and not rehearse:
        place = ROOT / "benchmarks" / "results" / folder_of(device) / "gpu.json"
        place.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + options.budget * (TIMES_OF_A_REHEARSAL if rehearse else 1)
    for name in names:
        left = deadline - time.monotonic()
        bound = min(BOUNDS[name] * (TIMES_OF_A_REHEARSAL if rehearse else 1), left)
        if bound < LEAST_S:
            parts[name] = {"outcome": "no time was left", "seconds": 0.0, "claims": [], "tables": []}
        else:
            parts[name] = run_part(name, bound, rehearse=rehearse)
        print(f"{name}: {parts[name]['outcome']}, {parts[name]['seconds']:.0f} s", flush=True)
        for line in parts[name].get("said", ()):
            print(f"    {line}", flush=True)
        if place is not None:
            place.write_text(json.dumps(contents(parts, device), indent=2) + "\n", encoding="utf-8")
    _show(parts, device)
    return int(any(part["outcome"] != "done" for part in parts.values()))


def _show(parts: Mapping[str, Mapping[str, Any]], device: str | None) -> None:
    made = [table(one["title"], one["columns"], one["rows"]) for part in parts.values() for one in part["tables"]]
    made.append(
        table(
            device or "no GPU: a rehearsal, whose numbers say nothing",
            ["part", "outcome", "seconds"],
            [[name, part["outcome"], f"{part['seconds']:.0f}"] for name, part in parts.items()],
        )
    )
    claims = [Claim(**claim) for part in parts.values() for claim in part["claims"]]
    publish(made, claims, versions=installed(PACKAGES), json_path=None)


if __name__ == "__main__":
    sys.exit(main())
