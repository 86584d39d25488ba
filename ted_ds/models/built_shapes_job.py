"""``python -m ted_ds.models.built_shapes_job``: configs come in, and the shapes of their parameters go out as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from ted_ds.models.config_build import parsed_config

WITH_HEADS: Any = {
    "CausalLM": transformers.AutoModelForCausalLM,
    "Seq2SeqLM": transformers.AutoModelForSeq2SeqLM,
}
"""Language models whose files have the LM head that transformers builds, where it is not the embeddings."""


def shapes_of(config: Mapping[str, Any], language_model: str) -> dict[str, list[int]]:
    """The shapes of a model's parameters, tied ones once; of a body by the names that they have below a head."""
    built = parsed_config(config)
    auto: Any = WITH_HEADS.get(language_model, transformers.AutoModel)
    with torch.device("meta"):
        model = auto.from_config(built)
    prefix = "" if language_model in WITH_HEADS else f"{model.base_model_prefix}."
    return {f"{prefix}{name}": list(one.shape) for name, one in model.named_parameters()}


def main() -> None:
    """Read pairs of a language model's kind and a config, and print one line."""
    answers: list[dict[str, list[int]] | str] = []
    for language_model, config in json.load(sys.stdin):
        try:
            answers.append(shapes_of(config, language_model))
        except Exception as error:  # whatever a config makes transformers raise
            answers.append(f"{type(error).__name__}: {error}"[:300])
    print(f"\n{json.dumps(answers)}", flush=True)
    os._exit(0)  # the teardown of torch's threads may abort


if __name__ == "__main__":
    main()
