"""What libraries print is put aside; what is wrong is not."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.tiny import ROOT

SAYS = """
import ctypes, logging, sys
from pathlib import Path
from ted_ds.launching.records import log_file
from ted_ds.output.chatter import aside, chatter_kept_in
logger = logging.getLogger("DeepSpeed")
logger.addHandler(logging.StreamHandler(stream=sys.stdout))
libc = ctypes.CDLL(None)
def block(number):
    with aside():
        print(f"printed {number}")
        libc.printf(f"by C {number}\\n".encode())
        print(f"as an error {number}", file=sys.stderr)
        logger.warning(f"a warning {number}")
        if number == 3:
            raise ValueError("broken")
    print(f"after {number}", flush=True)
block(0)
libc.fflush(None)
with chatter_kept_in(log_file(Path(sys.argv[1], "logs"), 1)):
    block(1)
    block(2)
    try:
        block(3)
    except ValueError as error:
        print(error)
block(4)
libc.fflush(None)
"""
KINDS = ("printed", "by C", "as an error")


def test_it_goes_into_the_file_of_the_rank_and_warnings_do_not(tmp_path):
    command = [sys.executable, "-c", SAYS, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    aside = (tmp_path / "logs" / "rank_00001.log").read_text().splitlines()
    assert sorted(aside) == sorted(f"{kind} {number}" for number in (1, 2, 3) for kind in KINDS)
    shown = ["printed 0", "by C 0", "a warning 0", "after 0", "a warning 1", "after 1", "a warning 2", "after 2"]
    shown += ["a warning 3", "broken", "printed 4", "by C 4", "a warning 4", "after 4"]
    assert sorted(done.stdout.splitlines()) == sorted(shown)
    again = [f"{kind} 3" for kind in KINDS]  # what came before the error
    assert sorted(done.stderr.splitlines()) == sorted(["as an error 0", *again, "as an error 4"])


def test_where_the_file_cannot_be_opened_it_is_shown(tmp_path):
    (tmp_path / "logs").touch()
    command = [sys.executable, "-c", SAYS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert {f"printed {number}" for number in range(5)} <= {*done.stdout.splitlines()}
