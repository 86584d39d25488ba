"""Stage II of a student and a teacher that read by a tokenizer each: against plain transformers, a text at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from ted_ds.assembly.readers import Readers
from ted_ds.config.data import Data, Padding
from ted_ds.data.reading.listing import list_data
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.families import family_of
from ted_ds.models.heads import ProbesOfModels, classification_probes
from ted_ds.models.loading import auto_class
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill_texts import ReadAt, TextDistillObjective
from ted_ds.objectives.learn_filters import FilterObjective, FilterObjectives
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.two_tokenizers import open_for_both
from tests.task_kinds import SECTIONS, TASK_TERMS
from tests.tiny import distill_plan, labels_of, task_dict, write_labelled, write_letters, write_model, write_pairs

WEIGHTS = {"task_weight": 0.7, "kl_weight": 1.3, "feature_weight": 3.0, "temperature": 2.0}
LAYERS = {"teacher": (2, 4), "student": (1, 2)}
BLOCKS = {"teacher": 4, "student": 3}
DIM, LONGEST = 12, 14
ONE_CLASS = "sequence_classification"
TERM = "loss/text_feature_mse/layer"
SIDES = ("student", "teacher")


class Case(NamedTuple):
    """What is distilled into what, and how layers are compared."""

    student: str = "roberta"
    kind: str = ONE_CLASS
    pooling: str = "model"
    filters: str = "linear"
    normalise: bool = False
    pairs: bool = False


CASES = {
    "its first token": Case(),
    "its last token": Case("llama"),
    "mean": Case("llama", pooling="mean", normalise=True),
    "mean of what a hidden layer makes": Case(pooling="mean", filters="mlp"),
    "pairs": Case(pairs=True),
    "choices": Case(kind="multiple_choice", normalise=True),
    "numbers": Case("llama", "regression"),
    "labels": Case(kind="multi_label_classification"),
    "soft labels": Case(kind="soft_label_classification", filters="mlp"),
}


class Pair(NamedTuple):
    """Two models, with all that is needed to distil one into the other."""

    folder: Path
    case: Case
    task: Any
    readers: Readers
    student: FilteredModel
    teacher: FrozenModel
    bank: FilterBank


def section(case: Case) -> Any:
    changes = {"text_column": ["first", "second"]} if case.pairs else {}
    return SECTIONS[case.kind](**{**task_dict(case.kind), "max_length": LONGEST, **changes})


def tapped(folder: Path, task: Any, side: str) -> TappedModel:
    model = auto_class(task.architecture).from_pretrained(folder / side)
    if task.rows_per_example > 1:
        choose_among_rows(model, task.rows_per_example)
    return TappedModel(model, family_of(model.config.model_type), LAYERS[side])


def write_pair(folder: Path, case: Case) -> None:
    """Both models, each with its tokenizer, and the data."""
    task, labels = section(case), labels_of(case.kind)
    for side, family, seed in (("teacher", "bert", 1), ("student", case.student, 2)):
        shape = {"blocks": BLOCKS[side], "labels": labels, "architecture": task.architecture, "seed": seed}
        shape["initializer_range"] = 0.3  # or predictions would hardly differ
        write_model(folder / side, family, **shape)  # type: ignore[arg-type]
    write_letters(folder / "student", encoder=case.student != "llama")
    path = folder / "train.jsonl"
    write_pairs(path, 24) if case.pairs else write_labelled(path, 24, kind=case.kind)


def readers_of(folder: Path, case: Case) -> Readers:
    """The data as both read them."""
    data = Data(train=[{"path": str(folder / "train.jsonl")}], heldout_fraction=0.3)  # type: ignore[list-item]
    tokenizers = {side: AutoTokenizer.from_pretrained(folder / side) for side in SIDES}
    kind = kind_of(section(case))
    opened = open_for_both(kind, data, tokenizers, list_data(data), max_heldout=99)
    return Readers(kind, Padding(multiple_of=4), opened, tokenizers)


def banks_of(case: Case) -> dict[str, FilterBank]:
    """Filters of both; the same each time."""
    torch.manual_seed(3)
    banks = {side: FilterBank(LAYERS[side], 16, DIM, kind=case.filters) for side in SIDES}
    for bank in banks.values():
        for parameter in bank.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    banks["teacher"].requires_grad_(False)
    return banks


def make_pair(folder: Path, case: Case) -> Pair:
    write_pair(folder, case)
    task, banks = section(case), banks_of(case)
    student = FilteredModel(tapped(folder, task, "student"), banks["student"]).train()
    teacher = frozen(tapped(folder, task, "teacher"))
    return Pair(folder, case, task, readers_of(folder, case), student, teacher, banks["teacher"])


def frozen(model: TappedModel) -> FrozenModel:
    return FrozenModel(model, device=torch.device("cpu"), engine_config=None)


def objective_of(case: Case, student: TappedModel, teacher: FrozenModel, bank: FilterBank) -> TextDistillObjective:
    at = {
        side: ReadAt(one.pooled_token if case.pooling == "model" else case.pooling, one.unread_id)
        for side, one in (("student", student), ("teacher", teacher.tapped))
    }
    return TextDistillObjective(
        TASK_TERMS[case.kind],
        distill_plan(**WEIGHTS, normalise_features=case.normalise),
        teacher=teacher,
        teacher_filters=bank,
        student_layers=LAYERS["student"],
        read_at=at,
    )


def in_microbatches(pair: Pair, cuts: list[list[int | None]]) -> tuple[float, dict[str, float], list[Tensor]]:
    """Loss, terms and gradients of a step that is cut so; numbers are of training examples."""
    reader, objective = pair.readers.of(*SIDES), objective_of(pair.case, pair.student.tapped, pair.teacher, pair.bank)
    samples = reader.data.train
    batches = [reader.collate([None if one is None else samples[one] for one in cut]) for cut in cuts]
    counts = {name: sum(objective.counts(batch)[name] for batch in batches) for name in objective.weights}
    pair.student.zero_grad()
    loss, terms = 0.0, dict.fromkeys(objective.weights, 0.0)
    for batch in batches:
        share, sums = objective.loss(pair.student, batch, counts)  # type: ignore[arg-type]
        share.backward()
        loss += share.item()
        for name, total in sums.items():
            terms[name] += total.item() / max(int(counts[name]), 1)
    return loss, terms, [one.grad.clone() for one in pair.student.parameters() if one.grad is not None]


# --- the plain way ----------------------------------------------------------------------------------------------------


def plain_inputs(tokenizer: Any, row: dict[str, Any], case: Case) -> dict[str, Tensor]:
    """What a model of transformers reads of a row of the file."""
    texts: list[Any] = [row["text"]] if not case.pairs else [row["first"], row["second"]]
    if case.kind == "multiple_choice":
        texts = [[row["text"]] * 2, [row["one"], row["two"]]]
    found = tokenizer(*texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
    return {name: one[None] if case.kind == "multiple_choice" else one for name, one in found.items()}


def plain_features(bank: FilterBank, states: Any, mask: Tensor, how: str, layers: tuple[int, ...]) -> list[Tensor]:
    """Of each layer, a feature for each row ``[rows, dim]``: the first token's, the last's, or the mean of all."""
    found = []
    for one, layer in zip(bank.filters, layers, strict=True):
        weights: Any = one
        features = states[layer]
        if weights.hidden_weight is not None:
            features = F.gelu(features @ weights.hidden_weight.T + weights.hidden_bias)
        features = features @ weights.weight.T + weights.bias
        rows = [row[kept.bool()] for row, kept in zip(features, mask, strict=True)]
        read: dict[str, Callable[[Tensor], Tensor]] = {
            "first": lambda row: row[0],
            "last": lambda row: row[-1],
            "mean": lambda row: row.mean(0),
        }
        found.append(torch.stack([read[how](row) for row in rows]))
    return found


def plain_label(row: dict[str, Any], task: Any) -> Tensor:
    if task.kind == "regression":
        return torch.tensor([row["score"]], dtype=torch.float64)
    if task.kind == "multi_label_classification":
        return torch.tensor([float(name in row["label"]) for name in task.labels], dtype=torch.float64)
    if task.kind == "soft_label_classification":
        return torch.tensor(row["label"], dtype=torch.float64)
    return torch.tensor(row["label"] if task.kind == "multiple_choice" else task.labels.index(row["label"]))


def plain_terms(
    folder: Path, case: Case, rows: list[dict[str, Any]], modules: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the terms of a step in fp64, from the texts themselves and each folder's own tokenizer."""
    task = section(case)
    terms: dict[str, list[Tensor]] = {}
    for row in rows:
        logits, features = {}, {}
        for side, model in modules.items():
            tokenizer = AutoTokenizer.from_pretrained(folder / side)
            inputs = plain_inputs(tokenizer, row, case)
            output = model["model"](**inputs, output_hidden_states=True)
            how = "last" if model["model"].config.model_type == "llama" else "first"
            mask = inputs["attention_mask"].flatten(0, -2)
            read = how if case.pooling == "model" else case.pooling
            features[side] = plain_features(model["bank"], output.hidden_states, mask, read, LAYERS[side])
            logits[side] = output.logits[0]
        label = plain_label(row, task)
        own, wanted = logits["student"], logits["teacher"].detach()
        if task.kind == "regression":
            losses = (own - label).square().mean(), (own - wanted).square().mean()
            name = "loss/squared_teacher_student"
        elif task.kind == "multi_label_classification":
            p, q = (wanted / 2).sigmoid(), (own / 2).sigmoid()
            kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            losses = F.binary_cross_entropy_with_logits(own, label), kl.mean()
            name = "loss/bernoulli_kl_teacher_student"
        else:
            p = (wanted / 2).softmax(-1)
            losses = F.cross_entropy(own[None], label[None]), (p * (p.log() - (own / 2).log_softmax(-1))).sum()
            name = "loss/kl_teacher_student"
        terms.setdefault("loss/task", []).append(losses[0])
        terms.setdefault(name, []).append(losses[1])
        both = zip(features["student"], features["teacher"], strict=True)
        for layer, (mine, theirs) in zip(LAYERS["student"], both, strict=True):
            if case.normalise:
                mine, theirs = (
                    (one - one.mean(-1, keepdim=True)) / (one.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                    for one in (mine, theirs)
                )
            of_layer = (mine - theirs.detach()).square().mean(-1)
            terms.setdefault(f"{TERM}_{layer:02d}", []).extend(of_layer)
    means = {name: torch.stack(values).mean() for name, values in terms.items()}
    prediction = next(name for name in means if name.endswith("teacher_student"))
    squared = 1.0 if task.kind == "regression" else WEIGHTS["temperature"] ** 2
    of_layers = [value for name, value in means.items() if "feature_mse" in name]
    loss = WEIGHTS["task_weight"] * means["loss/task"] + WEIGHTS["kl_weight"] * squared * means[prediction]
    return loss + WEIGHTS["feature_weight"] * sum(of_layers) / len(of_layers), means


def plain_modules(folder: Path, case: Case) -> dict[str, Any]:
    """Both models as transformers has them, and their filters, in fp64."""
    auto, banks = auto_class(section(case).architecture), banks_of(case)
    return {
        side: torch.nn.ModuleDict(
            # there is no dropout
            {"model": auto.from_pretrained(folder / side, dtype=torch.float64).eval(), "bank": banks[side].double()}
        )
        for side in SIDES
    }


def plain_gradients(
    folder: Path, case: Case, rows: list[dict[str, Any]], modules: dict[str, Any]
) -> tuple[float, dict[str, float], list[Tensor]]:
    """Loss, terms and gradients of a step, whose modules they are left in."""
    modules["student"].zero_grad()
    loss, terms = plain_terms(folder, case, rows, modules)
    loss.backward()
    gradients = [one.grad for one in modules["student"].parameters() if one.grad is not None]
    return loss.item(), {name: value.item() for name, value in terms.items()}, gradients


def rows_of(folder: Path, case: Case) -> list[dict[str, Any]]:
    """The rows of the file that are trained on, in their order: known by the student's tokens, decoded."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")

    def read(row: dict[str, Any]) -> list[int]:
        inputs = plain_inputs(tokenizer, row, case)
        kept = inputs["attention_mask"].flatten(0, -2).bool()
        return max(
            (ids[own].tolist() for ids, own in zip(inputs["input_ids"].flatten(0, -2), kept, strict=True)), key=len
        )

    trained = [sample.input_ids for sample in readers_of(folder, case).of("student").data.train]
    return [next(row for row in rows if read(row) == [*ids]) for ids in trained]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_plain_transformers_on_each_text_by_itself(tmp_path: Path, name: str) -> None:
    pair = make_pair(tmp_path, CASES[name])
    lengths = {side: {len(one.input_ids) for one in pair.readers.of(side).data.train} for side in LAYERS}
    assert lengths["student"] != lengths["teacher"]
    assert max(lengths["student"]) == LONGEST  # each is cut by itself
    modules = plain_modules(tmp_path, pair.case)
    loss, terms, gradients = plain_gradients(tmp_path, pair.case, rows_of(tmp_path, pair.case)[:7], modules)
    for cuts in ([[*range(7)]], [[0, None, 1], [None, None, None], [2], [6, 5, 4, 3]]):
        found = in_microbatches(pair, cuts)  # type: ignore[arg-type]
        assert found[0] == pytest.approx(loss, rel=2e-5)
        assert found[1] == pytest.approx(terms, rel=2e-5)
        assert len(found[2]) == len(gradients) > 10
        largest = max(float(one.abs().max()) for one in gradients)
        for mine, wanted in zip(found[2], gradients, strict=True):  # 1.4e-6 of the largest seen
            torch.testing.assert_close(mine.double(), wanted, rtol=0, atol=5e-6 * largest)


def test_a_text_that_is_not_there_counts_nowhere(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, CASES["its last token"])
    loss, terms, gradients = in_microbatches(pair, [[None, None]])
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)
    assert set(terms) == {
        "loss/task",
        "loss/kl_teacher_student",
        *(f"{TERM}_{layer:02d}" for layer in LAYERS["student"]),
    }


def test_filters_of_both_models_are_learned_on_each_ones_own_tokens(tmp_path: Path) -> None:
    """One pass over pairs of readings is the two passes over each."""
    pair = make_pair(tmp_path, CASES["its last token"])
    bodies = {"teacher": pair.teacher, "student": frozen(tapped(tmp_path, pair.task, "student"))}
    terms = TASK_TERMS[pair.case.kind]
    torch.manual_seed(4)
    probes = {
        side: classification_probes(
            FilterBank(LAYERS[side], 16, DIM), dim=DIM, num_labels=2, pooling=body.tapped.pooled_token
        )
        for side, body in bodies.items()
    }
    objectives = {side: FilterObjective(terms, body, LAYERS[side], prefix=f"{side}/") for side, body in bodies.items()}
    both = FilterObjectives(objectives, here=("student", "teacher"))
    reader = pair.readers.of(*SIDES)
    batch = reader.collate(reader.data.train[:5])
    _, found = both.loss(ProbesOfModels(probes), batch, both.counts(batch))
    assert len(found) == 4
    for side, objective in objectives.items():
        own = pair.readers.of(side)
        alone = own.collate(own.data.train[:5])
        assert alone.of_teacher is None
        _, of_side = objective.loss(probes[side], alone, objective.counts(alone))
        assert {name: found[name].item() for name in of_side} == {name: one.item() for name, one in of_side.items()}
