"""Texts of ``data.transfer`` have no task term and all others, whatever their files say of them: against fp64."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ted_ds.config.data import Data
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.models.families import family_of
from ted_ds.models.loading import auto_class
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import OF_NAME
from tests.tiny import distill_plan, model_config, write_labelled, write_tokenizer

WEIGHTS = {"task_weight": 0.7, "kl_weight": 1.3, "feature_weight": 3.0, "temperature": 2.0}
TEACHER_LAYERS, STUDENT_LAYERS = (2, 4), (1, 2)
BATCH = 8


def open_data(folder: Path, kind: str, share: float | str) -> LabelledData:
    """20 labelled texts, and 30 others whose rows have labels, too."""
    paths = [write_labelled(folder / f"{seed}.jsonl", 20 + 10 * seed, kind=kind, seed=seed) for seed in range(3)]
    train, transfer, evaluation = ([{"path": str(path)}] for path in paths)
    data = Data(train=train, transfer=transfer, evaluation=evaluation, transfer_share=share)  # type: ignore[arg-type]
    tokenizer = write_tokenizer(folder / "tokenizer", encoder=True)
    rows: Any = kind_of(OF_NAME[kind].task)
    return LabelledData(data, rows, tokenizer, list_data(data), max_heldout=9)


def models(kind: str) -> tuple[FilteredModel, TappedModel]:
    """The student with its filters, and the teacher; the same each time."""
    torch.manual_seed(0)
    task = OF_NAME[kind].task
    teacher, student = (
        TappedModel(
            auto_class(task.architecture).from_config(
                model_config("bert", blocks=layers[-1], num_labels=task.num_outputs)
            ),
            family_of("bert"),
            layers,
        )
        for layers in (TEACHER_LAYERS, STUDENT_LAYERS)
    )
    return FilteredModel(student, FilterBank(STUDENT_LAYERS, 16, 16)).train(), teacher


def plain_step(student: Any, teacher: Any, rows: list[tuple[Sample, bool]], kind: str) -> dict[str, torch.Tensor]:
    """The terms of a step in fp64, a text at a time; of each text, whether it is one of transfer."""
    task, prediction = [], []
    squares, num_tokens = torch.zeros(len(TEACHER_LAYERS), dtype=torch.float64), 0
    for sample, is_transfer in rows:
        inputs = {"input_ids": torch.tensor([sample.input_ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        (logits, features), (wanted, states) = student(inputs), teacher(inputs)
        if kind == "regression":
            prediction.append(F.mse_loss(logits, wanted))
        else:
            own, others = ((one / 2).log_softmax(-1) for one in (logits, wanted))
            prediction.append(F.kl_div(own, others, log_target=True, reduction="batchmean"))
        if not is_transfer and kind == "regression":
            task.append(F.mse_loss(logits, torch.tensor([sample.label], dtype=torch.float64)))
        elif not is_transfer:
            task.append(F.cross_entropy(logits, torch.tensor([sample.label])))
        pairs = zip(features, states, strict=True)
        squares = squares + torch.stack([F.mse_loss(*pair) for pair in pairs]) * len(sample.input_ids)
        num_tokens += len(sample.input_ids)
    means = {"task": torch.stack(task).mean(), "prediction": torch.stack(prediction).mean()}
    return {**means, "features": squares.mean() / num_tokens}


@pytest.mark.parametrize("share", [0.6, "size"])
@pytest.mark.parametrize("kind", ["sequence_classification", "regression"])
def test_transfer_texts_have_all_terms_but_the_tasks(tmp_path: Path, kind: str, share: float | str) -> None:
    data = open_data(tmp_path, kind, share)
    (module, teacher), (plain, plain_teacher) = models(kind), models(kind)
    plain, plain_teacher = plain.double(), plain_teacher.double().eval().requires_grad_(False)
    objective = DistillObjective(
        OF_NAME[kind].terms,
        distill_plan(method="lwd", **WEIGHTS),
        teacher=FrozenModel(teacher, device=torch.device("cpu"), engine_config=None),
        teacher_filters=IdentityFilters(TEACHER_LAYERS),
        student_layers=STUDENT_LAYERS,
    )
    collate = OF_NAME[kind].collator(0, data._data.padding)
    stream = data.stream(collate, StepDivision(BATCH, 2), seed=1, num_workers=0, timeout_s=1, with_transfer=True)
    num_labelled = set()
    for _ in range(3):
        batches = next(stream)
        rows = [index for batch in batches for index in batch.samples]
        of_batches = [objective.counts(batch) for batch in batches]
        counts = {name: torch.stack([one[name] for one in of_batches]).sum() for name in objective.weights}
        of_transfer = [index >= len(data.train) for index in rows]
        num_labelled.add(of_transfer.count(False))
        assert counts["loss/task"] == of_transfer.count(False)
        prediction = objective._task.prediction_name
        assert counts[prediction] == len(rows) == BATCH
        texts = [(data.learned[index], is_one) for index, is_one in zip(rows, of_transfer, strict=True)]
        expected = plain_step(plain, plain_teacher, texts, kind)
        module.zero_grad()
        plain.zero_grad()
        totals: Counter[str] = Counter()
        for batch in batches:
            loss, found = objective.loss(module, batch, counts)
            loss.backward()
            totals.update({name: float(value) for name, value in found.items()})
        for name, term in (("loss/task", "task"), (prediction, "prediction")):
            assert totals[name] / float(counts[name]) == pytest.approx(expected[term].item(), rel=1e-5)
        scale = 1.0 if kind == "regression" else 4.0
        whole = 0.7 * expected["task"] + 1.3 * scale * expected["prediction"] + 3.0 * expected["features"]
        whole.backward()
        gradients = {name: one.grad for name, one in plain.named_parameters() if one.grad is not None}
        largest = max(float(one.abs().max()) for one in gradients.values())
        for name, one in module.named_parameters():
            if name in gradients:
                torch.testing.assert_close(one.grad.double(), gradients[name], rtol=1e-4, atol=1e-6 * largest)  # type: ignore[union-attr]
    assert num_labelled <= {3, 4} if share == 0.6 else len(num_labelled) > 1
