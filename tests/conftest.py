"""The environment every test runs in: the CPU, one thread per process, nothing fetched, W&B offline.

(Or another device: ``tests/device.py``.)
"""

from __future__ import annotations

import gc
import os
import signal

import pytest

CLUSTER = "tests/cluster/"

os.environ.update(
    DS_ACCELERATOR="cuda" if os.environ.get("TED_DS_TEST_DEVICE", "").startswith("cuda") else "cpu",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    PYTHONWARNINGS="ignore::FutureWarning",
)
os.environ.pop("COLUMNS", None)  # of pytest-xdist, which would have what is printed cut into lines
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup every run of a test would ignore it, too


def pytest_collection_finish():
    """What is imported by now is never garbage: collections, which the product makes on purpose, pass it over."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, as they share its fixtures; and all of the one cluster that there can be."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return CLUSTER if nodeid.startswith(CLUSTER) else super()._split_scope(nodeid)

    return ByFile(config, log)
