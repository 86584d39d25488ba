"""What is made sure of before DeepSpeed starts."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator

from ted_ds.errors import TopologyError
from ted_ds.runtime.initialize import refuse_without_async_io


def test_disks_beside_other_work_are_refused_exactly_where_deepspeed_cannot_build_that() -> None:
    accelerator: Any = get_accelerator()
    can_build = accelerator.create_op_builder("AsyncIOBuilder").is_compatible(verbose=False)
    refused = pytest.raises(TopologyError, match=r"nvme needs DeepSpeed's async_io, .* or use cpu")
    with contextlib.nullcontext() if can_build else refused:
        refuse_without_async_io("ds.json: nvme", "cpu")
