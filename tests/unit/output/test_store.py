"""A folder of objects, here on a disk: what is put is read back, and nothing waits for ever."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from ted_ds.errors import CheckpointError, StoreError
from ted_ds.output import store as stores
from ted_ds.output.store import Beside, Patience, Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    return Store(f"file://{tmp_path}/there/")


def record(content: bytes) -> dict:
    return {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 4000])
def test_a_file_goes_there_and_back(store, tmp_path, size):
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    store.put(tmp_path / "file", "a/b/file", **record(content))
    assert store.sizes("") == store.sizes("a") == {"a/b/file": size}
    assert store.fetch("a/b/file", tmp_path / "new" / "back", **record(content)) is None
    assert (tmp_path / "new" / "back").read_bytes() == content


def test_what_is_wrong_with_a_file_is_said(store, tmp_path):
    content = bytes(range(250)) * 10
    (tmp_path / "file").write_bytes(content)
    store.put(tmp_path / "file", "file", **record(content))
    there = tmp_path / "there" / "file"

    def faults() -> set:
        return {store.fault("file", **record(content)), store.fetch("file", tmp_path / "back", **record(content))}

    assert faults() == {None}
    there.write_bytes(content[:1500])
    assert faults() == {"has 1,500 bytes, not 2,500"}
    there.write_bytes(content[:-1] + b"x")
    assert faults() == {"its SHA-256 differs"}
    there.write_bytes(content + b"x")
    assert store.fault("file", **record(content)) == "has 2,501 bytes, not 2,500"
    there.unlink()
    assert faults() == {"is missing"}


def test_a_full_disk_here_is_said_at_once_and_not_of_the_store(store, tmp_path):
    content = bytes(range(250)) * 10
    (tmp_path / "file").write_bytes(content)
    store.put(tmp_path / "file", "file", **record(content))
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "in the way").touch()
    for place, reason in (("full", "No space left on device"), ("in the way/file", "File exists|Not a directory")):
        patience, started = Patience(30), time.monotonic()
        expected = rf"{place}: cannot be written on the disk here: \[Errno \d+\] ({reason}).*make room or mend the disk"
        with pytest.raises(CheckpointError, match=expected):
            patience.persist("file", lambda: store.fetch("file", tmp_path / place, **record(content)))  # noqa: B023
        assert time.monotonic() - started < 5
        assert patience.trouble is None
    with pytest.raises(CheckpointError, match="gone: cannot be read on the disk here"):
        Patience(30).persist("gone", lambda: store.put(tmp_path / "gone", "gone", **record(content)))


def test_an_error_of_the_store_is_not_said_of_the_disk_here(store, tmp_path, monkeypatch):
    content = bytes(2500)
    (tmp_path / "file").write_bytes(content)
    store.put(tmp_path / "file", "file", **record(content))
    plain, times = Store._chunks, iter((True, False))

    def chunks(self: Store, name: str, num_bytes: int) -> Iterator[bytes]:
        yield from itertools.islice(plain(self, name, num_bytes), 1 if (fails := next(times)) else None)
        if fails:
            raise ConnectionResetError("it went away")

    monkeypatch.setattr(Store, "_chunks", chunks)
    patience = Patience(30)
    assert patience.persist("file", lambda: store.fetch("file", tmp_path / "back", **record(content))) is None
    assert (tmp_path / "back").read_bytes() == content


def test_small_objects_are_read_and_removed(store):
    assert store.text("a/note") is None
    assert store.sizes("a") == {}
    store.put_text("a/note", "words\n")
    assert store.text("a/note") == "words\n"
    store.remove(["a/note", "a/nothing"])
    assert store.text("a/note") is None


def test_access_is_tried_and_leaves_nothing(store, tmp_path):
    store.try_access("me")
    assert store.sizes("") == {}
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"(NotADirectory|FileExists)Error"):
        Store(f"file://{tmp_path}/file/folder").try_access("me")


def test_what_fails_is_tried_again_and_said_after_a_while(store):
    answers = [OSError("one"), OSError("two"), OSError("three"), OSError("four"), "done"]
    patience = Patience(10)
    seen = []

    def work() -> str:
        seen.append(patience.trouble)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert patience.persist("it", work) == "done"
    assert seen == [None, None, None, "it: OSError: three (3 tries)", "it: OSError: four (4 tries)"]
    assert patience.trouble is None


def test_what_always_fails_ends_in_time(store):
    def fail() -> None:
        raise PermissionError("s3://key:secret@bucket/a is not yours")

    started = time.monotonic()
    with pytest.raises(StoreError, match=r"^it: PermissionError: s3://bucket/a is not yours \(\d tries\)$"):
        Patience(0.2).persist("it", fail)
    assert time.monotonic() - started < 2
    given_up = Patience(100)
    given_up.give_up()
    with pytest.raises(StoreError, match="not begun"):
        given_up.persist("it", fail)


def test_nobody_waits_for_what_hangs(store):
    release = threading.Event()
    hanging = Beside(lambda _: release.wait(60), 0.2)
    assert hanging.is_busy
    deadline = time.monotonic() + 5
    while hanging.is_busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert hanging.hangs
    assert hanging.failure == "no answer within 0.2 s"
    assert hanging.patience.is_over
    release.set()
