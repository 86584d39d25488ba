"""Tiny runs that tests read and never change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny import write_run

# the same cases every time, nothing written beside the tests, and no limit that a busy machine would break
settings.register_profile("ted_ds", derandomize=True, database=None, deadline=None)
settings.load_profile("ted_ds")


@pytest.fixture(scope="session")
def lm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal-LM run: ``teacher`` (llama, 4 blocks), ``train.jsonl``, ``recipe.yaml``."""
    return write_run(tmp_path_factory.mktemp("lm")).parent


@pytest.fixture(scope="session")
def classification_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a classification run: ``teacher`` (bert, 4 blocks), ``train.jsonl``, ``recipe.yaml``."""
    return write_run(tmp_path_factory.mktemp("classification"), kind="sequence_classification").parent
