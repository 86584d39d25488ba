"""A guard against getting slower: each benchmark's quick claims beside those recorded on the same hardware.

    python -m benchmarks.check [NAME ...]            # exit code 1 where a claim is 10 % worse than recorded
    python -m benchmarks.check --record [NAME ...]   # record this machine's

Ratios alone are compared, and one that is worse is measured a second time before it counts: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import ROOT, hardware, table

NAMES = ("step_time", "step_memory", "vocab_loss", "closed_form", "teacher_cache", "data_throughput")
RESULTS = ROOT / "benchmarks" / "results"
ALLOWED = 0.10
SMALL = 0.2
"""A tenth of less, as of what next to nothing adds, is noise: a tenth of this is allowed instead."""
TIMEOUT_S = 900


def machine() -> str:
    """A folder's name for this hardware."""
    described = hardware()
    return re.sub(r"[^a-z0-9]+", "-", f"{described['cpu']} {described['cores']} cores".lower()).strip("-")


def measure(name: str, place: Path) -> dict[str, Any]:
    """Run a benchmark's quick form, and keep its JSON at ``place``."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(place)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
    return json.loads(place.read_text(encoding="utf-8"))


def worse(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Claims that are more than allowed on the wrong side of the recorded value, with both.

    Those that are missing on either side, too: what is not recorded could get worse unseen.
    """
    now = {claim["name"]: claim["value"] for claim in found["claims"]}
    result = {}
    for claim in recorded["claims"]:
        before, after = claim["value"], now.get(claim["name"], float("nan"))
        is_bound_from_above = claim["goal"].startswith("<=")
        margin = ALLOWED * max(abs(before), SMALL)
        allowed = before + margin if is_bound_from_above else before - margin
        if not (after <= allowed if is_bound_from_above else after >= allowed):
            result[claim["name"]] = (before, after)
    recorded_names = {claim["name"] for claim in recorded["claims"]}
    result |= {name: (float("nan"), value) for name, value in now.items() if name not in recorded_names}
    return result


def check(name: str, recorded: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """What is worse in two measurements."""
    with tempfile.TemporaryDirectory() as folder:
        first = worse(recorded, measure(name, Path(folder) / "first.json"))
        if not first:
            return {}
        second = worse(recorded, measure(name, Path(folder) / "second.json"))
    return {claim: values for claim, values in second.items() if claim in first}


def main() -> int:
    """Check, or record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--record", action="store_true", help="record instead")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; use {', '.join(NAMES)}")
    place, console = RESULTS / machine(), Console()
    rows = []
    for name in options.names or NAMES:
        file = place / f"{name}.json"
        if options.record:
            place.mkdir(parents=True, exist_ok=True)
            measure(name, file)
            console.print(f"recorded {file}")
            continue
        if not file.is_file():
            console.print(f"{file}: nothing is recorded for this hardware; record it first: --record")
            return 2
        recorded = json.loads(file.read_text(encoding="utf-8"))
        rows += [[claim, f"{b:.3f}", f"{a:.3f}"] for claim, (b, a) in check(name, recorded).items()]
    if rows:
        console.print(table("more than 10 % worse than recorded, or not recorded", ["claim", "recorded", "now"], rows))
    elif not options.record:
        console.print("no claim is 10 % worse than recorded")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
