"""What a model of random weights will be, from a ``config.json`` and changes to it; without torch in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.built_shapes import descriptions, shapes_in
from ted_ds.models.config_facts import facts_of_config
from ted_ds.models.files import ModelFacts
from ted_ds.models.folder import CONFIG_FILE, read_config


class UnknownEntries(ConfigError):
    """Changes to entries that such a config has not."""

    def __init__(self, model_type: str, unknown: list[str], known: list[str]) -> None:
        super().__init__(f"a {model_type}'s config has no {', '.join(unknown)}")
        self.model_type, self.unknown, self.known = model_type, unknown, known


def random_facts(folder: Path, changes: Mapping[str, Any], *, architecture: str, num_labels: int | None) -> ModelFacts:
    """The facts of a random model of a config.

    Args:
        folder: Where its ``config.json`` is; weights are not looked at.
        changes: Entries of it that are others.
        architecture: What the task makes of it (``CausalLM``, ...).
        num_labels: Of a head that is no LM head; else None.

    Raises:
        CheckpointError: There is no such config, or transformers builds no model of it.
        UnknownEntries: It has no such entries.
    """
    config = read_config(folder)
    request = {"config": config, "changes": dict(changes), "architecture": architecture, "num_labels": num_labels}
    (answer,) = descriptions(request)
    if "unknown" in answer:
        raise UnknownEntries(config["model_type"], answer["unknown"], answer["known"])
    if "error" in answer:
        changed = ", ".join(f"{key}: {value}" for key, value in changes.items()) or "no changes"
        raise CheckpointError(
            f"{folder}: transformers can build no model of its config.json with {changed} ({answer['error']:.300}); "
            "use values that go together"
        )
    return facts_of_config(answer["config"], shapes_in(answer), file=folder / CONFIG_FILE)
