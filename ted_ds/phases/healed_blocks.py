"""What healing has done so far, on the disk: a folder for each block of the student, in the form of checkpoints."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.phases.checkpoints import checkpoints_of
from ted_ds.runtime.checkpoints.taking_up import nothing_whole

WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.json"


class HealedBlocks:
    """The checkpoints of healing: that of number ``n`` has what the ``n``-th block became. Every rank calls everything.

    To go on takes all of them, so none is removed before the phase is complete.
    """

    def __init__(self, build: Assembly, folder: PhaseFolder) -> None:
        self._build = build
        self._checkpoints = checkpoints_of(build, folder)
        self._folders = self._checkpoints.folders
        self._about = {"run": build.run.run_id, "inputs": json.loads(json.dumps(folder.inputs))}

    @property
    def place(self) -> Path:
        """Where they are."""
        return self._folders.root

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The report of each block that is done, from the first on, and all weights that were changed.

        Of a damaged one and those behind it nothing is taken: they are named, and put aside.

        Raises:
            CheckpointError: They were made with other settings, by another run or by another version, or not even the
                first can be read whole; on every rank. Nothing is changed then.
        """
        world, folders = self._build.world, self._folders
        found, damaged = world.on_main(self._sound)
        for fault in damaged:
            self._build.screen.say(
                f"  WARN {fault}; it is healed again, with the blocks behind it (they are put aside, as *.damaged)"
            )
        reports: list[dict[str, Any]] = []
        weights: dict[str, Tensor] = {}

        def read() -> None:
            for number in found:
                folder = folders.path(number)
                reports.append(json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))
                weights.update(load_file(folder / WEIGHTS_FILE))

        world.agree(read)
        return reports, weights

    def add(self, number: int, report: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Keep what the ``number``-th block became, counted from 1; rank 0's counts.

        Raises:
            CheckpointError: It cannot be written; on every rank.
        """
        self._build.world.on_main(functools.partial(self._write, number, report, weights))

    def _write(self, number: int, report: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        folder = self._folders.begin(number)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS_FILE)
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        self._folders.commit(number, {}, self._about)

    def _sound(self) -> tuple[list[int], list[str]]:
        """Those to go on from, without a gap, and what is wrong with the one behind them."""
        folders = self._folders
        folders.clean()
        steps = folders.steps()
        sound: list[int] = []
        damaged: list[str] = []
        for number in steps:
            faults = folders.faults(number)
            if number != len(sound) + 1:
                faults = [f"{folders.path(len(sound) + 1)}: is missing"]
            if faults:
                damaged = faults[:1]
                break
            self._checkpoints.refuse_others(number)
            sound.append(number)
        if damaged and not sound:
            raise nothing_whole([str(folders.root)], damaged)
        for number in steps[len(sound) :]:
            folders.put_aside(number)
        return sound, damaged
