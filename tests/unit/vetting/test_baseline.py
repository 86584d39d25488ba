"""Verdicts on what a model knows: random ones are found out, and sound ones are not condemned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ted_ds.models.predictions import DensePredictions
from ted_ds.tasks.guess import Guess
from ted_ds.vetting.baseline import judge_against_guess, read_examples
from tests.task_kinds import TASK_TERMS, labelled, make_guess

KIND = "sequence_classification"


def verdict_on(probabilities, labels):
    """Of a classifier that predicts these probabilities."""
    logits = torch.tensor(np.log(np.maximum(probabilities, 1e-9)))
    examples = read_examples(DensePredictions(logits), labelled(torch.tensor(labels)), TASK_TERMS[KIND], classes=True)
    names = [f"name {index}" for index in range(logits.shape[1])]
    guess = make_guess(KIND, num_outputs=logits.shape[1], labels=labels)
    return judge_against_guess("teacher", examples, guess, labels=names)


def classifier(generator, num_labels, count, accuracy, confidence=None):
    """Right with this probability, and saying so honestly unless another ``confidence`` is given."""
    labels = generator.integers(num_labels, size=count)
    right = generator.random(count) < accuracy
    predicted = np.where(right, labels, (labels + generator.integers(1, num_labels, size=count)) % num_labels)
    sure = accuracy if confidence is None else confidence
    probabilities = np.full((count, num_labels), (1 - sure) / (num_labels - 1))
    probabilities[np.arange(count), predicted] = sure
    return probabilities, labels.tolist()


def share_of(status, num_labels, count, accuracy, confidence=None, runs=300):
    generator = np.random.default_rng(0)
    verdicts = [verdict_on(*classifier(generator, num_labels, count, accuracy, confidence)) for _ in range(runs)]
    return sum(verdict.status == status for verdict in verdicts) / runs


@pytest.mark.parametrize(
    ("num_labels", "count", "accuracy"),
    [(2, 512, 0.65), (2, 64, 0.8), (2, 8, 0.9), (2, 16, 0.55), (5, 64, 0.5), (77, 64, 0.6), (150, 64, 0.7)],
)
@pytest.mark.lengthy
def test_a_sound_classifier_is_not_condemned(num_labels, count, accuracy):
    assert share_of("fail", num_labels, count, accuracy) <= 0.01


def test_a_classifier_that_is_too_sure_of_itself_is_not_condemned():
    assert share_of("fail", 2, 64, 0.85, confidence=0.9999) == 0


@pytest.mark.parametrize("num_labels", [2, 5, 77])
def test_a_random_classifier_is_found_out(num_labels):
    generator = np.random.default_rng(1)
    statuses = []
    for _ in range(100):
        scores = generator.normal(scale=0.1, size=(64, num_labels))
        probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        statuses.append(verdict_on(probabilities, generator.integers(num_labels, size=64).tolist()).status)
    assert statuses.count("fail") > 70
    assert statuses.count("pass") <= 3


def test_another_order_of_the_labels_is_seen():
    probabilities, labels = classifier(np.random.default_rng(2), 3, 64, 0.9)
    assert verdict_on(probabilities, labels).status == "pass"
    verdict = verdict_on(probabilities[:, [1, 2, 0]], labels)
    assert verdict.status == "fail"
    assert "with its outputs read as ['name 1', 'name 2', 'name 0']" in verdict.detail
    assert "its labels are in another order" in verdict.detail


def test_knowing_only_how_frequent_labels_are_is_said():
    labels = [0] * 61 + [1] * 3
    verdict = verdict_on(np.full((64, 2), [0.95, 0.05]), labels)
    assert verdict.status == "warn"
    assert "no better than saying how frequent each label is" in verdict.detail


def test_a_loss_that_is_not_finite_fails():
    verdict = verdict_on(np.full((64, 2), math.nan), [0, 1] * 32)
    assert (verdict.status, verdict.detail[-10:]) == ("fail", "not finite")


def test_guesses():
    assert make_guess("causal_lm", num_outputs=50).loss == pytest.approx(math.log(50))
    assert make_guess("regression", num_outputs=2, labels=[[0.0, 1.0], [2.0, 1.0]]).loss == pytest.approx(0.5)
    one = make_guess(KIND, num_outputs=2, labels=[0, 0, 0, 1])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert (one.loss, one.prior_loss) == pytest.approx((math.log(2), entropy))
    soft = make_guess("soft_label_classification", num_outputs=2, labels=[[1.0, 0.0], [0.5, 0.5]])
    assert soft.prior_loss == pytest.approx(entropy)
    many = make_guess("multi_label_classification", num_outputs=2, labels=[[1.0, 0.0], [1.0, 0.0], [1.0, 0], [0, 0]])
    assert (many.loss, many.prior_loss) == pytest.approx((math.log(2), entropy / 2))


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("regression", [[float(i % 2)] for i in range(64)]),
        ("multi_label_classification", [[i % 2, 1.0] for i in range(64)]),
    ],
)
def test_a_task_without_one_class_an_example_has_no_accuracy_and_no_order(kind, labels):
    """Also where its outputs have names: a text may have several of them, or none."""
    targets = torch.tensor(labels)
    logits = (2 * targets - 1) * (1 if kind == "regression" else 6) + (0 if kind != "regression" else targets * -1 + 1)
    examples = read_examples(DensePredictions(logits), labelled(targets), TASK_TERMS[kind], classes=False)
    assert {(one.prediction, one.label) for one in examples} == {(None, None)}
    guess = make_guess(kind, num_outputs=targets.shape[1], labels=labels)
    names = ["first", "second"][: targets.shape[1]]
    verdict = judge_against_guess("teacher", examples, guess, labels=names)
    loss = sum(one.loss for one in examples) / sum(one.count for one in examples)
    assert (verdict.status, verdict.detail) == ("pass", f"loss {loss:.4g}, guessing {guess.what} {guess.loss:.4g}")
    # and one that knows nothing is found out: there is no accuracy that could speak for it
    knows_nothing = read_examples(DensePredictions(-logits), labelled(targets), TASK_TERMS[kind], classes=False)
    assert judge_against_guess("teacher", knows_nothing, guess, labels=names).status == "fail"


def test_the_accuracy_of_a_classifier_is_said_and_can_speak_for_it():
    labels = [0, 1] * 32
    right = np.full((64, 2), 1e-9)
    right[np.arange(64), [label if index % 4 else 1 - label for index, label in enumerate(labels)]] = 1.0
    verdict = verdict_on(right, labels)  # three of four, each with all its might
    assert verdict.status == "warn"
    assert ", accuracy 0.75: better by too little to be sure, or too sure of itself" in verdict.detail


def test_targets_that_do_not_vary_cannot_be_guessed_worse():
    examples = read_examples(
        DensePredictions(torch.zeros(64, 1)), labelled(torch.ones(64, 1)), TASK_TERMS["regression"], classes=False
    )
    guess = make_guess("regression", num_outputs=1, labels=[[1.0]] * 64)
    verdict = judge_against_guess("teacher", examples, guess, labels=[])
    assert (verdict.status, guess) == ("skip", Guess(0.0, "the mean"))
