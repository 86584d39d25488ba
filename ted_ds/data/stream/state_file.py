"""The place in the training data, as one file of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.data.stream.corpus_stream import merge_states

STREAM_FILE = "stream.json"


def stream_state_text(states: Sequence[Mapping[str, Any]]) -> str:
    """The states of all ranks as one, from which any number of ranks can go on."""
    return json.dumps(merge_states(states)) + "\n"


def read_stream_state(folder: Path) -> dict[str, Any]:
    """The state of the stream in a checkpoint."""
    return json.loads((folder / STREAM_FILE).read_text(encoding="utf-8"))
