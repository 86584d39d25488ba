"""Memory that a run's process keeps, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.tiny import ROOT

SCRIPT = """
import os
import torch
from ted_ds.runtime.host_allocator import keep_freed_memory


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


kept = keep_freed_memory()
before = resident()
tensor = torch.ones(64 * 2**20)
there = resident() - before
del tensor
print(kept, round(there), round(resident() - before))
"""


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, False)],
)
def test_a_process_keeps_what_it_frees_unless_somebody_has_set_the_allocator(given, kept):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**own, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), **given}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    said, there, left = done.stdout.split()[-3:]
    assert said == str(kept)
    assert int(there) >= 250
    assert (int(left) >= 250) == kept
