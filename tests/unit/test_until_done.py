"""``launchers/until_done.sh`` starts again what should be, and passes on the rest."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.tiny import ROOT

SCRIPT = ROOT / "launchers" / "until_done.sh"


def until_done(tmp_path, codes, *options):
    """Run a command that ends with these codes, one after the other."""
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = "code=$(head -n 1 codes); sed -i 1d codes; if [ $code -gt 128 ]; then kill -9 $$; fi; exit $code"
    words = ["bash", str(SCRIPT), *options, "bash", "-c", command]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    return done.returncode, len((tmp_path / "codes").read_text().split()), done.stderr


@pytest.mark.parametrize(
    ("codes", "code", "left"),
    [([0, 9], 0, 1), ([75, 75, 0], 0, 0), ([76, 137, 0, 9], 0, 1), ([75, 2, 9], 2, 1), ([1, 9], 1, 1)],
)
def test_it_starts_again_what_was_stopped_or_lost(tmp_path, codes, code, left):
    assert until_done(tmp_path, codes)[:2] == (code, left)


def test_it_gives_up(tmp_path):
    code, left, message = until_done(tmp_path, [76] * 5, "-n", "2")
    assert (code, left) == (76, 2)
    assert "given up after 2 restarts" in message


def test_it_wants_a_command(tmp_path):
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no command" in done.stderr


def test_it_passes_a_request_to_stop_on_and_does_not_start_again(tmp_path):
    command = "trap 'echo stop >> starts; exit 75' TERM; echo start >> starts; while :; do sleep 0.05; done"
    process = subprocess.Popen(["bash", str(SCRIPT), "bash", "-c", command], cwd=tmp_path)
    starts = tmp_path / "starts"
    while not starts.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    assert starts.read_text().split() == ["start", "stop"]
