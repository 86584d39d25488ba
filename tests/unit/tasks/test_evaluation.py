"""Scores of held-out predictions, against scikit-learn and scipy on everything at once."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, mean_squared_error
from torch import Tensor
from torch.nn import functional as F

from ted_ds.config.tasks import SequenceClassification, TokenClassification
from ted_ds.data.loader import Batch, Collator, evaluation_batches
from ted_ds.data.samples import Sample
from ted_ds.numerics.vocabulary import vocabulary_scores
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.scoring import evaluate
from tests.task_kinds import OF_NAME, SCORERS, labelled, with_outputs
from tests.tiny import task_dict

NUM_OUTPUTS = 3
COUNT = 23
QUIETLY = pytest.mark.filterwarnings("error")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(task: str, seed: int = 1) -> Tensor:
    noise = normal(COUNT, NUM_OUTPUTS, seed=seed)
    return {
        "sequence_classification": noise.argmax(-1),
        "soft_label_classification": noise.softmax(-1),
        "multi_label_classification": (noise > 0.3).float(),
        "regression": noise * 3 - 50,
    }[task]


def score(task: str, logits: Tensor, labels: Tensor, *, size: int = 5) -> dict[str, float]:
    """Of logits and labels that are observed in batches of ``size``."""
    scorer = with_outputs(task, NUM_OUTPUTS).scorer
    parts = range(0, len(labels), size)
    return scorer.score([scorer.observe(logits[i : i + size], labelled(labels[i : i + size])) for i in parts])


def with_empty_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same with ignored rows in between and a batch of nothing else; predictions for these are anything."""
    rows = torch.arange(len(labels) * 2).reshape(-1, 2)[:, 0]
    more_logits = torch.full((len(labels) * 2 + 5, *logits.shape[1:]), 99.0)
    ignored = float("nan") if labels.is_floating_point() else -100
    more_labels = torch.full((len(labels) * 2 + 5, *labels.shape[1:]), ignored, dtype=labels.dtype)
    more_logits[rows], more_labels[rows] = logits, labels
    return more_logits, more_labels


def sums_of(logits: Tensor, labels: Tensor) -> Tensor:
    """What a language model's head puts out for a score."""
    size = logits.shape[-1]
    return vocabulary_scores(logits, torch.eye(size), None, labels)


TASKS = ("sequence_classification", "soft_label_classification", "multi_label_classification", "regression")


# --- each kind of task ------------------------------------------------------------------------------------------------


def test_one_label_has_accuracy_f1_matthews_and_cross_entropy() -> None:
    logits, labels = normal(COUNT, NUM_OUTPUTS, seed=0), labels_of("sequence_classification")
    predictions = logits.argmax(-1)
    assert score("sequence_classification", logits, labels) == {
        "accuracy": accuracy_score(labels, predictions),
        "f1_macro": f1_score(labels, predictions, average="macro"),
        "matthews_correlation": matthews_corrcoef(labels, predictions),
        "loss": pytest.approx(log_loss(labels, logits.double().softmax(-1)), rel=1e-6),
        "num_examples": COUNT,
    }


def test_a_distribution_is_scored_by_its_most_probable_label_and_its_cross_entropy() -> None:
    logits, labels = normal(COUNT, NUM_OUTPUTS, seed=0), labels_of("soft_label_classification")
    predictions, given = logits.argmax(-1), labels.argmax(-1)
    cross_entropy = -(labels.double() * logits.double().log_softmax(-1)).sum(-1).mean().item()
    assert score("soft_label_classification", logits, labels) == {
        "accuracy": accuracy_score(given, predictions),
        "f1_macro": f1_score(given, predictions, average="macro"),
        "matthews_correlation": matthews_corrcoef(given, predictions),
        "loss": pytest.approx(cross_entropy, rel=1e-6),
        "num_examples": COUNT,
    }


def test_several_labels_have_f1_exact_matches_and_binary_cross_entropy() -> None:
    logits, labels = normal(COUNT, NUM_OUTPUTS, seed=0), labels_of("multi_label_classification")
    logits[:5] = labels[:5] * 2 - 1  # a few exact matches
    predictions, given = (logits > 0).int().numpy(), labels.int().numpy()
    probabilities = logits.double().sigmoid()
    each = [log_loss(given[:, one], probabilities[:, one], labels=[0, 1]) for one in range(NUM_OUTPUTS)]
    scores = score("multi_label_classification", logits, labels)
    assert scores == {
        "f1_micro": f1_score(given, predictions, average="micro"),
        "f1_macro": f1_score(given, predictions, average="macro"),
        "exact_match": accuracy_score(given, predictions),
        "loss": pytest.approx(sum(each) / NUM_OUTPUTS, rel=1e-6),
        "num_examples": COUNT,
    }
    assert scores["exact_match"] >= 5 / COUNT


@pytest.mark.parametrize("num_outputs", [1, NUM_OUTPUTS])
def test_numbers_have_correlations_averaged_over_targets_and_a_squared_error(num_outputs: int) -> None:
    labels = labels_of("regression")[:, :num_outputs]
    outputs = labels + normal(COUNT, num_outputs, seed=0) * 2
    pairs = list(zip(outputs.T.double().numpy(), labels.T.double().numpy(), strict=True))
    assert score("regression", outputs, labels) == {
        "pearson": pytest.approx(np.mean([pearsonr(*pair).statistic for pair in pairs]), rel=1e-9),
        "spearman": pytest.approx(np.mean([spearmanr(*pair).statistic for pair in pairs]), rel=1e-9),
        "loss": pytest.approx(mean_squared_error(labels, outputs), rel=1e-6),
        "num_examples": COUNT,
    }


@pytest.mark.parametrize("task", ["sequence_classification", "soft_label_classification"])
def test_of_two_labels_there_is_an_f1_of_the_second(task: str) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 0])
    predictions = torch.tensor([0, 1, 0, 1, 1, 1, 0])
    given = labels if task == "sequence_classification" else F.one_hot(labels).double()
    scorer = with_outputs(task, 2).scorer
    scores = scorer.score([scorer.observe(F.one_hot(predictions, 2).float(), labelled(given))])
    assert scores["f1"] == f1_score(labels, predictions) == pytest.approx(6 / 8)
    nothing = scorer.score([scorer.observe(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), labelled(given[:2]))])
    assert nothing["f1"] == 0
    assert "f1" not in score(task, normal(COUNT, NUM_OUTPUTS, seed=0), labels_of(task))


def test_tokens_have_a_perplexity() -> None:
    logits, labels = normal(4, 6, 9, seed=0), torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[1, 2:] = labels[3] = -100
    kept = labels != -100
    loss = log_loss(labels[kept], logits[kept].double().softmax(-1), labels=range(9))
    scorer = SCORERS["causal_lm"]
    rows = zip(logits.split(1), labels.split(1), strict=True)
    observed = [scorer.observe(sums_of(*of_row), labelled(of_row[1])) for of_row in rows]
    assert scorer.score(observed) == {
        "perplexity": pytest.approx(math.exp(loss), rel=1e-6),
        "loss": pytest.approx(loss, rel=1e-6),
        "num_tokens": 6 + 2 + 6,
    }


def test_a_perplexity_that_no_number_holds_is_a_large_one() -> None:
    scorer = SCORERS["causal_lm"]
    scores = scorer.score([scorer.observe(torch.tensor([5000.0, 0.0]), labelled(torch.tensor([[0]])))])
    assert scores["loss"] == 5000
    assert scores["perplexity"] == math.exp(700)


def test_masked_tokens_have_a_pseudo_perplexity_and_an_accuracy() -> None:
    logits, labels = normal(4, 6, 9, seed=0), torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[1, 2:] = labels[3] = -100
    kept = labels != -100
    loss = log_loss(labels[kept], logits[kept].double().softmax(-1), labels=range(9))
    scorer = SCORERS["masked_lm"]
    rows = zip(logits.split(1), labels.split(1), strict=True)
    observed = [scorer.observe(sums_of(*of_row), labelled(of_row[1])) for of_row in rows]
    right = accuracy_score(labels[kept], logits[kept].argmax(-1))
    assert right > 0
    assert scorer.score(observed) == {
        "pseudo_perplexity": pytest.approx(math.exp(loss), rel=1e-6),
        "masked_accuracy": pytest.approx(right, rel=1e-12),
        "loss": pytest.approx(loss, rel=1e-6),
        "num_tokens": 6 + 2 + 6,
    }
    large = scorer.score([scorer.observe(torch.tensor([5000.0, 0.0]), labelled(labels))])
    assert large["pseudo_perplexity"] < math.inf
    assert scorer.headline == "pseudo_perplexity"


@pytest.mark.parametrize("task", TASKS)
def test_the_headline_is_one_of_the_scores(task: str) -> None:
    assert SCORERS[task].headline in score(task, normal(COUNT, NUM_OUTPUTS, seed=0), labels_of(task))
    assert SCORERS["causal_lm"].headline == "perplexity"


@pytest.mark.parametrize("kind", SCORERS)
def test_a_recipe_may_choose_any_metric_of_its_kind_as_headline(kind: str) -> None:
    own = OF_NAME[kind]
    assert own.headline == own.scorer.headline
    assert own.higher_is_better == own.scorer.higher_is_better
    possible = own.task.possible_headlines
    if kind in TASKS:
        scores = own.scorer.score([own.scorer.observe(*two_outputs(kind))])
        assert {*possible} == scores.keys() - {"num_examples"}
    for name in possible:
        chosen = kind_of(type(own.task)(**task_dict(kind), headline=name))
        assert (chosen.headline, chosen.higher_is_better) == (name, name not in ("loss", "perplexity"))
    with pytest.raises(ValidationError, match=r"headline: 'perplexityy': (use|this kind of task has one alone)"):
        type(own.task)(**task_dict(kind), headline="perplexityy")


def two_outputs(kind: str) -> tuple[Tensor, Batch]:
    labels = labels_of(kind)
    columns = 1 if kind == "regression" else 2
    labels = labels % 2 if kind == "sequence_classification" else labels[:, :columns]
    return normal(COUNT, columns, seed=0), labelled(labels)


def test_what_needs_two_labels_or_entities_is_a_headline_only_where_there_are_some() -> None:
    three = {"labels": ["a", "b", "c"], "kind": "sequence_classification"}
    with pytest.raises(ValidationError, match="headline: 'f1': use accuracy, f1_macro, matthews_correlation or loss"):
        SequenceClassification(**three, headline="f1")  # type: ignore[arg-type]
    parts_of_speech = {"labels": ["NOUN", "VERB"], "kind": "token_classification"}
    with pytest.raises(ValidationError, match="headline: 'f1': use accuracy or loss"):
        TokenClassification(**parts_of_speech, headline="f1")  # type: ignore[arg-type]


# --- rows that do not count, and batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, COUNT])
@pytest.mark.parametrize("task", TASKS)
def test_scores_do_not_depend_on_batches_nor_on_empty_rows(task: str, size: int) -> None:
    logits, labels = normal(COUNT, NUM_OUTPUTS, seed=0), labels_of(task)
    whole = score(task, logits, labels, size=COUNT)
    assert score(task, logits, labels, size=size) == pytest.approx(whole, rel=1e-6)
    assert score(task, *with_empty_rows(logits, labels), size=size) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
def test_predictions_of_half_precision_are_scored(task: str, dtype: torch.dtype) -> None:
    logits, labels = normal(COUNT, NUM_OUTPUTS, seed=0).to(dtype), labels_of(task)
    assert score(task, logits, labels) == pytest.approx(score(task, logits.float(), labels), rel=1e-6)


# --- predictions that say nothing -------------------------------------------------------------------------------------


@QUIETLY
@pytest.mark.parametrize("task", ["sequence_classification", "soft_label_classification"])
def test_always_the_same_label_has_a_correlation_of_zero(task: str) -> None:
    labels = labels_of(task)
    ids = labels if labels.ndim == 1 else labels.argmax(-1)
    scores = score(task, torch.tensor([[0.0, 1.0, 0.0]]).expand(COUNT, 3), labels)
    share = (ids == 1).double().mean().item()
    assert scores["accuracy"] == pytest.approx(share)
    assert scores["matthews_correlation"] == 0
    assert scores["f1_macro"] == pytest.approx(2 * share / (1 + share) / 3)


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's, of the correlation
def test_one_label_alone_on_both_sides_is_right_and_correlates_with_nothing() -> None:
    scores = score("sequence_classification", torch.tensor([[0.0, 1.0]]).expand(4, 2), torch.ones(4, dtype=torch.long))
    assert (scores["accuracy"], scores["f1_macro"], scores["matthews_correlation"]) == (1, 1, 0)


@QUIETLY
@pytest.mark.parametrize("predicted", [-1.0, 0.0])
def test_no_label_at_all_has_an_f1_of_zero(predicted: float) -> None:
    labels = labels_of("multi_label_classification")
    scores = score("multi_label_classification", torch.full((COUNT, NUM_OUTPUTS), predicted), labels)
    assert (scores["f1_micro"], scores["f1_macro"]) == (0, 0)
    assert scores["exact_match"] == pytest.approx((labels.sum(-1) == 0).double().mean().item())
    scores = score("multi_label_classification", torch.full((4, 2), predicted), torch.zeros(4, 2))
    assert (scores["f1_micro"], scores["f1_macro"], scores["exact_match"]) == (0, 0, 1)


@QUIETLY
def test_a_constant_correlates_with_nothing_and_still_counts_in_the_average() -> None:
    labels = labels_of("regression")
    outputs = labels.clone()
    assert score("regression", outputs, labels)["pearson"] == pytest.approx(1)
    outputs[:, 1] = 0.1
    scores = score("regression", outputs, labels)
    assert (scores["pearson"], scores["spearman"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert scores["loss"] == pytest.approx(((outputs - labels) ** 2).mean().item(), rel=1e-6)
    for constant in (0.1, -50.0):
        scores = score("regression", torch.full_like(labels, constant), labels)
        assert (scores["pearson"], scores["spearman"]) == (0, 0)
    scores = score("regression", outputs, torch.full_like(labels, 0.3))
    assert (scores["pearson"], scores["spearman"]) == (0, 0)


@QUIETLY
def test_outputs_that_differ_by_rounding_alone_are_scored() -> None:
    labels = labels_of("regression")[:, :1]
    outputs = torch.full_like(labels, 0.1)
    outputs[0] = torch.nextafter(outputs[0], torch.ones(1))
    scores = score("regression", outputs, labels)
    assert -1 <= scores["pearson"] <= 1
    assert -1 <= scores["spearman"] <= 1


@pytest.mark.parametrize("task", TASKS)
def test_a_single_example_is_scored(task: str) -> None:
    scores = score(task, normal(1, NUM_OUTPUTS, seed=0), labels_of(task)[:1])
    assert scores["num_examples"] == 1
    assert all(math.isfinite(value) for value in scores.values())


# --- over ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_ranks_together_score_every_example_once_and_count_its_tokens_alone(task: str, world_size: int) -> None:
    labels = labels_of(task)
    table = normal(100, NUM_OUTPUTS, seed=0)
    samples = [
        Sample([index + 1] * (1 + index % 4), labels[index].tolist()) for index in range(COUNT)
    ]  # the first token says which logits
    collate = Collator(
        pad_id=0, labels="class" if task == "sequence_classification" else "numbers", num_outputs=NUM_OUTPUTS
    )

    def forward(batch: Batch) -> dict[int, Tensor]:
        logits = table[batch.input_ids[:, 0]]
        return {0: logits, 1: -logits}

    def of_rank(rank: int, gather: Any) -> Any:
        batches = evaluation_batches(samples, collate, micro_batch_size=4, rank=rank, world_size=world_size)
        scorer = with_outputs(task, NUM_OUTPUTS).scorer
        return evaluate(forward, batches, scorer=scorer, gather=gather, device=torch.device("cpu"))

    gathered: list[list[Any]] = []
    for rank in range(world_size):  # each rank's contributions first
        mine: list[Any] = []
        gathered.append(mine)
        of_rank(rank, lambda value, mine=mine: mine.append(value) or [value])
    rounds = iter(zip(*gathered, strict=True))
    scores, tokens_per_s = of_rank(0, lambda _: list(next(rounds)))
    assert tokens_per_s > 0
    for logits, mine in zip((table[1 : COUNT + 1], -table[1 : COUNT + 1]), scores, strict=True):
        assert mine == pytest.approx(score(task, logits, labels), rel=1e-6)


def test_tokens_per_second_count_neither_padding_nor_empty_rows() -> None:
    samples = [Sample([5] * length, length % 2) for length in (3, 1, 2)]
    batches = evaluation_batches(samples, Collator(pad_id=0, labels="class"), micro_batch_size=2, rank=0, world_size=1)

    def forward(batch: Batch) -> dict[int, Tensor]:
        time.sleep(0.05)
        return {0: torch.zeros(len(batch.labels), 2)}

    started = time.monotonic()
    _, tokens_per_s = evaluate(
        forward,
        batches,
        scorer=SCORERS["sequence_classification"],
        gather=lambda value: [value],
        device=torch.device("cpu"),
    )
    assert (3 + 1 + 2) / (time.monotonic() - started) <= tokens_per_s <= (3 + 1 + 2) / 0.1


def test_stages_of_a_pipeline_have_an_output_each_and_the_first_counts_tokens() -> None:
    samples = [Sample([5] * length, length % 2) for length in (3, 1, 2)]
    collate = Collator(pad_id=0, labels="class")
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])

    def of_stage(number: int, gather: Any) -> Any:
        batches = evaluation_batches(samples, collate, micro_batch_size=2, rank=0, world_size=1)
        return evaluate(
            lambda _: {number: logits if number else -logits},
            batches,
            scorer=SCORERS["sequence_classification"],
            gather=gather,
            device=torch.device("cpu"),
            counts_tokens=number == 0,
        )

    parts: dict[int, list[Any]] = {1: [], 0: []}
    for number, seen in parts.items():
        of_stage(number, lambda value, seen=seen: seen.append(value) or [value])
    assert parts[1][0] == 0 < parts[0][0]
    rounds = iter(zip(parts[0], parts[1], strict=True))
    scores, _ = of_stage(1, lambda _: list(next(rounds)))
    assert [one["accuracy"] for one in scores] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
