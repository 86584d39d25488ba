"""A teacher's last block, whose MLP runs on what is read alone: against all of it, with NaN in the other tokens."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.cached_predictions import CachedPredictions
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.execution import ATTENTION
from ted_ds.models.families import family_of
from ted_ds.models.frozen_prefix import PrefixStates
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of
from ted_ds.models.predictions import DensePredictions, Predictions, VocabularyPredictions
from ted_ds.models.quantised import quantise_blocks
from ted_ds.models.taps import TappedModel
from ted_ds.runtime import last_block
from ted_ds.runtime.frozen import FrozenModel
from tests.optional import MISSING, OPTIONAL
from tests.parity.test_families import NUM_BLOCKS, OTHER_HEAD, OTHER_OPTS, batch
from tests.tiny import LABELS, ONE_STACK_TYPES, TYPES_WITH_LABELS, write_model

WHOLE = {"albert", "mixtral", "qwen3_moe"}
"""Types whose last block's MLP always runs whole: others share it, or each token goes through parts of its own."""
ONE_STACK_LABELS = [name for name in TYPES_WITH_LABELS if name in ONE_STACK_TYPES]
CASES: list[Any] = [
    *((name, False, {}) for name in ("llama", "gpt_neox", "opt", "bert", "mixtral")),
    *((name, True, {}) for name in ("gpt2", "distilbert", "modernbert")),
]
OTHERS: list[Any] = [
    *((name, False, {}) for name in ONE_STACK_TYPES),
    *((name, True, {}) for name in ONE_STACK_LABELS),
    ("deberta-v2", False, OTHER_HEAD),
    ("deberta-v2", True, {"conv_kernel_size": 3}),
    ("gpt_neox", False, {"use_parallel_residual": False}),
    *(("opt", False, changes) for changes in OTHER_OPTS),
]
CASES += [pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS if one not in CASES]
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-12}
"""Of a logit, or of what a head takes: both of size one."""


def teacher_of(
    folder: Path, name: str, *, classify: bool, dtype: torch.dtype = torch.float32, **config: Any
) -> FrozenModel:
    architecture = "SequenceClassification" if classify else family_of(name).language_model
    labels, layers = [*LABELS] if classify else None, config.pop("layers", ())
    write_model(folder, name, blocks=NUM_BLOCKS, labels=labels, architecture=architecture, **config)
    head = {"num_labels": len(LABELS)} if classify else None
    model, _ = load_model(folder, LoadSettings(dtype), head=head, architecture=architecture)
    model.config.pad_token_id = 0
    return FrozenModel(TappedModel(model, family_of(name), layers), device=torch.device("cpu"), engine_config=None)


def labelled(name: str, *, classify: bool) -> Batch:
    """Three rows of nine tokens, one with padding; of a language model every third token has a label."""
    inputs = batch(family_of(name).row_of_padding({"pad_token_id": 0}) or 0)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if classify:
        return Batch(ids, mask, torch.zeros(len(ids), dtype=torch.long), mask.bool())
    has_label = mask.bool() & (torch.arange(ids.numel()).view(ids.shape) % 3 == 1)
    return Batch(ids, mask, torch.where(has_label, ids, -100), mask.bool())


def said(teacher: FrozenModel, one: Batch, *, whole: bool = False) -> Tensor:
    """What predictions are made of where they are read, on the rows that are."""
    found: list[Tensor] = []

    def read(predictions: Predictions | CachedPredictions | None) -> None:
        if isinstance(predictions, VocabularyPredictions):
            rows = one.output_rows
            assert rows is not None
            found.append(predictions.hidden.flatten(0, 1)[rows])
        else:
            assert isinstance(predictions, DensePredictions)
            found.append(predictions.logits)

    if whole:
        teacher(one.inputs, read)
    else:
        teacher.teach(one, read, with_predictions=True, on_state=None)
    return found[0]


def tokens_in_mlps(teacher: FrozenModel) -> list[int]:
    """Of how many tokens each block's MLP puts something out, from now on, in the order in which they run."""
    counts: list[int] = []
    path = teacher.tapped.family.mlp_path
    for block in blocks_of(teacher.tapped.model, teacher.tapped.family) if path is not None else ():
        begins = block.get_submodule(str(path))
        begins.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[:-1].numel()))
    return counts


@pytest.mark.parametrize(("name", "classify", "config"), CASES, ids=str)
def test_what_is_read_is_that_of_the_whole_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classify: bool, config: dict[str, Any]
) -> None:
    teacher, one = teacher_of(tmp_path, name, classify=classify, **config), labelled(name, classify=classify)
    counts = tokens_in_mlps(teacher)
    # torch multiplies experts, which always run whole, in at most 32 bits
    for dtype in [*CLOSE][: 1 if name in WHOLE else None]:
        teacher.tapped.to(dtype)
        expected = said(teacher, one, whole=True)
        with monkeypatch.context() as patch:
            patch.setattr(last_block, "SKIPPED", torch.nan)
            found = said(teacher, one)
        assert (found - expected).abs().max() <= CLOSE[dtype], f"or a token that is left out was read, in {dtype}"
    if name in WHOLE:
        return
    num_read = len(one.labels) if classify else int((one.labels != -100).sum())
    whole = [one.input_ids.numel()] * NUM_BLOCKS
    assert counts == [*whole, *whole[1:], num_read] * len(CLOSE), "outside of a step all of it runs"


def test_every_family_is_known_or_left_as_it_is() -> None:
    assert {name for name in ONE_STACK_TYPES if family_of(name).mlp_path is None} == {"albert"}


@pytest.mark.parametrize(
    ("changes", "layers", "one"),
    [
        ({}, (1, NUM_BLOCKS), "whose last block is matched"),
        ({"chunk_size_feed_forward": 3}, (), "that cuts texts into chunks"),
    ],
    ids=["matched", "chunks"],
)
def test_the_last_block_of_a_model_runs_whole(tmp_path: Path, changes: Any, layers: Any, one: str) -> None:
    teacher = teacher_of(tmp_path, "bert", classify=True, layers=layers, **changes)
    given = labelled("bert", classify=True)
    counts = tokens_in_mlps(teacher)
    said(teacher, given)
    assert sum(counts) == NUM_BLOCKS * given.input_ids.numel(), one


def test_compiled_blocks_and_means_of_texts_run_whole(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, "modernbert", classify=True, classifier_pooling="mean")
    given = labelled("modernbert", classify=True)
    counts = tokens_in_mlps(teacher)
    said(teacher, given)
    assert counts == [given.input_ids.numel()] * NUM_BLOCKS
    model = teacher.tapped.model
    block: Any = blocks_of(model, teacher.tapped.family)[-1]
    block.forward = block.forward  # as torch.compile leaves it
    again = FrozenModel(TappedModel(model, teacher.tapped.family), device=torch.device("cpu"), engine_config=None)
    assert not again._last_block._is_known


def test_batches_of_which_all_or_nothing_is_read_run_whole(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, "llama", classify=False)
    counts = tokens_in_mlps(teacher)
    ids = batch()["input_ids"]
    for labels in (ids, torch.full_like(ids, -100)):
        one = Batch(ids, torch.ones_like(ids), labels, torch.ones_like(ids, dtype=torch.bool))
        teacher.teach(one, lambda _: None, with_predictions=True, on_state=None)
    assert counts == [ids.numel()] * 2 * NUM_BLOCKS


def test_isolated_documents_that_are_joined_into_one_row_are_read_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(tmp_path, "llama", classify=False, dtype=torch.float64)
    teacher.tapped.model.set_attn_implementation(ATTENTION["packed"])
    given = labelled("llama", classify=False)
    positions = torch.arange(9).remainder(5).expand(3, 9).contiguous()
    one = Batch(given.input_ids, given.attention_mask, given.labels, given.kept_tokens, positions, True)
    expected = said(teacher, one, whole=True)
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    counts = tokens_in_mlps(teacher)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float64]
    assert counts[-1] == int((given.labels != -100).sum())


def test_each_choice_of_a_question_is_read_at_its_first_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "bert", blocks=NUM_BLOCKS, labels=["one"], architecture="MultipleChoice")
    model, _ = load_model(tmp_path, LoadSettings(torch.float64), head={"num_labels": 1}, architecture="MultipleChoice")
    choose_among_rows(model, 2)
    teacher = FrozenModel(TappedModel(model, family_of("bert")), device=torch.device("cpu"), engine_config=None)
    ids = torch.randint(5, 90, (4, 7), generator=torch.Generator().manual_seed(2))
    one = Batch(ids, torch.ones_like(ids), torch.tensor([0, 1]), torch.ones_like(ids, dtype=torch.bool))
    expected = said(teacher, one, whole=True)
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float64]


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_electra_reads_choices_where_its_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    write_model(tmp_path, "electra", blocks=NUM_BLOCKS, labels=["one"], architecture="MultipleChoice", summary_type=how)
    model, _ = load_model(tmp_path, LoadSettings(torch.float64), head={"num_labels": 1}, architecture="MultipleChoice")
    choose_among_rows(model, 2)
    teacher = FrozenModel(TappedModel(model, family_of("electra")), device=torch.device("cpu"), engine_config=None)
    counts = tokens_in_mlps(teacher)
    ids = torch.randint(5, 90, (4, 7), generator=torch.Generator().manual_seed(2))
    one = Batch(ids, torch.ones_like(ids), torch.tensor([0, 1]), torch.ones_like(ids, dtype=torch.bool))
    expected = said(teacher, one, whole=True)
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float64]
    assert counts[-1] == (4 if how == "first" else ids.numel())


def test_a_released_model_is_gone_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "bert", blocks=NUM_BLOCKS, labels=[*LABELS])
    model, _ = load_model(tmp_path, LoadSettings(torch.float32), head={"num_labels": len(LABELS)})
    teacher = FrozenModel(TappedModel(model, family_of("bert")), device=torch.device("cpu"), engine_config=None)
    said(teacher, labelled("bert", classify=True))
    weight = weakref.ref(next(model.parameters()))
    del model
    gc.disable()
    try:
        teacher.release()
        assert weight() is None
    finally:
        gc.enable()


def test_words_and_answers_are_read_at_all_tokens(tmp_path: Path) -> None:
    for architecture in ("TokenClassification", "QuestionAnswering"):
        folder = tmp_path / architecture
        write_model(folder, "bert", blocks=NUM_BLOCKS, labels=[*LABELS], architecture=architecture)
        model, _ = load_model(folder, LoadSettings(torch.float32), head={"num_labels": 2}, architecture=architecture)
        tapped = TappedModel(model, family_of("bert"), pooled=False)
        teacher = FrozenModel(tapped, device=torch.device("cpu"), engine_config=None)
        counts = tokens_in_mlps(teacher)
        given = labelled("bert", classify=True)
        said(teacher, given)
        assert counts == [given.input_ids.numel()] * NUM_BLOCKS


def test_predictions_are_compared_beyond_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all answers of a chat are compared, and the last one alone is learned."""
    teacher, given = teacher_of(tmp_path, "llama", classify=False), labelled("llama", classify=False)
    predicted = given.kept_tokens & (torch.arange(9) % 4 != 0)
    one = Batch(given.input_ids, given.attention_mask, given.labels, given.kept_tokens, predicted=predicted)
    expected, counts = said(teacher, one, whole=True), tokens_in_mlps(teacher)
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float32]
    assert counts[-1] == int((predicted | (given.labels != -100)).sum()) < given.input_ids.numel()


def test_a_teacher_behind_lent_states_reads_as_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, one = teacher_of(tmp_path, "llama", classify=False), labelled("llama", classify=False)
    expected = said(teacher, one, whole=True)
    student, _ = load_model(tmp_path, LoadSettings(torch.float32), head=None, architecture="CausalLM")
    lends = TappedModel(student, family_of("llama"))
    counts = tokens_in_mlps(teacher)
    teacher.begin_behind(2, PrefixStates(lends, [2]))
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    lends(one.inputs)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float32]
    assert counts == [one.input_ids.numel(), int((one.labels != -100).sum())]


def test_a_last_block_in_8_bits_reads_as_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPTIONAL.is_dir(), MISSING
    monkeypatch.syspath_prepend(OPTIONAL)
    write_model(tmp_path, "llama", blocks=NUM_BLOCKS)
    model, _ = load_model(tmp_path, LoadSettings(torch.float32), head=None, architecture="CausalLM")
    tapped = TappedModel(model, family_of("llama"))
    quantise_blocks(tapped.model, tapped.family, torch.device("cpu"))
    teacher = FrozenModel(tapped, device=torch.device("cpu"), engine_config=None)
    one = labelled("llama", classify=False)
    expected, counts = said(teacher, one, whole=True), tokens_in_mlps(teacher)
    monkeypatch.setattr(last_block, "SKIPPED", torch.nan)
    assert (said(teacher, one) - expected).abs().max() <= CLOSE[torch.float32]
    assert counts[-1] == int((one.labels != -100).sum())
