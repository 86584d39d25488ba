"""Which errors of torch's mean that a GPU failed, and another attempt may go through; what is said of them."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ted_ds.errors import ConfigError, DeviceFaultError, RankLostError, TedError
from ted_ds.launching import own_log
from ted_ds.launching.records import LOG_DIR, read_records
from ted_ds.runtime.device_faults import as_device_fault, is_device_fault
from ted_ds.runtime.initialize import check_config, refusals
from ted_ds.vetting.preflight import vet_quantised
from tests.dist import run_ranks

AT = "\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + AT),
        torch.AcceleratorError("CUDA error: unspecified launch failure" + AT),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + AT),
        torch.AcceleratorError("a text of a later torch"),
        dist.DistBackendError("NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, ncclUnhandledCudaError: Call to"),
        dist.DistBackendError("a text of a later torch"),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=str,
)
def test_faults(error):
    assert is_device_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory" + AT),
        dist.DistBackendError("ncclUnhandledCudaError: Last error: Cuda failure 2 'out of memory'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: device-side assert triggered" + AT),
        torch.AcceleratorError("CUDA error: invalid device ordinal" + AT),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device" + AT),
        dist.DistBackendError("ncclInvalidUsage: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1b000"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"),
        ValueError("CUDA error: unspecified launch failure"),
    ],
    ids=str,
)
def test_what_another_attempt_cannot_mend(error):
    assert not is_device_fault(error)


def test_the_message_names_the_host_and_the_record_what_failed(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG_DIR, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(own_log, "_record", own_log.OwnRecord(tmp_path))
    fault = as_device_fault(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + AT))
    host = socket.gethostname()
    assert fault.exit_code == RankLostError.exit_code == 76
    assert str(fault).startswith(
        f"rank 3 on {host}: its GPU, or NCCL on it, failed: CUDA error: uncorrectable ECC error encountered. Start the "
        "same command again"
    )
    assert f"If {host} fails again" in str(fault)
    assert [one.fault for one in read_records(tmp_path)] == ["CUDA error: uncorrectable ECC error encountered"]


def test_an_error_without_a_text_has_its_kind():
    assert "failed: DistBackendError." in str(as_device_fault(dist.DistBackendError("")))


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: device-side assert triggered"), RuntimeError("CUDA error: unknown error")],
    ids=str,
)
def test_a_gpu_that_fails_as_an_engine_starts_is_no_mistake_in_its_config(error):
    with pytest.raises(RuntimeError) as caught, refusals("zero1.json"):
        raise error
    assert caught.value is error


def _a_quantised_teacher_fails(world, error):
    def model(*_arguments):
        raise error

    batch = SimpleNamespace(inputs={})
    batch.to = lambda _device: batch
    reader = SimpleNamespace(data=SimpleNamespace(heldout=[None]), collate=lambda _samples: batch)
    build = SimpleNamespace(
        world=world,
        models=SimpleNamespace(frozen=lambda *_arguments: model),
        readers=SimpleNamespace(of=lambda _side: reader),
        teacher_facts=SimpleNamespace(quantisation="fp8"),
        recipe=SimpleNamespace(precision="bf16"),
    )
    try:
        vet_quantised(build, Path("teacher"))
    except TedError as caught:
        return caught.exit_code, str(caught)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("CUDA error: unspecified launch failure", 76, "its GPU, or NCCL on it, failed: CUDA error: unspecified"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", 76, "its GPU, or NCCL on it, failed: CUDA error: CUBLAS"),
        ("CUDA error: no kernel image is available", 2, "teacher: its weights are quantised (fp8) and cannot be"),
        ("Marlin needs hidden sizes that 64 divides", 2, "teacher: its weights are quantised (fp8) and cannot be"),
    ],
)
def test_a_gpu_that_fails_under_a_quantised_teacher_does_not_make_it_unusable(text, code, said):
    ((found, message),) = run_ranks(_a_quantised_teacher_fails, 1, RuntimeError(text))
    assert found == code
    assert said in message


@pytest.mark.parametrize("error", [AssertionError("no such stage"), KeyError("params"), ValueError("")], ids=repr)
def test_what_deepspeed_refuses_is_worded_without_waiting_for_other_ranks(error):
    assert not dist.is_initialized()  # there is nobody to ask
    with pytest.raises(ConfigError) as caught, refusals("zero1.json"):
        raise error
    words = f"{type(error).__name__}: {str(error) or 'no reason given'}"
    assert str(caught.value) == (
        f"the DeepSpeed JSON zero1.json: DeepSpeed does not start with it: {words}; change what it asks for, or remove "
        "it"
    )
    assert not caught.value.agreed


@pytest.mark.parametrize(
    "config", [{"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2}, {"gradient_accumulation_steps": 2}]
)
def test_a_config_is_read_by_deepspeed_before_ranks_meet(config):
    phrase = r"^the DeepSpeed JSON zero1\.json: DeepSpeed does not start with it: AssertionError: "
    with pytest.raises(ConfigError, match=phrase):
        check_config("zero1.json", config, 2)
    check_config("zero1.json", {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, 2)


def _one_gpu_fails(world):
    try:
        with world.together():
            if world.rank == 1:
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
    except DeviceFaultError as error:
        return str(error)


def test_all_ranks_hear_of_a_fault_where_they_wait_for_each_other():
    first, second = run_ranks(_one_gpu_fails, 2)
    assert first == second
    assert first.startswith(f"rank 1: rank 1 on {socket.gethostname()}: its GPU, or NCCL on it, failed: CUDA error:")
