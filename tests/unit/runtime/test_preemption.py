"""Signals and budgets: noted once, and the second request ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ted_ds.launching.starters import SAME_REQUEST_S
from ted_ds.runtime import preemption
from ted_ds.runtime.preemption import AGREE_WITHIN_S, LOOK_EVERY_S, STOP_SIGNALS, StopRequests, shielded

pytestmark = pytest.mark.lengthy

NOTED = """while stops.reason is None: time.sleep(0.01)
    print(stops.reason, flush=True)
    """
PATIENCE_S = 60
"""Of a machine that does much else."""
LISTEN = """
import os, signal, sys, time
from ted_ds.runtime.preemption import StopRequests
stops = StopRequests()
stops.has_work({has_work})
with stops.listening():
    print("listening", flush=True)
    {body}
"""


@pytest.fixture(autouse=True)
def heard():
    """Closed terminals are heard here, also where these tests themselves were started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def start():
    """Start a process that prints to a pipe; whatever becomes of the test, it is killed."""
    started = []

    def begin(*command):
        started.append(subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def listening(start, body, *, has_work=True):
    process = start("-c", LISTEN.format(body=body, has_work=has_work))
    assert process.stdout.readline() == "listening\n"
    return process


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_a_reason_and_does_not_end_the_process(number):
    stops = StopRequests()
    stops.has_work(True)
    before = signal.getsignal(number)
    with stops.listening():
        assert stops.reason is None
        assert stops.seconds_since is None
        asked_at = time.monotonic()
        os.kill(os.getpid(), number)
        wait_until(lambda: stops.reason is not None)
        assert stops.reason == number.name
        assert 0 <= stops.seconds_since <= time.monotonic() - asked_at
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_in_a_process_of_somebody_else_a_second_signal_is_that_processs_own(monkeypatch):
    """And a request before the first step, when a process of ``ted-ds`` would end, does not end it."""
    monkeypatch.setattr(preemption, "AGREE_WITHIN_S", 0.05)
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    stops = StopRequests(owns_process=False)
    try:
        with stops.listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: stops.reason is not None)
            time.sleep(1.5 * LOOK_EVERY_S)
            assert (stops.reason, heard) == ("SIGUSR1", [])
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: heard)
            assert heard == [signal.SIGUSR1]
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: len(heard) == 2)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_may_ask_from_within():
    stops = StopRequests(owns_process=False)
    stops.ask("enough")
    stops.ask("more than enough")
    assert stops.reason == "enough"
    assert 0 <= stops.seconds_since < PATIENCE_S


def test_another_thread_than_the_main_one_hears_no_signals():
    found = []

    def listen():
        before = signal.getsignal(signal.SIGTERM)
        with StopRequests(owns_process=False).listening():
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_budget_is_a_reason_once_it_is_used_up():
    stops = StopRequests()
    stops.limit(None, started_at=time.monotonic() - 1e6)
    assert stops.reason is None
    stops.limit(1.0, started_at=time.monotonic() - 30)
    assert stops.reason is None
    assert stops.seconds_since is None
    used_up_at = time.monotonic() - 1
    stops.limit(1.0, started_at=used_up_at - 60)
    assert stops.reason == "stop_after_minutes"
    assert 1 <= stops.seconds_since <= time.monotonic() - used_up_at


def test_a_signal_is_noted_while_the_main_thread_is_in_code_that_does_not_return(start):
    # Python runs a handler only between two of its own instructions; here there is none for minutes
    process = listening(start, "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGUSR1


def test_without_a_launcher_a_second_signal_ends_the_process_at_once(start):
    process = listening(start, NOTED + "time.sleep(600)")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGINT


def test_under_a_launcher_what_follows_at_once_is_the_same_request(start, tmp_path):
    # what torchrun's command line looks like from below
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))")
    body = NOTED + "time.sleep(SAME_REQUEST_S + 0.5); print('alive', flush=True); time.sleep(60)"
    code = LISTEN.format(
        body=f"SAME_REQUEST_S = {SAME_REQUEST_S}; print(os.getpid(), flush=True)\n    {body}", has_work=True
    )
    process = start(str(launcher), code)
    assert process.stdout.readline() == "listening\n"
    rank = int(process.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(rank, number)
        time.sleep(0.01)
    assert process.stdout.readline() == "SIGINT\n"
    assert process.stdout.readline() == "alive\n"
    os.kill(rank, signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_a_launcher_that_is_gone_is_a_reason(start, tmp_path):
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys; subprocess.call([sys.executable, '-c', sys.argv[1]])")
    found = tmp_path / "found"
    body = f"""print(stops.reason, flush=True)
    while stops.reason is None: time.sleep(0.02)
    open({str(found)!r}, "w").write(stops.reason)"""
    process = start(str(launcher), LISTEN.format(body=body, has_work=True))
    assert process.stdout.readline() == "listening\n"
    assert process.stdout.readline() == "None\n"
    process.kill()
    process.wait()
    wait_until(lambda: found.exists() and found.read_text() == "end of the launcher")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_before_the_first_step_one_signal_ends_a_process_that_waits(start, number, tmp_path):
    # in code that never returns, as in a collective; what was made for the time being is removed
    made = tmp_path / "made"
    made.touch()
    body = f"""from pathlib import Path
    stops.before_end.append(Path({str(made)!r}).unlink)
    print("ready", flush=True)
    import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"""
    process = listening(start, body, has_work=False)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 75
    assert not made.exists()


@pytest.mark.parametrize("coming", ["stops.agreed()", pytest.param("stops.has_work(True)", marks=pytest.mark.slow)])
def test_before_the_first_step_ranks_that_agree_end_together(start, coming):
    body = f"{NOTED}{coming}; time.sleep({AGREE_WITHIN_S + 2}); os._exit(3)"
    process = listening(start, body, has_work=False)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 3


def test_before_the_first_step_a_file_ends_it_too(start, tmp_path, monkeypatch):
    monkeypatch.setenv("TED_DS_LOG_DIR", str(tmp_path))
    process = listening(start, "time.sleep(600)", has_work=False)
    (tmp_path / "stop").touch()
    assert process.wait(PATIENCE_S) == 75


def test_a_terminal_that_closes_is_heard_unless_it_is_ignored(start, tmp_path):
    assert signal.SIGHUP in STOP_SIGNALS
    process = listening(start, NOTED)
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "SIGHUP\n"
    sent = tmp_path / "sent"
    body = f"""while not os.path.exists({str(sent)!r}): time.sleep(0.01)
    time.sleep(0.5); print(stops.reason, flush=True); time.sleep(60)"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        process = listening(start, body)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    sent.touch()
    assert process.stdout.readline() == "None\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None


def test_a_shell_is_no_launcher():
    # a run that was started with nohup outlives its shell
    program = LISTEN.format(body="time.sleep(1); print(stops.reason, flush=True)", has_work=True)
    script = f"{sys.executable} -c '{program}' & exit 0"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines() == ["listening", "None"]


def test_shielded_processes_do_not_hear_of_it(start):
    with shielded():
        process = start("-c", "print('here', flush=True); import time; time.sleep(0.5)")
    assert process.stdout.readline() == "here\n"
    for number in STOP_SIGNALS:
        process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)
