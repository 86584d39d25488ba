"""One attempt of a run: the launcher's command, watched until it and all its ranks have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.launching.hosts import end_ranks
from ted_ds.launching.outcome import Outcome, outcome_of
from ted_ds.launching.records import STOP_FILE, RankRecord, read_records

LOOK_EVERY_S = 0.5
UNTIL_KILLED_S = 10.0
FIRST_RECORD_S = 900.0
"""How long a launcher may take until its first rank has started."""


class Attempt:
    """A launcher that was started."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        hosts: Sequence[str] | None,
        grace_s: float,
        say: Callable[[str], None],
    ) -> None:
        """Start it.

        Args:
            command: The launcher's.
            folder: Of the attempt's logs; its ranks know it by the environment.
            environment: Of the command.
            hosts: Where its ranks are, as ssh knows them; None where it ends them itself (on this host, under srun).
            grace_s: How long others may go on once a rank has ended, or the launcher.
            say: Takes messages.

        Raises:
            ConfigError: The command cannot be started.
        """
        self._folder, self._hosts, self._grace_s, self._say = folder, hosts, grace_s, say
        try:
            # a session of its own: Ctrl-C is for this process, which passes it on as a file
            self._launcher = subprocess.Popen(  # noqa: S603 - no shell
                [*command], env=dict(environment), start_new_session=True
            )
        except OSError as error:
            raise ConfigError(f"{command[0]}: cannot be started: {error}") from error

    def wait(self, requests: Callable[[], int]) -> Outcome:
        """Wait for its end, and leave none of its ranks behind.

        ``requests`` says how often this process was asked to stop so far: once for the ranks to save and stop, twice to
        end.
        """
        try:
            self._watch(requests)
        except BaseException:
            self._end()
            raise
        if self._may_be_left(read_records(self._folder)):
            end_ranks(self._hosts or (), self._folder, grace_s=self._grace_s, say=self._say)
        return outcome_of(self._folder, self._launcher.returncode)

    def _watch(self, requests: Callable[[], int]) -> None:
        started, first_end = time.monotonic(), None
        while self._launcher.poll() is None:
            time.sleep(LOOK_EVERY_S)
            now, asked = time.monotonic(), requests()
            if asked:
                with contextlib.suppress(OSError):  # the next time, then
                    (self._folder / STOP_FILE).touch()
            records = read_records(self._folder)
            if first_end is None and any(one.ended is not None for one in records):
                first_end = now
            if asked > 1:
                self._say("second request: ends at once, nothing is saved")
            elif first_end is not None and now - first_end > self._grace_s:
                self._say(f"a rank ended {self._grace_s:g} s ago and the launcher still waits: ending it")
            elif not records and (asked or now - started > FIRST_RECORD_S):
                self._say(f"no rank has started within {now - started:.0f} s: ending the launcher")
            else:
                continue
            self._end()

    def _may_be_left(self, records: Sequence[RankRecord]) -> bool:
        return not records or len(records) < records[0].num_ranks or any(one.ended is None for one in records)

    def _end(self) -> None:
        # deepspeed over ssh answers SIGTERM by ending all helpers of its kind on the hosts, of other runs, too
        signals = (signal.SIGTERM, signal.SIGKILL) if self._hosts is None else (signal.SIGKILL,)
        if self._hosts is not None:
            end_ranks(self._hosts, self._folder, grace_s=0.0, say=self._say)
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._launcher.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(UNTIL_KILLED_S)
                return
