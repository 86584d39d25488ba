"""What is known of a model by its ``config.json`` alone. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.built_shapes import built_shapes
from ted_ds.models.config_agreement import Shape, token_ids
from ted_ds.models.config_values import refuse_odd_values
from ted_ds.models.files import ModelFacts, facts_by, has_lm_head, placed_in
from ted_ds.models.folder import CONFIG_FILE, read_config
from ted_ds.models.found import family_of_config
from ted_ds.models.packed import read_quantisation

WORDS_OF_HEADS = ("Classification", "MultipleChoice", "QuestionAnswering")
"""In the names of models with a head of a task's own."""


def read_config_facts(folder: Path) -> ModelFacts:
    """What is read of a model's files, by ``config.json`` alone, where the weights are elsewhere.

    They are taken to be those of such a model in 16 or 32 bits, with the heads that ``architectures`` names.

    Raises:
        CheckpointError: This is no config of a known model, or its weights are quantised.
    """
    config = read_config(folder)
    family = family_of_config(config, folder / CONFIG_FILE)
    with placed_in(folder / CONFIG_FILE):
        if read_quantisation(config) is not None:
            raise CheckpointError(
                "its weights are quantised, and what they come to stands in their files; fetch the model, or plan with "
                "the config.json of the one it was made from"
            )
        facts_by(config, {}, family)
        refuse_odd_values(config, family)
        (shapes,) = built_shapes(config)
        facts = facts_by(config, shapes, family)
    of_masked_lm = any("MaskedLM" in name or "PreTraining" in name for name in facts.architectures)
    headless = facts.architectures and not any("LM" in name for name in facts.architectures)
    return replace(
        facts,
        has_classifier=any(word in name for name in facts.architectures for word in WORDS_OF_HEADS),
        has_lm_head=of_masked_lm if family.before_lm_head else facts.is_tied or not headless,
        token_ids={CONFIG_FILE: token_ids(config)},
    )


def facts_of_config(config: dict[str, Any], shapes: Mapping[str, Shape], *, file: Path) -> ModelFacts:
    """Of a model that no files hold yet.

    Args:
        config: All of it.
        shapes: Of its parameters, by name.
        file: The ``config.json`` that it was made of, for messages.

    Raises:
        CheckpointError: No model can be built of these values.
    """
    family = family_of_config(config, file)
    with placed_in(file):
        refuse_odd_values(config, family)
        facts = facts_by(config, shapes, family)
    return replace(facts, has_lm_head=has_lm_head(shapes, family, is_tied=facts.is_tied))
