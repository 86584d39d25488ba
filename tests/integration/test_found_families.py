"""A whole run of a family that has no record, found by its structure."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.integration.launching import forked
from tests.structures import content_of
from tests.tiny import ROOT, write_run

ZERO3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"


@pytest.mark.slow
def test_a_found_family_goes_through_all_phases_in_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_run(tmp_path)
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gpt_neo"].from_dict(
        {**content_of("gpt_neo"), "num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    )
    (tmp_path / "teacher" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    outcome = forked("run", str(recipe), ZERO3, "teacher.host=zero3", num_ranks=2)
    assert outcome.code == 0, outcome.output
    assert "teacher, found by structure: 4 blocks at transformer.h" in outcome.output
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert student.config.num_layers == 2
    refused = forked("run", str(recipe), "torch_compile=true", num_ranks=1)
    assert refused.code == 2
    assert "torch_compile: the teacher is a gpt_neo, which is not compiled here" in refused.output
