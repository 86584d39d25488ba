"""Lanes in processes of their own, ahead of the training loop."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ted_ds.data.reading.records import BadRecord
from ted_ds.data.stream.documents import Encoder
from ted_ds.data.stream.lane import Lane, LaneItem, make_units
from ted_ds.data.stream.settings import StreamSettings
from ted_ds.errors import DataError

STEPS_AHEAD = 2
RESTARTS_PER_STEP = 3
CHECK_INTERVAL_S = 2.0
LONGEST_SOCKET_FOLDER = 70
"""Bytes: a socket's path has room for 107, and Python adds two names of its own."""
SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108 - for folders with names that nobody can know


class LaneFailure(NamedTuple):
    """What a worker gives in the place of a step that cannot be made."""

    message: str
    bad: list[BadRecord]
    """Found on the way to it."""


class LaneDataset(IterableDataset):
    """Steps of some lanes; among several workers each makes those of a part of them."""

    def __init__(
        self, settings: StreamSettings, encode: Encoder, lanes: Sequence[int], states: Mapping[int, dict[str, Any]]
    ) -> None:
        """Nothing is opened yet: that happens in the process that iterates."""
        self._settings, self._encode, self._lanes, self._states = settings, encode, lanes, states

    def __iter__(self) -> Iterator[list[LaneItem] | LaneFailure]:
        """For each step its items, endlessly."""
        worker = get_worker_info()
        chosen = self._lanes if worker is None else self._lanes[worker.id :: worker.num_workers]
        lanes: list[Lane] = []
        if worker is not None:
            gc.freeze()  # what was imported is no garbage: the collector need not look through it again and again
        try:
            units = make_units(self._settings)
            lanes = [
                Lane(self._settings, lane, self._encode, units=units, state=self._states.get(lane)) for lane in chosen
            ]
            while True:
                yield [lane.next() for lane in lanes]
        except DataError as error:  # as a value: torch would wrap it in a traceback
            bad = [record for lane in lanes for record in lane.take_bad()]
            while True:
                yield LaneFailure(str(error), bad)


class LaneWorkers:
    """Gives the items of some lanes step by step; a worker that dies is replaced, and nothing is lost or repeated."""

    def __init__(
        self,
        settings: StreamSettings,
        encode: Encoder,
        lanes: Sequence[int],
        states: Mapping[int, dict[str, Any]],
        *,
        num_workers: int,
        timeout_s: float,
    ) -> None:
        """Start the workers; with 0 the lanes run in this process. A step must come within ``timeout_s``."""
        self._settings, self._encode, self._lanes = settings, encode, lanes
        self._states = dict(states)
        self._num_workers, self._timeout_s = min(num_workers, len(lanes)), timeout_s
        self.num_restarts = 0
        self.bad: list[BadRecord] = []  # found on the way to a step that could not be made
        self._start()

    def next(self) -> list[LaneItem]:
        """The items of the next step, in the order of lanes.

        Raises:
            DataError: A lane cannot go on, the workers do not answer, or keep dying.
        """
        for _ in range(1 + RESTARTS_PER_STEP):
            try:
                parts = [self._next_part() for _ in range(max(self._num_workers, 1))]
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                warnings.warn(f"{error}; started again from the last step that was used", stacklevel=2)
                self.num_restarts += 1
                self._start()
                continue
            items: list[LaneItem] = []
            for part in parts:
                if isinstance(part, LaneFailure):
                    self.bad += part.bad
                    raise DataError(part.message)
                items += part
            items.sort(key=lambda item: item.lane)
            self._states.update((item.lane, item.state) for item in items)
            return items
        raise DataError(
            f"a data worker died {1 + RESTARTS_PER_STEP} times at the same step; if it was for memory, lower "
            "data.workers or data.shuffle_mib"
        )

    def states(self) -> dict[int, dict[str, Any]]:
        """Each lane after the last step that was given out; empty before the first."""
        return dict(self._states)

    def close(self) -> None:
        """End the workers."""
        self._iterator = iter(())

    def _next_part(self) -> list[LaneItem] | LaneFailure:
        """What the next worker in turn made."""
        give_up_at = time.monotonic() + self._timeout_s
        while True:
            try:
                return next(self._iterator)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                if time.monotonic() > give_up_at:
                    message = f"a data worker gave nothing for {self._timeout_s:g} s (collective_timeout_s)"
                    raise DataError(message) from error

    def _start(self) -> None:
        dataset = LaneDataset(self._settings, self._encode, self._lanes, self._states)
        if not self._num_workers:
            self._iterator = iter(dataset)
            return
        _shorten_socket_paths()
        # forked from a clean process: this one has threads, communicators and maybe a CUDA context
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=self._num_workers,
            prefetch_factor=STEPS_AHEAD,
            multiprocessing_context=context,
            timeout=min(CHECK_INTERVAL_S, self._timeout_s),  # only then does torch look whether they live
            generator=torch.Generator(),  # or each start would draw from the one that dropout draws from
        )
        self._iterator = iter(loader)


def _shorten_socket_paths() -> None:
    """Let processes meet in another folder where ``$TMPDIR`` is too long for a socket's path."""
    settings: Any = multiprocessing.current_process()._config  # type: ignore[attr-defined] # where Python keeps it
    folder = settings.get("tempdir") or tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
        return
    for place in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            settings["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir=place)
            return
    raise DataError(
        f"$TMPDIR: {folder} is too long for the sockets of data workers ({LONGEST_SOCKET_FOLDER} bytes), and none of "
        f"{', '.join(SHORT_FOLDERS)} can be written; set it to a short path, or use data.workers: 0"
    )


def _as_is(part: Any) -> Any:
    return part
