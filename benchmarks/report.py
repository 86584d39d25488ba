"""What every benchmark ends with: a table for people, and JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Claim:
    """Something promised, and what was measured."""

    name: str
    value: float
    goal: str
    holds: bool


def at_least(name: str, value: float, bound: float) -> Claim:
    """A claim that a value is not below a bound."""
    return Claim(name, value, f">= {bound:g}", value >= bound)


def at_most(name: str, value: float, bound: float) -> Claim:
    """A claim that a value is not above a bound."""
    return Claim(name, value, f"<= {bound:g}", value <= bound)


def option_parser(description: str | None, *, quick: str = "smaller shapes") -> argparse.ArgumentParser:
    """The options that every benchmark has; ``quick`` says what its quick form leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}; ends within 50 s on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the claims there as well")
    return parser


def hardware() -> dict[str, Any]:
    """The machine; of its cores only those this process may use."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu or platform.processor(), "cores": cores, "memory_gib": round(memory_kib / 2**20, 1)}


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that are there, and Python's."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def commit() -> str:
    """The commit that was measured, marked where the working tree differs from it; "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table; all columns but the first hold numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def publish(
    tables: Sequence[Table], claims: Sequence[Claim], *, versions: Mapping[str, str], json_path: Path | None
) -> None:
    """Show the tables and the claims, those that do not hold like the others, and write the JSON file."""
    machine, measured = hardware(), commit()
    console = Console()
    for one in tables:
        console.print(one)
    shown = [[claim.name, f"{claim.value:.4g}", claim.goal, "yes" if claim.holds else "NO"] for claim in claims]
    console.print(table("claims", ["claim", "measured", "goal", "holds"], shown))
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; commit {measured}")
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()))
    if json_path is not None:
        content = {
            "hardware": machine,
            "versions": dict(versions),
            "commit": measured,
            "claims": [asdict(claim) for claim in claims],
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
