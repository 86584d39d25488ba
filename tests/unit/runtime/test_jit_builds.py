"""A lock that a killed build left is removed with a word; one that is held is waited for, with words and an end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.utils.cpp_extension

from ted_ds.errors import ConfigError
from ted_ds.runtime import jit_builds

pytestmark = pytest.mark.lengthy

HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def baton(tmp_path, monkeypatch):
    """Torch's own lock of an op's folder, as it is made after a world was joined."""
    monkeypatch.setattr(torch.utils.cpp_extension, "FileBaton", torch.utils.cpp_extension.FileBaton)
    monkeypatch.setattr(jit_builds, "FIRST_WORD_S", 0.2)
    monkeypatch.setattr(jit_builds, "ALONE_AFTER_S", 0.8)
    jit_builds.bound_build_waits(3.0)
    folder = tmp_path / "py311_cpu" / "fused_adam"
    folder.mkdir(parents=True)
    return torch.utils.cpp_extension.FileBaton(str(folder / "lock"))


@pytest.fixture
def holder(baton):
    """A process that builds, as far as anybody can tell."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, baton.lock_file_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_that_nobody_has_is_taken_and_given_back(baton):
    assert baton.try_acquire() is True
    baton.release()
    assert not Path(baton.lock_file_path).exists()


@pytest.mark.parametrize("hours_old", [0, 30])
def test_what_a_killed_build_left_is_removed(baton, holder, capsys, hours_old):
    holder.kill()
    holder.wait()
    os.utime(baton.lock_file_path, times=(time.time() - 3600 * hours_old,) * 2)
    assert baton.try_acquire() is True
    said = capsys.readouterr().err
    assert f"{baton.lock_file_path}: held by nobody since 20" in said
    assert said.rstrip().endswith("left by a run that was killed: removed")
    baton.release()


def test_one_that_is_held_is_waited_for_with_words_until_it_is_built(baton, holder, capsys):
    threading.Timer(0.6, Path(baton.lock_file_path).unlink).start()
    assert baton.try_acquire() is True
    baton.release()
    assert f"waiting for {baton.lock_file_path}, held by process {holder.pid} since 20" in capsys.readouterr().err


@pytest.mark.usefixtures("holder")
def test_a_build_without_an_end_ends_the_wait(baton):
    with pytest.raises(ConfigError, match=r"lock: waited 3 s \(collective_timeout_s\) for the build .* remove this"):
        baton.try_acquire()
    assert Path(baton.lock_file_path).exists()


@pytest.mark.slow
def test_what_other_machines_may_hold_is_left_until_its_folder_is_silent(baton, monkeypatch, capsys):
    monkeypatch.setattr(jit_builds, "_is_shared", lambda _lock: True)
    lock = Path(baton.lock_file_path)
    lock.touch()
    with pytest.raises(ConfigError, match="held by nobody here since 20"):
        baton.try_acquire()
    assert f"waiting for {lock}, held by nobody here since" in capsys.readouterr().err
    long_ago = time.time() - jit_builds.SILENT_AFTER_S - 60
    (lock.parent / "main.o").touch()
    os.utime(lock, times=(long_ago,) * 2)
    with pytest.raises(ConfigError, match="held by nobody here"):  # something is being built there
        baton.try_acquire()
    os.utime(lock.parent / "main.o", times=(long_ago,) * 2)
    assert baton.try_acquire() is True
    baton.release()


def test_ranks_that_find_it_at_once_build_one_after_the_other(baton):
    Path(baton.lock_file_path).touch()
    building, most = [], []

    def load() -> None:
        own = torch.utils.cpp_extension.FileBaton(baton.lock_file_path)
        assert own.try_acquire()
        building.append(own)
        time.sleep(0.1)
        most.append(len(building))
        building.remove(own)
        own.release()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
