"""Ranks, as each launcher tells them; every contradiction is named."""

from __future__ import annotations

import pytest

from ted_ds.errors import TopologyError
from ted_ds.runtime import rendezvous
from ted_ds.runtime.rendezvous import network_variables, rendezvous_variables

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "2838560769",
}


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


def test_a_process_without_a_launcher_is_alone():
    assert rendezvous_variables({}) == {}
    # the shell of a Slurm job is one task, whatever the job has asked for
    assert rendezvous_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "17"}) == {}
    assert rendezvous_variables({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_torchs_own_variables_are_taken_as_they_are():
    assert rendezvous_variables(TORCH) == TORCH
    # one launcher on each of two hosts, started by srun
    on_each_host = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert rendezvous_variables({**on_each_host, **TORCH}) == TORCH
    assert rendezvous_variables({**SRUN, **TORCH}) == TORCH
    alone = {**without(TORCH, "LOCAL_RANK"), "RANK": "0", "WORLD_SIZE": "1"}
    assert rendezvous_variables(alone)["LOCAL_RANK"] == "0"


def test_srun_is_translated():
    found = rendezvous_variables(SRUN)
    assert {**found, "MASTER_PORT": "29500"} == TORCH
    assert 20_000 <= int(found["MASTER_PORT"]) < 30_000
    assert rendezvous_variables({**SRUN, "SLURM_PROCID": "0"})["MASTER_PORT"] == found["MASTER_PORT"]
    ports = {rendezvous_variables({**SRUN, "SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(50)}
    assert len(ports) > 45
    chosen = {"MASTER_ADDR": "other", "MASTER_PORT": "1234"}
    assert rendezvous_variables({**SRUN, **chosen}).items() >= chosen.items()


def test_the_first_host_of_several_is_asked_of_slurm(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[07-09]" ] && printf "node07\\nnode08\\nnode09\\n"\n'
    )
    scontrol.chmod(0o755)
    several = {**SRUN, "SLURM_STEP_NODELIST": "node[07-09]"}
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert rendezvous_variables(several)["MASTER_ADDR"] == "node07"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        TopologyError, match=r"\$MASTER_ADDR is not set, and scontrol does not read \$SLURM_STEP_NODELIST"
    ):
        rendezvous_variables(several)


def test_mpirun_is_translated():
    one_host = {**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    found = rendezvous_variables(one_host)
    assert (found["RANK"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == ("3", "1", "127.0.0.1")
    assert rendezvous_variables({**MPIRUN, "MASTER_ADDR": "node1"})["MASTER_ADDR"] == "node1"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({**TORCH, "RANK": "4"}, r"\$RANK is 4, but \$WORLD_SIZE is 4: ranks are counted from 0"),
        ({**TORCH, "RANK": "0"}, r"\$LOCAL_RANK is 1, but \$RANK is 0"),
        ({**TORCH, "RANK": "x"}, r"\$RANK is 'x': must be a whole number"),
        ({**TORCH, "WORLD_SIZE": "-4"}, r"\$WORLD_SIZE is '-4': must be a whole number"),
        (without(TORCH, "WORLD_SIZE"), r"\$WORLD_SIZE is not set"),
        (without(TORCH, "LOCAL_RANK"), r"\$LOCAL_RANK is not set"),
        (without(TORCH, "MASTER_ADDR"), r"\$RANK is set, but \$MASTER_ADDR is not"),
        (without(TORCH, "MASTER_PORT"), r"\$RANK is set, but \$MASTER_PORT is not"),
        (without(TORCH, "RANK"), r"\$WORLD_SIZE is 4, but \$RANK is not set: each task would train alone"),
        ({"PMI_SIZE": "2"}, r"\$PMI_SIZE is 2, but \$RANK is not set: each task would train alone"),
        ({**TORCH, **SRUN, "RANK": "2"}, r"\$RANK is 2, but this is task 3 of srun \(\$SLURM_PROCID\)"),
        ({**TORCH, **SRUN, "WORLD_SIZE": "6"}, r"\$WORLD_SIZE is 6, but srun started 4 tasks"),
        (
            {**SRUN, **TORCH, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            r"\$WORLD_SIZE is 1, but srun started 4",
        ),
        ({**SRUN, "WORLD_SIZE": "8"}, r"\$WORLD_SIZE is 8, but srun says 4: it was exported for all tasks"),
        ({**SRUN, "LOCAL_RANK": "0"}, r"\$LOCAL_RANK is 0, but srun says 1"),
        (without(SRUN, "SLURM_PROCID"), r"\$SLURM_PROCID is not set"),
        (MPIRUN, r"\$MASTER_ADDR is not set, and mpirun does not tell the other hosts"),
    ],
)
def test_contradictions_are_named(variables, message):
    with pytest.raises(TopologyError, match=message):
        rendezvous_variables(variables)


# --- the network ------------------------------------------------------------------------------------------------------

TWO_HOSTS = {**TORCH, "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def debian(monkeypatch):
    """A host whose own name leads to 127.0.1.1, with these interfaces, and the way to the master by one of them."""

    def make(interfaces, towards):
        monkeypatch.setattr(rendezvous, "_addresses", lambda: {"lo": ["127.0.0.1"], **interfaces})
        monkeypatch.setattr(rendezvous, "_address_of", lambda _host: "127.0.1.1")
        monkeypatch.setattr(rendezvous, "_address_towards", lambda _host: towards)

    return make


def test_the_interface_towards_the_master_is_taken(debian):
    debian({"eth0": ["10.0.0.2"], "ib0": ["10.1.0.2"]}, "10.1.0.2")
    assert network_variables(TWO_HOSTS) == {"GLOO_SOCKET_IFNAME": "ib0"}
    debian({"eth0": ["10.0.0.1"]}, "127.0.0.1")  # on the master itself
    assert network_variables(TWO_HOSTS) == {"GLOO_SOCKET_IFNAME": "eth0"}
    assert network_variables({**TWO_HOSTS, "GLOO_SOCKET_IFNAME": "lo"}) == {}


@pytest.mark.parametrize(
    "one_host",
    [
        {**TORCH, "LOCAL_WORLD_SIZE": "4"},
        {**TORCH, "LOCAL_SIZE": "4"},
        {**TORCH, "MASTER_ADDR": "127.0.0.1"},
        {**TORCH, "SLURM_STEP_NUM_NODES": "1"},
        {},
    ],
)
def test_on_one_host_there_is_nothing_to_choose(debian, one_host):
    debian({}, None)
    assert network_variables(one_host) == {}


def test_a_choice_that_cannot_be_made_is_left_to_the_user(debian):
    debian({"eth0": ["10.0.0.1"], "docker0": ["172.17.0.1"]}, "127.0.0.1")
    with pytest.raises(TopologyError, match=r"2 other network interfaces \(eth0, docker0\); set \$GLOO_SOCKET_IFNAME"):
        network_variables(TWO_HOSTS)
    debian({}, None)
    with pytest.raises(TopologyError, match=r"0 other network interfaces \(none\)"):
        network_variables(TWO_HOSTS)
    with pytest.raises(TopologyError, match=r"\$GLOO_SOCKET_IFNAME is ib7, but this host has lo"):
        network_variables({**TWO_HOSTS, "GLOO_SOCKET_IFNAME": "ib7"})


def test_a_host_whose_name_is_known_outside_needs_no_choice(monkeypatch):
    monkeypatch.setattr(rendezvous, "_address_of", lambda _host: "10.0.0.1")
    assert network_variables(TWO_HOSTS) == {}


def test_this_machine_is_read_for_real():
    assert "127.0.0.1" in rendezvous._addresses()["lo"]
    assert rendezvous._address_of("localhost") == "127.0.0.1"
    assert rendezvous._address_of("no.such.host.invalid") is None
    assert rendezvous._address_towards("127.0.0.1") == "127.0.0.1"
