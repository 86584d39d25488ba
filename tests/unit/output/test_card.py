"""The card of an export: what the Hub's own client reads of it, and what it says of licences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ted_ds.config.load import load_recipe
from ted_ds.models.companions import Origins
from ted_ds.models.licence import Licence, licence_of
from ted_ds.output.card import Card, hash_of
from tests.tiny import write_run

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
SCORES = {
    "teacher": {"accuracy": 0.75, "loss": 0.5, "num_parameters": 2e6, "perf/tokens_per_s": 10.0},
    "student after": {"accuracy": 0.5, "loss": float("nan"), "num_parameters": 1e6, "perf/tokens_per_s": 20.0},
}


def model(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def card_of(tmp_path: Path, teacher: Path, student: Path | None = None, **changes: Any) -> Card:
    recipe = load_recipe(write_run(tmp_path / "recipe"))
    folder = tmp_path / "export"
    folder.mkdir()
    given: dict[str, Any] = {"blocks": [0, 3], "scores": SCORES, **changes}
    return Card(recipe, Origins(teacher, student), folder, **given)


def read(tmp_path: Path, card: Card) -> ModelCard:
    file = tmp_path / "card.md"
    file.write_text(card.text("A model.", ["something else"]), encoding="utf-8")
    return ModelCard.load(file)


def test_the_hubs_client_reads_what_it_is_of_and_how_good(tmp_path):
    teacher = model(tmp_path / "models--org--big" / "snapshots" / "abc", README__md="---\nlicense: MIT\n---\n# big\n")
    card = card_of(tmp_path, teacher)
    found = read(tmp_path, card)
    data = found.data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("mit", ["org/big"], "finetune")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["tags"] == ["distillation", "ted_ds"]
    (result,) = found.data.eval_results  # what is not finite is no score
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)
    assert (result.task_type, result.dataset_name) == ("text-generation", "held out of train.jsonl")
    recipe, text = card.recipe, found.text
    assert f"- Recipe `tiny`, SHA-256 `{hash_of(recipe, {'teacher': 'org/big'})}`" in text
    assert "method `ted`, task `causal_lm`, 2 steps of 4 at a rate of 0.001." in text
    assert "| teacher | 2.0 M | 0.75 | 0.5 |" in text
    assert "| student after | 1.0 M | 0.5 | nan |" in text
    assert "- Licence: mit (teacher)." in text
    assert "Before it is passed on" not in text
    assert "- something else." in text
    assert "## Limits" in text
    assert str(tmp_path) not in text


def test_an_adapter_and_a_model_without_scores_say_so(tmp_path):
    card = card_of(tmp_path, model(tmp_path / "big"), scores={}, blocks=None, is_adapter=True)
    found = read(tmp_path, card)
    assert found.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "ted_ds"],
    }
    assert "## Scores" not in found.text


def test_the_hash_is_of_all_but_the_folders_of_output_and_models(tmp_path):
    names = {"teacher": "big"}
    one, other = (load_recipe(write_run(tmp_path / name)) for name in ("one", "other"))
    moved = other.model_copy(update={"data": one.data, "deepspeed": one.deepspeed})
    assert hash_of(one, names) == hash_of(moved, names)
    assert hash_of(one, names) != hash_of(one.model_copy(update={"seed": 9}), names)
    assert hash_of(one, names) != hash_of(one, {"teacher": "bigger"})


@pytest.mark.parametrize(
    ("files", "expected", "doubt"),
    [
        ({"README__md": "---\nlicense: Apache-2.0\n---\n"}, Licence("apache-2.0"), None),
        ({"README__md": "---\nlicense: [mit]\n---\n"}, Licence("mit"), None),
        ({"README__md": "# no front matter", "LICENSE": APACHE}, Licence("apache-2.0"), None),
        ({"LICENSE": "MIT License\n\nCopyright"}, Licence("mit"), None),
        ({}, Licence(None), "is not known: neither a card nor a licence file beside it names one"),
        ({"LICENSE": "All rights reserved"}, Licence(None), "is not known"),
        ({"README__md": "---\nlicense: [\n---\n"}, Licence(None), "is not known"),
        (
            {"README__md": "---\nlicense: cc-by-nc-nd-4.0\n---\n"},
            Licence("cc-by-nc-nd-4.0"),
            "which forbids to pass on",
        ),
        ({"README__md": "---\nlicense: cc-by-nc-4.0\n---\n"}, Licence("cc-by-nc-4.0"), "which forbids commercial use"),
        ({"README__md": "---\nlicense: llama3.1\n---\n"}, Licence("llama3.1"), "may bind what is made of it: read its"),
        (
            {"README__md": "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n"},
            Licence("other", "ours", "LICENSE"),
            "the teacher is under ours, which may bind",
        ),
    ],
)
def test_licences_are_known_by_cards_and_files_and_doubted_where_they_forbid(tmp_path, files, expected, doubt):
    teacher = model(tmp_path / "big", **files)
    assert licence_of(teacher) == expected
    card = card_of(tmp_path, teacher)
    assert [doubt is not None and doubt in one for one in card.doubts] == [True] * (doubt is not None)
    text = card.text("A model.", [])
    assert all(f"- **Before it is passed on:** {one}." in text for one in card.doubts)


def test_two_models_under_two_licences_make_another_one(tmp_path):
    models = [model(tmp_path / name, README__md=f"---\nlicense: {name}\n---\n") for name in ("mit", "isc")]
    data = read(tmp_path, card_of(tmp_path, *models)).data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "several", "README.md")
    assert json.loads(json.dumps(data)) == data
