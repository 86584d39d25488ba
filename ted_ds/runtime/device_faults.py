"""Faults of a GPU, or of NCCL on it: another attempt, perhaps on another host, may go through."""

from __future__ import annotations

import os
import re
import socket

import torch
import torch.distributed as dist

from ted_ds.errors import DeviceFaultError
from ted_ds.launching.own_log import note_fault

OF_DEVICES = tuple(
    kind
    # the second is newer than the oldest torch that will do, which raises plain RuntimeErrors
    for kind in (dist.DistBackendError, getattr(torch, "AcceleratorError", None))
    if kind is not None
)
"""Raised by nothing else."""
FAULT = re.compile(
    r"CUDA error: |CUDA driver error: |(uncorrectable|double.bit) ECC|\bXid\b|unspecified launch failure|"
    r"fallen off the bus|GPU is lost|CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|ncclUnhandledCudaError|"
    r"ncclInternalError|unhandled cuda error|Cuda failure",
    re.IGNORECASE,
)
NOT_A_FAULT = re.compile(
    # of memory and of code
    r"out of memory|ALLOC_FAILED|device-side assert|invalid argument|invalid configuration|invalid resource handle|"
    # of how the run was set up
    r"invalid device ordinal|no kernel image|driver version is insufficient|forward compatibility|ncclInvalid(Usage|"
    r"Argument)|invalid usage|Duplicate GPU|operation not supported|not permitted when",
    re.IGNORECASE,
)
"""What happens again in every attempt, however often it is started."""


def is_device_fault(error: BaseException) -> bool:
    """Whether an error of torch's says that a GPU or NCCL failed here, and not the run's memory, code or settings.

    A kernel that reads where it should not (``illegal memory access``) counts: broken memory shows itself that way.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error)
    if NOT_A_FAULT.search(text) is not None:
        return False
    return isinstance(error, OF_DEVICES) or FAULT.search(text) is not None


def as_device_fault(error: BaseException) -> DeviceFaultError:
    """The message about a fault, with the name of the host it happened on; it is in this rank's record from now on."""
    host = socket.gethostname()
    seen = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    note_fault(seen[:300])
    return DeviceFaultError(
        f"rank {os.environ.get('RANK', '0')} on {host}: its GPU, or NCCL on it, failed: {seen:.300}. Start the same "
        f"command again to go on from the newest checkpoint. If {host} fails again, look at its GPUs (nvidia-smi -q, "
        "dmesg) and leave it out"
    )
