"""Whole runs of families that have no record, found by their structure."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

from tests.integration.launching import forked
from tests.integration.test_adapter_runs import with_peft
from tests.runs import run
from tests.structures import content_of
from tests.tiny import ROOT, write_run

ZERO3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
OF_4_BLOCKS = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_found(folder, name, auto, kind="causal_lm", **changes):
    """A run whose teacher is of a type without a record."""
    recipe = write_run(folder, kind=kind)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name].from_dict({**content_of(name), **changes})
    (folder / "teacher" / "model.safetensors").unlink()
    auto.from_config(config).save_pretrained(folder / "teacher")
    return str(recipe)


@pytest.mark.slow
def test_a_found_family_goes_through_all_phases_in_shards(tmp_path):
    recipe = write_found(tmp_path, "gpt_neo", AutoModelForCausalLM, **OF_4_BLOCKS)
    outcome = forked("run", recipe, ZERO3, "teacher.host=zero3", num_ranks=2)
    assert outcome.code == 0, outcome.output
    assert "teacher, found by structure: 4 blocks at transformer.h" in outcome.output
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert student.config.num_layers == 2
    refused = forked("run", recipe, "torch_compile=true", num_ranks=1)
    assert refused.code == 2
    assert "torch_compile: the teacher is a gpt_neo, which is not compiled here" in refused.output


@pytest.mark.slow
def test_a_found_encoder_goes_through_all_phases_as_a_masked_lm(tmp_path):
    recipe = write_found(tmp_path, "camembert", AutoModelForMaskedLM, kind="masked_lm", num_hidden_layers=4)
    outcome = forked("run", recipe, ZERO3, num_ranks=2)
    assert outcome.code == 0, outcome.output
    assert "LM head: lm_head.decoder, lm_head.dense and lm_head.layer_norm before it, MaskedLM" in outcome.output
    student, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert student.config.num_hidden_layers == 2
    assert not {*report["missing_keys"], *report["unexpected_keys"]}


@pytest.mark.slow
def test_a_student_of_a_found_family_trains_adapters(tmp_path):
    recipe = write_found(tmp_path, "gpt_neo", AutoModelForCausalLM, **OF_4_BLOCKS)
    words = ["run", recipe, ZERO3, "student.lora={rank: 2, targets: [q_proj]}", "distill.learning_rate=0.1"]
    output = run(words, fault=with_peft)
    assert f"adapters of rank 2: {2 * 2 * (16 + 16)} of the student's" in output
    start, after = (
        load_file(tmp_path / "run" / folder / "model.safetensors") for folder in ("cut_student/model", "export")
    )
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved == {f"transformer.h.{block}.attn.attention.q_proj.weight" for block in (0, 1)}
