"""What differs between hosts is named, with who sees what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.models.companions import TOKENIZER_FILES
from ted_ds.verbs.agreement import differences_between, view_of_model


def test_equal_hosts_agree():
    assert differences_between([("a", {"x": "1"}), ("b", {"x": "1"})]) == []


def test_what_most_see_comes_first_and_hosts_are_named_once():
    views = [("a", {"x": "2", "y": "1"}), ("b", {"x": "1", "y": "1"}), ("b", {"x": "1", "y": "1"}), ("c", {"x": "1"})]
    assert differences_between(views) == ["x: 1 on b, c; 2 on a", "y: 1 on a, b; not there on c"]


def test_many_hosts_are_counted():
    views = [(f"host{number}", {"x": "1"}) for number in range(100)] + [("odd", {"x": "2"})]
    assert differences_between(views) == ["x: 1 on host0, host1, host2 and 97 others; 2 on odd"]


@pytest.mark.parametrize(
    "name",
    [
        *TOKENIZER_FILES,
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer.model.v3",
        "qwen.tiktoken",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    ],
)
def test_every_file_that_decides_what_a_model_does_is_compared(tmp_path: Path, name: str):
    views = []
    for host in ("a", "b"):
        file = tmp_path / host / name
        file.parent.mkdir(parents=True)
        file.write_text(host)
        views.append((host, view_of_model("teacher", tmp_path / host)))
    [difference] = differences_between(views)
    assert difference.startswith(f"teacher {name}: 1 bytes, ")
