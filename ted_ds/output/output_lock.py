"""Whose an output folder is while a run works in it: a second one must not remove what the first is writing.

The lock is a file that names its owner, who touches it every few seconds. It is made by a hard link, which is one act
also on a network's file system, where locks of the system often are not; ages are told by that file system's own clock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.launching.lasting_output import say_at_once
from ted_ds.launching.own_log import end_at_once
from ted_ds.launching.processes import Process

LOCK_FILE = "owner.json"
TAKEOVER_FILE = ".owner.takeover"
SIGN_EVERY_S = 10.0
"""How often the owner gives a sign of life."""
STALE_AFTER_S = 60.0
"""Without any for so long, an owner on another machine is taken for dead."""
LOOK_EVERY_S = 1.0
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Owner:
    """What the lock says."""

    token: str
    since: float
    process: Process

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.process} since {when}"


def _end_for_loss(text: str) -> NoReturn:
    """End this process, from whichever thread: what it would write from now on is another run's."""
    end_at_once(f"ted-ds: error:\n{text}", CheckpointError.exit_code)


class OutputLock:
    """The lock of one output folder. On one rank only."""

    def __init__(self, output_dir: Path, *, on_loss: Callable[[str], object] = _end_for_loss) -> None:
        """Prepare; nothing is written yet.

        Args:
            output_dir: The folder, which need not be there.
            on_loss: Takes the message, on another thread, once another run has taken the folder over; without it, this
                process ends there with the message and exit code 2.
        """
        self._folder, self._on_loss = output_dir, on_loss
        self._owner = Owner(secrets.token_hex(8), time.time(), Process.own())
        self._file = output_dir / LOCK_FILE
        self._candidate = output_dir / f".owner.{self._owner.token}"
        self._made: list[Path] = []
        self._signs: dict[str, float] = {}  # of other owners, when they were first seen
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def try_take(self) -> str | None:
        """Take the folder; one that nobody may write into needs no owner.

        Returns:
            What to wait for, where it cannot be told yet whether the owner lives; to be called again then.

        Raises:
            ConfigError: The folder is in use, or cannot be written.
        """
        other = _read(self._file)
        if other is not None and other.process.lives():
            raise self._in_use(other)
        try:
            self._make_folder()
            self._candidate.write_text(self._content(), encoding="utf-8")
            try:
                return self._take(other)
            finally:
                self._candidate.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in READ_ONLY:
                return None
            raise ConfigError(f"output_dir: {self._folder}: cannot be written: {error}") from error

    def release(self) -> None:
        """Give it back, and remove folders that were made for it and are empty still."""
        self._is_over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(SIGN_EVERY_S)
        with contextlib.suppress(OSError):
            own = _read(self._file)
            if own is not None and own.token == self._owner.token:
                self._file.unlink()
            for folder in self._made:
                folder.rmdir()
        self._made = []

    def _take(self, other: Owner | None) -> str | None:
        if other is None and not self._file.exists():
            if not self._link():
                return "another run that starts here"
        elif not self._is_dead(other):
            return f"a sign of life of {other or 'its owner'}, or none for {STALE_AFTER_S:g} s"
        elif not self._replace(other):
            return "another run that takes it over"
        self._thread = threading.Thread(target=self._give_signs, name="owner", daemon=True)
        self._thread.start()
        return None

    def _is_dead(self, other: Owner | None) -> bool:
        lives = None if other is None else other.process.lives()
        if lives is not None:
            return not lives
        sign, token = self._file.stat().st_mtime, other.token if other is not None else ""
        if self._signs.setdefault(token, sign) != sign:
            raise self._in_use(other)
        return self._candidate.stat().st_mtime - sign > STALE_AFTER_S

    def _link(self) -> bool:
        try:
            os.link(self._candidate, self._file)
        except FileExistsError:
            return self._candidate.stat().st_nlink == 2  # it was made, but the network lost the answer
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with contextlib.suppress(FileExistsError), self._file.open("x", encoding="utf-8") as file:
                file.write(self._content())
                return True
            return False
        return True

    def _replace(self, dead: Owner | None) -> bool:
        """Put this run in a dead owner's place, one at a time: another may do so just now, and live."""
        takeover = self._folder / TAKEOVER_FILE
        try:
            takeover.touch(exist_ok=False)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._candidate.stat().st_mtime - takeover.stat().st_mtime > STALE_AFTER_S:  # who made it died
                    takeover.unlink()
            return False
        try:
            if _read(self._file) != dead:
                return False
            self._candidate.replace(self._file)
            return True
        finally:
            takeover.unlink(missing_ok=True)

    def _give_signs(self) -> None:
        last, is_told = time.monotonic(), False
        while not self._is_over.wait(SIGN_EVERY_S):
            try:
                other = self._give_sign()
            except OSError as error:  # a disk may refuse once; the next time, then
                if not is_told and time.monotonic() - last >= STALE_AFTER_S / 2:
                    is_told = True
                    say_at_once(
                        f"WARN output_dir: {self._folder}: for {STALE_AFTER_S / 2:g} s this run could not touch "
                        f"{LOCK_FILE} ({error}); after {STALE_AFTER_S:g} s another run may take the folder over. See "
                        "that the folder can be written"
                    )
                continue
            last, is_told = time.monotonic(), False
            if other is not None and not self._is_over.is_set():
                self._on_loss(
                    f"output_dir: {self._folder} was taken over by {other}, as nothing was heard of this run for "
                    f"{STALE_AFTER_S:g} s; it ends here and writes nothing more"
                )
                return

    def _give_sign(self) -> Owner | None:
        """Touch the lock; returns who has it instead."""
        try:
            with self._file.open("rb+") as file:
                owner = _parse(file.read())
                if owner is None or owner.token == self._owner.token:
                    os.utime(file.fileno())
                    return None
                return owner
        except FileNotFoundError:  # removed by hand
            self._candidate.write_text(self._content(), encoding="utf-8")
            self._link()
            self._candidate.unlink()
            return None

    def _make_folder(self) -> None:
        missing = [one for one in (self._folder, *self._folder.parents) if not one.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made = self._made or missing

    def _content(self) -> str:
        return json.dumps(asdict(self._owner)) + "\n"

    def _in_use(self, other: Owner | None) -> ConfigError:
        by = other or f"another run, whose {LOCK_FILE} cannot be read (another version of ted_ds may write it)"
        return ConfigError(
            f"output_dir: {self._folder} is in use by {by}; wait until that run ends, stop it, or choose another "
            "output_dir"
        )


@contextlib.contextmanager
def holding(output_dir: Path, *, say: Callable[[str], object]) -> Iterator[None]:
    """Own an output folder in a process that is alone; it ends at once where another run takes the folder over.

    Raises:
        ConfigError: It is in use, or cannot be written.
    """
    lock = OutputLock(output_dir)
    try:
        wait_for(lock.try_take, output_dir, say=say)
        yield
    finally:
        lock.release()


def wait_for(try_take: Callable[[], str | None], output_dir: Path, *, say: Callable[[str], object]) -> None:
    """Try until the folder is taken, and say now and then what is waited for."""
    said_at: float | None = None
    while (reason := try_take()) is not None:
        if said_at is None or time.monotonic() - said_at >= SIGN_EVERY_S:
            said_at = time.monotonic()
            say(f"output_dir: {output_dir}: waiting for {reason}")
        time.sleep(LOOK_EVERY_S)


def living_owner(output_dir: Path) -> Owner | None:
    """Who is at work in a folder; None where nobody is, or only on another machine, where that cannot be told."""
    owner = _read(output_dir / LOCK_FILE)
    return owner if owner is not None and owner.process.lives() else None


def _read(file: Path) -> Owner | None:
    """The owner; None where there is no lock, or it cannot be read just now."""
    try:
        return _parse(file.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> Owner | None:
    try:
        about = json.loads(content)
        return Owner(about["token"], about["since"], Process(**about["process"]))
    except (ValueError, KeyError, TypeError):
        return None
