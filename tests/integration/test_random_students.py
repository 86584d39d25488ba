"""A student that begins with random weights, by real ranks."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.runs import run
from tests.tiny import ROOT, write_run

RANDOM = ("student.from_teacher=null", "student.from_config={changes: {num_hidden_layers: 1, hidden_size: 8}}")


def test_random_weights_are_the_same_for_any_number_of_ranks(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path, kind="sequence_classification", method="lwd"))
    zero3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
    out = [tmp_path / name for name in ("one", "two", "other")]
    run(["finetune", recipe, *RANDOM, f"output_dir={out[0]}"], num_ranks=1)
    run(["run", recipe, *RANDOM, f"output_dir={out[1]}", zero3])
    run(["finetune", recipe, *RANDOM, f"output_dir={out[2]}", "seed=1"], num_ranks=1)
    one, two, other = (load_file(folder / "random_student" / "model" / "model.safetensors") for folder in out)
    assert {name: weight.tolist() for name, weight in one.items()} == {n: weight.tolist() for n, weight in two.items()}
    assert one["classifier.weight"].tolist() != other["classifier.weight"].tolist()
    model, report = AutoModelForSequenceClassification.from_pretrained(out[1] / "export", output_loading_info=True)
    assert not report["missing_keys"]
    assert (model.config.hidden_size, model.config.id2label) == (8, {0: "negative", 1: "positive"})
    assert "The student began as random weights." in (out[1] / "export" / "README.md").read_text(encoding="utf-8")
