"""The parameters of a model that is not here, by its ``config.json`` alone. Without torch.

transformers builds the model without memory for its weights (:mod:`ted_ds.models.skeleton`), in a process of its own
where whoever plans has no torch.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.found import OF_A_TASK, family_of_config
from ted_ds.models.own_process import ask

SKELETON = "ted_ds.models.skeleton"
TIME_LIMIT_S = 600.0
"""For building some models: it takes seconds on an idle core, most of them for imports."""
WITH_HEADS = ("CausalLM", "Seq2SeqLM")
"""Language models whose files have the LM head that transformers builds, where it is not the embeddings."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of parameters, by name."""
_DESCRIBED: dict[str, dict[str, Any]] = {}
"""What was described in this process, by request."""


def built_shapes(*configs: Mapping[str, Any]) -> list[Shapes]:
    """Of each config, the parameters of a body and of an LM head that is not the embeddings.

    Args:
        configs: What ``config.json`` holds. Several are built by one process.

    Raises:
        CheckpointError: transformers builds no model of one, or takes too long.
    """
    found = []
    for answer in descriptions(*map(_request, configs)):
        if "error" in answer:
            raise CheckpointError(f"transformers builds no model of it: {answer['error']:.300}")
        found.append(shapes_in(answer))
    return found


def descriptions(*requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What :func:`ted_ds.models.skeleton.describe` says: here where torch is anyhow, else in a process for all.

    Raises:
        CheckpointError: It takes too long.
    """
    keys = [json.dumps(request, sort_keys=True) for request in requests]
    missing = [key for key in dict.fromkeys(keys) if key not in _DESCRIBED]
    if missing:
        _DESCRIBED.update(zip(missing, _describe(missing), strict=True))
    return [_DESCRIBED[key] for key in keys]


def shapes_in(answer: Mapping[str, Any]) -> Shapes:
    """Those of a model that was described."""
    return {name: tuple(shape) for name, shape in answer["shapes"].items()}


def _request(config: Mapping[str, Any]) -> dict[str, Any]:
    of_model = {key: value for key, value in config.items() if key not in OF_A_TASK}
    language_model = family_of_config(of_model, Path("config.json")).language_model
    architecture = language_model if language_model in WITH_HEADS else None
    return {"config": of_model, "changes": {}, "architecture": architecture, "num_labels": None}


def _describe(requests: Sequence[str]) -> list[dict[str, Any]]:
    asked = f"[{', '.join(requests)}]"
    if "torch" in sys.modules:
        describe = importlib.import_module(SKELETON).describe
        return [describe(request) for request in json.loads(asked)]
    answers: list[dict[str, Any]] = ask(SKELETON, asked, doing="building it without weights", limit_s=TIME_LIMIT_S)
    return answers
