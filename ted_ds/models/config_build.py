"""Build what a ``config.json`` describes: where that fails, in whatever way, the file is at fault and is named."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.folder import CONFIG_FILE


def parsed_config(content: Mapping[str, Any]) -> PreTrainedConfig:
    """What transformers makes of what a ``config.json`` holds, infinite numbers included, which it writes in words.

    Raises:
        KeyError: transformers has no models of this type.
        Exception: It refuses a value, in whatever way.
    """
    kind = CONFIG_MAPPING[content["model_type"]]
    return kind.from_dict(kind._decode_special_floats(copy.deepcopy(dict(content))))


def build_config(path: Path, head: Mapping[str, Any]) -> PreTrainedConfig:
    """What transformers makes of ``config.json``.

    Raises:
        CheckpointError: It refuses a value, in whatever way.
    """
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **head)
    except MemoryError:
        raise
    except Exception as error:  # of a value that the config's class does not expect: nothing more specific
        raise _odd_config(path, error) from error


def try_to_build(path: Path, auto: Any, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of a model, once one without memory could be built: what fails here is the config's fault.

    Raises:
        CheckpointError: It could not.
    """
    try:
        with torch.device("meta"):
            # a copy, as this changes it; with the attention that needs no package, whatever the file names
            return type(auto.from_config(copy.deepcopy(config), attn_implementation="eager"))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the first line that cannot do with a value: nothing more specific
        raise _odd_config(path, error) from error


def _odd_config(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"{path / CONFIG_FILE}: transformers can build no model from it ({type(error).__name__}: {reason:.300}); use "
        "the config.json that the weights were trained with"
    )
