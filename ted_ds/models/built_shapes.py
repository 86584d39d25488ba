"""The parameters of a model that is not here, by its ``config.json`` alone. Without torch.

transformers builds the model without memory for its weights, in a process of its own
(``python -m ted_ds.models.built_shapes_job``), so that whoever only plans needs no torch.
"""

from __future__ import annotations

import json
import os
import subprocess  # nosec - it starts this very package
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.found import family_of_config

JOB = "ted_ds.models.built_shapes_job"
TIME_LIMIT_S = 600.0
"""For building some models: it takes seconds on an idle core, most of them for imports."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of parameters, by name."""
OF_A_TASK = (
    *("id2label", "label2id", "num_labels", "problem_type", "architectures", "finetuning_task", "task_specific_params"),
    *("torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path", "use_cache", "auto_map"),
)
"""Entries of a config that no parameter of a body or of an LM head hangs on."""
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
    # it is no rank, and needs no GPU
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", JOB]
    try:
        done = subprocess.run(  # noqa: S603 - its own module
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        why = f"building it without weights took longer than {TIME_LIMIT_S:g} s"
        raise CheckpointError(f"{why}; start again, with less to do on this machine") from error
    try:
        answers = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        last = " ".join(done.stderr.split())[-300:]
        raise CheckpointError(
            f"the process that builds it ({JOB}) ended with code {done.returncode}: {last}"
        ) from error
    return [one if isinstance(one, str) else {name: tuple(shape) for name, shape in one.items()} for one in answers]
