"""Runs with students that train adapters: what they say, leave and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.optional import use_peft
from tests.runs import run
from tests.tiny import ROOT, write_run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def with_peft(rank: int) -> None:
    use_peft()


def test_the_base_teaches_its_adapters_which_are_exported_alone(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path, kind="sequence_classification"))
    zero3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
    lora = "student.lora={rank: 2, targets: [query, value], export: adapter}"
    student = ("student.from_teacher=null", f"student.path={tmp_path / 'teacher'}", "distill.learning_rate=0.05")
    output = run(["run", recipe, *student, lora, zero3], fault=with_peft)
    assert "the teacher is the student's own base, its adapters off: its weights are held once" in output
    # of 4 blocks, two maps of 16 x 16 each; and the head's 2 x 16 and 2
    num_trained = 4 * 2 * 2 * (16 + 16) + 34
    assert f"adapters of rank 2: {num_trained} of the student's" in output
    export, merged = tmp_path / "run" / "export", tmp_path / "run" / "distill" / "model"
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
        file.name for file in export.iterdir()
    }
    config = json.loads((export / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("teacher", "SEQ_CLS")
    assert str(tmp_path) not in json.dumps(config)
    assert "An adapter (LoRA, rank 2) for `teacher`" in (export / "README.md").read_text(encoding="utf-8")
    use_peft()
    import peft

    auto = AutoModelForSequenceClassification
    with torch.no_grad():
        base, of_run = (auto.from_pretrained(folder).eval() for folder in (tmp_path / "teacher", merged))
        before, expected = base(IDS).logits, of_run(IDS).logits
        found = peft.PeftModel.from_pretrained(base, export).eval()(IDS).logits
    assert not torch.allclose(before, expected, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-6)  # rounded elsewhere


def test_a_cut_student_is_fine_tuned_and_distilled_by_adapters_and_exported_whole(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path, method="kd"))
    finetune = "student.finetune={max_steps: 2, learning_rate: 0.1, global_batch_size: 4, micro_batch_size: 2}"
    words = ["run", recipe, "student.lora={rank: 2, targets: [q_proj]}", finetune, "distill.learning_rate=0.1"]
    output = run(words, num_ranks=1, fault=with_peft)
    assert "held once" not in output
    start, tuned, after = (
        load_file(tmp_path / "run" / folder / "model.safetensors")
        for folder in ("cut_student/model", "finetune_student/model", "export")
    )
    for one, other in ((start, tuned), (tuned, after)):
        moved = {name for name in one if not torch.equal(one[name], other[name])}
        assert moved == {f"model.layers.{block}.self_attn.q_proj.weight" for block in (0, 1)}
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not {*report["missing_keys"], *report["unexpected_keys"]}
    changed = run([*words, "student.lora.alpha=7"], num_ranks=1, codes=2, fault=with_peft)
    assert "finetune_student: was completed with other settings: lora.alpha was 4, now 7" in changed
