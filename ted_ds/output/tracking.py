"""Where numbers go: a JSONL file always, and beside it what the recipe's ``tracking.to`` names. Rank 0 only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ted_ds.config.tracking import Tracking
from ted_ds.errors import ConfigError
from ted_ds.output.trackers.backend import Backend, TrackedRun, complain, in_one_line
from ted_ds.output.trackers.jsonl_backend import JsonlBackend
from ted_ds.output.trackers.tensorboard_backend import TensorBoardBackend
from ted_ds.output.trackers.trackio_backend import TrackioBackend
from ted_ds.output.trackers.wandb_backend import WandbBackend

FINISH_TIMEOUT_S = 20.0
"""How long the backends may take to finish, all together."""


def backends_of(tracking: Tracking) -> list[Backend]:
    """What a recipe wants beside the file, in its order."""
    makers: Mapping[str, Callable[[], Backend]] = {
        "wandb": lambda: WandbBackend(tracking.wandb),
        "tensorboard": TensorBoardBackend,
        "trackio": TrackioBackend,
    }
    return [makers[name]() for name in tracking.backends]


class Tracker:
    """Writes each record to ``metrics.jsonl``, and hands it to each backend as long as that takes it.

    A backend that breaks is no reason to lose a run: it is said once, and the file has all numbers.
    """

    def __init__(self, run: TrackedRun, backends: Sequence[Backend]) -> None:
        """Open the file and all backends.

        Raises:
            ConfigError: The folder cannot be written, or the environment has a mode for W&B that is none.
        """
        self._file = JsonlBackend()
        self._file.open(run)
        self._backends: list[Backend] = []
        for backend in backends:
            try:
                backend.open(run)
            except ConfigError:
                raise
            except Exception as error:  # whatever it is: numbers are in the file
                complain(
                    f"{backend.title} does not start ({in_one_line(error)}); the run goes on, numbers are in "
                    f"{self._file.path}"
                )
            else:
                self._backends.append(backend)
        self._opened = tuple(self._backends)

    def rewind(self, phase: str, step: int, scored_step: int = 0) -> None:
        """Forget what is known of a phase beyond a step, and of its scores beyond another: it comes again."""
        self._file.rewind(phase, step, scored_step)
        self._to_each(lambda backend: backend.rewind(phase, step, scored_step))

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Record a phase's values at a step (optimizer steps, from 1; 0 for results of the phase as a whole)."""
        self._file.log(phase, step, values)
        self._to_each(lambda backend: backend.log(phase, step, values))

    def summarise(self, values: Mapping[str, float]) -> None:
        """Final values of the run."""
        self._to_each(lambda backend: backend.summarise(values))

    def places(self) -> Iterator[tuple[str, str]]:
        """Where numbers are beside the file: titles, and words."""
        for backend in self._opened:
            place = backend.place()
            if place is not None:
                yield backend.title, place

    def close(self) -> None:
        """Finish all of them."""
        self._file.close()
        # one may want to upload something first, on a network that is down
        finishing = [
            (backend, threading.Thread(target=self._call, args=(backend, lambda one: one.close()), daemon=True))
            for backend in self._backends
        ]
        for _, thread in finishing:
            thread.start()
        deadline = time.monotonic() + FINISH_TIMEOUT_S
        for backend, thread in finishing:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                complain(f"{backend.title} does not finish within {FINISH_TIMEOUT_S:g} s: left behind")

    def _to_each(self, call: Callable[[Backend], object]) -> None:
        for backend in [*self._backends]:
            self._call(backend, call)

    def _call(self, backend: Backend, call: Callable[[Backend], object]) -> None:
        try:
            call(backend)
        except Exception as error:
            self._backends.remove(backend)
            complain(
                f"{backend.title} no longer answers ({in_one_line(error)}); the run goes on, all numbers are in "
                f"{self._file.path}"
            )
