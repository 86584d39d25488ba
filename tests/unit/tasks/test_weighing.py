"""Class weights and label smoothing: of the task loss in training, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ted_ds.config.tasks import SequenceClassification, TokenClassification
from ted_ds.data.samples import Sample
from ted_ds.errors import DataError
from ted_ds.numerics.losses import cross_entropy_sum
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import OF_NAME, labelled

LABELS = ["sad", "glad", "mad"]
SECTIONS: dict[str, Any] = {
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
}
WEIGHTS = [0.5, 2.0, 0.0]


def kind_with(name: str, **settings: Any) -> Any:
    return kind_of(SECTIONS[name](kind=name, labels=LABELS, **settings))


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize(("weights", "smoothing"), [(WEIGHTS, None), (None, 0.25), (WEIGHTS, 0.25)])
def test_models_are_trained_by_them_and_scored_without(name: str, weights: Any, smoothing: Any) -> None:
    kind = kind_with(name, class_weights=weights, label_smoothing=smoothing)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, -100, 1])
    given = None if weights is None else torch.tensor(weights)
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight=given, label_smoothing=smoothing or 0.0, reduction="sum"
    )
    torch.testing.assert_close(kind.training_terms.loss_sum(logits, labels), expected)
    plain = cross_entropy_sum(logits, labels)
    assert torch.equal(kind.terms.loss_sum(logits, labels), plain)
    scorer = kind.scorer
    by_word = name == "token_classification"
    outputs, given_labels = (logits[None], labels[None]) if by_word else (logits, labels)
    observed = scorer.observe(outputs, labelled(given_labels))
    assert scorer.score([observed])["loss"] == pytest.approx(float(plain) / 3)


@pytest.mark.parametrize("name", SECTIONS)
def test_without_them_nothing_changes(name: str) -> None:
    kind = kind_with(name)
    assert kind.training_terms is kind.terms


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [1, 2]}, "class_weights has 2 numbers, labels has 3 names; give one for each"),
        ({"class_weights": [0, 0, 0]}, "class_weights: all are 0, and nothing would be learned; give at least one"),
        ({"class_weights": [1, -1, 1]}, "must be balanced, or a list with a number for each of labels, 0 or above"),
        ({"class_weights": "even"}, "must be balanced, or a list with a number for each of labels, 0 or above"),
        ({"class_weights": [1, True, 1]}, "must be balanced, or a list with a number for each of labels, 0 or above"),
        ({"label_smoothing": 0.0}, "greater than 0"),
        ({"label_smoothing": 1.0}, "less than 1"),
    ],
)
@pytest.mark.parametrize("name", SECTIONS)
def test_what_cannot_be_meant_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind_with(name, **settings)


TRAINED_ON: dict[str, list[Any]] = {
    "sequence_classification": [0, 1, None, 1, 2, 1, 1],
    "token_classification": [[0, -100, 1], None, [1, 2, -100], [1, 1]],
}


@pytest.mark.parametrize("name", SECTIONS)
def test_balanced_weights_are_those_of_scikit_learn(name: str) -> None:
    kind = kind_with(name, class_weights="balanced")
    settled = kind.settled([Sample([1, 2, 3], label) for label in TRAINED_ON[name]])
    # of 6 labels, 1, 4 and 1 are of the names: their mean over the data is 1
    assert settled.class_weights == [6 / (3 * 1), 6 / (3 * 4), 6 / (3 * 1)]
    known = kind_of(settled)
    assert known.weights_in_words == "sad 2, glad 0.5, mad 2"
    by_hand = kind_with(name, class_weights=[2.0, 0.5, 2.0])
    assert known.training_terms == by_hand.training_terms
    assert known.settled([]) is settled, "numbers stay as they are"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_label_that_is_nowhere_cannot_be_balanced(name: str) -> None:
    kind = kind_with(name, class_weights="balanced")
    rows = [label for label in TRAINED_ON[name] if label != 2 and label != [1, 2, -100]]
    with pytest.raises(DataError) as caught:
        kind.settled([Sample([1, 2, 3], label) for label in rows])
    assert str(caught.value) == (
        "task.class_weights: balanced: the training data have no label 'mad', which no weight would balance; give "
        "numbers, or remove it from task.labels"
    )


def test_other_kinds_and_numbers_have_nothing_to_settle() -> None:
    for name, kind in OF_NAME.items():
        assert kind.settled([]) is kind.task, name
        assert kind.weights_in_words is None
    assert (
        kind_with("sequence_classification", class_weights=[1, 0.25, 3]).weights_in_words == "sad 1, glad 0.25, mad 3"
    )
