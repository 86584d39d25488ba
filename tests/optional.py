"""Packages that ted_ds can do without. ``tests/run.sh`` installs them beside the environment, not into it."""

from __future__ import annotations

import sys
from pathlib import Path

OPTIONAL = Path(sys.prefix) / "optional"
MISSING = f"{OPTIONAL} is not there; bash tests/run.sh makes it"
BITSANDBYTES = OPTIONAL / "bitsandbytes"
TRACKERS = Path(sys.prefix) / "trackers"
NO_TRACKERS = f"{TRACKERS} is not there; bash tests/run.sh makes it"
LM_EVAL = Path(sys.prefix) / "lm_eval"
NO_LM_EVAL = f"{LM_EVAL} is not there; bash tests/run.sh makes it"
