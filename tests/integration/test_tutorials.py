"""Every command of a tutorial is run, in its order: with tiny models and few texts in the places of the large ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ted_ds.cli import main
from tests.runs import run
from tests.tiny import ROOT, texts, write_chats, write_corpus, write_labelled, write_model
from website.notebooks import cells

OF_RANKS = ("run", "doctor")
FETCHES = "ted_ds.verbs.demo_assets"


def taught(folder, lines):
    """A language model that is better than a guess, as a run asks of a teacher: it knows how often a text ends."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [token for line in lines for token in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]
    ids = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(20):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def classify(assets):
    write_model(assets / "minilm-l6", "bert", blocks=6, max_position_embeddings=128)
    write_labelled(assets / "rotten_tomatoes.jsonl", 160, labels=("negative", "positive"))


def language_model(assets):
    write_model(assets / "smollm2-135m", "llama", blocks=12, max_position_embeddings=128)
    taught(assets / "smollm2-135m", texts(400))
    write_corpus(assets / "kjv.jsonl", 3000)


def chat(assets):
    write_model(assets / "smollm2-135m", "llama", blocks=6, max_position_embeddings=128)
    taught(assets / "smollm2-135m", texts(400))
    template = ROOT / "ds_configs" / "chat_templates" / "plain.jinja"
    shutil.copy(template, assets / "smollm2-135m" / "chat_template.jinja")
    write_chats(assets / "answers.jsonl", 200)


def cluster(assets):
    assets.mkdir()


LONG, TAKES_LONG = ("language_model", "chat"), pytest.mark.slow
SMALL = {small.__name__: small for small in (classify, language_model, chat, cluster)}


def go_to(rank, folder):
    os.chdir(folder)


def commands(source):
    """Of a cell, each as one line; a file that a cell writes is part of its command."""
    return re.findall(r"^cat > \S+ <<'END'\n(?:.*\n)*?END$|^.+$", source.replace("\\\n", " "), re.MULTILINE)


def carry_out(command, folder, capfd):
    """A command as a reader starts it; ``ted-ds`` without the seconds that its imports take."""
    if not command.startswith("ted-ds "):
        subprocess.run(["bash", "-euc", command], check=True, cwd=folder)
        return
    words = shlex.split(command, comments=True)[1:]
    if words[0] in OF_RANKS:
        verb, recipe, *changes = words
        run([verb, str(folder / recipe), *changes], num_ranks=1, fault=go_to, fault_arguments=(folder,))
    else:
        assert main(words) == 0, capfd.readouterr().err


@pytest.mark.lengthy
@pytest.mark.parametrize("name", [pytest.param(name, marks=TAKES_LONG) if name in LONG else name for name in SMALL])
def test_a_tutorial_is_run_from_its_first_command_to_its_last(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    SMALL[name](tmp_path / "demo_assets")
    told = [*cells((ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8"))]
    fetching = [cell for cell in told if FETCHES in cell.source]
    assert len(fetching) == (name != "cluster")
    names = {}
    for cell in told:
        if cell in fetching:
            continue
        if cell.language == "python":
            exec(cell.source, names)
            continue
        for command in commands(cell.source):
            carry_out(command, tmp_path, capfd)


def test_there_is_no_tutorial_that_is_not_run():
    assert {file.stem for file in (ROOT / "docs" / "tutorials").glob("*.md")} == {*SMALL}
