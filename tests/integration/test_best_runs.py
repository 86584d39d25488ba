"""A run in epochs, whose student is that of the best score and is tested once: stopped anywhere, the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import copy_run, differences, run, traces, with_dropout
from tests.tiny import write_labelled, write_run

STEPS = 6
LATER = ("distill", "evaluate", "export")


def arguments(folder: Path, *length: str) -> list[str]:
    """A run of one trained phase, which soon learns too fast to become better."""
    return [
        "run",
        str(folder / "recipe.yaml"),
        *(length or ("distill.max_steps=null", "distill.epochs=0.5")),
        "distill.method=sft",
        "distill.learning_rate=0.02",
        "distill.schedule=constant",
        "evaluation.every_steps=2",
        "evaluation.max_examples=40",
        "checkpoint.every_steps=1",
        "checkpoint.keep_every_steps=1",
        "export=best",
        f"data.validation=[{{path: {folder / 'validation.jsonl'}}}]",
        f"data.test=[{{path: {folder / 'test.jsonl'}}}]",
    ]


@pytest.fixture(scope="module")
def best_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run on two ranks, and what it printed."""
    folder = tmp_path_factory.mktemp("best")
    with_dropout(write_run(folder, kind="regression"))
    write_labelled(folder / "train.jsonl", 48, kind="regression")
    write_labelled(folder / "validation.jsonl", 24, kind="regression", seed=1)
    write_labelled(folder / "test.jsonl", 7, kind="regression", seed=2)
    output = run(arguments(folder))
    shutil.copytree(folder / "run", folder / "whole")
    return folder, output


def held_out(folder: Path) -> dict[int, dict[str, float]]:
    """The scores of each step of Stage II that was scored."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {one["step"]: one for one in records if one["phase"] == "distill" and "eval/loss" in one}


def best_step(folder: Path) -> int:
    return json.loads((folder / "whole" / "distill" / "phase.json").read_text())["result"]["best"]["step"]


def test_epochs_are_said_with_the_steps_they_come_to(best_run: tuple[Path, str]) -> None:
    _, output = best_run
    assert f"distill: 0.5 epochs of 48 rows: {STEPS} steps of 4" in output
    assert f"distill {STEPS}/{STEPS}" in output


def test_the_student_is_that_of_the_best_score(best_run: tuple[Path, str]) -> None:
    folder, output = best_run
    scores = held_out(folder / "whole")
    assert [*scores] == [2, 4, STEPS]
    best = json.loads((folder / "whole" / "distill" / "phase.json").read_text())["result"]["best"]
    values = {step: one[f"eval/{best['metric']}"] for step, one in scores.items()}
    assert best["value"] == values[best["step"]]
    assert best["step"] < STEPS, f"the test needs a run that ends worse than it was: {values}"
    assert f"distill: the model of step {best['step']} is taken" in output
    after = json.loads((folder / "whole" / "evaluate" / "evaluation.json").read_text())["student after"]
    taken = {name.removeprefix("eval/"): v for name, v in scores[best["step"]].items() if name.startswith("eval/")}
    for name, value in taken.items():  # scored in the engine then and frozen now: 1.4e-6 apart, by fp32 rounding
        assert after[name] == pytest.approx(value, rel=1e-5), name
    assert after["loss"] != pytest.approx(scores[STEPS]["eval/loss"], rel=1e-3)


def test_its_weights_are_those_of_a_run_that_ends_there(best_run: tuple[Path, str]) -> None:
    folder, _ = best_run
    short = [*arguments(folder, f"distill.max_steps={best_step(folder)}"), f"output_dir={folder / 'short'}"]
    run([one for one in short if not one.startswith("data.test")])
    whole, ended = (load_file(folder / name / "distill" / "model" / "model.safetensors") for name in ("whole", "short"))
    assert whole.keys() == ended.keys()
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


def test_test_data_are_scored_once_at_the_end(best_run: tuple[Path, str]) -> None:
    folder, output = best_run
    results = json.loads((folder / "whole" / "evaluate" / "evaluation.json").read_text())
    assert {values["test/num_examples"] for values in results.values()} == {7}
    assert "7 of test" in output
    assert all("test" not in name for one in held_out(folder / "whole").values() for name in one)


def go_back(folder: Path, step: int, *, keep: int | None = None) -> None:
    """Remove what the run did after a step, and all checkpoints but that step's, and ``keep``'s."""
    copy_run(folder / "whole", folder / "run")
    for phase in LATER:
        shutil.rmtree(folder / "run" / phase)
    for checkpoint in (folder / "run" / "checkpoints" / "distill").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) not in (step, keep):
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_was_stopped_takes_the_same_student_though_its_length_is_said_otherwise(
    best_run: tuple[Path, str], step: int
) -> None:
    folder, _ = best_run
    go_back(folder, step, keep=best_step(folder) if step > best_step(folder) else None)
    output = run(arguments(folder, f"distill.max_steps={STEPS}"))
    assert f"going on after step {step} of {STEPS}" in output
    assert differences(traces(folder / "whole"), traces(folder / "run")) == []


def test_without_the_best_checkpoint_a_run_says_so_and_leaves_nothing(best_run: tuple[Path, str]) -> None:
    folder, _ = best_run
    go_back(folder, 5)
    output = run(arguments(folder), codes=2)
    checkpoints = folder / "run" / "checkpoints" / "distill"
    assert (
        f"{checkpoints / f'step_{best_step(folder):08d}'}: is not there. This is the checkpoint with the best score, "
        f"which export: best takes; remove {checkpoints} to start the phase anew"
    ) in output
    assert not (folder / "run" / "distill").exists()
