"""What a ``config.json`` alone says of a model: the parameters that transformers builds of it, and its heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ted_ds.errors import CheckpointError
from ted_ds.models.families import KNOWN_TYPES, family_of
from ted_ds.models.files import read_config_facts, read_model_facts
from tests.tiny import ENCODERS, LABELS, model_config, write_model

GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in KNOWN_TYPES),
    *((name, GQA) for name in ("llama", "mistral", "qwen2", "qwen3")),
    *((name, {"tie_word_embeddings": True}) for name in ("llama", "mistral", "qwen2", "qwen3")),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("gpt2", {"n_inner": None}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("bert", {"type_vocab_size": 3}),
    ("deberta-v2", {"share_att_key": False, "type_vocab_size": 2, "position_biased_input": True}),
    ("deberta-v2", {"share_att_key": False, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
    ("deberta-v2", {"position_buckets": -1, "conv_kernel_size": 3, "embedding_size": 8}),
    ("deberta-v2", {"relative_attention": False, "pos_att_type": None, "max_relative_positions": 9}),
    ("deberta-v2", {"max_relative_positions": 9, "position_buckets": -1, "pos_att_type": "p2c|c2p"}),
]


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)
def test_parameters_are_those_that_transformers_builds(model_type: str, changes: dict[str, Any]) -> None:
    config = model_config(model_type, blocks=3, **changes)
    family = family_of(model_type)
    auto: Any = transformers.AutoModel if model_type in ENCODERS else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    prefix = f"{model.base_model_prefix}." if model_type in ENCODERS else ""
    expected = {f"{prefix}{name}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    written = json.loads(config.to_json_string())
    assert family.shapes(written) == expected


@pytest.mark.parametrize("model_type", KNOWN_TYPES)
def test_a_config_and_whole_files_say_the_same(tmp_path: Path, model_type: str) -> None:
    folder = write_model(tmp_path / "model", model_type)
    by_files = read_model_facts(folder)
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "alone")
    by_config = read_config_facts(tmp_path / "alone")
    for name in by_files.__dataclass_fields__:
        if name not in ("parameters", "token_ids"):
            assert getattr(by_config, name) == getattr(by_files, name), name
    here, there = by_config.parameters, by_files.parameters
    assert (here.embeddings, here.lm_head, sorted(here.others)) == (
        there.embeddings,
        there.lm_head,
        sorted(there.others),
    )
    assert [*map(sorted, here.of_blocks)] == [*map(sorted, there.of_blocks)]


@pytest.mark.parametrize(
    ("architecture", "classifier", "language_model"),
    [("BertForMaskedLM", False, True), ("BertForPreTraining", False, True), ("BertModel", False, False)],
)
def test_heads_are_those_of_the_architecture(
    tmp_path: Path, architecture: str, classifier: bool, language_model: bool
) -> None:
    config = json.loads(model_config("bert", architectures=[architecture]).to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_config_facts(tmp_path)
    assert (facts.has_classifier, facts.has_lm_head) == (classifier, language_model)


def test_a_classifier_is_known_by_its_architecture(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", labels=LABELS)
    facts = read_config_facts(folder)
    assert (facts.has_classifier, facts.has_lm_head, facts.labels) == (True, False, LABELS)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("{", "not a transformers model config ("),
        ('{"model_type": "opt"}', "model type 'opt' is not supported; ted_ds knows llama, "),
        ('{"model_type": "llama"}', "not a transformers model config (KeyError("),
        ("no intermediate_size", "not a transformers model config (KeyError('intermediate_size'))"),
        ("odd", "num_attention_heads is 3, which does not divide hidden_size, 16"),
        (
            "quantised",
            "its weights are quantised, and what they come to stands in their files; fetch the model, or plan with the "
            "config.json of the one it was made from",
        ),
    ],
)
def test_what_is_wrong_in_it_is_said_with_its_place(tmp_path: Path, content: str, phrase: str) -> None:
    whole = json.loads(model_config("llama").to_json_string())
    changed = {
        "no intermediate_size": {key: value for key, value in whole.items() if key != "intermediate_size"},
        "odd": {**whole, "num_attention_heads": 3, "head_dim": None},
        "quantised": {**whole, "quantization_config": {"quant_method": "gptq", "bits": 4}},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed[content]) if content in changed else content, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_config_facts(tmp_path)
    assert str(caught.value).startswith(f"{file}: {phrase}")
