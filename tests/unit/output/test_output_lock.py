"""Whose an output folder is: by real processes on this machine, and by what those of others leave in the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ted_ds.errors import ConfigError
from ted_ds.launching.processes import Process
from ted_ds.output.output_lock import LOCK_FILE, STALE_AFTER_S, TAKEOVER_FILE, OutputLock, holding, wait_for

pytestmark = pytest.mark.lengthy

HOLD = """
import sys, time
from pathlib import Path
from ted_ds.output.output_lock import OutputLock
lock = OutputLock(Path(sys.argv[1]), on_loss=print)
print(lock.try_take(), flush=True)
time.sleep(600)
"""
WORK = """
import sys, time
from pathlib import Path
from ted_ds.output import output_lock
output_lock.SIGN_EVERY_S = 0.1
with output_lock.holding(Path(sys.argv[1]), say=print):
    print("at work", flush=True)
    time.sleep(50)
    print("goes on")
"""


def lock_of(folder: Path, on_loss=print) -> OutputLock:
    return OutputLock(folder, on_loss=on_loss)


@pytest.fixture
def held(tmp_path):
    """A folder that another process of this machine holds, and that process."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "None\n"
    yield tmp_path / "run", process
    process.kill()
    process.wait()
    process.stdout.close()


def of_another_machine(folder: Path, *, seconds_ago: float, host="node7") -> Path:
    """The lock of an owner whose process number means nothing here."""
    folder.mkdir(parents=True, exist_ok=True)
    process = {"host": host, "machine": "another boot", "number": os.getpid(), "began": time.time()}
    (folder / LOCK_FILE).write_text(json.dumps({"token": "f" * 16, "since": time.time() - 1000, "process": process}))
    os.utime(folder / LOCK_FILE, times=(time.time() - seconds_ago,) * 2)
    return folder / LOCK_FILE


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*")}


def test_a_folder_that_is_held_is_refused_and_not_touched(held):
    folder, process = held
    before, changed = listing(folder), folder.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=rf"output_dir: .*run is in use by \S+:{process.pid} since 20.*; wait until"):
        lock_of(folder).try_take()
    assert (listing(folder), folder.stat().st_mtime_ns) == (before, changed)


def test_one_that_stands_still_lives(held):
    folder, process = held
    process.send_signal(signal.SIGSTOP)
    os.utime(folder / LOCK_FILE, times=(0, 0))
    with pytest.raises(ConfigError, match="is in use by"):
        lock_of(folder).try_take()


def test_one_that_was_killed_is_followed_at_once_also_before_anybody_has_waited_for_it(held):
    folder, process = held
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as under a launcher that is slow
    lock = lock_of(folder)
    assert lock.try_take() is None
    assert json.loads((folder / LOCK_FILE).read_text())["process"]["number"] == os.getpid()
    lock.release()


def test_another_process_with_its_number_is_not_it(tmp_path):
    own = Process.own()
    assert own.lives()
    assert Process(own.host, own.machine, own.number, own.began - 100).lives() is False
    assert Process(own.host, own.machine, 1, own.began).lives() is False
    assert Process(own.host, "another boot", own.number, own.began).lives() is None
    assert Process("elsewhere", own.machine, own.number, own.began).lives() is None


def test_what_is_given_back_is_free_and_what_was_made_for_it_is_gone(tmp_path):
    folder = tmp_path / "deep" / "run"
    lock = lock_of(folder)
    assert lock.try_take() is None
    with pytest.raises(ConfigError, match="is in use by"):
        lock_of(folder).try_take()
    lock.release()
    assert not (tmp_path / "deep").exists()
    lock.release()  # as an end at once may come while it is given back
    again = lock_of(folder)
    assert again.try_take() is None
    (folder / "kept").touch()
    again.release()
    assert [file.name for file in folder.iterdir()] == ["kept"]


def test_an_owner_on_another_machine_is_waited_for_until_it_is_stale(tmp_path, monkeypatch):
    of_another_machine(tmp_path, seconds_ago=STALE_AFTER_S - 2)
    said: list[str] = []
    monkeypatch.setattr("ted_ds.output.output_lock.LOOK_EVERY_S", 0.2)
    lock, started = lock_of(tmp_path), time.monotonic()
    wait_for(lock.try_take, tmp_path, say=said.append)
    assert 1 < time.monotonic() - started < STALE_AFTER_S
    assert len(said) == 1
    assert f"output_dir: {tmp_path}: waiting for a sign of life of node7:{os.getpid()} since " in said[0]
    assert said[0].endswith(f"or none for {STALE_AFTER_S:g} s")
    lock.release()
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_machine_that_gives_a_sign_is_in_use(tmp_path):
    file = of_another_machine(tmp_path, seconds_ago=30)
    lock = lock_of(tmp_path)
    assert lock.try_take() is not None
    os.utime(file)
    with pytest.raises(ConfigError, match="is in use by node7:"):
        lock.try_take()


def test_only_one_takes_over_what_is_stale(tmp_path):
    of_another_machine(tmp_path, seconds_ago=1000)
    locks = [lock_of(tmp_path) for _ in range(8)]
    barrier, taken, refused = threading.Barrier(8), [], []

    def take(lock: OutputLock) -> None:
        barrier.wait()
        try:
            while lock.try_take() is not None:
                pass
            taken.append(lock)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(refused) == 7
    assert all("is in use by" in text for text in refused)
    taken[0].release()
    assert not list(tmp_path.iterdir())


def test_a_takeover_that_was_killed_does_not_lock_out_others(tmp_path):
    of_another_machine(tmp_path, seconds_ago=1000)
    (tmp_path / TAKEOVER_FILE).touch()
    lock = lock_of(tmp_path)
    assert lock.try_take() == "another run that takes it over"
    os.utime(tmp_path / TAKEOVER_FILE, times=(0, 0))
    wait_for(lock.try_take, tmp_path, say=print)
    lock.release()


def test_without_hard_links_it_is_made_at_once_too(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = lock_of(tmp_path)
    assert first.try_take() is None
    with pytest.raises(ConfigError, match="is in use by"):
        lock_of(tmp_path).try_take()
    first.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}', b"\xff"])
def test_a_damaged_lock_counts_until_it_is_stale(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert lock_of(tmp_path).try_take() == f"a sign of life of its owner, or none for {STALE_AFTER_S:g} s"
    lock = lock_of(tmp_path)
    os.utime(tmp_path / LOCK_FILE, times=(0, 0))
    assert lock.try_take() is None
    lock.release()


@pytest.mark.parametrize("content", [b"", b'{"token": "a", "since": 1, "process": {"pid": 7}}'])
def test_a_lock_that_cannot_be_read_and_is_still_touched_is_in_use(tmp_path, content, monkeypatch):
    monkeypatch.setattr("ted_ds.output.output_lock.LOOK_EVERY_S", 0.1)
    (tmp_path / LOCK_FILE).write_bytes(content)
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(0.05):
            os.utime(tmp_path / LOCK_FILE)

    owner = threading.Thread(target=touch)
    owner.start()
    try:
        with pytest.raises(
            ConfigError, match=r"is in use by another run, whose owner\.json cannot be read .*; wait until"
        ):
            wait_for(lock_of(tmp_path).try_take, tmp_path, say=print)
    finally:
        is_over.set()
        owner.join()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {LOCK_FILE: content}


def test_signs_of_life_and_what_becomes_of_a_former_owner(tmp_path, monkeypatch):
    monkeypatch.setattr("ted_ds.output.output_lock.SIGN_EVERY_S", 0.1)
    lost: list[str] = []
    lock = lock_of(tmp_path, lost.append)
    assert lock.try_take() is None

    os.utime(tmp_path / LOCK_FILE, times=(0, 0))
    wait_until(lambda: (tmp_path / LOCK_FILE).stat().st_mtime > 0)
    (tmp_path / LOCK_FILE).unlink()  # by hand: it is put back
    wait_until((tmp_path / LOCK_FILE).exists)
    hidden = tmp_path.with_name("hidden")
    tmp_path.rename(hidden)  # a disk that is away for a moment ends nothing
    time.sleep(0.5)
    hidden.rename(tmp_path)
    assert not lost
    of_another_machine(tmp_path, seconds_ago=0)
    wait_until(lambda: lost)
    assert f"output_dir: {tmp_path} was taken over by node7:" in lost[0]
    assert "it ends here and writes nothing more" in lost[0]
    lock.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"]["host"] == "node7"


def test_an_owner_that_cannot_give_signs_says_so_once_in_time(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("ted_ds.output.output_lock.SIGN_EVERY_S", 0.05)
    monkeypatch.setattr("ted_ds.output.output_lock.STALE_AFTER_S", 4.0)
    folder, hidden = tmp_path / "run", tmp_path / "hidden"
    lock = lock_of(folder)
    assert lock.try_take() is None

    said: list[str] = []

    def has_said() -> bool:
        said.append(capfd.readouterr().err)
        return bool(said[-1])

    def is_back() -> None:
        hidden.rename(folder)
        os.utime(folder / LOCK_FILE, times=(0, 0))
        wait_until(lambda: (folder / LOCK_FILE).stat().st_mtime > 0)

    folder.rename(hidden)
    time.sleep(0.2)
    is_back()
    assert not has_said()
    for _ in range(2):  # each time that it is away for long
        said.clear()
        folder.rename(hidden)
        wait_until(has_said)
        time.sleep(0.5)
        is_back()
        has_said()
        text = "".join(said)
        assert text.startswith(f"WARN output_dir: {folder}: for 2 s this run could not touch owner.json ([Errno 2] ")
        assert text.endswith("); after 4 s another run may take the folder over. See that the folder can be written\n")
        assert text.count("WARN") == 1
    lock.release()


def test_who_is_alone_ends_at_once_too_and_writes_nothing_more(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "at work\n"
        of_another_machine(tmp_path, seconds_ago=0)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, printed) == (2, "")
    assert said.startswith(f"ted-ds: error:\noutput_dir: {tmp_path} was taken over by node7:")
    assert said.count("\n") == 2
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"]["host"] == "node7"


def test_a_folder_that_nobody_may_write_needs_no_owner(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with holding(tmp_path, say=print):
        assert not list(tmp_path.iterdir())
    with (
        pytest.raises(ConfigError, match=r"output_dir: .*: cannot be written: "),
        holding(Path("/dev/null/run"), say=print),
    ):
        pass
