"""A folder of objects at a store (S3, or whatever fsspec reaches): files put there, read back, fetched and removed.

Nothing here is atomic but a single small object. So a folder of files counts once its manifest is there, which is put
last and removed first. What was put is read back and hashed: stores give checksums of their own, but each another one,
and of an upload in parts one of the parts' checksums; a SHA-256 of what comes back is the same everywhere, and it is of
the bytes that a later start will get.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from ted_ds.config.redaction import without_secrets
from ted_ds.errors import CheckpointError, StoreError

Result = TypeVar("Result")

CHUNK_BYTES = 2**24
"""Read at a time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Between two tries; each is twice the one before."""
TRIES_BEFORE_A_WORD = 3
"""So many in a row fail before the user hears of it."""
ACCESS_S = 20.0
"""How long a store may take to show that it can be written."""
LONGEST_REASON = 300
WILL_NOT_PASS = (PermissionError, FileNotFoundError, NotADirectoryError, FileExistsError, IsADirectoryError)
"""What a store answers, and will answer again."""


class Patience:
    """How long something is tried, and what is wrong in the meantime."""

    def __init__(self, timeout_s: float) -> None:
        """Begin now."""
        self.timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._given_up = threading.Event()
        self.trouble: str | None = None
        """What has failed several times in a row."""
        self.last: str | None = None
        """What failed last, if nothing worked since."""

    @property
    def is_over(self) -> bool:
        """Whether its time is up, or it was given up."""
        return self._given_up.is_set() or time.monotonic() > self._until

    def give_up(self) -> None:
        """Try nothing any more."""
        self._given_up.set()

    def persist(self, what: str, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which is tried again while it fails and there is time.

        Raises:
            StoreError: It never worked.
            CheckpointError: The disk here refuses, at once: that is not the store's, and does not pass.
        """
        for number in itertools.count(1):
            if self.is_over:
                raise StoreError(f"{what}: not begun within {self.timeout_s:g} s")
            try:
                result = work()
            except CheckpointError:
                raise
            except Exception as error:  # each store's package raises its own
                reason = f"{what}: {in_words(error)}"
                self.last = reason
                if number >= TRIES_BEFORE_A_WORD:
                    self.trouble = f"{reason} ({number} tries)"
                pause_s = min(FIRST_PAUSE_S * 2 ** (number - 1), LONGEST_PAUSE_S)
                if time.monotonic() + pause_s > self._until or self._given_up.wait(pause_s):
                    raise StoreError(f"{reason} ({number} {'try' if number == 1 else 'tries'})") from error
            else:
                self.trouble = self.last = None
                return result
        raise AssertionError("tries never end by themselves")


class Beside:
    """Work in a thread of its own, on whose end nobody has to wait."""

    def __init__(self, work: Callable[[Patience], Any], timeout_s: float) -> None:
        """Begin."""
        self.patience = Patience(timeout_s)
        self._work, self._until = work, time.monotonic() + timeout_s + min(timeout_s, 5.0)
        self._failure: Exception | None = None
        self.result: Any = None
        self._thread = threading.Thread(target=self._do, name="store", daemon=True)
        self._thread.start()

    def _do(self) -> None:
        try:
            self.result = self._work(self.patience)
        except Exception as error:  # whoever looks at it says so
            self._failure = error

    @property
    def hangs(self) -> bool:
        """Whether it goes on though its time is up: the store's package waits for ever."""
        return self._thread.is_alive() and time.monotonic() > self._until

    @property
    def is_busy(self) -> bool:
        """Whether its end is worth waiting for."""
        return self._thread.is_alive() and not self.hangs

    @property
    def failure(self) -> str | None:
        """Why there is no result, once it is not busy any more."""
        if self.hangs:
            self.patience.give_up()
            return f"no answer within {self.patience.timeout_s:g} s"
        return None if self._failure is None else in_words(self._failure)

    @property
    def so_far(self) -> str:
        """What is known while it is busy, in words for when nobody waits any longer."""
        last = self.patience.last
        return f"not through within {self.patience.timeout_s:g} s" + (f": {last}" if last else "")

    @property
    def error(self) -> Exception | None:
        """What it raised."""
        return self._failure


@contextlib.contextmanager
def here(file: Path, done: str) -> Iterator[None]:
    """What the disk here refuses is said of it, and not of a store; ``done`` is what should be done with the file.

    Raises:
        CheckpointError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be {done} on the disk here: {error}. What is at the store is untouched; make room or mend "
            "the disk, and start the same command again"
        ) from error


class Store:
    """A folder at a store, by its URL."""

    def __init__(self, url: str) -> None:
        """Name it; nothing is asked yet."""
        self.url = url.rstrip("/")
        self.name = without_secrets(self.url)

    def within(self, folder: str) -> Store:
        """A folder in it."""
        return Store(f"{self.url}/{folder}")

    @functools.cached_property
    def _filesystem(self) -> Any:
        options: dict[str, Any] = {"auto_mkdir": True} if self.url.startswith("file://") else {}
        # what is remembered of a listing would hide what other ranks put there
        filesystem, _ = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        return filesystem

    def _place(self, name: str) -> str:
        return self._filesystem._strip_protocol(f"{self.url}/{name}")

    # --- one object -------------------------------------------------------------------------------------------------

    def put(self, file: Path, name: str, *, num_bytes: int, sha256: str) -> None:
        """Copy a file there, and read back whether it arrived.

        Raises:
            StoreError: It did not arrive whole.
            CheckpointError: The file here cannot be read.
            Exception: Whatever the store's package raises.
        """
        with here(file, "read"), file.open("rb") as stream:
            stream.read(1)
        self._filesystem.put_file(str(file), self._place(name))
        fault = self.fault(name, num_bytes=num_bytes, sha256=sha256)
        if fault is not None:
            raise StoreError(f"it did not arrive whole: {fault}")

    def put_text(self, name: str, text: str) -> None:
        """Write a small object, and read it back.

        Raises:
            StoreError: It is not what was written.
            Exception: Whatever the store's package raises.
        """
        self._filesystem.pipe_file(self._place(name), text.encode())
        if self.text(name) != text:
            raise StoreError("what is read back is not what was written")

    def text(self, name: str) -> str | None:
        """A small object; None where there is none.

        Raises:
            Exception: Whatever the store's package raises.
        """
        with contextlib.suppress(FileNotFoundError):
            return self._filesystem.cat_file(self._place(name)).decode(errors="replace")
        return None

    def text_twice(self, name: str, is_sound: Callable[[str | None], bool], patience: Patience) -> str | None:
        """A small object, read a second time where it is not sound at first: what comes between may have spoilt it.

        Raises:
            StoreError: It cannot be read.
        """
        what = f"{self.name}/{name}"
        text = patience.persist(what, lambda: self.text(name))
        if not is_sound(text):
            time.sleep(FIRST_PAUSE_S)
            text = patience.persist(what, lambda: self.text(name))
        return text

    def fault(self, name: str, *, num_bytes: int, sha256: str) -> str | None:
        """What is wrong with an object, read to its last byte; None for nothing.

        Raises:
            Exception: Whatever the store's package raises.
        """
        digest, found = hashlib.sha256(), 0
        try:
            for chunk in self._chunks(name, num_bytes):
                digest.update(chunk)
                found += len(chunk)
            size = self._filesystem.info(self._place(name))["size"]
        except FileNotFoundError:
            return "is missing"
        if size != num_bytes or found != num_bytes:
            return f"has {min(size, found) if found < num_bytes else size:,} bytes, not {num_bytes:,}"
        return None if digest.hexdigest() == sha256 else "its SHA-256 differs"

    def fetch(self, name: str, file: Path, *, num_bytes: int, sha256: str) -> str | None:
        """Copy an object here, on the disk for good; what is wrong with it, or None.

        Raises:
            CheckpointError: The disk here refuses.
            Exception: Whatever the store's package raises.
        """
        digest, found = hashlib.sha256(), 0
        with here(file, "written"):
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = file.open("wb")
        try:
            for chunk in self._chunks(name, num_bytes):
                with here(file, "written"):
                    stream.write(chunk)
                digest.update(chunk)
                found += len(chunk)
            with here(file, "written"):
                stream.flush()
                os.fsync(stream.fileno())
        except FileNotFoundError:
            return "is missing"
        finally:
            with contextlib.suppress(OSError):  # all is on the disk by then, or another error is on its way
                stream.close()
        if found != num_bytes:
            return f"has {found:,} bytes, not {num_bytes:,}"
        return None if digest.hexdigest() == sha256 else "its SHA-256 differs"

    def _chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        place = self._place(name)
        for begin in range(0, num_bytes, CHUNK_BYTES):
            end = min(begin + CHUNK_BYTES, num_bytes)
            data = self._filesystem.cat_file(place, start=begin, end=end)
            yield data
            if len(data) < end - begin:
                return

    # --- folders of them --------------------------------------------------------------------------------------------

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object in a folder and those in it, by its name in this one; none where it is not there.

        Raises:
            Exception: Whatever the store's package raises.
        """
        root = self._place("")
        with contextlib.suppress(FileNotFoundError):
            found: Mapping[str, Any] = self._filesystem.find(self._place(folder), detail=True)
            return {place.removeprefix(root).lstrip("/"): facts["size"] for place, facts in found.items()}
        return {}

    def remove(self, names: Collection[str]) -> None:
        """Remove objects that may be gone already.

        Raises:
            Exception: Whatever the store's package raises.
        """
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._place(name))

    def try_access(self, own: str) -> None:
        """Write, read and remove an object of ``own`` name: what a run will do here.

        Raises:
            StoreError: One of it does not work, or not in time.
        """

        def attempt() -> None:
            name = f".access-{own}"
            self.put_text(name, "may ted_ds write here?\n")
            self.remove([name])

        def persist(patience: Patience) -> None:
            while True:
                try:
                    attempt()
                    return
                except (*WILL_NOT_PASS, NotImplementedError, ValueError, ImportError):
                    raise
                except Exception as error:
                    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "NoRegionError"):
                        raise
                    if patience.is_over:
                        raise
                    time.sleep(FIRST_PAUSE_S)

        trial = Beside(persist, ACCESS_S / 2)
        until = time.monotonic() + ACCESS_S
        while trial.is_busy and time.monotonic() < until:
            time.sleep(0.02)
        failure = trial.failure or (f"no answer within {ACCESS_S:g} s" if trial.is_busy else None)
        if failure is not None:
            raise StoreError(failure) from trial.error


def in_words(error: BaseException) -> str:
    """An error of a store's package, in one line, without what a URL may hide."""
    text = " ".join(without_secrets(word) for word in str(error).split())
    if isinstance(error, StoreError | CheckpointError):
        return text[:LONGEST_REASON]
    return f"{type(error).__name__}: {text}"[:LONGEST_REASON] if text else type(error).__name__
