"""Dropout that is set for a model reaches the modules it is of, whatever its ``config.json`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from tests.tiny import LABELS, write_model

SHARES = {"classifier": 0.11, "hidden": 0.22, "attention": 0.33}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        (name, architecture)
        for name in ("bert", "deberta-v2", "gpt2", "llama")
        for architecture in ("SequenceClassification", "TokenClassification", "MultipleChoice")
        if architecture not in family_of(name).lacks
    ],
)
def test_what_is_dropped_is_what_was_set(tmp_path: Path, name: str, architecture: str) -> None:
    folder = write_model(tmp_path, name, labels=LABELS, architecture=architecture)
    family = family_of(name)
    known = {what: family.dropout_keys(what, architecture) for what in SHARES}
    values = {key: SHARES[what] for what, keys in known.items() for key in keys}
    settings = LoadSettings(torch.float32, config_values=values)
    head: dict[str, Any] = {"num_labels": len(LABELS)}
    model, _ = load_model(folder, settings, head=head, architecture=architecture)
    found = {one.p for one in model.modules() if isinstance(one, torch.nn.Dropout)}
    found |= {getattr(one, "attention_dropout", None) for one in model.modules()}
    assert found - {None, 0.0} == {SHARES[what] for what, keys in known.items() if keys}
    plain, _ = load_model(folder, LoadSettings(torch.float32), head=head, architecture=architecture)
    assert {one.p for one in plain.modules() if isinstance(one, torch.nn.Dropout)} <= {0.0}
    model.save_pretrained(tmp_path / "saved")  # what it was trained with is told
    again, _ = load_model(tmp_path / "saved", LoadSettings(torch.float32), head=head, architecture=architecture)
    assert {key: getattr(again.config, key) for key in values} == values
