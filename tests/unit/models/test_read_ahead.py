"""Weights are read ahead for the ranks of a host where they all fit into its memory, and not at all otherwise."""

from __future__ import annotations

import psutil
import pytest

from ted_ds.models.tensor_files import read_ahead
from tests.tiny import write_model


@pytest.mark.parametrize(("too_few", "is_read"), [(0, True), (1, False)])
def test_all_is_read_or_nothing(tmp_path, too_few, is_read):
    write_model(tmp_path, "gpt2")
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    process = psutil.Process()
    before = process.io_counters().read_chars  # type: ignore[attr-defined]
    read_ahead(tmp_path, size - too_few)
    num_read = process.io_counters().read_chars - before  # type: ignore[attr-defined]
    assert (num_read >= size) == is_read
