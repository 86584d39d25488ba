"""The prediction term of each kind of task, through the Stage II objective, against fp64 brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.config.schema import Recipe
from ted_ds.config.weights import Weight
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.families import family_of
from ted_ds.models.loading import auto_class
from ted_ds.models.predictions import VocabularyHead, VocabularyPredictions
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import cross_entropy_sum
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.kind import kind_of
from tests.plain import logits_of, run_frozen
from tests.task_kinds import MASKED_ON_ALL, OF_NAME, TASK_TERMS
from tests.tiny import VOCAB_SIZE, distill_plan, model_config, recipe_dict, task_dict, write_tokenizer

KL_WEIGHT = 0.7
NUM_OUTPUTS = 3
SOFTENED = (
    "causal_lm",
    "masked_lm",
    MASKED_ON_ALL,
    "token_classification",
    "sequence_classification",
    "soft_label_classification",
    "multi_label_classification",
    "multiple_choice",
)
KINDS = (*SOFTENED, "regression")
OF_TOKENS = ("causal_lm", "masked_lm", MASKED_ON_ALL, "token_classification")
# fp32 against fp64; the worst difference seen was 5e-8, and 3.4e-7 of the largest gradient
TOLERANCE = {"rtol": 2e-5, "atol": 2e-7}


def model_of(kind: str, *, seed: int, vocab: int = VOCAB_SIZE) -> TappedModel:
    family = "llama" if kind == "causal_lm" else "bert"
    task = OF_NAME[kind].task
    changes = {} if task.has_lm_head else {"num_labels": NUM_OUTPUTS}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # large weights: predictions that are far from uniform, and teacher and student far apart
        model = auto_class(task.architecture).from_config(
            model_config(family, blocks=1, vocab=vocab, initializer_range=0.5, **changes)
        )
    if kind == "multiple_choice":
        choose_among_rows(model, NUM_OUTPUTS)
    return TappedModel(model, family_of(family), pooled=task.pooled)


LABELS_OF = {
    "sequence_classification": [2, 0, 1],
    "multiple_choice": [2, 0, 1],
    "soft_label_classification": [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]],
    "multi_label_classification": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]],
    "regression": [[0.5, -100.0, 2.0], [1.0, 0.0, 3.0], [0.1, 0.2, 0.3]],
    "token_classification": [[-100, 2, -100, 0, 1, 1], [2, -100, 0], [-100, 1, 0, -100]],
    "masked_lm": [[-100, 6, -100, 8, 9, -100], [-100] * 3, [14, -100, -100, 17]],
}
LABELS_OF[MASKED_ON_ALL] = LABELS_OF["masked_lm"]


def batch_of(kind: str, labels_of: Any = None) -> Batch:
    """Three rows of different lengths, and an empty one."""
    ids = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
    if kind == "causal_lm":
        collate = Collator(pad_id=0, labels="tokens", isolate_documents=True)
        return collate([*(Sample(one, document_lengths=[2, len(one) - 2]) for one in ids), None])
    labels = OF_NAME[kind].collated_as
    samples = [Sample(one, label) for one, label in zip(ids, labels_of or LABELS_OF[kind], strict=True)]
    if kind == "multiple_choice":
        choices = [tuple(Sample([18 + 9 * choice, *one.input_ids]) for choice in range(NUM_OUTPUTS)) for one in samples]
        samples = [replace(one, choices=own) for one, own in zip(samples, choices, strict=True)]
        return Collator(pad_id=0, labels=labels, rows_per_sample=NUM_OUTPUTS)([*samples, None])
    on_kept = kind == MASKED_ON_ALL
    return Collator(pad_id=0, labels=labels, num_outputs=NUM_OUTPUTS, predict_all=on_kept)([*samples, None])


def identity_head(size: int) -> VocabularyHead:
    head = VocabularyHead(size, size, bias=False)
    torch.nn.init.eye_(head.weight)
    return head


class Run:
    """The objective of a kind of task, run once; ``logits`` are the student's, with their gradient."""

    def __init__(
        self,
        kind: str,
        *,
        temperature: float = 2.0,
        task_weight: Weight = 0.0,
        kl_weight: Weight = KL_WEIGHT,
        step: int = 0,
        batch: Batch | None = None,
        teacher: TappedModel | None = None,
        student: TappedModel | None = None,
        num_shared_ids: int | None = None,
        watched: bool = False,
    ) -> None:
        batch = batch or batch_of(kind)
        student = student or model_of(kind, seed=1)
        self.teacher = FrozenModel(teacher or model_of(kind, seed=2), device=torch.device("cpu"), engine_config=None)
        self.objective = DistillObjective(
            TASK_TERMS[kind],
            distill_plan(
                method="kd", task_weight=task_weight, kl_weight=kl_weight, temperature=temperature, feature_weight=1.0
            ),
            teacher=self.teacher,
            teacher_filters=None,
            student_layers=(),
            num_shared_ids=num_shared_ids,
        )
        self.objective.begin_step(step)
        self.objective.watch(watched)
        module = FilteredModel(student, FilterBank((), 16, 16))

        self.counts = self.objective.counts(batch)
        logits: list[torch.Tensor] = []

        def forward(inputs: Any, learn: Any) -> Any:
            def with_known_gradient(predictions: Any, match: Any) -> Any:
                if isinstance(predictions, VocabularyPredictions):
                    # the logits of a head that is the identity are its input, and their gradient is its gradient
                    logits.append(logits_of(predictions))
                    predictions = VocabularyPredictions(logits[0], identity_head(logits[0].shape[-1]))
                else:
                    logits.append(predictions.logits)
                logits[0].retain_grad()
                return learn(predictions, match)

            return module(inputs, with_known_gradient)

        loss, self.totals = self.objective.loss(forward, batch, self.counts)
        self.loss = loss.detach()
        loss.backward()
        (self.logits,) = logits
        assert self.logits.grad is not None
        self.gradient = self.logits.grad.double()
        self.teacher_logits = run_frozen(self.teacher, batch.inputs)[0].double()


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [one / sum(exponentials) for one in exponentials]


def rows_of(kind: str, batch: Batch) -> list[tuple[int, ...]]:
    """Where predictions are compared: (row, position) or (row,)."""
    if kind == MASKED_ON_ALL:
        return [(r, t) for r, t in batch.kept_tokens.nonzero().tolist()]
    return labelled_rows_of(kind, batch)


def labelled_rows_of(kind: str, batch: Batch) -> list[tuple[int, ...]]:
    """Where labels are: (row, position) or (row,)."""
    if kind in OF_TOKENS:
        return [(r, t) for r, t in batch.labels.ne(-100).nonzero().tolist()]
    return [(row,) for row in range(3)]


def brute_force(kind: str, run: Run, batch: Batch, temperature: float) -> tuple[float, float, torch.Tensor]:
    """Sum and count of the prediction term, and the gradient of its weighted mean: ``KL_WEIGHT * T^2 * mean``."""
    places = rows_of(kind, batch)
    count = len(places) * (NUM_OUTPUTS if kind in ("multi_label_classification", "regression") else 1)
    total, gradient = 0.0, torch.zeros_like(run.gradient)
    for place in places:
        student, teacher = run.logits[place].tolist(), run.teacher_logits[place].tolist()
        if kind == "regression":
            total += sum((s - t) ** 2 for s, t in zip(student, teacher, strict=True))
            slopes = [2 * (s - t) for s, t in zip(student, teacher, strict=True)]
            scale = 1.0
        elif kind == "multi_label_classification":
            pairs = [[1 / (1 + math.exp(-z / temperature)) for z in one] for one in zip(teacher, student, strict=True)]
            total += sum(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in pairs)
            slopes = [(q - p) / temperature for p, q in pairs]
            scale = temperature**2
        else:
            p, q = softmax(teacher, temperature), softmax(student, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            slopes = [(b - a) / temperature for a, b in zip(p, q, strict=True)]
            scale = temperature**2
        gradient[place] = torch.tensor(slopes, dtype=torch.float64) * KL_WEIGHT * scale / count
    return total, count, gradient


# --- the scale of the gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_terms_value_and_gradient_are_those_of_its_formula(kind: str, temperature: float) -> None:
    batch = batch_of(kind)
    run = Run(kind, temperature=temperature, batch=batch)
    name = TASK_TERMS[kind].prediction_name
    total, count, gradient = brute_force(kind, run, batch, temperature)
    assert run.totals[name].item() == pytest.approx(total, rel=1e-5)
    assert run.counts[name].item() == count
    assert gradient.abs().max() > 0.005
    torch.testing.assert_close(run.gradient, gradient, **TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_squared_temperature_is_in_the_weight_of_what_it_softens_and_there_alone(
    kind: str, temperature: float
) -> None:
    run = Run(kind, temperature=temperature, task_weight=0.3)
    scale = temperature**2 if kind in SOFTENED else 1.0
    assert run.objective.weights == {"loss/task": 0.3, TASK_TERMS[kind].prediction_name: KL_WEIGHT * scale}
    assert TASK_TERMS[kind].prediction_scale(temperature) == scale


@pytest.mark.parametrize("kind", SOFTENED)
def test_hot_predictions_have_the_gradient_of_half_the_squared_difference_of_logits(kind: str) -> None:
    # Hinton et al. 2015, section 2.1: with a high temperature, distillation matches logits
    temperature, batch = 300.0, batch_of(kind)
    run = Run(kind, temperature=temperature, batch=batch)
    expected = torch.zeros_like(run.gradient)
    for place in rows_of(kind, batch):
        difference = run.logits[place].double() - run.teacher_logits[place]
        if kind == "multi_label_classification":
            expected[place] = difference / 4  # the slope of the logistic function at 0, of logits as they are
        else:
            expected[place] = (difference - difference.mean()) / len(difference)
    expected *= KL_WEIGHT / run.counts[TASK_TERMS[kind].prediction_name].item()
    assert (run.gradient - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("step", [0, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_at_a_step_terms_weigh_what_their_points_say(kind: str, step: int) -> None:
    changing = Run(kind, task_weight=((0, 0.0), (4, 1.0)), kl_weight=((2, 0.5), (4, 0.0)), step=step)
    numbers = {0: (0.0, 0.5), 3: (0.75, 0.25), 9: (1.0, 0.0)}[step]
    plain = Run(kind, task_weight=numbers[0], kl_weight=numbers[1])
    torch.testing.assert_close(changing.gradient, plain.gradient, rtol=1e-5, atol=1e-7)
    assert changing.objective.changing_weights == dict(
        zip(("train/task_weight", "train/kl_weight"), numbers, strict=True)
    )


def test_a_regressions_gradient_does_not_know_of_a_temperature() -> None:
    gradients = [Run("regression", temperature=temperature).gradient for temperature in (1.0, 2.0, 4.0)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


# --- examples without a label -----------------------------------------------------------------------------------------


def task_sum(kind: str, run: Run, labels: Any, rows: list[int]) -> tuple[float, int, torch.Tensor]:
    """Sum and count of the task loss over ``rows``, and the gradient of its mean, by the formulas."""
    total, count, gradient = 0.0, 0, torch.zeros_like(run.gradient)
    for row in rows:
        logits = run.logits[row].double().tolist()
        label = labels[row]
        if kind == "regression":
            for place, (mine, target) in enumerate(zip(logits, label, strict=True)):
                if not math.isnan(target):
                    total, count = total + (mine - target) ** 2, count + 1
                    gradient[row, place] = 2 * (mine - target)
        elif kind == "multi_label_classification":
            for place, (mine, holds) in enumerate(zip(logits, label, strict=True)):
                probability = 1 / (1 + math.exp(-mine))
                total -= holds * math.log(probability) + (1 - holds) * math.log(1 - probability)
                count += 1
                gradient[row, place] = probability - holds
        else:
            wanted = [float(label == index) for index in range(NUM_OUTPUTS)] if isinstance(label, int) else label
            found = softmax(logits, 1.0)
            total -= sum(a * math.log(b) for a, b in zip(wanted, found, strict=True) if a)
            count += 1
            gradient[row] = torch.tensor(found, dtype=torch.float64) - torch.tensor(wanted, dtype=torch.float64)
    return total, count, gradient / max(count, 1)


@pytest.mark.parametrize("unlabelled", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_TOKENS])
def test_an_example_without_a_label_has_no_task_term_and_its_prediction_term(
    kind: str, unlabelled: tuple[int, ...]
) -> None:
    labels: list[Any] = [None if row in unlabelled else label for row, label in enumerate(LABELS_OF[kind])]
    if kind == "regression" and labels[2] is not None:
        labels[2] = [0.1, math.nan, 0.3]
    batch = batch_of(kind, labels)
    run = Run(kind, batch=batch, task_weight=0.4)
    total, count, gradient = task_sum(kind, run, labels, [row for row in range(3) if row not in unlabelled])
    assert run.counts["loss/task"].item() == count
    assert run.totals["loss/task"].item() == pytest.approx(total, rel=1e-5, abs=1e-9)
    of_prediction, places, gradient_of_prediction = brute_force(kind, run, batch, 2.0)
    name = TASK_TERMS[kind].prediction_name
    assert (run.counts[name].item(), run.totals[name].item()) == (places, pytest.approx(of_prediction, rel=1e-5))
    torch.testing.assert_close(run.gradient, 0.4 * gradient + gradient_of_prediction, **TOLERANCE)


# --- what a prediction term is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_no_prediction_term_and_gets_no_gradient(kind: str) -> None:
    # a cross-entropy would be the teacher's entropy here
    for temperature in (1.0, 2.0, 4.0):
        run = Run(kind, temperature=temperature, teacher=model_of(kind, seed=1))
        assert abs(run.totals[TASK_TERMS[kind].prediction_name].item()) < 2e-5
        assert run.gradient.abs().max() < 1e-6


def test_no_metric_is_called_a_kl_that_is_none() -> None:
    names = {kind: terms.prediction_name for kind, terms in TASK_TERMS.items()}
    assert names == {
        "question_answering": "loss/kl_teacher_student",
        "causal_lm": "loss/kl_teacher_student",
        "seq2seq": "loss/kl_teacher_student",
        "sequence_classification": "loss/kl_teacher_student",
        "soft_label_classification": "loss/kl_teacher_student",
        "multi_label_classification": "loss/bernoulli_kl_teacher_student",
        "regression": "loss/squared_teacher_student",
        "token_classification": "loss/kl_teacher_student",
        "masked_lm": "loss/kl_teacher_student",
        MASKED_ON_ALL: "loss/kl_teacher_student",
        "multiple_choice": "loss/kl_teacher_student",
        "chat": "loss/kl_teacher_student",
    }
    for kind in KINDS:
        run, name = Run(kind), names[kind]
        assert set(run.totals) == {"loss/task", name}
        if "kl" not in name:
            continue
        logits = run.teacher_logits.float()
        keep = TASK_TERMS[kind].predicted(batch_of(kind).labels, batch_of(kind).kept_tokens)
        of_itself = TASK_TERMS[kind].prediction_sum(logits, logits, keep, 2.0)
        entropies = torch.distributions.Categorical(logits=logits / 2.0).entropy()
        if kind == "multi_label_classification":
            entropies = torch.distributions.Bernoulli(logits=logits / 2.0).entropy()
        assert abs(of_itself.item()) < 2e-5
        assert entropies[keep].sum() > 0.5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_TOKENS])
def test_an_examples_prediction_term_does_not_depend_on_the_others_in_its_batch(kind: str) -> None:
    # a softmax over the batch, as in the reference's regression, would fail this
    terms, labels = TASK_TERMS[kind], batch_of(kind).labels[:3]
    student = torch.randn(3, NUM_OUTPUTS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(3, NUM_OUTPUTS, generator=torch.Generator().manual_seed(1))
    together = terms.prediction_sum(student, teacher, terms.kept(labels), 2.0)
    together.backward()
    assert student.grad is not None
    alone = torch.zeros(())
    for row in range(3):
        one = student.detach()[row : row + 1].requires_grad_()
        total = terms.prediction_sum(one, teacher[row : row + 1], terms.kept(labels[row : row + 1]), 2.0)
        total.backward()
        alone += total.detach()
        assert one.grad is not None
        torch.testing.assert_close(one.grad[0], student.grad[row], rtol=1e-6, atol=1e-8)
        others = torch.randn(3, NUM_OUTPUTS, generator=torch.Generator().manual_seed(2))
        others[row] = student.detach()[row]
        other = others.requires_grad_()
        terms.prediction_sum(other, teacher, terms.kept(labels), 2.0).backward()
        assert other.grad is not None
        torch.testing.assert_close(other.grad[row], student.grad[row], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(alone, together.detach(), rtol=1e-6, atol=1e-7)


def test_a_regression_of_one_output_learns_from_its_teacher() -> None:
    # a softmax over one output is 1 whatever it is: a KL of it would teach nothing
    terms = TASK_TERMS["regression"]
    student, teacher = torch.tensor([[1.0], [2.0]]).requires_grad_(), torch.tensor([[3.0], [2.5]])
    total = terms.prediction_sum(student, teacher, torch.tensor([[True], [True]]), 2.0)
    total.backward()
    assert total.item() == 4.25
    assert student.grad is not None
    assert student.grad.tolist() == [[-4.0], [-1.0]]


# --- counts and task losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("causal_lm", 1 + 3 + 1 + 0 + 1 + 1),  # documents of 2 and 4, 2 and 1, 2 and 2 tokens: each but its first
        ("sequence_classification", 3),
        ("soft_label_classification", 3),
        ("multi_label_classification", 9),
        ("regression", 9),
        ("token_classification", 4 + 2 + 2),
        ("masked_lm", 3 + 0 + 2),
        ("multiple_choice", 3),
    ],
)
def test_terms_are_divided_by_what_they_run_over(kind: str, count: int) -> None:
    run = Run(kind, task_weight=1.0)
    assert {name: value.item() for name, value in run.counts.items()} == {
        "loss/task": count,
        TASK_TERMS[kind].prediction_name: count,
    }


def test_labels_and_predictions_of_a_masked_lm_may_be_counted_apart() -> None:
    run = Run(MASKED_ON_ALL, task_weight=1.0)
    assert {name: value.item() for name, value in run.counts.items()} == {
        "loss/task": 3 + 0 + 2,
        "loss/kl_teacher_student": 6 + 3 + 4,
    }


def test_layers_are_divided_by_the_tokens_of_the_data_and_not_by_those_of_empty_rows() -> None:
    student = model_of("causal_lm", seed=1)
    teacher = FrozenModel(
        TappedModel(model_of("causal_lm", seed=2).model, family_of("llama"), [1]),
        device=torch.device("cpu"),
        engine_config=None,
    )
    bank = FilterBank([1], 16, 16, initialisation="identity")
    objective = DistillObjective(
        TASK_TERMS["causal_lm"],
        distill_plan(task_weight=0.0, kl_weight=0.0, temperature=2.0, feature_weight=0.5),
        teacher=teacher,
        teacher_filters=FilterBank([1], 16, 16, initialisation="identity"),
        student_layers=(1,),
    )
    batch = batch_of("causal_lm")
    module = FilteredModel(TappedModel(student.model, family_of("llama"), [1]), bank)
    (name,) = (name for name in objective.weights if name != "loss/task")
    assert objective.counts(batch)[name].item() == 6 + 3 + 4
    with torch.no_grad():
        _, totals = objective.loss(module, batch, objective.counts(batch))
        total = totals[name]
        _, (ours,) = module(batch.inputs)
        _, (theirs,) = run_frozen(teacher, batch.inputs)
    expected = sum(
        ((ours[row, t] - theirs[row, t]) ** 2).mean().item()
        for row, length in enumerate((6, 3, 4))
        for t in range(length)
    )
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_loss_of_finetuning_and_distillation_is_the_same(kind: str) -> None:
    batch, student = batch_of(kind), model_of(kind, seed=1)
    finetune = FinetuneObjective(TASK_TERMS[kind], 0.5)
    with torch.no_grad():
        _, totals = finetune.loss(student, batch, finetune.counts(batch))
        logits, _ = student(batch.inputs)
    assert logits is not None
    expected = 0.0
    for place in labelled_rows_of(kind, batch):
        row = logits[place].tolist()
        label = batch.labels[place].tolist()
        if kind in (*OF_TOKENS, "sequence_classification", "multiple_choice"):
            expected -= math.log(softmax(row, 1.0)[label])
        elif kind == "soft_label_classification":
            expected -= sum(p * math.log(q) for p, q in zip(label, softmax(row, 1.0), strict=True))
        elif kind == "multi_label_classification":
            signed = [z if y else -z for z, y in zip(row, label, strict=True)]
            expected += sum(math.log(1 + math.exp(-z)) for z in signed)
        else:
            expected += sum((z - y) ** 2 for z, y in zip(row, label, strict=True))
    assert totals["loss/task"].item() == pytest.approx(expected, rel=1e-5)
    run = Run(kind, task_weight=1.0)
    assert run.totals["loss/task"].item() == pytest.approx(expected, rel=1e-5)
    assert finetune.weights == {"loss/task": 0.5}
    assert finetune.counts(batch)["loss/task"] == run.counts["loss/task"]


# --- vocabularies of different sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("teacher_ids", "student_ids"), [(128, 100), (100, 128), (128, 112), (100, 100)])
def test_the_kl_runs_over_the_ids_that_the_tokenizer_has(teacher_ids: int, student_ids: int) -> None:
    run = Run(
        "causal_lm",
        task_weight=0.0,
        teacher=model_of("causal_lm", seed=2, vocab=teacher_ids),
        student=model_of("causal_lm", seed=1, vocab=student_ids),
        num_shared_ids=100,
    )
    batch, temperature = batch_of("causal_lm"), 2.0
    assert run.logits.shape[-1] == student_ids
    assert run.teacher_logits.shape[-1] == teacher_ids
    total, gradient = 0.0, torch.zeros_like(run.gradient)
    places = rows_of("causal_lm", batch)
    for place in places:
        p = softmax(run.teacher_logits[place].tolist()[:100], temperature)
        q = softmax(run.logits[place].tolist()[:100], temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        slopes = torch.tensor(q, dtype=torch.float64) - torch.tensor(p, dtype=torch.float64)
        gradient[place][:100] = slopes * KL_WEIGHT * temperature / len(places)
    assert run.totals["loss/kl_teacher_student"].item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(run.gradient, gradient, **TOLERANCE)
    # the task loss is over all ids the student predicts: those without a token are pushed down
    assert run.totals["loss/task"].item() == pytest.approx(cross_entropy_sum(run.logits, batch.labels).item(), rel=1e-6)


# --- from the recipe --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != MASKED_ON_ALL])
def test_a_recipes_batches_and_head_are_those_of_its_kind_of_task(tmp_path: Path, kind: str) -> None:
    padding = {"side": "left", "multiple_of": 8}
    recipe = recipe_dict(tmp_path)
    recipe = {**recipe, "task": task_dict(kind), "data": {**recipe["data"], "padding": padding}}
    validated = Recipe.model_validate(recipe)
    own, pad_id = kind_of(validated.task), write_tokenizer(tmp_path).pad_token_id
    assert isinstance(pad_id, int)
    collate = own.collator(pad_id, validated.data.padding)
    assert (collate.pad_id, collate.side, collate.multiple_of) == (0, "left", 8)
    assert collate.isolate_documents == (kind == "causal_lm")
    labels = {
        "causal_lm": "tokens",
        "masked_lm": "token_classes",
        "token_classification": "token_classes",
        "sequence_classification": "class",
        "multiple_choice": "class",
    }.get(kind, "numbers")
    assert collate.labels == labels
    if validated.task.has_lm_head:
        assert own.head_config is None
        return
    head = own.head_config
    assert head is not None
    assert list(head["id2label"]) == list(head["label2id"].values()) == list(range(validated.task.num_outputs))
    if labels == "numbers":
        assert collate.num_outputs == validated.task.num_outputs
    # transformers' own loss, which an exported model computes, is of the kind that was trained
    assert head.get("problem_type") == {
        "sequence_classification": "single_label_classification",
        "soft_label_classification": "single_label_classification",
        "multi_label_classification": "multi_label_classification",
        "regression": "regression",
    }.get(kind)
