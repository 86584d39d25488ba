"""Ops that are built as they are loaded, and the lock that a killed build leaves: no wait without a word or an end.

Torch makes a file ``lock`` in an op's folder for as long as one process builds it; the others wait until it has gone.
Of a process that was killed it stays, and nobody would ever go on. DeepSpeed builds its ops this way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch.utils.cpp_extension
from torch.utils.file_baton import FileBaton

from ted_ds.errors import ConfigError

FIRST_WORD_S, SAY_EVERY_S = 2.0, 15.0
LOOK_EVERY_S = 0.2
ALONE_AFTER_S = 5.0
"""A lock on this machine's own disk that no process has open for so long is nobody's."""
SILENT_AFTER_S = 600.0
"""One that other machines or containers may hold is nobody's once nothing in its folder has changed for so long."""
SHARED = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "fuse", "9p", "afs", "virtiofs")
"""Beginnings of the names of file systems that processes may share which are not seen here."""


def bound_build_waits(timeout_s: float) -> None:
    """From now on, waits for an op that is built say what they wait for, and end after ``timeout_s``."""

    class LoudBaton(FileBaton):
        """Torch's lock, with a look at who has it."""

        def try_acquire(self) -> bool | None:
            """True, once nobody else builds: what is built already is not built again, as ninja sees."""
            _acquire(super().try_acquire, Path(self.lock_file_path), timeout_s)
            return True

    torch.utils.cpp_extension.FileBaton = LoudBaton  # type: ignore[misc]


def _acquire(try_acquire: Callable[[], bool | None], lock: Path, timeout_s: float) -> None:
    started = time.monotonic()
    said_at: float | None = None
    unheld_since: float | None = None
    before: os.stat_result | None = None
    while not try_acquire():
        try:
            seen = lock.stat()
        except FileNotFoundError:
            continue
        now = time.monotonic()
        holder = _holder(seen)
        unheld_since = None if holder is not None or not _is_same(seen, before) else unheld_since or now
        before = seen
        silent_s = time.time() - max(_change_times(lock.parent), default=seen.st_mtime)
        unheld_s = 0.0 if unheld_since is None else now - unheld_since
        if unheld_s > ALONE_AFTER_S and (silent_s > SILENT_AFTER_S or not _is_shared(lock)):
            if _remove(lock):
                _say(f"{lock}: held by nobody since {_clock(seen.st_mtime)}, left by a run that was killed: removed")
            unheld_since = None
            continue
        by = f"held by process {holder}" if holder is not None else "held by nobody here"
        if now - started > timeout_s:
            raise ConfigError(
                f"{lock}: waited {timeout_s:g} s (collective_timeout_s) for the build of an op, {by} since "
                f"{_clock(seen.st_mtime)}; if nobody builds it, remove this file"
            )
        if now - (said_at or started) > (FIRST_WORD_S if said_at is None else SAY_EVERY_S):
            said_at = now
            _say(f"waiting for {lock}, {by} since {_clock(seen.st_mtime)}")
        time.sleep(LOOK_EVERY_S)


def _holder(lock: os.stat_result, own: int | None = None) -> int | None:
    """A process here that has the lock open, as its owner does until the op is built; ``own`` is only a look at it."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                if process.pid == os.getpid() and descriptor.name == str(own):
                    continue
                with contextlib.suppress(OSError):
                    if os.path.samestat(descriptor.stat(), lock):
                        return process.pid
    return None


def _is_same(seen: os.stat_result, before: os.stat_result | None) -> bool:
    """Whether it is the lock of the look before, and not a newer one that got its number."""
    return before is not None and os.path.samestat(seen, before) and seen.st_mtime_ns == before.st_mtime_ns


def _is_shared(place: Path) -> bool:
    """Whether processes that are not seen here may use a file, too."""
    found = max(
        (one for one in psutil.disk_partitions(all=True) if _is_below(place, one.mountpoint)),
        key=lambda one: len(one.mountpoint),
        default=None,
    )
    return found is None or found.fstype.startswith(SHARED)


def _is_below(place: Path, folder: str) -> bool:
    return place.resolve().is_relative_to(folder)


def _change_times(folder: Path) -> Iterator[float]:
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process works there
            yield file.stat().st_mtime


def _remove(lock: Path) -> bool:
    """Remove a lock that nobody holds, and tell whether that was done.

    Others may want to do so at the same time, and one of them may have made its own since: only one looks and removes
    at a time, and what it has open keeps its number.
    """
    try:
        with lock.with_name(f".{lock.name}.removal").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with lock.open("rb") as looked_at:
                number = looked_at.fileno()
                if _holder(os.fstat(number), own=number) is not None:
                    return False
                lock.unlink()
                return True
    except OSError:  # another's turn; gone already; a file system without such turns: it is waited for, and named
        return False


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _say(text: str) -> None:
    print(f"rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr, flush=True)
