"""Frozen teachers whose files hold quantised weights: what is taught, and what happens where they do not work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from ted_ds.models import packed
from ted_ds.models.files import read_model_facts
from tests.integration.launching import alone, environment, forked
from tests.optional import BITSANDBYTES, GPTQMODEL, NO_GPTQMODEL, OPTIONAL
from tests.quantised import to_awq, to_fp8, to_gptq
from tests.runs import run
from tests.tiny import ROOT, recipe_dict, write_model, write_recipe, write_run, write_tokenizer

ZERO3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
QUANTISE = """
import sys
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
in_4, in_8 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True, "llm_int8_threshold": 0.0}
config = BitsAndBytesConfig(**(in_4 if sys.argv[3] == "4" else in_8))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config)
model.save_pretrained(sys.argv[2])
"""
# what ted_ds taps of a teacher, beside what transformers says of the same model
TAPS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.taps import TappedModel
from ted_ds.runtime.frozen import FrozenModel
ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
model, fresh = load_model(Path(sys.argv[1]), LoadSettings(torch.float32), head=None)
tapped = TappedModel(model, family_of("llama"), (0, 1, 3), fresh_parameters=fresh)
frozen = FrozenModel(tapped, device=torch.device("cpu"), engine_config=None)
with torch.no_grad():
    logits, states = frozen.tapped(inputs)
    plain = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    expected = plain(**inputs, output_hidden_states=True)
for place, layer in enumerate((0, 1, 3)):
    torch.testing.assert_close(states[place], expected.hidden_states[layer], rtol=0, atol=0)
torch.testing.assert_close(logits, expected.logits, rtol=0, atol=0)
print("taps agree")
"""


def write_pair(folder, hidden=16):
    """All a run needs, with a student of its own; its teacher is to be quantised."""
    recipe = write_run(folder)
    write_model(folder / "teacher", "llama", hidden=hidden)
    write_model(folder / "student", "llama", blocks=2)
    return write_recipe(recipe, {**recipe_dict(folder), "student": {"path": str(folder / "student")}})


needs_bitsandbytes = pytest.mark.skipif(
    not BITSANDBYTES.is_dir(), reason=f"{BITSANDBYTES} is not there; bash tests/run.sh makes it"
)


def quantise(folder, bits):
    """The teacher as bitsandbytes writes it."""
    plain = (folder / "teacher").rename(folder / "plain")
    python(QUANTISE, plain, folder / "teacher", bits, PYTHONPATH=f"{OPTIONAL}:{ROOT}")
    write_tokenizer(folder / "teacher")


def python(code, *words, **variables):
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_taught(folder, num_parameters):
    scores = json.loads((folder / "run" / "evaluate" / "evaluation.json").read_text())
    assert scores["teacher"]["num_parameters"] == num_parameters
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    (first, *_) = [line for line in lines if line["phase"] == "distill"]
    assert first["loss/kl_teacher_student"] > 0
    assert first["loss/feature_mse"] > 0
    export = folder / "run" / "export"
    assert "quantization_config" not in json.loads((export / "config.json").read_text())
    dtypes = {parameter.dtype for parameter in AutoModelForCausalLM.from_pretrained(export).parameters()}
    assert dtypes == {torch.float32}


@pytest.mark.slow
def test_a_teacher_in_8_bit_floating_point_teaches(tmp_path):
    recipe = write_pair(tmp_path)
    whole = read_model_facts(tmp_path / "teacher").parameters.total
    to_fp8(tmp_path / "teacher")
    assert "taps agree" in python(TAPS, tmp_path / "teacher")
    outcome = forked("run", str(recipe), ZERO3, num_ranks=2)
    assert outcome.code == 0, outcome.output
    assert "teacher: replica, its weights are quantised (fp8, 8 bits)" in outcome.output
    assert_taught(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@needs_bitsandbytes
def test_a_teacher_of_bitsandbytes_teaches(tmp_path, bits):
    recipe = write_pair(tmp_path, hidden=64)
    whole = read_model_facts(tmp_path / "teacher").parameters.total
    quantise(tmp_path, bits)
    assert "taps agree" in python(TAPS, tmp_path / "teacher", PYTHONPATH=f"{OPTIONAL}:{ROOT}")
    outcome = alone("run", str(recipe), PYTHONPATH=f"{OPTIONAL}:{ROOT}")
    assert outcome.code == 0, outcome.output
    assert f"teacher: replica, its weights are quantised (bitsandbytes, {bits} bits)" in outcome.output
    assert_taught(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.skipif(not GPTQMODEL.is_dir(), reason=NO_GPTQMODEL)
@pytest.mark.parametrize("make", [to_gptq, to_awq])
def test_a_teacher_of_gptq_and_awq_teaches(tmp_path, make):
    recipe = write_pair(tmp_path, hidden=64)
    whole = read_model_facts(tmp_path / "teacher").parameters.total
    make(tmp_path / "teacher")
    # compiled, its kernels take minutes to begin
    variables = {"PYTHONPATH": f"{GPTQMODEL}:{OPTIONAL}:{ROOT}", "TORCHDYNAMO_DISABLE": "1"}
    assert "taps agree" in python(TAPS, tmp_path / "teacher", **variables)
    outcome = alone("run", str(recipe), **variables)
    assert outcome.code == 0, outcome.output
    assert f"teacher: replica, its weights are quantised ({make.__name__[3:]}, 4 bits)" in outcome.output
    assert_taught(tmp_path, whole)


@needs_bitsandbytes
@pytest.mark.slow
def test_widths_that_a_kernel_does_not_take_end_a_run_before_anything_is_written(tmp_path):
    recipe = write_pair(tmp_path)
    quantise(tmp_path, 4)
    outcome = alone("run", str(recipe), PYTHONPATH=f"{OPTIONAL}:{ROOT}")
    assert outcome.code == 2, outcome.output
    assert (
        "its weights are quantised (bitsandbytes, 4 bits) and cannot be computed with on this device (cpu, fp32)"
        in (outcome.output)
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_package_ends_a_run_before_anything_is_written(tmp_path):
    recipe = write_pair(tmp_path)
    to_gptq(tmp_path / "teacher")
    outcome = forked("run", str(recipe), num_ranks=2)
    assert outcome.code == 2
    assert "transformers loads them with optimum and gptqmodel, not installed here: pip install" in outcome.output
    assert not (tmp_path / "run").exists()


def as_if_installed(_rank):
    packed._is_installed = lambda _: True


def test_a_method_that_does_not_work_here_ends_a_run_before_anything_is_written(tmp_path):
    recipe = write_pair(tmp_path)
    to_gptq(tmp_path / "teacher")
    output = run(["run", str(recipe)], codes=2, fault=as_if_installed)
    assert f"{tmp_path / 'teacher'}: its weights are quantised and cannot be loaded here: Loading a GPTQ" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
