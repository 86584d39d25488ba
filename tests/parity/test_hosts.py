"""Weights in 8 bits predict nearly what they did before; weights that two models share are kept once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import ConfigError
from ted_ds.models import quantised
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of
from ted_ds.models.quantised import quantise_blocks, stored_bytes
from ted_ds.models.taps import TappedModel
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import bytes_held, parameters_held
from tests.optional import MISSING, OPTIONAL
from tests.parity.test_task_terms import batch_of
from tests.task_kinds import OF_NAME
from tests.tiny import LABELS, write_model

CPU = torch.device("cpu")
KINDS = {
    "llama": "causal_lm",
    "gpt2": "causal_lm",
    "gemma2": "causal_lm",
    "opt": "causal_lm",
    "qwen3_moe": "causal_lm",  # of which neither experts nor routers are linear maps to torch
    "bert": "sequence_classification",
    "deberta-v2": "sequence_classification",
    "t5": "seq2seq",
    "bart": "seq2seq",
}


LAYERS_OF_STACKS = ["encoder.2", "encoder.4", "decoder.1", "decoder.3"]
TARGETS = [[18, 19], [20, 21, 22, 23], [24]]


@pytest.fixture
def torchao(monkeypatch):
    """As if it were installed."""
    assert OPTIONAL.is_dir(), MISSING
    monkeypatch.syspath_prepend(OPTIONAL)


def load(folder, kind, dtype=torch.float32):
    task = OF_NAME[kind].task
    head = None if task.has_lm_head else {"num_labels": 2}
    return load_model(folder, LoadSettings(dtype), head=head, architecture=task.architecture)[0]


def logits_and_states(model, family, kind):
    tapped = TappedModel(model, family, LAYERS_OF_STACKS if family.is_stacked else [2, 4]).eval()
    with torch.no_grad():
        logits, states = tapped(batch_of(kind, TARGETS if kind == "seq2seq" else None).inputs)
    return [logits, *states]


@pytest.mark.parametrize("model_type", KINDS)
def test_a_quantised_model_predicts_nearly_the_same_in_less_memory(tmp_path, torchao, model_type):
    kind, family = KINDS[model_type], family_of(model_type)
    labels = None if OF_NAME[kind].task.has_lm_head else LABELS
    write_model(tmp_path, model_type, blocks=4, hidden=64, labels=labels)
    plain = logits_and_states(load(tmp_path, kind), family, kind)
    model = load(tmp_path, kind)
    maps = [one for one in blocks_of(model, family).modules() if isinstance(one, torch.nn.Linear | Conv1D)]
    matrices = [one.weight for one in maps]
    num_in_matrices, before = sum(p.numel() for p in matrices), bytes_held(model)
    num_rows = sum(len(p.t() if model_type == "gpt2" else p) for p in matrices)
    quantise_blocks(model, family, CPU)
    # 3 of 4 bytes are gone, but for a scale and a zero point of 5 bytes a row
    assert before - bytes_held(model) == 3 * num_in_matrices - 5 * num_rows
    assert parameters_held(model) * 4 == before
    for got, wanted in zip(logits_and_states(model, family, kind), plain, strict=True):
        assert 0 < (got - wanted).norm() < 0.04 * wanted.norm()  # worst seen: 0.023


def test_a_quantised_teacher_gives_up_what_no_layer_needs(tmp_path, torchao):
    write_model(tmp_path, "gpt2", blocks=4)
    model, family = load(tmp_path, "causal_lm"), family_of("gpt2")
    quantise_blocks(model, family, CPU)
    frozen = FrozenModel(TappedModel(model, family, [1]), device=CPU, engine_config=None)
    states: dict[int, torch.Tensor] = {}
    inputs = batch_of("causal_lm").inputs
    frozen(inputs, on_state=states.__setitem__, with_predictions=False)
    before = states.pop(0)
    held = frozen.num_parameters_held
    assert frozen.drop_beyond_taps() > 0.5 * held
    frozen(inputs, on_state=states.__setitem__, with_predictions=False)
    assert torch.equal(states[0], before)


def missing(name):
    raise PackageNotFoundError(name)


def test_8_bits_without_torchao_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "version", missing)
    write_model(tmp_path, "gpt2")
    with pytest.raises(
        ConfigError, match=r"torchao 0.18 or newer, which is not installed here: pip install 'ted_ds\[int"
    ):
        quantise_blocks(load(tmp_path, "causal_lm"), family_of("gpt2"), CPU)


def broken():
    raise ImportError("undefined symbol\nmore")


def test_a_torchao_that_does_not_work_is_said(torchao, monkeypatch):
    monkeypatch.setattr(quantised, "_torchao", broken)
    with pytest.raises(ConfigError, match="torchao does not work here: undefined symbol; use another host"):
        quantised.refuse_without_torchao()


def test_bytes_of_a_plain_parameter_are_its_own():
    assert stored_bytes(torch.zeros(3, 5, dtype=torch.bfloat16)) == 30


# --- kept once --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A frozen teacher, and a student of the same weights."""
    write_model(tmp_path, "llama")
    family = family_of("llama")
    teacher = FrozenModel(TappedModel(load(tmp_path, "causal_lm"), family, [4]), device=CPU, engine_config=None)
    return teacher, TappedModel(load(tmp_path, "causal_lm"), family, [4])


def memory_of(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def test_frozen_embeddings_are_kept_once_until_they_are_released(pair):
    teacher, student = pair
    embeddings = student.model.get_input_embeddings().requires_grad_(False)
    inputs = batch_of("causal_lm").inputs
    found = []
    teacher(inputs, lambda predictions: found.append(predictions.hidden.clone()))
    assert teacher.share_with(student) == embeddings.weight.numel()
    assert teacher.share_with(student) == 0  # once is enough
    assert memory_of(teacher._tapped) & memory_of(student) == {embeddings.weight.data_ptr()}
    teacher(inputs, lambda predictions: found.append(predictions.hidden.clone()))
    assert torch.equal(*found)
    teacher.release()
    assert embeddings.weight.numel() > 0


def test_weights_that_train_or_differ_are_not_shared(pair):
    teacher, student = pair
    assert teacher.share_with(student) == 0  # everything trains
    student.requires_grad_(False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1e-3)
    assert teacher.share_with(student) == 0
    student.bfloat16()
    assert teacher.share_with(student) == 0


def test_a_teacher_in_16_bits_hands_over_states_in_32(tmp_path):
    """As those of the student that they are compared with are: rounded once, by the teacher itself."""
    write_model(tmp_path, "llama")
    batch, found = batch_of("causal_lm"), {}
    for name, hands_over in (("own", None), ("handed", torch.float32)):
        tapped = TappedModel(load(tmp_path, "causal_lm", torch.bfloat16), family_of("llama"), [1, 2])
        teacher = FrozenModel(tapped, device=CPU, engine_config=None, hands_over=hands_over)
        states = {}
        teacher.teach(batch, lambda _: None, with_predictions=False, on_state=states.__setitem__)
        found[name] = states
    assert {one.dtype for one in found["own"].values()} == {torch.bfloat16}
    assert {one.dtype for one in found["handed"].values()} == {torch.float32}
    assert all(torch.equal(found["handed"][place], one.float()) for place, one in found["own"].items())
    assert [*found["handed"]] == [0, 1]
