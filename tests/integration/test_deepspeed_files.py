"""A user's own DeepSpeed JSON in a whole run: refused before anything is written, or used as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ted_ds.output.trackers.jsonl_backend import METRICS_FILE
from tests.integration.launching import forked_ranks
from tests.tiny import write_run
from tests.unit.config.test_published_configs import PUBLISHED

ADAMW = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}


def run(folder: Path, config: dict[str, Any], *overrides: str) -> tuple[list[int | None], str]:
    """The exit codes of two ranks, and what they print."""
    recipe = write_run(folder, method="sft")
    path = folder / "ds.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    outcomes = forked_ranks(2, ["run", str(recipe), f"deepspeed={path}", "distill.max_steps=4", *overrides])
    return [outcome.code for outcome in outcomes], "".join(outcome.output for outcome in outcomes)


def test_every_mistake_of_a_file_and_of_the_recipe_beside_it_is_told_at_once(tmp_path: Path) -> None:
    wrong = {"optimizer": {"type": "AdamWW"}, "gradient_cliping": 1, "bf16": {"enabled": True}}
    codes, output = run(tmp_path, wrong, "distill.global_batch_size=6", "distill.micro_batch_size=2")
    assert codes == [2, 2]
    for told in (
        "optimizer.type: 'AdamWW': AdamWW is not a supported DeepSpeed Optimizer; did you mean 'AdamW'?",
        "gradient_cliping: unknown key; did you mean 'gradient_clipping'?",
        "bf16.enabled: True contradicts the recipe, whose precision is fp32",
        "distill.global_batch_size: 6 does not divide into microbatches of 2 on 2 ranks",
    ):
        assert output.count(told) == 1, output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_what_only_deepspeed_itself_can_refuse_is_one_message_too(tmp_path: Path) -> None:
    config = {"optimizer": ADAMW, "zero_optimization": {"stage": 1}, "aio": {"use_gds": True}}
    codes, output = run(tmp_path, config)
    assert codes == [2, 2]
    told = (
        f"the DeepSpeed JSON {tmp_path}/ds.json: DeepSpeed does not start with it: AssertionError: GDS currently only"
    )
    assert output.count(told) == 1, output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_hugging_faces_file_runs_and_its_schedule_is_followed(tmp_path: Path) -> None:
    codes, output = run(tmp_path, PUBLISHED["accelerate, ZeRO-3"], "distill.warmup_steps=2")
    assert codes == [0, 0], output
    assert f"note: schedule by WarmupDecayLR of {tmp_path}/ds.json: distill" in output
    assert "note: without effect: filters (distill.method: sft)" in output
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()]
    # 2 steps up to the recipe's rate, and from there straight down to nothing at its last step
    assert [line["train/learning_rate"] for line in lines if line["phase"] == "distill"] == [0.0, 1e-3, 1e-3, 5e-4]
