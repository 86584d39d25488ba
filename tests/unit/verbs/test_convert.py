"""``ted-ds convert``: what it refuses, and, where the libraries are, that the graph says what the model does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from ted_ds.cli import main
from ted_ds.verbs import convert
from tests.optional import NO_ONNX, ONNX
from tests.tiny import ROOT, write_model

LENGTHS = ("a", "the cat sat", "the dog ran to the cat and sat")
READ = """
import json, sys
import numpy, onnxruntime, torch, transformers
place, folder = sys.argv[1:3]
texts = json.loads(sys.argv[3])
kind = json.load(open(place + "/config.json"))["architectures"][0]
model = getattr(transformers, kind).from_pretrained(place, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
farthest = 0.0
for given in [texts, *([one] for one in texts)]:
    batch = tokenizer(given, padding=len(given) > 1, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**batch).logits.numpy()
    found = session.run(["logits"], {one.name: batch[one.name].numpy() for one in session.get_inputs()})[0]
    assert found.shape == wanted.shape
    farthest = max(farthest, float(numpy.abs(found - wanted).max() / numpy.abs(wanted).max()))
print(farthest)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("family", "built"),
    [("bert", {"labels": ("bad", "good")}), ("bert", {"architecture": "MaskedLM"}), ("llama", {})],
)
def test_a_graph_says_what_its_model_does_whatever_the_batch(tmp_path, family, built):
    assert ONNX.is_dir(), NO_ONNX
    place = write_model(tmp_path / "export", family, blocks=2, **built)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ONNX}"}
    command = [sys.executable, "-m", "ted_ds", "convert", str(place), "--to", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "export-onnx"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["written", "compared"]
    assert str(folder) in done.stdout
    files = {file.name for file in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= files
    command = [sys.executable, "-c", READ, str(place), str(folder), json.dumps(LENGTHS)]
    read = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert float(read.stdout.splitlines()[-1]) < 1e-5


def test_what_is_missing_is_said_before_anything_is_read(tmp_path, capsys):
    assert importlib.util.find_spec("onnxruntime") is None, "in a folder of its own: tests/optional.py"
    place = write_model(tmp_path / "export", "bert", blocks=1)
    assert main(["convert", str(place), "--to", "onnx"]) == 2
    assert capsys.readouterr().err.endswith("install what is missing: pip install 'ted_ds[onnx]'\n")
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no exported model is in it"),
        ({"adapter_config.json": "{}"}, "is an adapter, and no whole model; merge it into its base with peft"),
        (
            {"config.json": '{"is_encoder_decoder": true, "architectures": ["T5ForConditionalGeneration"]}'},
            "is an encoder-decoder, which takes more than one graph; only models of one stack are converted",
        ),
        ({"config.json": "{}"}, "a model without a named architecture is none that transformers has"),
        ({"config.json": '{"architectures": ["BertModel"], "model_type": "bert"}'}, "does not load: "),
    ],
)
def test_what_is_no_model_of_one_stack_is_refused(tmp_path, capsys, monkeypatch, files, says):
    monkeypatch.setattr(convert, "LIBRARIES", ())
    place = tmp_path / "export"
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    assert main(["convert", str(place), "--to", "onnx"]) != 0
    assert f"{place}: {says}" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    for words in (["convert", "--to", "onnx"], ["push", "--to", "org/small"]):
        assert main([*words, str(tmp_path / "none")]) == 2
        said = "no such folder; give the output_dir of a run that is complete, or its export"
        assert f"{tmp_path / 'none'}: {said}\n" in capsys.readouterr().err


def test_a_folder_that_is_there_stays(tmp_path, capsys):
    place = write_model(tmp_path / "export", "bert", blocks=1)
    (tmp_path / "export-onnx").mkdir()
    assert main(["convert", str(place), "--to", "onnx"]) == 2
    assert f"--out {tmp_path / 'export-onnx'}: is there already; give another name" in capsys.readouterr().err


def test_what_the_library_cannot_write_is_one_message(tmp_path, capsys, monkeypatch):
    """Without the packages that the exporter asks for first, it raises as it does for a model it does not know."""
    monkeypatch.setattr(convert, "LIBRARIES", ())
    place = write_model(tmp_path / "export", "llama", blocks=1)
    assert main(["convert", str(place), "--to", "onnx"]) != 0
    said = capsys.readouterr().err
    assert "cannot write a LlamaForCausalLM as ONNX (ImportError: " in said
    assert said.endswith("); the export itself is whole\n")
    assert [one.name for one in tmp_path.iterdir()] == ["export"]
