"""Which errors of torch's mean that another rank is lost; those that mean something else stay what they are."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from ted_ds.runtime.world import is_lost_rank

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "text",
    [
        GLOO + "pair.cc:553] Connection closed by peer [127.0.0.1]:46790. This is typically caused by",
        GLOO + "pair.cc:537] Read error [127.0.0.1]:39075: Connection reset by peer",
        GLOO + "unbound_buffer.cc:84] Timed out waiting 6000ms for recv operation to complete",
        GLOO + "pair.cc:300] writev [10.0.0.1]:39075: Broken pipe",
        "Gloo connectFullMesh failed with timed out connecting: SO_ERROR: Connection refused",
        "NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
        "NCCL communicator was aborted on rank 3. Original reason for failure was: watchdog",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8)",
    ],
)
def test_lost(text):
    assert is_lost_rank(RuntimeError(text))


def test_what_cannot_be_reached_is_lost():
    assert is_lost_rank(dist.DistNetworkError("The client socket has timed out"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: the launch timed out and was terminated",
        "CUDA out of memory",
        "ranks [0] failed: [Errno 110] Connection timed out",
        "restore failed for the parameter store",
        "The size of tensor a (3) must match the size of tensor b (4)",
    ],
)
def test_not_lost(text):
    assert not is_lost_rank(RuntimeError(text))


def test_other_kinds_of_errors_are_not_lost_ranks():
    assert not is_lost_rank(ValueError("Connection closed by peer"))
