"""The place in the training data, as one file of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.data.stream.corpus_stream import merge_states

STREAM_FILE = "stream.json"


def write_stream_state(folder: Path, states: Sequence[Mapping[str, Any]]) -> None:
    """Write the states of all ranks as one, from which any number of ranks can go on. On one rank only."""
    (folder / STREAM_FILE).write_text(json.dumps(merge_states(states)) + "\n", encoding="utf-8")
