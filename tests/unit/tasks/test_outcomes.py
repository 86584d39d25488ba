"""What each example came to: all metrics follow from it, whatever ranks and batches there were."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ted_ds.models.predictions import DensePredictions
from ted_ds.numerics.metric_sums import FORMS
from ted_ds.tasks.answers import Found
from ted_ds.tasks.outcomes import ONE, Outcomes, RowLosses, as_file, in_data_order
from ted_ds.tasks.scoring import Recorder, evaluate
from tests.task_kinds import OF_NAME, labelled, with_outputs

NUM_OUTPUTS, COUNT, SIZE = 3, 24, 2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(task: str) -> Tensor:
    noise = normal(COUNT, NUM_OUTPUTS, seed=1)
    classes = noise.argmax(-1)
    classes[5] = -100
    numbers = noise * 3 - 50
    numbers[3, 1] = float("nan")
    numbers[7] = float("nan")
    return {
        "sequence_classification": classes,
        "soft_label_classification": noise.softmax(-1),
        "multi_label_classification": (noise > 0.3).float(),
        "regression": numbers,
        "multiple_choice": classes,
    }[task]


def recorded(task: str, num_ranks: int) -> Recorder:
    """A recorder that saw all batches as so many ranks see them."""
    kind, logits, labels = with_outputs(task, NUM_OUTPUTS), normal(COUNT, NUM_OUTPUTS, seed=2), labels_of(task)
    recorder = Recorder(kind, num_ranks=num_ranks, with_outcomes=True)
    observations = []
    for rank in range(num_ranks):
        for start in range(rank * SIZE, COUNT, SIZE * num_ranks):
            rows = slice(start, start + SIZE)
            batch = labelled(labels[rows])
            recorder.look(DensePredictions(logits[rows]), batch)
            observations.append(recorder.observe(logits[rows], batch))
    recorder.metrics = recorder.score(observations)  # type: ignore[attr-defined]
    return recorder


def from_outcomes(found: dict[str, Any], metric: str) -> float:
    form, *names = found["metrics"][metric]
    columns = {**found["columns"], ONE: [1] * len(found["ids"])}
    arrays = [np.asarray([np.nan if one is None else one for one in columns[name]]) for name in names]
    return float(FORMS[form].value(FORMS[form].expand(arrays).sum(axis=0)))


@pytest.mark.parametrize(
    "task",
    [
        "sequence_classification",
        "soft_label_classification",
        "multi_label_classification",
        "regression",
        "multiple_choice",
    ],
)
def test_every_metric_of_a_file_is_the_scorers(task: str) -> None:
    recorder = recorded(task, 1)
    found = json.loads(json.dumps(recorder.outcomes, allow_nan=False))
    task_section = with_outputs(task, NUM_OUTPUTS).task
    wanted = {*task_section.possible_headlines} - {*task_section.not_by_sums} or {recorder.headline}
    assert wanted <= found["metrics"].keys()
    for metric in found["metrics"]:
        assert from_outcomes(found, metric) == pytest.approx(recorder.metrics[metric], rel=1e-6), metric  # type: ignore[attr-defined]
    assert found["headline"] == recorder.headline
    assert len(found["ids"]) == recorder.metrics["num_examples"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["sequence_classification", "regression"])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_they_stand_in_the_order_of_the_data_for_any_number_of_ranks(task: str, num_ranks: int) -> None:
    assert recorded(task, num_ranks).outcomes == recorded(task, 1).outcomes


def test_rounds_of_batches_are_dealt_out_to_ranks() -> None:
    assert in_data_order(["a0", "a1", "a2", "b0", "b1", "b2"], 2) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_where_examples_are_no_rows_there_is_no_loss_of_each() -> None:
    outcomes = Outcomes({"exact": [1.0]}, {"exact_match": ["ratio", "exact", ONE]}, ["question"])
    rows = [RowLosses(["h0", "h1"], [0.5, 0.25], [1, 1])]  # two windows
    found = as_file(outcomes, rows)
    assert found == {"ids": ["question"], "metrics": outcomes.metrics, "columns": {"exact": [1.0]}}


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "seq2seq", "chat"])
def test_of_a_language_model_the_losses_are_all(task: str) -> None:
    kind = OF_NAME[task]
    rows = [RowLosses(["h0"], [6.0], [3]), RowLosses(["h1"], [2.0], [1])]
    found = as_file(kind.scorer.outcomes([]), rows)
    assert from_outcomes(found, kind.headline) == pytest.approx(float(np.exp(2.0)), rel=1e-12)
    assert from_outcomes(found, "loss") == 2.0


def test_words_and_entities_follow_from_sentences() -> None:
    kind = OF_NAME["token_classification"]
    labels = torch.tensor([[0, 1, 2, -100], [1, 0, 0, 2], [0, 0, 1, 2]])
    logits = normal(3, 4, 3, seed=4)
    tokens = torch.zeros(3, 4, dtype=torch.long)
    batch = labelled(labels)
    batch = type(batch)(tokens, tokens + 1, labels, labels != -100, facts=(None,) * 3)
    recorder = Recorder(kind, num_ranks=1, with_outcomes=True)
    recorder.look(DensePredictions(logits), batch)
    metrics = recorder.score([recorder.observe(logits, batch)])
    assert recorder.outcomes is not None
    for metric in recorder.outcomes["metrics"]:
        assert from_outcomes(dict(recorder.outcomes), metric) == pytest.approx(metrics[metric], rel=1e-6), metric
    assert {"f1", "precision", "recall", "accuracy", "loss"} == {*recorder.outcomes["metrics"]}


def test_of_answers_the_best_window_of_each_question_counts() -> None:
    kind = OF_NAME["question_answering"]
    windows = [
        Found(1, ("the red fox",), 0.0, 1.0, "a fox", "q1"),
        Found(0, ("ba be",), 0.0, 2.0, "ba be", None),
        Found(1, ("the red fox",), 0.0, 3.0, "red fox", "q1"),
    ]
    observations = [(windows[:2], 4.0, 4), (windows[2:], 2.0, 2)]
    found = as_file(kind.scorer.outcomes(observations), [RowLosses(["h"] * 3, [1.0] * 3, [2] * 3)])
    metrics = kind.scorer.score(observations)
    assert found["ids"] == ["0", "q1"]
    assert {*found["metrics"]} == {"f1", "exact_match"} == {*kind.task.possible_headlines} - {*kind.task.not_by_sums}
    for metric in found["metrics"]:
        assert from_outcomes(found, metric) == pytest.approx(metrics[metric], rel=1e-12)


def test_without_them_nothing_is_kept() -> None:
    recorder = Recorder(OF_NAME["sequence_classification"], num_ranks=1)
    logits, labels = normal(4, 2, seed=1), torch.tensor([0, 1, 0, 1])
    metrics, _ = evaluate(
        lambda _: {0: logits}, [labelled(labels)], scorer=recorder, gather=lambda one: [one], device=torch.device("cpu")
    )
    assert recorder.outcomes is None
    assert metrics[0]["num_examples"] == 4
