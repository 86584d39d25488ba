"""What can go wrong in a rank of a run (``tests/runs.py``), set up in its process before it starts."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def signal_at(rank: int, place: str, occurrence: int, number: int, on_ranks: tuple[int, ...] = (0,)) -> None:
    """Send this process a signal at the n-th time that it comes to a place, counted over all phases.

    Places: ``step`` and ``backward`` of training, ``save`` (training copies its states), ``file`` (half of a
    checkpoint's file is written), ``commit`` (before each thing that puts a checkpoint in its place), ``evaluation``
    (between two batches), ``result`` (a phase's result is being written), ``cache`` (a record of the
    teacher's cache is being written).
    """
    if rank in on_ranks:
        counter = itertools.count(1)

        def arrive() -> None:
            if next(counter) == occurrence:
                os.kill(os.getpid(), number)

        PLACES[place](arrive)


def _at_step(arrive: Callable[[], None]) -> None:
    from ted_ds.runtime.pipeline import PipelineRunner
    from ted_ds.runtime.zero_runner import ZeroRunner

    _before(ZeroRunner, "step", arrive)
    _before(PipelineRunner, "step", arrive)


def _at_backward(arrive: Callable[[], None]) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    _before(DeepSpeedEngine, "backward", arrive)


def _at_save(arrive: Callable[[], None]) -> None:
    from ted_ds.runtime.checkpoints.writer import SnapshotEngine

    _before(SnapshotEngine, "save", arrive)


def _at_evaluation(arrive: Callable[[], None]) -> None:
    from ted_ds.assembly.assembly import Assembly

    _before(Assembly, "stop_if_asked", arrive)


def _at_result(arrive: Callable[[], None]) -> None:
    from ted_ds.output.phase_folder import PhaseFolder

    _before(PhaseFolder, "write", arrive)


def _at_cache(arrive: Callable[[], None]) -> None:
    from ted_ds.teacher_cache.parts import PartWriter

    _before(PartWriter, "add", arrive)


def _at_heal(arrive: Callable[[], None]) -> None:
    from ted_ds.runtime.block_walk import BlockWalk

    _before(BlockWalk, "go", arrive)


def _at_commit(arrive: Callable[[], None]) -> None:
    from ted_ds.runtime.checkpoints import folders

    _before(folders, "write_durably", arrive)
    _before(folders, "sync", arrive)
    _before(folders.CheckpointFolders, "_remove", arrive)


def _at_file(arrive: Callable[[], None]) -> None:
    from ted_ds.runtime.checkpoints import writer

    write = writer._write_file

    @functools.wraps(write)
    def half(file: Path, content: Any) -> Any:
        record = write(file, content)
        os.truncate(file, record.num_bytes // 2)
        arrive()
        return write(file, content)

    writer._write_file = half


def limit_files_at(_rank: int, place: str, occurrence: int, num_bytes: int) -> None:
    """From the n-th time that this process comes to a place (:func:`signal_at`) on, the system refuses longer files."""
    counter = itertools.count(1)

    def arrive() -> None:
        if next(counter) == occurrence:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    PLACES[place](arrive)


def fill_disk_at_save(rank: int, occurrence: int, filler: str) -> None:
    """Fill the disk that ``filler`` is on, to the last byte, when training copies its n-th file for a checkpoint."""
    if rank:
        return
    counter = itertools.count(1)

    def arrive() -> None:
        if next(counter) == occurrence:
            with contextlib.suppress(OSError), Path(filler).open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    _at_save(arrive)


def spoil_weights_and_stop(_rank: int, occurrence: int) -> None:
    """Before the n-th step, counted over all phases, every weight becomes NaN and the run is asked to stop."""
    import torch

    from ted_ds.runtime.zero_runner import ZeroRunner

    plain, counter = ZeroRunner.step, itertools.count(1)

    @functools.wraps(plain)
    def step(self: ZeroRunner, *arguments: Any) -> Any:
        if next(counter) == occurrence:
            with torch.no_grad():
                for parameter in self.engine.module.parameters():
                    parameter.fill_(torch.nan)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments)

    ZeroRunner.step = step


def flip_a_bit(rank: int, on_rank: int, engine: int, occurrence: int) -> None:
    """Let one rank get one bit of a gradient wrong: in the ``engine``-th engine, at a backward pass of that."""
    import torch

    from ted_ds.runtime.zero_runner import ZeroRunner

    if rank != on_rank:
        return
    plain, engines, passes = ZeroRunner.__init__, itertools.count(1), itertools.count(1)

    def flip(gradient: torch.Tensor) -> torch.Tensor:
        if next(passes) != occurrence:
            return gradient
        bits = gradient.clone()
        bits.view(torch.int32).view(-1)[0] ^= 1 << 20
        return bits

    def start(self: ZeroRunner, module: Any, *arguments: Any, **named: Any) -> None:
        if next(engines) == engine:
            next(one for one in module.parameters() if one.requires_grad).register_hook(flip)
        plain(self, module, *arguments, **named)

    ZeroRunner.__init__ = start


def with_environment(_rank: int, **variables: str) -> None:
    """Set variables of the environment."""
    os.environ.update(variables)


PLACES = {
    "step": _at_step,
    "backward": _at_backward,
    "save": _at_save,
    "file": _at_file,
    "commit": _at_commit,
    "cache": _at_cache,
    "heal": _at_heal,
    "evaluation": _at_evaluation,
    "result": _at_result,
}


def of_distill(place: str, arrive: Callable[[], None]) -> None:
    """Let something happen whenever a checkpoint of Stage II comes to a place on its way to a store.

    Places: ``upload`` (before each file that is put there), ``stored manifest`` and ``stored removal`` (before it
    becomes one, and before something of one is removed).
    """
    from ted_ds.output.store import Store
    from ted_ds.runtime.checkpoints.stored import StoredCheckpoints

    owner: Any = StoredCheckpoints if place == "stored manifest" else Store
    name = {"upload": "put", "stored manifest": "put_manifest", "stored removal": "remove"}[place]
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        store = self.store if owner is StoredCheckpoints else self
        if store.url.endswith("checkpoints/distill"):
            arrive()
        return plain(self, *arguments, **options)

    setattr(owner, name, wrapped)


def _before(owner: Any, name: str, arrive: Callable[[], None]) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        arrive()
        return plain(*arguments, **options)

    setattr(owner, name, wrapped)
