"""A config and weights of two models are told apart before anything is loaded, by their numbers; and as they load."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.planning.contracts import Side, broken_contracts, doubts
from ted_ds.planning.tokenizer_contracts import doubtful_ids, refuse_padding_outside
from tests.tiny import LABELS, MAX_POSITIONS, recipe_dict, task_dict, write_model

Weights = dict[str, Tensor]


def set_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def set_weights(folder: Path, change: Callable[[Weights], Mapping[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})


def load(folder: Path, *, labels: int | None = None, new_head_allowed: bool = True) -> Any:
    head = None if labels is None else {"id2label": {index: str(index) for index in range(labels)}}
    return load_model(folder, LoadSettings(torch.float32), head=head, new_head_allowed=new_head_allowed)


def without(*beginnings: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: one for name, one in weights.items() if not name.startswith(beginnings)}


@pytest.mark.parametrize(
    ("family", "shape", "changes", "words"),
    [
        ("llama", {}, {"vocab_size": 90}, "vocab_size is 90, but lm_head.weight and model.embed_tokens.weight in the "),
        ("gpt2", {}, {"vocab_size": 128}, "vocab_size is 128, but transformer.wte.weight in the weights has 100 rows;"),
        (
            "bert",
            {},
            {"vocab_size": 101},
            "vocab_size is 101, but embeddings.word_embeddings.weight in the weights has",
        ),
        (
            "llama",
            {},
            {"hidden_size": 32},
            "hidden_size is 32, but model.embed_tokens.weight in the weights has 16 col",
        ),
        (
            "gpt2",
            {},
            {"n_positions": 1024},
            f"n_positions is 1024, but transformer.wpe.weight in the weights has {MAX_POSITIONS}",
        ),
        (
            "bert",
            {"labels": LABELS},
            {"max_position_embeddings": 512},
            "max_position_embeddings is 512, but bert.embeddings.position_embeddings.weight in the weights has",
        ),
        (
            "llama",
            {},
            {"num_hidden_layers": 2},
            "num_hidden_layers is 2, but the weights have 4 blocks, up to number 3",
        ),
        (
            "opt",
            {},
            {"max_position_embeddings": 128},
            f"max_position_embeddings is 128, but model.decoder.embed_positions.weight in the weights has "
            f"{MAX_POSITIONS + 2} rows, 2 of them before the first position; make it {MAX_POSITIONS} if the weights",
        ),
        (
            "opt",
            {},
            {"word_embed_proj_dim": 16},
            "word_embed_proj_dim is 16, but model.decoder.embed_tokens.weight in the weights has 12 columns; make it",
        ),
        (
            "gpt_neox",
            {},
            {"vocab_size": 90},
            "vocab_size is 90, but embed_out.weight and gpt_neox.embed_in.weight in the weights have 100 rows; make it",
        ),
        (
            "gpt2",
            {},
            {"n_layer": 6},
            "n_layer is 6, but the weights have no block 4 (numbered from 0); use the weights",
        ),
    ],
)
def test_a_config_of_another_model_than_the_weights_is_named_with_both_numbers(
    tmp_path: Path, family: str, shape: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    folder = write_model(tmp_path / "model", family, **shape)
    read_model_facts(folder)
    set_config(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_model_facts(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {words}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_block_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    set_weights(folder, without("model.layers.1."))
    with pytest.raises(
        CheckpointError, match=r"num_hidden_layers is 4, but the weights have no block 1 \(numbered from"
    ):
        read_model_facts(folder)


def test_an_lm_head_that_is_the_embeddings_may_be_in_the_files_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    set_weights(folder, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    assert read_model_facts(folder).has_lm_head


def test_weights_of_other_shapes_are_named_where_only_loading_shows_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    set_config(folder, intermediate_size=64)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder}: 12 weights of other shapes than config.json describes: model.layers.0.mlp.down_proj.weight is "
        "[16, 32] in the files, [16, 64] by config.json; use the config.json and the weights of one and the same model"
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_head_for_other_labels_starts_anew_where_it_may(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", family, labels=("a", "b", "c"))
    model, fresh = load(folder, labels=2)
    assert [name for name in fresh if name.endswith("weight")] == [
        "classifier.weight" if family == "bert" else "score.weight"
    ]
    assert model.config.num_labels == 2
    with pytest.raises(CheckpointError, match=r"is missing, or of another shape\); fine-tune it first"):
        load(folder, labels=2, new_head_allowed=False)


# --- heads ------------------------------------------------------------------------------------------------------------


def broken(tmp_path: Path, kind: str, folder: Path) -> dict[str, list[str]]:
    recipe = Recipe.model_validate({**recipe_dict(tmp_path), "task": task_dict(kind)})
    return {**broken_contracts(recipe, Side("teacher", folder, read_model_facts(folder), False), None)}


@pytest.mark.parametrize(("family", "head"), [("bert", "classifier."), ("llama", "score.")])
@pytest.mark.parametrize("architectures", [None, "as they are"])
def test_a_head_that_the_config_names_and_the_weights_lack_is_no_head(
    tmp_path: Path, family: str, head: str, architectures: str | None
) -> None:
    folder = write_model(tmp_path / "model", family, labels=LABELS)
    assert broken(tmp_path, "sequence_classification", folder) == {}
    set_weights(folder, without(head))
    if architectures is None:
        set_config(folder, architectures=None)
    assert broken(tmp_path, "sequence_classification", folder) == {
        "head": [
            "teacher.path: its weights hold no head for sequence_classification (classifier or score), so its "
            "predictions would be random; fine-tune it on the task: add teacher.finetune"
        ]
    }


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_head_for_other_labels_than_its_own_config_names_is_refused_or_starts_anew(
    tmp_path: Path, family: str
) -> None:
    folder = write_model(tmp_path / "model", family, labels=LABELS)
    set_config(folder, id2label={str(index): f"label {index}" for index in range(5)})
    task = {**task_dict("sequence_classification"), "labels": [f"label {index}" for index in range(5)]}
    content = {**recipe_dict(tmp_path), "task": task}
    side = Side("teacher", folder, read_model_facts(folder), False)
    what = f"teacher.path: {folder / 'config.json'} names 5 labels in id2label, but the head in the weights has 2 rows"
    strict = Recipe.model_validate({**content, "preflight": "refuse"})
    assert {**broken_contracts(strict, side, None)} == {
        "head": [
            f"{what}, so its predictions would be random; fine-tune it on the task: add teacher.finetune, or use the "
            "weights that belong to this file"
        ]
    }
    lenient = Recipe.model_validate({**content, "preflight": "warn"})
    assert not broken_contracts(lenient, side, None)
    assert f"{what}: a new one starts random" in doubts(lenient, side, None)["head"]


def test_a_causal_lm_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    set_weights(folder, without("lm_head."))
    (line,) = broken(tmp_path, "causal_lm", folder)["head"]
    assert line.startswith("teacher.path: its weights hold no LM head, and its config.json does not tie one to the")


# --- ids in configs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [100, 32000, -101, -1])
def test_a_padding_id_of_the_config_beyond_the_embeddings_is_refused(tmp_path: Path, index: int) -> None:
    folder = write_model(tmp_path / "model", "llama")
    set_config(folder, pad_token_id=index)
    with pytest.raises(CheckpointError) as caught:
        refuse_padding_outside(read_model_facts(folder))
    assert str(caught.value).startswith(
        f"its config.json has the pad_token_id {index}, but the model has embeddings for 0..99 (100 rows); set it to"
    )
    assert broken(tmp_path, "causal_lm", folder).keys() == {"vocabulary"}


@pytest.mark.parametrize("index", [0, 99])
def test_a_padding_id_that_the_embeddings_have_is_taken(tmp_path: Path, index: int) -> None:
    folder = write_model(tmp_path / "model", "llama")
    set_config(folder, pad_token_id=index)
    refuse_padding_outside(read_model_facts(folder))


@pytest.mark.parametrize(
    ("file", "key", "value", "shown"),
    [
        ("config.json", "eos_token_id", 50256, 50256),
        ("config.json", "bos_token_id", 100, 100),
        ("generation_config.json", "eos_token_id", [1, 128001], 128001),
        ("generation_config.json", "pad_token_id", 128004, 128004),
    ],
)
def test_other_ids_beyond_the_embeddings_are_named(tmp_path: Path, file: str, key: str, value: Any, shown: int) -> None:
    folder = write_model(tmp_path / "model", "llama")
    assert [*doubtful_ids(read_model_facts(folder), None)] == []
    set_config(folder, file, **{key: value})
    assert [*doubtful_ids(read_model_facts(folder), None)] == [
        f"its {file} has the {key} {shown}, of which it has no embedding (100 rows)"
    ]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_generation_config_is_named(tmp_path: Path, content: str) -> None:
    folder = write_model(tmp_path / "model", "llama")
    (folder / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: .*; copy it again, or remove it"):
        read_model_facts(folder)
