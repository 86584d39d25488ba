"""Folders with an adapter alone: planned as what they will be, merged as peft merges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ted_ds.errors import CheckpointError
from ted_ds.models import merging
from ted_ds.models.adapter_folder import read_adapter, tokenizer_folder
from ted_ds.models.adapters import save_adapters
from ted_ds.models.files import read_model_facts
from ted_ds.models.merging import whole_model
from tests.parity.test_adapters import adapted, auto, logits
from tests.tiny import ENCODER_DECODERS, LABELS, write_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging.constants, "HF_HOME", str(tmp_path / "cache"))


def write_adapter(folder: Path, family: str, labels: Any, *, base: str = "base") -> tuple[Path, torch.Tensor]:
    """An adapter beside its base, which it calls by its name, and its logits."""
    model = adapted(write_model(folder / "base", family, labels=labels), labels, None)
    (folder / "adapter").mkdir()
    state = {name: one.detach() for name, one in model.named_parameters()}
    save_adapters(model, state, folder / "adapter", base=base)
    return folder / "adapter", logits(model)


@pytest.mark.parametrize(
    ("family", "labels"),
    [
        *(("llama", None), ("gpt2", None), ("bert", LABELS), ("qwen2", LABELS)),
        *(("roberta", LABELS), ("t5", None), ("bart", None)),
    ],
)
def test_it_is_merged_with_the_logits_of_peft(tmp_path: Path, family: str, labels: Any) -> None:
    folder, expected = write_adapter(tmp_path, family, labels)
    architecture = "CausalLM" if labels is None else "SequenceClassification"
    architecture = "Seq2SeqLM" if family in ENCODER_DECODERS else architecture
    whole = whole_model(folder, architecture)
    assert whole == whole_model(folder, architecture)  # it is there
    model, report = auto(family, labels).from_pretrained(whole, output_loading_info=True)
    assert not {*report["missing_keys"], *report["unexpected_keys"]}
    torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-5, atol=3e-6)  # rounded elsewhere
    transformers.AutoTokenizer.from_pretrained(whole)
    planned, found = read_model_facts(folder), read_model_facts(whole)
    assert (planned.num_blocks, planned.parameters.total) == (found.num_blocks, found.parameters.total)
    assert (planned.has_classifier, planned.num_labels) == (found.has_classifier, found.num_labels)


def test_another_adapter_is_another_model(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path, "llama", None)
    first = whole_model(folder, "CausalLM")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    assert whole_model(folder, "CausalLM") != first


def test_a_base_is_found_by_its_path_and_tokenizers_where_they_are(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path, "llama", None, base=str(tmp_path / "base"))
    moved = folder.rename(tmp_path / "elsewhere")
    found = read_adapter(moved)
    assert found is not None
    assert found.base == tmp_path / "base"
    assert tokenizer_folder(moved) == tmp_path / "base"
    (moved / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(moved) == moved
    assert read_adapter(tmp_path / "base") is None


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path, "llama", None)
    write_model(tmp_path / "base", "llama", hidden=8)
    with pytest.raises(CheckpointError) as caught:
        whole_model(folder, "CausalLM")
    assert str(caught.value).startswith(f"{folder}: this adapter cannot be merged into {tmp_path / 'base'}: ")
    assert str(caught.value).endswith("; use the base it was trained beside")
    assert not [*tmp_path.glob("cache/ted_ds/*")]  # nothing half done is left


def test_nothing_but_an_adapter_is_merged(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama")
    assert whole_model(base, "CausalLM") == base
