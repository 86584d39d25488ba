"""Embeddings and first blocks that do not train: what they are, and a teacher that begins behind them, to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.assembly.shared_prefix import num_equal
from ted_ds.data.loader import Batch
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.frozen_prefix import PrefixStates, freeze_prefix, tensors_of_prefix, what_drops
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from tests.parity.test_families import NUM_BLOCKS, OTHER_HEAD, OTHER_OPTS, batch
from tests.task_kinds import TASK_TERMS
from tests.tiny import ENCODERS, LABELS, ONE_STACK_TYPES, distill_plan, write_model

BLOCKS, NUM_FROZEN = [0, 1, 3], 2
STUDENT_LAYERS, TEACHER_LAYERS = (0, 1, 3, 2), (0, 2, 4, 1)
"""Some pairs cross, so that a state is wanted which the student itself does not match."""
HIDDEN, DIM = 16, 12
STAGED = [name for name in ONE_STACK_TYPES if family_of(name).unstaged is None]
CASES: list[Any] = [
    *((name, False, {}) for name in ("llama", "gpt2", "bert", "modernbert")),
    ("deberta-v2", True, {"conv_kernel_size": 3}),
    ("electra", True, {"embedding_size": 8}),
    ("gpt2", False, {"tie_word_embeddings": False}),
    ("opt", False, OTHER_OPTS[1]),
]
OTHERS: list[tuple[str, bool, dict[str, Any]]] = [
    *((name, False, {}) for name in STAGED),
    *((name, True, {}) for name in ("llama", "gpt2", *ENCODERS) if name in STAGED),
    ("deberta-v2", False, OTHER_HEAD),
    ("opt", False, OTHER_OPTS[0]),
]
CASES += [pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS if one not in CASES]


def write_pair(folder: Path, name: str, *, classify: bool = False, **config: Any) -> None:
    """A teacher, and a student of some of its blocks."""
    labels = [*LABELS] if classify else None
    architecture = "SequenceClassification" if classify else family_of(name).language_model
    teacher = write_model(
        folder / "teacher", name, blocks=NUM_BLOCKS, labels=labels, architecture=architecture, **config
    )
    cut(teacher, folder / "student", blocks=BLOCKS, family=family_of(name), origins=Origins(teacher, None))


def load(folder: Path, name: str, layers: Any, *, classify: bool = False) -> TappedModel:
    architecture = "SequenceClassification" if classify else family_of(name).language_model
    head = {"num_labels": len(LABELS)} if classify else None
    model, _ = load_model(folder, LoadSettings(torch.float32), head=head, architecture=architecture)
    model.config.pad_token_id = 0
    return TappedModel(model, family_of(name), layers)


def labelled(name: str, *, classify: bool) -> Batch:
    inputs = batch(family_of(name).row_of_padding({"pad_token_id": 0}) or 0)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = torch.zeros(len(ids), dtype=torch.long) if classify else torch.where(mask.bool(), ids, -100)
    return Batch(ids, mask, labels, mask.bool())


def student_of(folder: Path, name: str, *, classify: bool = False) -> FilteredModel:
    student = load(folder / "student", name, STUDENT_LAYERS, classify=classify)
    freeze_prefix(student.model, student.family, NUM_FROZEN)
    torch.manual_seed(3)
    return FilteredModel(student, FilterBank(STUDENT_LAYERS, HIDDEN, DIM)).train()


def learned(module: FilteredModel, teacher: FrozenModel, batch: Batch, *, classify: bool) -> dict[str, torch.Tensor]:
    """Sums of all terms, and each gradient, of one pass."""
    torch.manual_seed(4)
    objective = DistillObjective(
        TASK_TERMS["sequence_classification" if classify else "causal_lm"],
        distill_plan(kl_weight=1.3, feature_weight=3.0),
        teacher=teacher,
        teacher_filters=FilterBank(TEACHER_LAYERS, HIDDEN, DIM).requires_grad_(False),
        student_layers=STUDENT_LAYERS,
    )
    counts = {name: count.float() for name, count in objective.counts(batch).items()}
    module.zero_grad()
    loss, totals = objective.loss(module, batch, counts)
    loss.backward()
    gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {**{name: one.detach().clone() for name, one in totals.items()}, **gradients}


@pytest.mark.parametrize(("name", "classify", "config"), CASES, ids=str)
def test_a_teacher_behind_the_students_first_blocks_says_the_same_to_the_bit(
    tmp_path: Path, name: str, classify: bool, config: dict[str, Any]
) -> None:
    write_pair(tmp_path, name, classify=classify, **config)
    module, one = student_of(tmp_path, name, classify=classify), labelled(name, classify=classify)
    teacher = FrozenModel(
        load(tmp_path / "teacher", name, TEACHER_LAYERS, classify=classify),
        device=torch.device("cpu"),
        engine_config=None,
    )
    expected = learned(module, teacher, one, classify=classify)
    frozen = {id(own) for own in tensors_of_prefix(module.tapped.model, module.tapped.family, NUM_FROZEN).values()}
    trained = {key for key, own in module.named_parameters() if id(own) not in frozen}
    assert trained == {key for key in expected if key.startswith(("tapped.", "bank."))}, "all that is behind them"

    assert what_drops(module.tapped.model, module.tapped.family, NUM_FROZEN) is None
    assert num_equal(module.tapped, teacher.tapped, NUM_FROZEN) == (NUM_FROZEN, None)
    held = teacher.num_parameters_held
    lent = PrefixStates(module.tapped, [0, 1, 2])
    freed = teacher.begin_behind(NUM_FROZEN, lent)
    left = sum(own.numel() for own in teacher.tapped.parameters())
    assert (freed > 0, teacher.num_parameters_held) == (True, held - freed)
    assert freed + left == held
    ran = []
    for block in blocks_of(teacher.tapped.model, teacher.tapped.family):
        block.register_forward_hook(lambda block, *_: ran.append(bool([*block.parameters()])))
    found = learned(module, teacher, one, classify=classify)
    assert ran == [False, False, True, True]
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert not lent._states, "nothing of a pass is kept"


@pytest.mark.parametrize(("name", "classify", "config"), CASES, ids=str)
def test_plans_count_what_trains_behind_frozen_blocks(
    tmp_path: Path, name: str, classify: bool, config: dict[str, Any]
) -> None:
    write_pair(tmp_path, name, classify=classify, **config)
    facts = read_model_facts(tmp_path / "student")
    model = load(tmp_path / "student", name, (), classify=classify).model
    freeze_prefix(model, family_of(name), NUM_FROZEN)
    sizes = (facts.as_classifier if classify else facts.as_language_model).sizes_behind(NUM_FROZEN)
    assert sum(sizes) == sum(one.numel() for one in model.parameters() if one.requires_grad)


def test_only_blocks_of_equal_weights_are_shared(tmp_path: Path) -> None:
    write_pair(tmp_path, "llama")
    student, teacher = (load(tmp_path / side, "llama", ()) for side in ("student", "teacher"))
    assert num_equal(student, teacher, 3) == (2, "model.layers.2.self_attn.q_proj.weight")
    with torch.no_grad():
        own: Any = blocks_of(student.model, student.family)[1]
        own.mlp.down_proj.weight[3, 4] += 1e-6
    assert num_equal(student, teacher, 2) == (1, "model.layers.1.mlp.down_proj.weight")
    with torch.no_grad():
        student.model.get_input_embeddings().weight[7, 7] += 1e-6
    assert num_equal(student, teacher, 2) == (0, "model.embed_tokens.weight")
    assert num_equal(student.to(torch.bfloat16), teacher, 2)[0] == 0


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("llama", {"attention_dropout": 0.1}, "model.layers.0.self_attn"),
        ("gpt2", {"embd_pdrop": 0.1}, "transformer.drop"),
        ("gpt2", {"attn_pdrop": 0.1}, "transformer.h.0.attn.attn_dropout"),
        ("bert", {"hidden_dropout_prob": 0.1}, "bert.embeddings.dropout"),
    ],
)
def test_dropout_in_the_first_blocks_is_seen(tmp_path: Path, name: str, config: dict[str, Any], expected: str) -> None:
    write_pair(tmp_path, name, **config)
    model = load(tmp_path / "student", name, ()).model
    found = what_drops(model, family_of(name), NUM_FROZEN)
    assert found is not None
    assert found.startswith(expected)


def test_dropout_before_a_head_is_none_of_the_blocks(tmp_path: Path) -> None:
    write_pair(tmp_path, "bert", classify=True, classifier_dropout=0.3)
    model = load(tmp_path / "student", "bert", (), classify=True).model
    assert what_drops(model, family_of("bert"), NUM_FROZEN) is None


def test_states_of_scores_are_not_kept(tmp_path: Path) -> None:
    write_pair(tmp_path, "llama")
    tapped = load(tmp_path / "student", "llama", ())
    lent = PrefixStates(tapped, [2])
    with torch.no_grad():
        tapped(batch())
    assert not lent._states
    shapes = [batch()["input_ids"].shape]
    tapped(batch())
    assert {layer: state.shape for layer, state in lent.take(*shapes).items()} == {2: (3, 9, HIDDEN)}
    assert [*itertools.chain(lent._states)] == []
