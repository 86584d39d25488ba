"""Before the first step: who is missing is said, a port in use is a mistake with a message, one signal is enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from ted_ds.errors import TopologyError
from ted_ds.runtime.meeting import Meeting
from tests.dist import free_port, run_ranks
from tests.faults import with_environment
from tests.runs import Run, run
from tests.tiny import write_run

MISTAKE, STOPPED, LOST = 2, 75, 76


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return str(write_run(tmp_path_factory.mktemp("meeting")))


def changed(_rank, variables):
    with_environment(_rank, **variables)


@pytest.mark.parametrize(
    ("verb", "number"), [("run", signal.SIGTERM), pytest.param("doctor", signal.SIGINT, marks=pytest.mark.slow)]
)
def test_ranks_that_do_not_come_are_said_and_one_signal_ends_it(recipe, verb, number):
    started = Run([verb, recipe], num_ranks=1, fault=changed, fault_arguments=({"WORLD_SIZE": "4"},))
    started.wait_for("rank 0: waiting for 3 of 4 ranks ($WORLD_SIZE) at 127.0.0.1:")
    assert "missing: 1, 2, 3" in started.output()
    started.send(number)
    asked_at = time.monotonic()
    assert started.wait() == [STOPPED]
    assert time.monotonic() - asked_at < 30  # it would wait for the others for half an hour
    assert f"stopped on {number.name} before the first step: there was nothing to save" in started.output()
    assert "Traceback" not in started.output()


@pytest.mark.parametrize(
    ("rank", "said"),
    [("0", "1 of 2 ranks ($WORLD_SIZE) at 127.0.0.1:"), ("1", "rank 0 at 127.0.0.1:")],
)
def test_the_wait_ends_after_collective_timeout_s(recipe, rank, said):
    variables = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    arguments = ["run", recipe, "collective_timeout_s=4"]
    output = run(arguments, num_ranks=1, codes=LOST, fault=changed, fault_arguments=(variables,))
    assert f"rank {rank}: waiting for {said}" in output
    assert "s (collective_timeout_s) for " in output
    assert "frame #0" not in output


@pytest.fixture(params=["mute", *(pytest.param(what, marks=pytest.mark.slow) for what in ("chatty", "closing"))])
def occupied(request):
    """A port that another program has, which says nothing, or something, or hangs up."""
    program = f"""
import socket, time
server = socket.socket(); server.bind(("", 0)); server.listen(16)
print(server.getsockname()[1], flush=True)
kept = []
while True:
    one, _ = server.accept(); kept.append(one)
    if "{request.param}" == "chatty": one.sendall(b"SSH-2.0-OpenSSH_9.2\\r\\n")
    if "{request.param}" == "closing": one.close()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_port_in_use_is_a_mistake_that_all_ranks_name(recipe, occupied):
    started = Run(["run", recipe], num_ranks=2, fault=changed, fault_arguments=({"MASTER_PORT": occupied},))
    assert started.wait() == [MISTAKE, MISTAKE], started.output()
    assert f"port {occupied} of 127.0.0.1 ($MASTER_PORT), where the ranks meet, is in use" in started.output(0)
    assert f"what answers at 127.0.0.1:{occupied} ($MASTER_ADDR, $MASTER_PORT) is not this run's" in started.output(1)
    for rank in (0, 1):
        assert "deepspeed --master_port PORT, torchrun --master_port PORT, or $MASTER_PORT" in started.output(rank)
        assert "Traceback" not in started.output(rank)


def test_the_port_of_another_run_is_named_and_that_run_goes_on(recipe, tmp_path):
    arguments = ["run", recipe, "distill.max_steps=100000", f"output_dir={tmp_path / 'run'}"]
    port = free_port()
    at_port = {"fault": changed, "fault_arguments": ({"MASTER_PORT": str(port)},)}
    first = Run(arguments, **at_port)
    try:
        first.wait_for("distill 1/")
        arguments[-1] = f"output_dir={tmp_path / 'other'}"
        second = Run(arguments, **at_port)
        assert second.wait() == [MISTAKE, MISTAKE], second.output()
        assert f"port {port} of 127.0.0.1" in second.output(0)
        assert f"rank 1 is already at 127.0.0.1:{port}, as " in second.output(1)
        first.send(signal.SIGTERM)
        assert first.wait() == [STOPPED, STOPPED]
    finally:
        first.kill()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_port_that_is_none(port, monkeypatch):
    by_torch = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in by_torch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TopologyError, match=f"MASTER_PORT is '{port}': must be a whole number from 1 to 65535"):
        Meeting(1.0)


def limits(world):
    import torch.distributed as dist

    dist.new_group([0, 1])
    dist.new_group([0, 1], backend="gloo")
    groups = dist.distributed_c10d._world.pg_map
    return [group._get_backend(world.device).options._timeout for group in groups]


def test_every_group_has_the_limit_from_the_first_second():
    for found in run_ranks(limits, 2):
        assert len(found) >= 4
        assert set(found) == {timedelta(seconds=60)}


def test_a_rank_that_is_there_twice_is_refused(recipe):
    port = str(free_port())
    variables = {"MASTER_PORT": port, "WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}
    of_first = {**variables, "RANK": "0", "LOCAL_RANK": "0"}
    first = Run(["run", recipe], num_ranks=1, fault=changed, fault_arguments=(of_first,))
    ones = [Run(["run", recipe], num_ranks=1, fault=changed, fault_arguments=(variables,)) for _ in range(2)]
    try:
        deadline = time.monotonic() + 180
        while not (refused := [one for one in ones if one.processes[0].exitcode is not None]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert refused[0].wait() == [MISTAKE]
        assert f"rank 1 is already at 127.0.0.1:{port}, as {os.uname().nodename}:" in refused[0].output()
    finally:
        for one in (first, *ones):
            one.kill()
