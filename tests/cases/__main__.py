"""Runs every case of a folder and says of each whether it does what its README expects."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cases.verdicts import judge_all


def expectation(folder: Path) -> str:
    """What the README says after ``expect:``, or of the table it has in its place."""
    text = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
    found = re.search(r"^- expect: (.*)", text, re.MULTILINE)
    return found[1] if found else "see its README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """One line a case, and what is wrong below it."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of case folders, such as tests/cases/folders")
    parser.add_argument("names", nargs="*", help="of the cases to run (default: all)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder}: no such folder")
    there = sorted(one for one in options.folder.iterdir() if one.is_dir())
    chosen = [one for one in there if not options.names or one.name in options.names]
    missing = sorted(set(options.names) - {one.name for one in there})
    if missing or not chosen:
        parser.error(f"{options.folder}: no case {', '.join(missing) or 'at all'}")
    num_failed = 0
    started = time.monotonic()
    for folder, faults in judge_all(chosen):
        num_failed += bool(faults)
        print(f"{'FAIL' if faults else 'ok  '} {folder.name}: {expectation(folder)}")
        for fault in faults:
            print(f"     {fault}")
        sys.stdout.flush()
    seconds = time.monotonic() - started
    print(f"{len(chosen) - num_failed} of {len(chosen)} cases do what is expected ({seconds:.0f} s)")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
