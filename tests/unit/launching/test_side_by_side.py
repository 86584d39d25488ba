"""Commands side by side: in order, so many at once, and none that is lost or left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ted_ds.errors import ConfigError
from ted_ds.launching import side_by_side
from ted_ds.launching.side_by_side import Job, SideBySide, command_of_run, environment_of


def job(folder: Path, name: str, code: str, waits_for: Callable[[], str | None] = lambda: None) -> Job:
    return Job(name, lambda: [sys.executable, "-S", "-c", code], folder / f"{name}.log", waits_for)


def run(jobs: list[Job], *, at_once: int = 1) -> tuple[list[tuple[str, int]], list[str]]:
    found, said = list[tuple[str, int]](), list[str]()
    SideBySide(at_once, 1, said.append).run(jobs, lambda one, code, _: found.append((one.name, code)))
    return found, said


def test_commands_end_in_order_with_their_codes_and_logs(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, f"print({name!r}); raise SystemExit({code})") for name, code in [("a", 0), ("b", 3)]]
    assert run(jobs)[0] == [("a", 0), ("b", 3)]
    assert (tmp_path / "b.log").read_text() == "b\n"
    run(jobs[1:])
    assert (tmp_path / "b.log").read_text() == "b\nb\n", "a log goes on"


def test_so_many_go_on_at_once(tmp_path: Path) -> None:
    waiting = "import pathlib, time\nwhile not pathlib.Path({other!r}).exists(): time.sleep(0.01)"
    first = job(tmp_path, "first", waiting.format(other=str(tmp_path / "there")))
    second = job(tmp_path, "second", f"import pathlib; pathlib.Path({str(tmp_path / 'there')!r}).touch()")
    assert run([first, second], at_once=2)[0] == [("second", 0), ("first", 0)] or (tmp_path / "there").exists()


def test_one_that_another_process_is_at_waits_for_it_and_lets_others_go_first(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    blocked = job(tmp_path, "blocked", "", lambda: None if gone.exists() else "host:7, which is at it")
    other = job(tmp_path, "other", f"import pathlib; pathlib.Path({str(gone)!r}).touch()")
    found, said = run([blocked, other])
    assert found == [("other", 0), ("blocked", 0)]
    assert said == ["blocked: waiting for host:7, which is at it"]


def test_one_that_met_another_process_begins_again(tmp_path: Path) -> None:
    """It was started while the other one was starting, too, and had no sign yet."""
    owner: list[str] = []
    tries = tmp_path / "tries"
    code = (
        f"import pathlib; p = pathlib.Path({str(tries)!r}); n = p.exists(); p.touch(); raise SystemExit(0 if n else 2)"
    )

    def waits_for() -> str | None:
        if tries.exists() and not owner:  # seen once, when the first try has ended
            owner.append("x")
            return "another run"
        return None

    assert run([job(tmp_path, "a", code, waits_for)])[0] == [("a", 0)]


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals are for the main thread")
def test_asked_to_stop_it_passes_that_on_waits_and_begins_no_other(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    found: list[tuple[str, int]] = []
    all_of_them = SideBySide(1, 1, print)
    before = signal.getsignal(signal.SIGINT)

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    asker = threading.Thread(target=ask)
    asker.start()
    with all_of_them.listening():
        jobs = [job(tmp_path, "a", code), job(tmp_path, "b", "")]
        all_of_them.run(jobs, lambda one, code, _: found.append((one.name, code)))
    asker.join()
    assert found == [("a", 75)]
    assert all_of_them.is_asked
    assert signal.getsignal(signal.SIGINT) is before


def test_none_is_left_where_this_process_fails(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    long = job(tmp_path, "long", f"import os, time; open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(60)")

    def fail(*_: object) -> None:
        while not (place.exists() and place.read_text()):
            time.sleep(0.01)
        raise RuntimeError("a defect of ours")

    with pytest.raises(RuntimeError, match="a defect of ours"):
        SideBySide(2, 1, print).run([long, job(tmp_path, "short", "")], fail)
    assert not psutil.pid_exists(int(place.read_text()))


def test_devices_and_cores_are_dealt_out_where_they_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side.os, "cpu_count", lambda: 16)
    given = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "RANK": "0", "MASTER_PORT": "1", "HOME": "/h"}
    seen = [environment_of(slot, at_once=2, num_ranks=2, environment=given) for slot in range(2)]
    assert seen[0] == {"CUDA_VISIBLE_DEVICES": "4,5", "HOME": "/h", "OMP_NUM_THREADS": "4"}
    assert seen[1]["CUDA_VISIBLE_DEVICES"] == "6,7"
    too_few = environment_of(0, at_once=3, num_ranks=2, environment=given)
    assert too_few["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    own = environment_of(0, at_once=1, num_ranks=1, environment={"OMP_NUM_THREADS": "3"})
    assert own == {"OMP_NUM_THREADS": "3"}


def test_several_ranks_have_the_launcher_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command_of_run(["run", "r.yaml"], 1) == [sys.executable, "-m", "ted_ds", "run", "r.yaml"]
    command = command_of_run(["run", "r.yaml"], 2)
    assert command[:3] == [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
    assert command[-4:] == ["--module", "ted_ds", "run", "r.yaml"]
    assert command[4] != command_of_run([], 2)[4], "each has a port of its own"
    monkeypatch.setattr(side_by_side.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"^study.ranks: 2: .*/deepspeed: no such launcher; use 1, or install"):
        command_of_run([], 2)
