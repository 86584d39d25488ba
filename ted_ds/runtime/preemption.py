"""Requests to stop: signals, and a wall-clock budget.

A rank that is asked only takes note; all ranks stop together at the next boundary (:meth:`World.highest`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
SAME_REQUEST_S = 2.0
"""A launcher passes one request on several times: Ctrl-C reaches a rank from the terminal as SIGINT, and then from
the deepspeed launcher as SIGTERM, twice. Signals that follow the first within this time are the same request."""


class StopNow(Exception):
    """All ranks have seen a request to stop, at a place where whoever called knows what is to be saved."""


class StopRequests:
    """Takes note of the first reason to stop."""

    def __init__(self) -> None:
        self._stop_at: float | None = None
        self._signal: tuple[str, float] | None = None

    def limit(self, minutes: float | None, *, started_at: float) -> None:
        """Ask to stop so many minutes after ``started_at`` on the monotonic clock; None: never."""
        self._stop_at = None if minutes is None else started_at + 60 * minutes

    @property
    def reason(self) -> str | None:
        """Why this rank should stop; None while it should not."""
        if self._signal is not None:
            return self._signal[0]
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return "stop_after_minutes"
        return None

    @property
    def seconds_since(self) -> float | None:
        """Time since the signal, or since the budget was used up."""
        if self._signal is not None:
            return time.monotonic() - self._signal[1]
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return time.monotonic() - self._stop_at
        return None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals while this is open; the second request ends the process at once. Main thread only.

        A thread reads the signals from a pipe: Python's own handlers would wait for the main thread, which may be in a
        collective that never returns.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        handlers = {number: signal.signal(number, _noted) for number in STOP_SIGNALS}
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            writer.close()  # which ends the thread

    def _read(self, reader: socket.socket) -> None:
        with reader:
            while numbers := reader.recv(64):
                for number in numbers:
                    if number in STOP_SIGNALS:
                        self._take(number)

    def _take(self, number: int) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = (signal.Signals(number).name, now)
        elif now - self._signal[1] > SAME_REQUEST_S:
            os.write(2, f"ted-ds: second {signal.Signals(number).name}: ends at once, nothing is saved\n".encode())
            os._exit(128 + number)


def _noted(_number: int, _frame: object) -> None:
    """A handler, so that the signal does not end the process; the pipe has it already."""
