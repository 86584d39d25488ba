"""The environment every test runs in: CPU, one thread per process, nothing fetched, W&B offline."""

from __future__ import annotations

import gc
import os

os.environ.update(
    DS_ACCELERATOR="cpu",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    PYTHONWARNINGS="ignore::FutureWarning",
)


def pytest_collection_finish():
    """What is imported by now is never garbage: collections, which the product makes on purpose, pass it over."""
    gc.collect()
    gc.freeze()
