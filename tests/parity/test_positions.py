"""Positions of a text in any batch, against those that transformers gives the text alone: behind padding, by length."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ted_ds.data.loader import Batch, Collator
from ted_ds.data.packing import pack
from ted_ds.data.samples import Sample
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.positions import choose_by_text, positions_in_row
from ted_ds.models.taps import TappedModel
from tests.tiny import LABELS, MAX_POSITIONS, VOCAB_SIZE, model_config, write_model

LONGEST_SHORT = 8
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 3.0, 2.0, 5.0],
    "original_max_position_embeddings": LONGEST_SHORT,
    "factor": 8.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
RULES = [(name, rope) for name in ("llama", "mistral", "qwen2", "qwen3") for rope in (LONGROPE, DYNAMIC)]
RULES += [(name, {**LONGROPE, "partial_rotary_factor": 1.0}) for name in ("phi3", "gpt_neox")]
BEHIND_PADDING = tuple(name for name, family in FAMILY_OF.items() if family.padding_row is not None)
LENGTHS = (LONGEST_SHORT - 1, LONGEST_SHORT, LONGEST_SHORT + 1, 3, 20)
TOLERANCE = {"rtol": 0, "atol": 1e-6}  # cosines are computed in fp32; other frequencies change logits by 1e-2


def plain_model(model_type: str, rope: dict[str, Any], *, classify: bool = False, **changes: Any) -> Any:
    auto: Any = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # a copy, which configs write into
        config = model_config(model_type, blocks=2, num_labels=3, rope_parameters={**rope}, **changes)
        return auto.from_config(config).double().eval()


def plain_encoder(model_type: str, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = model_config(model_type, blocks=2, num_labels=3, **changes)
        return AutoModelForSequenceClassification.from_config(config).double().eval()


def texts_of(*lengths: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(5, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def read(model: TappedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch.inputs)[0]


@pytest.mark.parametrize("multiple_of", [1, 16])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("model_type", "rope"), RULES, ids=lambda one: one if isinstance(one, str) else one["rope_type"]
)
def test_a_text_has_the_positions_it_has_alone(model_type: str, side: Any, multiple_of: int, rope: Any) -> None:
    plain, tapped = (plain_model(model_type, rope, classify=True) for _ in range(2))
    texts = texts_of(*LENGTHS)
    model = TappedModel(tapped, family_of(model_type))
    for rows in (texts, texts[:2], texts[::-1], texts[3:4]):  # also after longer and shorter ones
        batch = Collator(0, "class", side=side, multiple_of=multiple_of)([Sample(ids, 0) for ids in rows])
        expected = torch.stack([alone(plain, ids) for ids in rows])
        torch.testing.assert_close(read(model, batch), expected, **TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("model_type", "windows"),
    [
        ("mistral", {"sliding_window": 3}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 2, "layer_types": ["sliding_attention"] * 2}),
    ],
)
def test_a_window_ends_at_the_same_token_as_alone(model_type: str, windows: dict[str, Any], side: Any) -> None:
    plain, tapped = (plain_model(model_type, LONGROPE, classify=True, **windows) for _ in range(2))
    texts = texts_of(*LENGTHS)
    batch = Collator(0, "class", side=side, multiple_of=8)([Sample(ids, 0) for ids in texts])
    expected = torch.stack([alone(plain, ids) for ids in texts])
    torch.testing.assert_close(read(TappedModel(tapped, family_of(model_type)), batch), expected, **TOLERANCE)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_document_of_a_packed_row_has_the_positions_it_has_alone(model_type: str) -> None:
    plain, tapped = (plain_model(model_type, LONGROPE) for _ in range(2))
    sequences = pack(texts_of(3, 11, 1, 0, 7, 12, 0, 25, 8), length=24, separator=1)
    samples = [Sample(ids, document_lengths=pieces) for ids, pieces in sequences]
    batch = Collator(0, "tokens", isolate_documents=True)(samples)
    logits = read(TappedModel(tapped, family_of(model_type)), batch)
    lengths = [length for sample in samples for length in sample.document_lengths]
    assert min(lengths) == 1
    assert min(lengths) <= LONGEST_SHORT < max(lengths)
    for row, sample in enumerate(samples):
        start = 0
        for length in sample.document_lengths:
            expected = alone(plain, sample.input_ids[start : start + length])
            torch.testing.assert_close(logits[row, start : start + length], expected, **TOLERANCE)
            start += length


@pytest.mark.parametrize("pad_id", [0, 1, 7])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", BEHIND_PADDING)
def test_positions_begin_behind_the_padding_whatever_fills_rows(model_type: str, side: Any, pad_id: int) -> None:
    """A text may hold the id of its model's own padding, and rows may be filled with another one."""
    plain, tapped = (plain_encoder(model_type, pad_token_id=1) for _ in range(2))
    texts = texts_of(9, 4, 6)
    texts[1][2] = 1
    samples = [Sample(ids, 0) for ids in texts]
    batch = Collator(pad_id, "class", side=side, multiple_of=8)(samples)
    hidden = []
    model = TappedModel(tapped, family_of(model_type), [0, 2])
    with torch.no_grad():
        model(batch.inputs, lambda _, states: hidden.extend(states))
        for row, ids in enumerate(texts):
            alone_states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for state, layer in zip(hidden, (0, 2), strict=True):
                torch.testing.assert_close(state[row][batch.kept_tokens[row]], alone_states[layer][0], **TOLERANCE)


@pytest.mark.parametrize("model_type", BEHIND_PADDING)
def test_the_longest_text_has_a_row_of_the_table_for_each_token(tmp_path: Path, model_type: str) -> None:
    facts = read_model_facts(write_model(tmp_path, model_type, blocks=2, labels=LABELS))
    row = 1 if model_type == "mpnet" else 0  # MPNet's is always the same, whatever its config says
    assert facts.max_positions == MAX_POSITIONS - row - 1
    model = TappedModel(plain_encoder(model_type, pad_token_id=0), family_of(model_type))
    ids = torch.tensor(texts_of(facts.max_positions + 1))
    with torch.no_grad():
        model({"input_ids": ids[:, 1:], "attention_mask": torch.ones_like(ids[:, 1:])})
        with pytest.raises((IndexError, RuntimeError)):
            model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_transformers_itself_lets_the_longest_text_choose() -> None:
    # else the tests above could not fail
    plain = plain_model("llama", LONGROPE, classify=True)
    texts = texts_of(3, 20)
    batch = Collator(0, "class")([Sample(ids, 0) for ids in texts])
    with torch.no_grad():
        together = plain(**batch.inputs).logits
    assert (together[0] - alone(plain, texts[0])).abs().max() > 1e-3


def test_the_choice_is_made_for_each_type_of_layer() -> None:
    class Rotary(torch.nn.Module):
        """As of models whose layers rotate in two ways."""

        rope_type = {"full_attention": "longrope", "sliding_attention": "default"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            settings = {"full_attention": LONGROPE, "sliding_attention": {}}
            self.config = type("Config", (), {"rope_parameters": settings})()
            self.asked: list[tuple[str, int]] = []

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str) -> tuple[torch.Tensor, ...]:
            longest = int(position_ids.max()) + 1
            self.asked.append((layer_type, longest))
            factor = 100.0 if layer_type == "full_attention" and longest > LONGEST_SHORT else 1.0
            rotated = (position_ids * factor).unsqueeze(-1)
            return rotated, -rotated

    rotary = Rotary()
    assert choose_by_text(torch.nn.ModuleList([rotary]))
    positions = torch.tensor([[0, 1, 2, 0, *range(1, 10)]])
    full, negative = rotary(torch.zeros(1), positions, layer_type="full_attention")
    assert full.flatten().tolist() == [0, 1, 2, *(100.0 * place for place in range(10))]
    assert torch.equal(negative, -full)
    sliding, _ = rotary(torch.zeros(1), positions, layer_type="sliding_attention")
    assert sliding.flatten().tolist() == positions.flatten().tolist()
    assert rotary.asked[-1] == ("sliding_attention", 10)


def test_models_without_the_choice_are_left_alone() -> None:
    for model_type, rope in (("llama", DYNAMIC), ("qwen2", {"rope_type": "default", "rope_theta": 10000.0})):
        model = plain_model(model_type, rope)
        assert not choose_by_text(model)
        assert "forward" not in vars(model.model.rotary_emb)


def test_positions_in_a_row_are_those_without_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    assert positions_in_row(mask).tolist() == [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]]
