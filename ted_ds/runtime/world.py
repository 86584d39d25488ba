"""The ranks of a run, and how they agree: all go on, or all stop with one message."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from ted_ds.errors import CheckpointError, TedError, TopologyError, counted
from ted_ds.output.step_parts import COMMUNICATION
from ted_ds.runtime.device_faults import as_device_fault, is_device_fault
from ted_ds.runtime.devices import refuse_unusable, take_device
from ted_ds.runtime.jit_builds import bound_build_waits
from ted_ds.runtime.meeting import meet_again
from ted_ds.runtime.step_clock import timed

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    control: Any
    """A gloo group for messages between ranks; tensors go through the default group."""
    timeout_s: float = 1800.0
    """How long any collective may wait for the others."""
    num_stages: int = 1
    """Pipeline stages. Ranks are numbered stage by stage, so that those of one stage, which sum up gradients, are
    neighbours."""
    hosts: tuple[str, ...] = ("",)
    """Each rank's."""

    @classmethod
    def join(cls, timeout_s: float, num_stages: int = 1) -> World:
        """Meet the other ranks that the launcher started; a process started alone is a world of one.

        What launchers leave behind is for :func:`ted_ds.runtime.rendezvous.find_ranks` to read first.

        Args:
            timeout_s: How long any collective may wait for the others.
            num_stages: Pipeline stages to divide them into.

        Raises:
            TopologyError: The stages do not divide the ranks, the port where they meet is in use, or some rank has no
                GPU of its own.
            RankLostError: Some of them have not come in time.
        """
        if "RANK" not in os.environ:
            alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            os.environ.update(alone, MASTER_PORT=str(_free_port()))
        # DeepSpeed would compile a shared-memory op that only its inference uses, and needs ninja and g++ for it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        bound_build_waits(timeout_s)
        # DeepSpeed calls functions that torch has given other names
        warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
        timeout = timedelta(seconds=timeout_s)
        accelerator: Any = get_accelerator()
        backend = accelerator.communication_backend_name()
        own_device = take_device(accelerator, backend)
        # DeepSpeed makes groups without a limit of their own, already while its engine starts
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(dist.distributed_c10d, name, timeout)
        if not dist.is_initialized():  # this process may have joined for a run before
            store, rank, size = meet_again(timeout_s)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
        device = torch.device(accelerator.current_device_name())
        control = dist.new_group(backend="gloo", timeout=timeout, group_desc="control")
        if dist.get_world_size() % num_stages:
            raise TopologyError(
                f"pipeline.stages: {num_stages} stages do not divide {counted(dist.get_world_size(), 'rank')}; use a "
                "divisor"
            )
        devices: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(devices, own_device, group=control)
        refuse_unusable(devices)
        hosts = tuple(one.host for one in devices)
        return cls(dist.get_rank(), dist.get_world_size(), device, control, timeout_s, num_stages, hosts)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and the screen."""
        return self.rank == 0

    @property
    def is_first_on_host(self) -> bool:
        """Whether this rank does what need be done but once on its host."""
        return self.hosts[self.rank] not in self.hosts[: self.rank]

    @property
    def num_replicas(self) -> int:
        """How many ranks read different data: all of them where there is no pipeline."""
        return self.size // self.num_stages

    @property
    def replica(self) -> int:
        """Which data this rank works on."""
        return self.rank % self.num_replicas

    @property
    def stage(self) -> int:
        """Which stage of the pipeline this rank is."""
        return self.rank // self.num_replicas

    @property
    def reads_data(self) -> bool:
        """Whether this rank reads the training data: the first of a pipeline does, and passes it on."""
        return self.stage == 0

    def check_precision(self, precision: str) -> None:
        """Make sure that the device computes in ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            TopologyError: It does not.
        """
        accelerator: Any = get_accelerator()
        supported = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
        if precision in supported and not supported[precision]():
            raise TopologyError(f"precision: {precision} is not supported by this {self.device.type}; use another one")
        if precision == "bf16" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            raise TopologyError(
                "precision: bf16 is computed by other means on this GPU, as on NVIDIA's before Ampere, and many times "
                "slower; use fp16 or fp32"
            )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        with timed(COMMUNICATION):
            dist.all_reduce(values)
        return values

    def from_main(self, values: torch.Tensor) -> torch.Tensor:
        """Rank 0's values, in place."""
        dist.broadcast(values, 0)
        return values

    def sum_on_host(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a CPU tensor, in place, without waiting for the device."""
        with timed(COMMUNICATION):
            dist.all_reduce(values, group=self.control)
        return values

    def highest(self, *values: int) -> list[int]:
        """The largest over ranks of each value, on every rank, without waiting for the device."""
        numbers = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.control)
        return numbers.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.size
        with timed(COMMUNICATION):
            dist.all_gather_object(values, value, group=self.control)
        return values

    def collect_stages(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of all stages, by name, on rank 0; one is on its way at a time. Every rank must call it.

        Those of the first replica are taken; names that several stages have must stand for equal tensors.
        """
        about = self.gather([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()])
        collected = dict(state) if self.is_main else {}
        for rank in range(self.num_replicas, self.size, self.num_replicas):
            for name, shape, dtype in about[rank]:
                if self.rank == rank:
                    as_bytes = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    dist.send(as_bytes, 0, group=self.control)
                elif self.is_main:
                    collected[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(collected[name].reshape(-1).view(torch.uint8), rank, group=self.control)
        return collected

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block on every rank, or raise on every rank where any of them failed in it.

        The block must not communicate: a rank that fails in it would leave the others waiting.

        Raises:
            TedError: Some rank raised one; the message names the ranks unless all said the same.
        """
        error: Exception | None = None
        try:
            yield
        except OSError as caught:  # a full or broken disk is no defect of ours
            error = CheckpointError(f"the file system refuses: {caught}")
        except Exception as caught:  # whatever it is, the other ranks must hear of it
            error = as_device_fault(caught) if is_device_fault(caught) else caught
        outcomes = self.gather(None if error is None else (type(error), str(error)))
        failed = {rank: outcome for rank, outcome in enumerate(outcomes) if outcome is not None}
        if not failed:
            return
        kinds = {kind for kind, _ in failed.values()}
        if not all(issubclass(kind, TedError) for kind in kinds):
            raise RuntimeError(f"ranks {[*failed]} failed: {next(iter(failed.values()))[1]}") from error
        texts = {text for _, text in failed.values()}
        unanimous = len(failed) == self.size and len(texts) == 1
        message = texts.pop() if unanimous else "\n".join(f"rank {rank}: {text}" for rank, (_, text) in failed.items())
        agreed = next(iter(failed.values()))[0](message)
        agreed.agreed = True
        raise agreed from error

    def agree(self, work: Callable[[], Result]) -> Result:
        """Each rank's own result of ``work``, which must not communicate, where none of them failed in it.

        Raises:
            TedError: See :meth:`together`.
        """
        with self.together():
            return work()

    def settle(self, outcome: Result | TedError | Exception) -> Result:
        """Each rank's own outcome of what was tried before and may have communicated, where none of them failed in it.

        Raises:
            TedError: See :meth:`together`.
        """
        with self.together():
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    def first_on_host(self, work: Callable[[], object]) -> None:
        """Do ``work`` on one rank of each host while the others wait, no longer than for any collective.

        Raises:
            TedError: It failed somewhere; on every rank.
        """
        with self.together():
            if self.is_first_on_host:
                work()

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` on rank 0 and give its result to every rank; its failure is everybody's."""
        result: list[Any] = [None]
        with self.together():
            if self.is_main:
                result[0] = work()
        dist.broadcast_object_list(result, src=0, group=self.control)
        return result[0]


BROKEN_CONNECTION = re.compile(
    r"connection (closed|reset|refused) by|gloo.*(read|write) error|broken pipe|(timed out|timeout) waiting|"
    r"wait timeout|connectFullMesh failed|socket closed|ncclRemoteError|ncclSystemError|watchdog .*timeout|"
    r"communicator was aborted",
    re.IGNORECASE | re.DOTALL,
)


def uses_nccl() -> bool:
    """Whether ranks will talk to each other by NCCL."""
    accelerator: Any = get_accelerator()
    return accelerator.communication_backend_name() == "nccl"


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error of torch's says that another rank died, hangs, or cannot be reached."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    # gloo raises plain RuntimeErrors
    return isinstance(error, RuntimeError) and BROKEN_CONNECTION.search(str(error)) is not None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
