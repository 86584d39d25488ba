"""What a ``config.json`` says that loads as something else, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from ted_ds.errors import CheckpointError
from ted_ds.models.config_values import ACTIVATIONS
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model, read_tokenizer
from ted_ds.models.rope_rules import rope_rules
from tests.tiny import LABELS, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "bert", "bert", labels=LABELS)
    for family in ("llama", "gpt2", "qwen2", "gemma2", "opt"):
        write_model(folder / family, family)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a model that a test may spoil; of a llama where it says no more."""
    return Path(shutil.copytree(models / getattr(request, "param", "llama"), tmp_path / "model"))


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def load(folder: Path, *, is_classifier: bool = False) -> Any:
    head = {"id2label": dict(enumerate(LABELS))} if is_classifier else None
    return load_model(folder, LoadSettings(torch.float32), head=head)[0]


# --- rows of the embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "index"), [("llama", 20), ("llama", 1), ("bert", 33)], indirect=["folder"])
def test_a_word_that_the_config_calls_padding_learns_as_any_other(folder: Path, index: int) -> None:
    change(folder, pad_token_id=index)
    model = load(folder, is_classifier="bert" in json.loads((folder / "config.json").read_text())["model_type"])
    ids = torch.tensor([[index, 21, index, 22]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).sum().backward()
    embeddings = model.get_input_embeddings()
    assert embeddings.weight.grad[index].abs().sum() > 0
    assert all(one.padding_idx is None for one in model.modules() if isinstance(one, nn.Embedding))


# --- rules for positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"type": "su", "factor": 4.0}, {"rope_type": "of_mine"}])
@pytest.mark.parametrize("swap", [False, True])
def test_a_rule_for_positions_is_seen_under_either_name(other: dict[str, Any], swap: bool) -> None:
    both = [{"rope_type": "default", "rope_theta": 10000.0}, other]
    new, old = reversed(both) if swap else both
    assert set(rope_rules({"rope_parameters": new, "rope_scaling": old})) == {"default", *other.values()} - {4.0}


# --- values that make no model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "changes", "words"),
    [
        ("llama", {"hidden_act": "swiglu"}, "hidden_act is 'swiglu', which transformers does not know (known: gelu, "),
        (
            "opt",
            {"layerdrop": 0.1},
            "layerdrop is 0.1: blocks are left out at random in training, and their states could not be compared; set "
            "it to 0",
        ),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention is True: each token sees those behind it, which a decoder is to predict; use "
            "another model",
        ),
        ("gemma2", {"hidden_activation": "geru"}, "hidden_activation is 'geru', which transformers does not know"),
        ("gpt2", {"activation_function": "gleu"}, "activation_function is 'gleu', which transformers does not know"),
        ("bert", {"hidden_act": ["gelu"]}, "hidden_act is ['gelu'], which transformers does not know"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0, and has to be a whole number of at least 1"),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads is 3, which does not div"),
        ("gpt2", {"n_head": 3}, "n_head is 3, which does not divide n_embd, 16"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide hidden_size, 16"),
        ("qwen2", {"head_dim": 9}, "head_dim is 9, and has to be even"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0, and has to be a whole"),
        ("qwen2", {"layer_types": ["full_attention"] * 5}, "layer_types has 5 entries, and num_hidden_layers is 4"),
        ("llama", {"layer_types": "full_attention"}, "layer_types has 'full_attention', and num_hidden_layers is 4"),
        (
            "qwen2",
            {"layer_types": ["linear_attention"] * 4},
            "layer_types has 'linear_attention'; a qwen2 has full",
        ),
        ("llama", {"vocab_size": "100"}, "vocab_size is '100', and has to be a whole number"),
        ("gpt2", {"pad_token_id": "1"}, "pad_token_id is '1', and has to be a whole number, without quotes"),
        ("llama", {"eos_token_id": [1, "2"]}, "eos_token_id is [1, '2'], and has to be a whole number"),
        ("llama", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', and has to be an object such as"),
        ("bert", {"id2label": {"one": "a"}}, "id2label has 'one': 'a', and has to name the labels by ids from 0"),
        ("bert", {"id2label": {"1": "a", "2": "b"}}, "id2label has no 0, but 2, and has to name the labels"),
        ("bert", {"id2label": ["a", "b"]}, "id2label is ['a', 'b'], and has to name the labels"),
        ("bert", {"id2label": {"0": "a", "1": None}}, "id2label has '1': None, and has to name the labels"),
        ("bert", {"id2label": {"0": "a", "00": "b"}}, "id2label has '00': 'b', and has to name the labels"),
        ("bert", {"id2label": {"0": "a", "\u0661": "b"}}, "id2label has '\u0661': 'b', and has to name the labels"),
    ],
    indirect=["folder"],
)
def test_a_value_that_makes_no_model_is_named_before_anything_is_loaded(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    change(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_model_facts(folder)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{folder / 'config.json'}: {words}")


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 0}),
        ("qwen2", {"max_window_layers": 0}),
        ("llama", {"head_dim": None, "rope_scaling": None, "layer_types": None, "pad_token_id": None}),
    ],
    indirect=["folder"],
)
def test_a_value_that_is_not_used_is_no_mistake(folder: Path, changes: dict[str, Any]) -> None:
    change(folder, **changes)
    assert read_model_facts(folder).num_blocks == 4


def test_the_activations_are_those_of_transformers() -> None:
    assert {*ACTIVATIONS} == {*ACT2FN}


@pytest.mark.parametrize(
    ("folder", "changes", "words"),
    [
        ("llama", {"hidden_act": "swiglu"}, "(KeyError: 'swiglu')"),
        ("llama", {"num_key_value_heads": 0}, "(ZeroDivisionError: "),
        ("llama", {"dtype": "float8"}, "(AttributeError: "),
        ("qwen2", {"layer_types": ["full_attention"]}, "(StrictDataclassClassValidationError: "),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "(KeyError: "),
        ("gpt2", {"n_head": 3}, "(ValueError: "),
        ("bert", {"pad_token_id": 5000}, "(AssertionError: "),
    ],
    indirect=["folder"],
)
def test_whatever_transformers_raises_as_it_builds_a_model_names_the_config(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    change(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: transformers can build no model from it {words}"), message
    assert message.endswith("; use the config.json that the weights were trained with")
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("folder", ["llama", "gpt2"], indirect=True)
def test_attention_that_the_config_names_and_nobody_asked_for_is_not_needed(folder: Path) -> None:
    change(folder, _attn_implementation="flash_attention_2")
    model = load(folder)
    assert model.config._attn_implementation != "eager"
    assert torch.get_default_dtype() == torch.float32


def test_memory_that_is_out_is_no_fault_of_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(nn.Embedding, "__init__", fail)
    with pytest.raises(MemoryError):
        load(folder)


def test_a_fault_of_the_config_is_not_told_as_one_of_the_tokenizer(folder: Path) -> None:
    change(folder, num_attention_heads=3)
    with pytest.raises(CheckpointError, match=r"config\.json: transformers can build no model from it \(Strict"):
        read_tokenizer(folder)
