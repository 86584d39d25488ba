"""Adapters merged, and as peft loads them: the same logits as the student that was trained, in plain libraries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.adapters import (
    NAME,
    AdapterSettings,
    add_adapters,
    has_adapters,
    merged_state,
    save_adapters,
    without_adapters,
)
from ted_ds.models.families import KNOWN_TYPES, family_of
from ted_ds.models.family import Family
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.planning.adapters import adapter_sizes
from tests.optional import use_peft
from tests.tiny import ENCODER_DECODERS, ENCODERS, LABELS, write_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
FAMILIES = [
    ("llama", None, None),
    ("llama", None, ["q_proj", "mlp.up_proj"]),
    ("qwen2", LABELS, ["v_proj"]),
    ("gpt2", None, None),
    ("gpt2", LABELS, ["c_attn"]),
    ("bert", LABELS, None),
    ("deberta-v2", LABELS, ["dense"]),
    ("albert", LABELS, None),
    ("modernbert", LABELS, ["Wqkv"]),
    ("gpt_neox", None, None),
    ("roberta", LABELS, ["query"]),  # whose head for texts has another within it
    ("qwen3_moe", None, None),  # with a block that has no experts
    ("t5", None, None),
    ("t5", None, ["q", "DenseReluDense.wo"]),
    ("bart", None, ["fc1", "encoder_attn.v_proj"]),
]
TRIED = {family for family, *_ in FAMILIES}
OTHERS = [name for name in KNOWN_TYPES if name not in TRIED]
FAMILIES += [pytest.param(name, LABELS if name in ENCODERS else None, None, marks=pytest.mark.slow) for name in OTHERS]


def adapted(folder: Path, labels: Any, targets: Any, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with adapters, and a head, as after some training."""
    use_peft()
    head = None if labels is None else {"num_labels": len(labels)}
    is_stacked = read_model_facts(folder).family.is_stacked
    architecture = "Seq2SeqLM" if is_stacked else None
    model, fresh = load_model(folder, LoadSettings(dtype), head=head, architecture=architecture)
    return as_trained(model, family_of(model.config.model_type), targets, fresh)


def as_trained(model: PreTrainedModel, family: Family, targets: Any, fresh: Sequence[str] = ()) -> PreTrainedModel:
    """The model, with adapters that are no more what they began as."""
    add_adapters(model, family, AdapterSettings(4, 6, 0.1, targets), fresh)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape) / 5)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **({"decoder_input_ids": IDS.flip(0)} if model.config.is_encoder_decoder else {})).logits


def auto(family: str, labels: Any) -> Any:
    if family in ENCODER_DECODERS:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM if labels is None else transformers.AutoModelForSequenceClassification


@pytest.mark.parametrize(("family", "labels", "targets"), FAMILIES)
def test_merged_and_by_peft_it_says_what_was_trained(tmp_path: Path, family: str, labels: Any, targets: Any) -> None:
    base = write_model(tmp_path / "base", family, labels=labels)
    assert_exports_say_what_was_trained(adapted(base, labels, targets), base, auto(family, labels))


def assert_exports_say_what_was_trained(model: Any, base: Path, auto: Any) -> None:
    """Both, beside the ``base``, by the class that loads it."""
    place, expected = base.parent, logits(model)
    state = {name: one.detach() for name, one in model.named_parameters()}
    model.save_pretrained(place / "merged", state_dict=merged_state(model, state))
    save_adapters(model, state, place / "adapter", base="base")
    merged, report = auto.from_pretrained(place / "merged", output_loading_info=True)
    buffers = {name for name, _ in merged.named_buffers()}  # which transformers may write and not ask for
    assert not {*report["missing_keys"], *report["unexpected_keys"]} - buffers
    assert not has_adapters(merged)
    # (W + BA) x is rounded elsewhere than W x + B (A x): of logits of about 1, worst seen 8e-7; some have larger ones
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-5, atol=3e-6 * largest)
    import peft

    plain = auto.from_pretrained(base)
    assert not torch.equal(logits(plain.eval()), expected)
    loaded = peft.PeftModel.from_pretrained(plain, place / "adapter").eval()
    # the same products; one rounds by where in memory its weights lie (5e-7 seen, of logits of about 1)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6 * largest)
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6, "base")
    assert str(place) not in json.dumps(config)


@pytest.mark.parametrize(("family", "labels", "targets"), FAMILIES)
def test_off_they_are_the_base_to_the_bit_and_nothing_else_trains(
    tmp_path: Path, family: str, labels: Any, targets: Any
) -> None:
    base = write_model(tmp_path / "base", family, labels=labels)
    model = adapted(base, labels, targets)
    with without_adapters(model):
        assert torch.equal(logits(model), logits(auto(family, labels).from_pretrained(base).eval()))
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert all(f".lora_A.{NAME}." in n or f".lora_B.{NAME}." in n or ".modules_to_save." in n for n in trained)
    assert any(".modules_to_save." in name for name in trained) == (labels is not None)
    of_adapters = sum(one.numel() for name, one in trained.items() if ".lora_" in name)
    maps = read_model_facts(base).parameters.maps
    assert of_adapters == sum(adapter_sizes(maps, targets, 4))  # as ted-ds check says


def test_a_merged_weight_in_16_bits_is_rounded_once(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama")
    model = adapted(base, None, ["q_proj"], dtype=torch.bfloat16)
    state = {name: one.detach() for name, one in model.named_parameters()}
    path = "model.layers.1.self_attn.q_proj"
    a, b = (state[f"{path}.lora_{which}.{NAME}.weight"].double() for which in "AB")
    exact = state[f"{path}.base_layer.weight"].double() + 6 / 4 * (b @ a)
    got = merged_state(model, state)[f"{path}.weight"]
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.to(torch.bfloat16))


def test_a_fresh_head_and_what_stands_before_it_train(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "bert")  # a body alone
    use_peft()
    head = {"num_labels": 2}
    model, fresh = load_model(base, LoadSettings(torch.float32), head=head, new_head_allowed=True)
    add_adapters(model, family_of("bert"), AdapterSettings(4, 6, 0.0, ["query"]), fresh)
    trained = {name for name, one in model.named_parameters() if one.requires_grad and ".lora_" not in name}
    assert {name.replace(f".modules_to_save.{NAME}", "") for name in trained} == {*fresh}


def test_a_map_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        adapted(write_model(tmp_path / "base", "llama"), None, ["c_attn"])
    assert str(caught.value) == ("student.lora.targets: no linear map in a block of this llama is called one of c_attn")
