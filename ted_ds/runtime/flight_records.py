"""What torch's flight recorder knows of this rank's collectives, left in a file when another rank is lost.

The recorder is on by itself since torch 2.13, for NCCL as for gloo: it keeps the last 2000 collectives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch._C import _distributed_c10d

from ted_ds.launching.positions import (
    NCCL_PREFIX,
    Position,
    position_file,
    positions_in_words,
    read_positions,
    write_position,
)
from ted_ds.launching.records import log_folder
from ted_ds.launching.starters import Told

NEW_NAMES = Version("2.13")
"""The version of torch whose names of variables were read; before, they were those behind them."""
NAMES = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
NUM_ENTRIES = 2000
OTHERS_S = 2.0
"""How long one waits for what the others write: they see the same end within moments."""
LOOK_EVERY_S = 0.05
PACKAGE = Path(__file__).parent.parent

_folder: Path | None = None


def keep_records(folder: Path, *, uses_nccl: bool) -> None:
    """Have the flight recorder run, and its files in a folder, or in that of the attempt where somebody watches.

    To be called before the first group of ranks is made. What the environment says already is left.
    """
    global _folder
    _folder = log_folder(os.environ) or folder
    rank = Told.by(os.environ).rank
    with contextlib.suppress(OSError):  # of an earlier start; it may not be there, and nothing else hangs on it
        position_file(_folder, rank).unlink(missing_ok=True)
        (_folder / f"{NCCL_PREFIX}{rank}").unlink(missing_ok=True)
    if uses_nccl:
        values = {"TORCH_FR_BUFFER_SIZE": str(NUM_ENTRIES), "TORCH_FR_DUMP_TEMP_FILE": str(_folder / NCCL_PREFIX)}
        is_new = Version(torch.__version__).release >= NEW_NAMES.release
        for name, value in values.items():
            if name not in os.environ and NAMES[name] not in os.environ:
                os.environ[name if is_new else NAMES[name]] = value
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def leave_position(error: BaseException) -> list[str]:
    """Write down where this rank was when it saw another one gone; what there is to say of it and of others.

    Never fails: it is called on the way to an error that counts more.
    """
    folder = _folder
    if folder is None:
        return []
    trace = _trace()
    if trace is None:
        return []
    told = Told.by(os.environ)
    position = position_of(trace, rank=told.rank, num_ranks=told.num_ranks, called_by=_called_by(error))
    if position is None:
        return []
    try:
        write_position(folder, position, trace)
    except OSError as problem:
        return [position.in_words, f"(more cannot be written: {folder}: {problem})"]
    until = time.monotonic() + OTHERS_S
    while time.monotonic() < until and not all(position_file(folder, one).exists() for one in range(told.num_ranks)):
        time.sleep(LOOK_EVERY_S)
    if min((one.rank for one in read_positions(folder)), default=told.rank) == told.rank:
        return positions_in_words(folder)
    return [position.in_words, f"what the other ranks left is in {folder}"]  # one of them says it all


def position_of(trace: Mapping[str, Any], *, rank: int, num_ranks: int, called_by: str = "") -> Position | None:
    """The first collective that did not end, by a flight recorder, or the last that began; None where it saw none.

    Args:
        trace: What it dumps.
        rank: Whose.
        num_ranks: In all.
        called_by: The line that called it.
    """
    entries = sorted(trace.get("entries", []), key=lambda one: one["record_id"])
    if not entries:
        return None
    open_ones = [one for one in entries if not one["retired"]]
    last = open_ones[0] if open_ones else entries[-1]  # a GPU's host runs ahead of the one that does not end
    name, description = (*last["process_group"], "")[:2]
    group = f"{name} ({description})" if description not in ("", "undefined") else str(name)
    kinds = last.get("input_dtypes") or [""]
    sizes = [
        f"{kind} {'x'.join(map(str, size)) or '1'}" for kind, size in zip(kinds, last["input_sizes"], strict=False)
    ]
    shown = ", ".join(sizes[:3]) + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")
    number = last["p2p_seq_id"] if last.get("is_p2p") else last["collective_seq_id"]
    return Position(
        rank,
        num_ranks,
        socket.gethostname(),
        last["profiling_name"],
        int(number),
        group,
        shown or "no tensors",
        bool(open_ones),
        called_by,
    )


def _trace() -> Mapping[str, Any] | None:
    """What the recorder of this process has; None where this torch has none."""
    # NCCL has a recorder of its own, in builds with it
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump = getattr(_distributed_c10d, name, None)
        if dump is None:
            continue
        try:
            found = json.loads(dump(includeCollectives=True, onlyActive=False))
        except (RuntimeError, TypeError, ValueError):  # another version's; no reason to hide why the run ends
            continue
        if found.get("entries"):
            return found
    return None


def _called_by(error: BaseException) -> str:
    """The innermost line of ted_ds on the way to an error that is not about talking to other ranks itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    own = [frame for frame in frames if Path(frame.filename).name != "world.py"] or frames
    if not own:
        return ""
    frame = own[-1]
    return f"{Path(frame.filename).relative_to(PACKAGE.parent)}:{frame.lineno} ({frame.name})"
