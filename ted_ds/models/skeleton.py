"""What transformers makes of a config, or of one with other entries: a model without weights, described.

Planning asks for it without torch: as a program (``python -m ted_ds.models.skeleton``), this reads a list of requests
as JSON from its standard input, and prints the answers (:mod:`ted_ds.models.built_shapes`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from ted_ds.models.config_build import parsed_config

ENTRIES_OF_FILES = ("quantization_config", "compression_config", "dtype", "torch_dtype")
"""Of a config, what it says of the weights beside it."""


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a config with changes.

    Args:
        request: Its ``config``, the ``changes``, the ``architecture`` (``CausalLM``, ...; None for a body alone) and
            ``num_labels`` of a head that is no LM head (else None).

    Returns:
        ``config``, and ``shapes`` of its parameters by name, tied ones once and a body's as they are called below a
        head; or ``unknown`` keys, and those that are ``known``; or, as ``error``, what transformers says against it.
    """
    config, changes = request["config"], request["changes"]
    try:
        known = known_keys(config)
        unknown = [key for key in changes if key not in known]
        if unknown:
            return {"unknown": unknown, "known": sorted(known)}
        head = {} if request["num_labels"] is None else {"num_labels": request["num_labels"]}
        with torch.device("meta"):
            model = model_of(changed_config(config, changes), request["architecture"], head)
    except MemoryError:
        raise
    except Exception as error:  # of a value that transformers' classes do not expect: nothing more specific
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    prefix = f"{model.base_model_prefix}." if request["architecture"] is None else ""
    shapes = {f"{prefix}{name}": list(parameter.shape) for name, parameter in model.named_parameters()}
    return {"config": json.loads(model.config.to_json_string(use_diff=False)), "shapes": shapes}


def known_keys(config: Mapping[str, Any]) -> set[str]:
    """The entries a config of this type can have, by its own names and by those that many types have in common."""
    kind = CONFIG_MAPPING[config["model_type"]]
    return {*parsed_config(config).to_dict(), *kind.attribute_map} - {"model_type"}


def changed_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """A config with some of its entries changed; what it lists for each block is worked out anew for another depth."""
    kind = CONFIG_MAPPING[config["model_type"]]
    own_names = {kind.attribute_map.get(key, key): value for key, value in changes.items()}
    depth_key = kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    depth, new_depth = config.get(depth_key), own_names.get(depth_key, config.get(depth_key))
    kept = {
        key: value
        for key, value in config.items()
        if key not in ENTRIES_OF_FILES
        and not (new_depth != depth and key.startswith("layer") and isinstance(value, list) and len(value) == depth)
    }
    return parsed_config({**kept, **own_names})


def model_of(config: PreTrainedConfig, architecture: str | None, head: Mapping[str, Any]) -> PreTrainedModel:
    """A model of a config as it starts, with a head of these values (``id2label``, ...); or a body alone."""
    for key, value in head.items():
        setattr(config, key, value)
    auto: Any = getattr(transformers, "AutoModel" if architecture is None else f"AutoModelFor{architecture}")
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager")
    model.tie_weights()
    return model


def main() -> None:
    """Read requests, and print one line."""
    answers = [describe(request) for request in json.load(sys.stdin)]
    print(f"\n{json.dumps(answers)}", flush=True)
    os._exit(0)  # the teardown of torch's threads may abort


if __name__ == "__main__":
    main()
