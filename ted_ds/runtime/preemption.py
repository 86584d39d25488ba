"""Requests to stop: signals, a file beside the ranks' logs, a wall-clock budget, and a launcher that has gone.

A rank that is asked only takes note; all ranks stop together at the next boundary (:meth:`World.highest`).

A process of ``ted-ds``, or one of several ranks, may also be ended at once: who asks twice does not want to wait, and
ranks may wait for each other forever. A process that a person works in, such as a notebook's, never is: there a second
request is handled as it would be without a run.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ted_ds.errors import StoppedOnRequest
from ted_ds.launching.lasting_output import say_at_once
from ted_ds.launching.own_log import end_at_once, note_request
from ted_ds.launching.records import STOP_FILE, log_folder
from ted_ds.launching.starters import SAME_REQUEST_S, Told

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""The last one comes where a terminal closes; under nohup it is ignored, and stays so."""
AGREE_WITHIN_S = 3.0
"""Before the first step: where the ranks have not come to agree by then, whoever was asked ends by itself."""
CLEAN_UP_S = 2.0
LOOK_EVERY_S = 1.0
"""For the file that asks to stop."""
DEEPSPEED_HELPER = ("deepspeed/launcher/launch.py", "deepspeed.launcher.launch")
"""Between ``deepspeed`` and the ranks."""
TORCHRUN = ("torchrun", "torch.distributed.run")


class StopNow(Exception):
    """All ranks have seen a request to stop, at a place where whoever called knows what is to be saved."""


class StopRequests:
    """Takes note of the first reason to stop."""

    def __init__(self, *, owns_process: bool = True) -> None:
        """Listen to nothing yet; a process that is not owned is not ended here, as long as it is alone."""
        self._owns_process = owns_process
        self._handlers: dict[int, Any] = {}
        self._is_heard = False
        self._asked: tuple[str, float] | None = None
        self._stop_at: float | None = None
        self._signal: tuple[str, float] | None = None
        self._launcher = _launcher()
        self._gone_at: float | None = None
        logs = log_folder(os.environ)
        # one rank of each host looks, as a file system of many nodes should not be asked by all
        looks = Told.by(os.environ).local_rank == 0
        self._stop_file = logs / STOP_FILE if logs is not None and looks else None
        self._looked_at = -math.inf
        self._file_seen_at: float | None = None
        self._has_work, self._is_agreed = False, False
        self.before_end: list[Callable[[], object]] = []
        """What is still done where the process is ended at once."""

    def has_work(self, value: bool) -> None:
        """Say whether there is anything a stop would have to save; where not, one request may end the process."""
        self._has_work = value

    def agreed(self) -> None:
        """All ranks have seen the request, and are about to end together."""
        self._is_agreed = True

    def limit(self, minutes: float | None, *, started_at: float) -> None:
        """Ask to stop so many minutes after ``started_at`` on the monotonic clock; None: never."""
        self._stop_at = None if minutes is None else started_at + 60 * minutes

    def ask(self, reason: str) -> None:
        """Ask to stop from within the run."""
        self._asked = self._asked or (reason, time.monotonic())

    @property
    def reason(self) -> str | None:
        """Why this rank should stop; None while it should not."""
        return self._reason_outside or (self._asked and self._asked[0])

    @property
    def _reason_outside(self) -> str | None:
        if self._signal is not None:
            return self._signal[0]
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return "stop_after_minutes"
        if self._file_is_there():
            return f"the file {self._stop_file}"
        if self._gone_at is None and self._launcher and not _still_there(self._launcher):
            self._gone_at = time.monotonic()
        return "end of the launcher" if self._gone_at is not None else None

    @property
    def seconds_since(self) -> float | None:
        """Time since the signal, since the launcher was missed, or since the budget was used up."""
        asked = None if self._asked is None else self._asked[1]
        noticed = self._signal[1] if self._signal is not None else self._file_seen_at or self._gone_at or asked
        if noticed is not None:
            return time.monotonic() - noticed
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return time.monotonic() - self._stop_at
        return None

    def _file_is_there(self) -> bool:
        now = time.monotonic()
        if self._stop_file is not None and self._file_seen_at is None and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            with contextlib.suppress(OSError):  # the next time, then
                if self._stop_file.exists():
                    self._file_seen_at = now
        return self._file_seen_at is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals while this is open; the second request ends the process at once.

        They are the main thread's: on another one, nothing is heard of them. A thread reads them from a pipe: Python's
        own handlers would wait for the main thread, which may be in a collective that never returns.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        heard = [one for one in STOP_SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._noted) for number in heard}
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._leave_signals()
            writer.close()  # which ends the thread

    def _read(self, reader: socket.socket) -> None:
        reader.settimeout(LOOK_EVERY_S)
        unheard_since: float | None = None
        with reader:
            while True:
                with contextlib.suppress(TimeoutError):
                    if not (numbers := reader.recv(64)):
                        return
                    for number in numbers:
                        if number in STOP_SIGNALS:
                            self._take(number)
                unheard = not (self._has_work or self._is_agreed) and self._may_end_process
                reason = self._reason_outside if unheard else None
                now = time.monotonic()
                unheard_since = None if reason is None else unheard_since or now
                if unheard_since is not None and now - unheard_since > AGREE_WITHIN_S:
                    self._clean_up()
                    end_at_once(
                        f"ted-ds: stopped on {reason} before the first step: there was nothing to save. Start the same "
                        "command again to go on",
                        StoppedOnRequest.exit_code,
                    )

    def _take(self, number: int) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = (signal.Signals(number).name, now)
            note_request(self._signal[0])
        elif self._may_end_process and (not self._launcher or now - self._signal[1] > SAME_REQUEST_S):
            self._clean_up()
            # not written down: to whoever started it, it was asked to stop and has gone
            say_at_once(f"ted-ds: second {signal.Signals(number).name}: ends at once, nothing is saved")
            os._exit(128 + number)

    @property
    def _may_end_process(self) -> bool:
        return self._owns_process or os.environ.get("WORLD_SIZE", "1") != "1"

    def _noted(self, number: int, _frame: object) -> None:
        """A handler, so that the signal does not end the process; the pipe has it already."""
        if self._is_heard and not self._may_end_process:  # the second one goes to whoever would have had the first
            self._leave_signals()
            signal.raise_signal(number)
        self._is_heard = True

    def _leave_signals(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None:  # one that Python did not install, and cannot install again
                signal.signal(number, handler)
        self._handlers = {}

    def _clean_up(self) -> None:
        """What is to be done before the end, if it does not take long: a disk may hang."""

        def work() -> None:
            for one in self.before_end:
                with contextlib.suppress(OSError):  # it ends all the same
                    one()

        thread = threading.Thread(target=work, name="end", daemon=True)
        thread.start()
        thread.join(CLEAN_UP_S)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes started in this block do not get the signals that mean a stop.

    Launchers send them to all descendants, but data workers are still needed to stop well. They end with this process.
    (W&B's service takes SIGTERM all the same; the tracker does without it.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _launcher() -> tuple[int, ...]:
    """The launcher's processes above this one, the nearest first; empty where none is known, or none can be seen.

    Of ``deepspeed``, both: on one node it dies of SIGTERM and leaves its helper and all ranks running, which nobody
    expects.
    """
    helper = os.getppid()
    try:
        command = Path(f"/proc/{helper}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if any(name in command for name in DEEPSPEED_HELPER):
            return (helper, _parent_of(helper))
    except OSError:
        return ()
    return (helper,) if any(name in command for name in TORCHRUN) else ()


def _still_there(launcher: tuple[int, ...]) -> bool:
    if os.getppid() != launcher[0]:
        return False
    try:
        return len(launcher) == 1 or _parent_of(launcher[0]) == launcher[1]
    except OSError:  # it cannot be told now: nothing to stop for
        return True


def _parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    return int(status.rpartition(")")[2].split()[1])  # after the name in parentheses: state, parent
