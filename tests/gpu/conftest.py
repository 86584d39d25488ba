"""Whether these run, and what libraries must find in the environment before a GPU is first used."""

from __future__ import annotations

import os

import pytest

from ted_ds.runtime.arithmetic import deterministic_variables
from tests.device import IS_CPU, VARIABLE

if not IS_CPU:  # torch looks once, as it multiplies for the first time
    os.environ.update(deterministic_variables(os.environ, attention="auto"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get(VARIABLE):
        reason = f"NOT RUN: ${VARIABLE} is not set; cuda runs it on the first GPU, cpu rehearses it"
        for item in items:
            if "tests/gpu" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))
