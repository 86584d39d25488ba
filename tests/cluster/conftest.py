"""The cluster that tests here share; where there can be none, that is said loudly."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from tests.cluster.simulation import Cluster, why_not

PLACE = Path("/var/tmp/cluster_simulation")
NUM_NODES = 4


def pytest_collection_modifyitems(items):
    reason = why_not()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("cluster"):
                item.add_marker(pytest.mark.skip(reason=f"NO CLUSTER TESTS HERE: {reason}"))


@pytest.fixture(scope="session")
def whole_cluster():
    cluster = Cluster(PLACE / "state", NUM_NODES)
    cluster.up()
    yield cluster
    cluster.down()
    shutil.rmtree(PLACE, ignore_errors=True)


@pytest.fixture
def cluster(whole_cluster):
    """All hosts up and idle."""
    whole_cluster.reset()
    return whole_cluster


@pytest.fixture
def shared():
    """A folder that all hosts see."""
    folder = PLACE / uuid.uuid4().hex[:8]
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """Say it where nobody overlooks it."""
    reason = why_not()
    if reason is not None:
        terminalreporter.section("THE CLUSTER TESTS WERE NOT RUN", red=True, bold=True)
        terminalreporter.line(reason)
