"""What a ``config.json`` alone says of a model: the parameters that transformers builds of it, and its heads."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import CheckpointError
from ted_ds.models.built_shapes import built_shapes
from ted_ds.models.config_facts import read_config_facts
from ted_ds.models.families import KNOWN_TYPES
from ted_ds.models.files import read_model_facts
from tests.tiny import LABELS, model_config, write_model

OF_BERT = {"BertForMaskedLM": (False, True), "BertForPreTraining": (False, True), "BertModel": (False, False)}
"""Whether they have a classifier, and an LM head."""


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """One process builds all that are asked for below."""
    built_shapes(*map(as_written, KNOWN_TYPES))


def as_written(model_type: str, **changes: Any) -> dict[str, Any]:
    return json.loads(model_config(model_type, **changes).to_json_string())


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
    if by_files.num_experts:  # files hold two maps of an expert where transformers has one
        assert [sum(map(math.prod, one)) for one in here.of_blocks] == [
            sum(map(math.prod, one)) for one in there.of_blocks
        ]
    else:
        assert [*map(sorted, here.of_blocks)] == [*map(sorted, there.of_blocks)]


@pytest.mark.parametrize(
    ("architecture", "classifier", "language_model"), [(name, *heads) for name, heads in OF_BERT.items()]
)
def test_heads_are_those_of_the_architecture(
    tmp_path: Path, architecture: str, classifier: bool, language_model: bool
) -> None:
    config = as_written("bert", architectures=[architecture])
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
        (
            '{"model_type": "bloom"}',
            "model type 'bloom' has no record here, and no family that can be used ",
        ),
        ('{"model_type": "llama"}', "not a transformers model config (KeyError("),
        ("odd", "num_attention_heads is 3, which does not divide hidden_size, 16"),
        (
            "quantised",
            "its weights are quantised, and what they come to stands in their files; fetch the model, or plan with the "
            "config.json of the one it was made from",
        ),
    ],
)
def test_what_is_wrong_in_it_is_said_with_its_place(tmp_path: Path, content: str, phrase: str) -> None:
    whole = as_written("llama")
    changed = {
        "odd": {**whole, "num_attention_heads": 3, "head_dim": None},
        "quantised": {**whole, "quantization_config": {"quant_method": "gptq", "bits": 4}},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed[content]) if content in changed else content, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_config_facts(tmp_path)
    assert str(caught.value).startswith(f"{file}: {phrase}")


def test_what_transformers_does_not_build_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"transformers builds no model of it: KeyError: .*wide"):
        built_shapes({**as_written("llama"), "hidden_act": "wide"})
