"""Checks that need one NVIDIA GPU: ``python -m pytest -m gpu -rs tests/gpu``, about 8 minutes; skipped aloud elsewhere.

None of them has run yet: this project was built where there was no GPU.
"""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="NOT RUN: there is no CUDA device"))
