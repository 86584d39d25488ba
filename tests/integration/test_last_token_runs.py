"""Whole runs of decoders that classify: their numbers are transformers' own, one text at a time, before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from ted_ds.data.cleaning import is_heldout
from tests.runs import run
from tests.tiny import LABELS, write_model, write_recipe, write_run

EOS = 1


def write_ending_tokenizer(folder: Path, *, pad_token: str | None) -> None:
    """One that ends each text with its end token."""
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", EOS)])
    special = {"eos_token": "[EOS]", "unk_token": "[UNK]", **({"pad_token": pad_token} if pad_token else {})}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def losses_alone(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Transformers' loss of each text, one at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in rows:
        inputs = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"]).logits
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([LABELS.index(row["label"])])).item())
    return losses


@pytest.mark.parametrize(
    ("family", "own_id", "pad_token", "exported_id", "overrides"),
    [
        ("gpt2", None, None, None, []),  # padded with the end token
        ("llama", EOS, "[EOS]", EOS, ["data.padding.side=left"]),  # trained to be read before it
        ("mistral", None, "[PAD]", 0, ["data.padding.multiple_of=8"]),
    ],
)
def test_a_decoder_is_scored_and_exported_as_transformers_reads_it(
    tmp_path: Path,
    family: str,
    own_id: int | None,
    pad_token: str | None,
    exported_id: int | None,
    overrides: list[str],
) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification", family=family)
    write_model(tmp_path / "teacher", family, labels=LABELS, pad_token_id=own_id)
    write_ending_tokenizer(tmp_path / "teacher", pad_token=pad_token)
    write_recipe(
        recipe, {**yaml.safe_load(recipe.read_text()), "evaluation": {"max_examples": 64, "micro_batch_size": 4}}
    )
    run(["run", str(recipe), *overrides], num_ranks=1)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    heldout = [row for row in rows if is_heldout(row["text"], 0.2)]
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    export = tmp_path / "run" / "export"
    for name, folder in (("teacher", tmp_path / "teacher"), ("student after", export)):
        losses = losses_alone(folder, heldout)
        assert scores[name]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5), name
    assert json.loads((export / "config.json").read_text()).get("pad_token_id") == exported_id
