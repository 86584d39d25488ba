"""The real models and texts of the quickstarts, out of their pinned packages."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ted_ds.demo_assets import prepare
from ted_ds.models.files import read_model_facts


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo_assets")
    prepare(folder)
    return folder


def test_smollm2_is_a_plain_folder_that_knows_its_capital(assets):
    facts = read_model_facts(assets / "smollm2-135m")
    assert (facts.model_type, facts.num_blocks, facts.hidden_size) == ("llama", 30, 576)
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(assets / "smollm2-135m")
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_minilm_tells_near_texts_from_far_ones(assets):
    tokenizer, model = (auto.from_pretrained(assets / "minilm-l6") for auto in (AutoTokenizer, AutoModel))
    inputs = tokenizer(["a guitar", "an instrument", "the stock market"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    guitar, instrument, market = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert guitar @ instrument > 0.5 > guitar @ market


def test_texts_are_whole(assets):
    rows = {file.stem: [json.loads(line) for line in file.open()] for file in assets.glob("*.jsonl")}
    assert len(rows["rotten_tomatoes"]) == 8530
    assert sum(row["label"] for row in rows["rotten_tomatoes"]) == 4265
    assert len(rows["imdb"]) == 25_000
    kjv = "\n".join(row["text"] for row in rows["kjv"])
    assert kjv.startswith("1. In the beginning God created the heaven and the earth.")
    assert len(kjv) > 4_000_000


def test_preparing_again_changes_nothing(assets):
    before = {path: path.stat().st_mtime_ns for path in assets.rglob("*")}
    prepare(assets)
    assert {path: path.stat().st_mtime_ns for path in assets.rglob("*")} == before
