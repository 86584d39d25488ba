"""Whose checkpoints are, and of which settings: a run takes up only what it wrote itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import differences


class Origin:
    """What a manifest says of that."""

    def __init__(self, run_id: str, inputs: Mapping[str, Any], root: Path) -> None:
        """Take it down.

        Args:
            run_id: Of the run.
            inputs: What decides the phase's result; a checkpoint of other inputs is refused.
            root: Where the phase's checkpoints are here, for messages.
        """
        self._run_id, self._inputs, self._root = run_id, json.loads(json.dumps(inputs)), root

    @property
    def about(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {"run": self._run_id, "inputs": self._inputs}

    def refuse(self, manifest: Mapping[str, Any], place: str) -> None:
        """Make sure that a checkpoint, at a place, is of this run and of the same inputs.

        Raises:
            CheckpointError: It is not.
        """
        if manifest["run"] != self._run_id:
            raise CheckpointError(
                f"{place}: is of another run ({manifest['run']}, this is {self._run_id}), and a run loads only what "
                f"it wrote itself; move {self._root} away, or put run.json back"
            )
        differing = differences(manifest["inputs"], self._inputs)
        if differing:
            raise CheckpointError(
                f"{place}: was taken with other settings: {'; '.join(differing[:5])}. Restore them to go on from it, "
                f"remove {self._root} to start the phase anew, or choose another output_dir"
            )
