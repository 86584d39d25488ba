"""Which GPU a rank takes; that each has its own is told before anything is sent between them."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ted_ds.errors import TopologyError
from ted_ds.runtime.devices import OwnDevice, device_index, refuse_unusable, take_device


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "index"),
    [(0, 1, 0), (3, 1, 0), (7, 1, 0), (0, 8, 0), (3, 4, 3), (7, 8, 7), (1, 2, 1)],
)
def test_the_one_that_is_visible_else_the_rank_of_its_host(local_rank, num_visible, index):
    assert device_index(local_rank, num_visible) == index


@pytest.mark.parametrize(("local_rank", "num_visible"), [(2, 2), (3, 2), (8, 4), (0, 0)])
def test_fewer_gpus_than_ranks_are_refused(local_rank, num_visible):
    with pytest.raises(TopologyError) as caught:
        device_index(local_rank, num_visible)
    assert f"$LOCAL_RANK is {local_rank}, but this process sees {num_visible} GPUs" in str(caught.value)
    assert "start no more ranks on a host than it has GPUs" in str(caught.value)


class Gpus:
    """Of DeepSpeed's accelerator, what is asked of it here; this machine has none of these."""

    def __init__(self, count):
        self.count, self.taken = count, None

    def device_name(self):
        return "cuda"

    def device_count(self):
        return self.count

    def set_device(self, index):
        self.taken = index


@pytest.fixture
def uuids(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))


@pytest.mark.parametrize("mpi", [False, True])
@pytest.mark.parametrize(("local_rank", "count", "index"), [("3", 1, "0"), ("3", 4, "3"), ("1", 2, "1")])
def test_what_deepspeed_goes_by_is_the_gpu_that_is_taken(uuids, monkeypatch, local_rank, count, index, mpi):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.delenv("OMPI_COMM_WORLD_LOCAL_RANK", raising=False)
    if mpi:  # DeepSpeed insists that both are the same
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", local_rank)
    gpus = Gpus(count)
    assert take_device(gpus, "nccl") == OwnDevice(socket.gethostname(), f"GPU-{index}")
    assert str(gpus.taken) == index
    assert os.environ["LOCAL_RANK"] == index
    assert os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") == (index if mpi else None)


def test_two_ranks_may_share_a_gpu_where_nccl_is_not_used(uuids, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert take_device(Gpus(1), "gloo") == OwnDevice(socket.gethostname())


def test_a_rank_without_a_gpu_goes_on_until_the_others_hear_of_it(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    gpus = Gpus(4)
    device = take_device(gpus, "nccl")
    assert gpus.taken is None
    with pytest.raises(TopologyError, match=r"rank 1 on .*: \$LOCAL_RANK is 5, but this process sees 4 GPUs"):
        refuse_unusable([OwnDevice("a", "GPU-0"), device])


def test_there_is_nothing_to_choose_on_a_cpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert take_device(get_accelerator(), "gloo") == OwnDevice(socket.gethostname())


def test_one_gpu_for_two_ranks_is_refused():
    devices = [OwnDevice("a", "GPU-0"), OwnDevice("a", "GPU-1"), OwnDevice("b", "GPU-0"), OwnDevice("b", "GPU-0")]
    with pytest.raises(TopologyError) as caught:
        refuse_unusable(devices)
    assert str(caught.value).startswith("ranks 2 and 3 on b see one GPU (GPU-0) between them")
    refuse_unusable(devices[:3])
    refuse_unusable([replace(one, identity=None) for one in devices])
