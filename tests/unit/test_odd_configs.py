"""What a ``config.json`` says that loads as something else, or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ted_ds.errors import CheckpointError
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import load_model, read_tokenizer
from ted_ds.models.rope_rules import rope_rules
from tests.tiny import LABELS, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "bert", "bert", labels=LABELS)
    for family in ("llama", "gpt2", "qwen2"):
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
    context = contextlib.nullcontext()
    return load_model(folder, head=head, dtype=torch.float32, new_head_allowed=False, context=context)[0]


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
