"""What the families say of models, against what transformers builds, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ted_ds.errors import ConfigError
from ted_ds.models.families import family_of
from ted_ds.models.family import path_in_body, prefixes
from ted_ds.models.parts import blocks_of
from tests.tiny import ONE_STACK_TYPES, TYPES_WITH_LABELS, VOCAB_SIZE, model_config

CLASSIFIER_KEYS = ("classifier_dropout", "cls_dropout", "summary_first_dropout")
HIDDEN_KEYS = ("hidden_dropout", "hidden_dropout_prob")
TABLES = {"deberta-v2": {"position_biased_input": True}}
"""A config with a table of positions, where a family can do without."""
LONGEST = 53
"""A number that nothing else in a tiny model has."""
RELATIVE = ("rel_embeddings", "relative_attention_bias")


def with_a_head(model_type: str) -> Any:
    """What makes a classifier, or a language model where transformers has no such classifier."""
    return AutoModelForSequenceClassification if model_type in TYPES_WITH_LABELS else AutoModelForCausalLM


def without_weights(model_type: str, auto: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return auto.from_config(model_config(model_type, blocks=3, **TABLES.get(model_type, {}), **config))


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_entries_of_the_config_are_transformers_own(model_type: str) -> None:
    family, config = family_of(model_type), CONFIG_MAPPING[model_type]()
    assert config.attribute_map.items() <= family.own_names.items()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        key, value = family.entry(config.to_dict(), name)
        assert value == getattr(config, name) == config.to_dict()[key]
    assert family.entry({}, "hidden_size") == ("hidden_size", None)
    assert family.is_tied({}) == config.tie_word_embeddings
    assert not family.is_tied({"tie_word_embeddings": False})
    kinds = config.to_dict().get("layer_types")
    assert (family.block_kinds is None) == (kinds is None)
    assert {*(kinds or ())} <= {*(family.block_kinds or ())}


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_attention_and_positions_are_those_of_the_model(model_type: str) -> None:
    family, auto = family_of(model_type), with_a_head(model_type)
    model = without_weights(model_type, auto, max_position_embeddings=LONGEST)
    supported = {"eager": True, "sdpa": model._supports_sdpa, "flash": model._supports_flash_attn}
    assert {*family.attention} == {name for name, is_there in supported.items() if is_there}
    assert (family.positions == "rotary") == any(hasattr(module, "rope_type") for module in model.modules())
    is_relative = any(part in name for part in RELATIVE for name, _ in model.named_parameters())
    assert (family.positions == "relative") == is_relative
    rows = LONGEST + family.rows_before_positions
    tables = {name.removesuffix(".weight") for name, one in model.named_parameters() if len(one) == rows}
    assert tables == {family.position_embeddings_path} - {None}
    assert model.config.max_position_embeddings == LONGEST
    assert model.get_submodule(family.token_embeddings_path) is model.get_input_embeddings()


@pytest.mark.parametrize(
    ("auto", "architecture"),
    [
        (AutoModelForSequenceClassification, "SequenceClassification"),
        (AutoModelForTokenClassification, "TokenClassification"),
        (AutoModelForMultipleChoice, "MultipleChoice"),
        (AutoModelForQuestionAnswering, "QuestionAnswering"),
        (AutoModelForCausalLM, "CausalLM"),
        (AutoModelForMaskedLM, "MaskedLM"),
    ],
)
@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_dropouts_are_those_that_the_model_has(model_type: str, auto: Any, architecture: str) -> None:
    family = family_of(model_type)
    if architecture in family.lacks or (architecture == "QuestionAnswering" and family.span_head is None):
        return
    if architecture.endswith("LM") and architecture != family.language_model:
        assert family.dropout_keys("classifier", architecture) == ()
        return
    shares = {"classifier": 0.11, "hidden": 0.22, "attention": 0.33}
    known = {what: family.dropout_keys(what, architecture) for what in shares}
    values = {key: shares[what] for what, keys in known.items() for key in keys}
    model = without_weights(model_type, auto, **values)
    found = {one.p for one in model.modules() if isinstance(one, torch.nn.Dropout)}
    of_attention = {getattr(one, "attention_dropout", None) for one in model.modules()}
    found |= {one for one in of_attention if isinstance(one, float)}
    found |= {one.dropout for one in model.modules() if isinstance(getattr(one, "dropout", None), float)}
    assert found - {0.0} == {shares[what] for what, keys in known.items() if keys}
    # what no entry is known of, no model of transformers reads either
    others = {*CLASSIFIER_KEYS, *HIDDEN_KEYS} - {*values}
    other = without_weights(model_type, auto, **values, **dict.fromkeys(others, 0.44))
    if not known["classifier"]:
        assert 0.44 not in {one.p for one in other.modules() if isinstance(one, torch.nn.Dropout)}


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_names_in_files_are_told_apart_as_the_parts_of_the_model_are(model_type: str) -> None:
    family = family_of(model_type)
    auto = AutoModelForMaskedLM if family.language_model == "MaskedLM" else AutoModelForCausalLM
    lm = dict(without_weights(model_type, auto, tie_word_embeddings=False).named_parameters())
    of_labels = family.label_head_prefixes
    of_both = prefixes({*family.before_label_head} & {*family.before_lm_head})
    lm_heads = prefixes(family.lm_heads_in_files)
    assert lm[f"{family.lm_head_path}.weight"].shape[0] == VOCAB_SIZE
    if model_type in TYPES_WITH_LABELS:
        labels = {"num_labels": 3}
        classifier = dict(without_weights(model_type, AutoModelForSequenceClassification, **labels).named_parameters())
        assert {name for name in classifier if name.startswith(of_labels) and name not in lm} == {*classifier} - {*lm}
        assert {name for name in classifier if name.startswith(of_labels) and name in lm} == {
            name for name in lm if name.startswith(of_both)
        }
        assert classifier[f"{family.label_heads[0]}.weight"].shape[0] == 3
        of_lm = {name for name in lm if name.startswith(lm_heads) and not name.startswith(of_both)}
        assert of_lm == {*lm} - {*classifier}
    if "TokenClassification" not in family.lacks:
        of_tokens = dict(without_weights(model_type, AutoModelForTokenClassification, num_labels=5).named_parameters())
        assert {name for name in of_tokens if name.startswith(of_labels) and name not in lm} == {*of_tokens} - {*lm}
        assert of_tokens[f"{family.label_heads[-1]}.weight"].shape[0] == 5
    assert [name for name in lm if name.startswith(family.new_lm_head_prefixes)] == [
        name for name in lm if family.before_lm_head and name.startswith(lm_heads)
    ]


@pytest.mark.parametrize("model_type", ONE_STACK_TYPES)
def test_the_block_of_a_name_is_the_one_that_holds_the_parameter(model_type: str) -> None:
    family, model = family_of(model_type), without_weights(model_type, with_a_head(model_type))
    numbers = {id(one): number for number, block in enumerate(blocks_of(model, family)) for one in block.parameters()}
    for name, parameter in model.named_parameters():
        of_body = [path_in_body(name)] if name.startswith(model.base_model_prefix) else []
        for name_in_file in (name, *of_body):
            assert family.block_number(name_in_file) == numbers.get(id(parameter)), name_in_file
    assert {*numbers.values()} == {*family.block_of_layers(model.config.to_dict())}


def test_a_type_without_a_family_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^model type 'of-a-kind' has no family; ted_ds knows albert, bart, bert, deberta-v2"
    ):
        family_of("of-a-kind")
