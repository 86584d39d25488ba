"""Builds the site: ``python -m website``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from website.links import faults
from website.places import ROOT
from website.staging import stage


def main() -> int:
    """Stage all pages, build them, look at their links, and say where they are; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m website", description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    out = parser.parse_args().out.resolve()
    config = stage(out)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(config)]
    code = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, check=False).returncode  # noqa: S603
    found = faults(out / "html") if code == 0 else ["not built; see above"]
    print("\n".join(f"site: {one}" for one in found or [str(out / "html" / "index.html")]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
