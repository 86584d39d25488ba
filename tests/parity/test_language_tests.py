"""Strided perplexity and last words are what transformers' own logits give, token by token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ted_ds.config.load import load_recipe
from ted_ds.data.loader import Collator, evaluation_batches
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.taps import TappedModel
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.outputs import row_outputs
from ted_ds.tasks.language_tests import EndCollator, OpenedTest, open_test
from ted_ds.tasks.scoring import evaluate
from tests.tiny import texts, write_rows, write_run, write_tokenizer

WINDOW, STRIDE = 12, 5


def opened(recipe_file: Path, override: str, start: tuple[int, ...]) -> OpenedTest:
    recipe = load_recipe(recipe_file, [override])
    ((_, name, test),) = recipe.evaluation.tests
    return open_test(recipe, name, test, write_tokenizer(recipe_file.parent / "tokenizer"), start)


def scores(folder: Path, family: str, test: OpenedTest, rows: int) -> dict[str, float]:
    model, _ = load_model(folder, LoadSettings(torch.float32), head=None)
    frozen = FrozenModel(TappedModel(model, family_of(family), ()), device=torch.device("cpu"), engine_config=None)
    batches = evaluation_batches(
        test.samples, EndCollator(Collator(0, "tokens", multiple_of=4)), micro_batch_size=rows, rank=0, world_size=1
    )
    (found,), _ = evaluate(
        row_outputs(frozen), batches, scorer=test.scorer, gather=lambda one: [one], device=torch.device("cpu")
    )
    return found


def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("start", [(), (1,)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexity_is_that_of_each_token_after_what_its_window_has(
    tmp_path: Path, family: str, start: tuple[int, ...]
) -> None:
    recipe_file = write_run(tmp_path, family=family)
    model = plain_model(tmp_path / "teacher")
    documents = [" ".join(texts(6, seed=seed)) for seed in (1, 2)]
    path = write_rows(tmp_path / "t.jsonl", [{"text": text} for text in documents])
    settings = f"{{sources: [{{path: {path}}}], window: {WINDOW}, stride: {STRIDE}}}"
    test = opened(recipe_file, f"evaluation.perplexity={{t: {settings}}}", start)
    tokenizer: Any = write_tokenizer(tmp_path / "tokenizer")
    total, count = 0.0, 0
    for text in documents:
        ids = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert len(ids) > 3 * WINDOW
        for place in range(1, len(ids)):
            begin = max(0, -(-(place + 1 - WINDOW) // STRIDE) * STRIDE)  # of the first window that reaches it
            total -= float(log_probabilities(model, ids[begin : place + 1])[-2, ids[place]])
            count += 1
    for rows in (1, 3):
        found = scores(tmp_path / "teacher", family, test, rows)
        assert found["num_tokens"] == count
        assert math.log(found["token_perplexity"]) == pytest.approx(total / count, rel=1e-6)  # fp32 beside fp64
        words = sum(len(text.split()) for text in documents)
        assert math.log(found["word_perplexity"]) == pytest.approx(total / words, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_last_word_is_right_where_each_of_its_tokens_is_the_likeliest(tmp_path: Path, family: str) -> None:
    recipe_file = write_run(tmp_path, family=family)
    model = plain_model(tmp_path / "teacher")
    tokenizer: Any = write_tokenizer(tmp_path / "tokenizer")
    documents = texts(12, seed=3)
    chosen = log_probabilities(model, tokenizer(documents[0], add_special_tokens=False)["input_ids"])
    documents.append(f"{documents[0]} {tokenizer.decode([int(chosen[-1].argmax())])}")  # whatever the model would say
    path = write_rows(tmp_path / "t.jsonl", [{"text": text} for text in documents])
    test = opened(recipe_file, f"evaluation.last_word={{t: {{sources: [{{path: {path}}}], window: 32}}}}", ())
    total, right = 0.0, 0
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = len(tokenizer(text.rpartition(" ")[0], add_special_tokens=False)["input_ids"])
        of_each = log_probabilities(model, ids)
        total -= sum(float(of_each[place - 1, ids[place]]) for place in range(first, len(ids)))
        right += all(int(of_each[place - 1].argmax()) == ids[place] for place in range(first, len(ids)))
    assert 0 < right < len(documents)
    for rows in (1, 4):
        found = scores(tmp_path / "teacher", family, test, rows)
        assert found["num_examples"] == len(documents)
        assert found["accuracy"] == right / len(documents)
        assert math.log(found["perplexity"]) == pytest.approx(total / len(documents), rel=1e-6)
