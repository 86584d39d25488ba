"""The parameters of a model that is not here, by its ``config.json`` alone. Without torch.

transformers builds the model without memory for its weights, in a process of its own
(``python -m ted_ds.models.built_shapes_job``), so that whoever only plans needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.found import OF_A_TASK, family_of_config
from ted_ds.models.own_process import ask

JOB = "ted_ds.models.built_shapes_job"
TIME_LIMIT_S = 600.0
"""For building some models: it takes seconds on an idle core, most of them for imports."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of parameters, by name."""
_BUILT: dict[str, Shapes | str] = {}
"""What was built in this process, or why it could not be, by config."""


def built_shapes(*configs: Mapping[str, Any]) -> list[Shapes]:
    """Of each config, the parameters of a body and of an LM head that is not the embeddings.

    Args:
        configs: What ``config.json`` holds. Several are built by one process.

    Raises:
        CheckpointError: transformers builds no model of one, or takes too long.
    """
    of_models = [{key: value for key, value in config.items() if key not in OF_A_TASK} for config in configs]
    keys = [json.dumps(config, sort_keys=True) for config in of_models]
    missing = {key: config for key, config in zip(keys, of_models, strict=True) if key not in _BUILT}
    if missing:
        _BUILT.update(zip(missing, _build([*missing.values()]), strict=True))
    found = []
    for key in keys:
        shapes = _BUILT[key]
        if isinstance(shapes, str):
            raise CheckpointError(f"transformers builds no model of it: {shapes}")
        found.append(shapes)
    return found


def _build(configs: Sequence[Mapping[str, Any]]) -> list[Shapes | str]:
    asked = [[family_of_config(config, Path("config.json")).language_model, config] for config in configs]
    answers = ask(JOB, json.dumps(asked), doing="building it without weights", limit_s=TIME_LIMIT_S)
    return [one if isinstance(one, str) else {name: tuple(shape) for name, shape in one.items()} for one in answers]
