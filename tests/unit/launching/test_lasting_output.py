"""Whoever reads what is printed may go; nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

PRINT = """
import os, sys
from ted_ds.launching.lasting_output import outlast_readers
outlast_readers()
for _ in range(3):
    print("x" * 100_000, flush=True)
    print("y" * 100_000, file=sys.stderr)
"""
FROM_C = "os.write(1, b'from C'); os.write(2, b'from C')\n"  # which Python's streams do not see
END = "sys.exit(7)"


def unread(*command: str, closed: tuple[str, ...] = ("stdout",), shell: str | None = None) -> tuple[int, str]:
    """The exit code of a command whose reader has gone, and what it still said elsewhere."""
    words = [sys.executable, *command] if shell is None else ["bash", "-c", shell, "bash", sys.executable, *command]
    unread_end, written_end = os.pipe()
    os.close(unread_end)
    streams = {name: written_end if name in closed else subprocess.PIPE for name in ("stdout", "stderr")}
    process = subprocess.Popen(words, cwd=ROOT, text=True, **streams)
    os.close(written_end)
    try:
        said = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, "".join(one or "" for one in said)


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_the_exit_code_stays_and_nothing_is_said_of_it(closed: tuple[str, ...]) -> None:
    code, said = unread("-c", PRINT + FROM_C + END, closed=closed)
    assert code == 7
    assert "BrokenPipe" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_what_is_closed_or_full_changes_nothing(redirection: str, tmp_path: Path) -> None:
    # a file that is opened now must not get the number of what is closed
    opened = f"{PRINT}assert os.open({str(tmp_path / 'f')!r}, 66) > 2\n{END}"
    code, said = unread("-c", opened, closed=(), shell=f'"$@" {redirection}')
    assert code == 7, said[-500:]
    assert "Error" not in said


@pytest.mark.parametrize("options", [[], ["-u"], ["-X", "utf8"]])
def test_streams_are_written_as_before(options: list[str]) -> None:
    about = "[[one.encoding, one.errors, one.line_buffering, one.write_through] for one in (sys.stdout, sys.stderr)]"
    program = (
        f"import sys\nfrom ted_ds.launching.lasting_output import outlast_readers\nbefore = {about}\n"
        f"outlast_readers()\nprint(before == {about}, before)"
    )
    command = [sys.executable, *options, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONIOENCODING": "latin-1:replace"} if not options else {}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith("True "), said


def test_a_full_disk_may_have_room_again(tmp_path: Path) -> None:
    program = (
        "import os\nfrom ted_ds.launching.lasting_output import outlast_readers\noutlast_readers()\n"
        "print('lost', flush=True)\n"
        f"os.dup2(os.open({str(tmp_path / 'log')!r}, 65), 1)\nprint('kept', flush=True)"
    )
    assert unread("-c", program, closed=(), shell='"$@" >/dev/full')[0] == 0
    assert (tmp_path / "log").read_text() == "kept\n"


def test_a_reader_that_stands_still_is_not_waited_for_without_end() -> None:
    """As a stopped terminal: a pipe that is full and not blocking; who reads again gets what is said then."""
    program = (
        "import os, sys, time\nfrom ted_ds.launching import lasting_output\nlasting_output.PATIENCE_S = 2.0\n"
        "os.set_blocking(1, False)\nlasting_output.outlast_readers()\nstarted = time.monotonic()\n"
        "for _ in range(20):\n    print('x' * 1_000_000, flush=True)\nseconds = time.monotonic() - started\n"
        "print(round(seconds, 1), file=sys.stderr, flush=True)\nsys.stdin.readline()\nprint('later', flush=True)"
    )
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, **streams)
    try:
        waited_s = float(process.stderr.readline())
        read = os.read(process.stdout.fileno(), 1 << 20).decode()  # all that the pipe holds
        printed, said = process.communicate("go on\n", timeout=120)
    finally:
        process.kill()
    assert 2 <= waited_s < 20  # 40 if it waited for each
    assert (read + printed).strip("x").split() == ["later"]
    assert (process.returncode, said) == (0, "")


def test_what_is_read_arrives_as_before() -> None:
    program = "from ted_ds.launching.lasting_output import outlast_readers\noutlast_readers()\nprint('grün')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, "grün\n".encode("latin-1"))


@pytest.mark.parametrize("closed", [("stdout",), ("stdout", "stderr")])
def test_check_into_head(lm_run: Path, closed: tuple[str, ...]) -> None:
    recipe = str(lm_run / "recipe.yaml")
    code, said = unread("-m", "ted_ds", "check", recipe, closed=closed)
    assert (code, said) == (0, "")
    code, said = unread("-m", "ted_ds", "check", recipe, "seed=x", closed=closed)
    assert code == 2
    assert ("seed: 'x'" in said) == ("stderr" not in closed)
    assert "Traceback" not in said


def test_help_into_head() -> None:
    assert unread("-m", "ted_ds", "--help") == (0, "")
