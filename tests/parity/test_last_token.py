"""The token that a decoder's label is read at: transformers' own, one text at a time, by whatever a batch is padded."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample
from ted_ds.models.families import family_of
from ted_ds.models.heads import classification_probes
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, pool
from tests.plain import probe_logits
from tests.tiny import DECODERS_WITH_LABELS, IN_ALL_WAYS, model_config

EOS, UNK = 1, 2
ENDED = [[7, 9, 30, EOS], [8, EOS], [11, 12, 13, 14, 15, EOS, EOS]]
WITH_ENDS_INSIDE = [[EOS, 7, EOS, 9, 30], [8, UNK], [UNK], [11, EOS, EOS]]
NOTHING_ELSE = [[EOS, EOS, EOS], [7, 8, 9, 10], [EOS]]
TEXTS = {"ended": ENDED, "ends inside": WITH_ENDS_INSIDE, "nothing else": NOTHING_ELSE}


# of the model, and what batches are padded with
IDS = [(None, EOS), (EOS, EOS), (0, 0), (UNK, UNK), (None, 7), (EOS, 0)]
CASES = [
    pytest.param(name, *ids, side, texts, id=f"{name}-{ids}-{side}-{kind}")
    for name in DECODERS_WITH_LABELS
    for number, (ids, side, (kind, texts)) in enumerate(itertools.product(IDS, ("right", "left"), TEXTS.items()))
    if name in IN_ALL_WAYS or number % 7 == 0
]


def plain_model(model_type: str, pad_id: int | None) -> Any:
    of_experts = {"experts_implementation": "eager"}  # the only one that knows fp64
    config = model_config(model_type, blocks=2, num_labels=3, pad_token_id=pad_id, **of_experts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    # eager attention masks with the lowest number of fp32, whatever the dtype, which is no infinity there alone
    return model if model.config._attn_implementation == "eager" else model.double()


def alone(model: Any, texts: list[list[int]]) -> Tensor:
    """Transformers' logits of each text, one at a time."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits for ids in texts])


def collated(texts: list[list[int]], pad_id: int, side: Any) -> Batch:
    return Collator(pad_id, "class", side=side, multiple_of=3)([Sample(ids, 0) for ids in texts])


@pytest.mark.parametrize(("model_type", "own_id", "pad_id", "side", "texts"), CASES)
def test_a_label_is_read_where_transformers_reads_it_of_a_text_alone(
    model_type: str, own_id: int | None, pad_id: int, side: Any, texts: list[list[int]]
) -> None:
    model = plain_model(model_type, own_id)
    expected = alone(model, texts)
    with torch.no_grad():
        logits, _ = TappedModel(model, family_of(model_type))(collated(texts, pad_id, side).inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)  # cosines in fp32


def test_transformers_itself_reads_another_token_of_a_batch() -> None:
    # else the tests above could not fail
    model = plain_model("gpt2", None)
    expected = alone(model, ENDED)
    model.config.pad_token_id = EOS
    with torch.no_grad():
        logits = model(**collated(ENDED, EOS, "right").inputs).logits
    assert (logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("own_id", [None, EOS, UNK])
def test_filters_read_the_token_that_the_model_reads(own_id: int | None, side: Any, texts: list[list[int]]) -> None:
    # heads that are the model's own, on filters that change nothing, behind the last block
    model = plain_model("llama", own_id)
    tapped = TappedModel(model, family_of("llama"), [2])
    bank = FilterBank([2], 16, 16, initialisation="identity").double()
    probes = classification_probes(
        bank, dim=16, num_labels=3, pooling=tapped.pooled_token, unread_id=tapped.unread_id
    ).double()
    probes.heads[0] = torch.nn.Sequential(model.model.norm, model.score)
    inputs = collated(texts, EOS, side).inputs
    with torch.no_grad():
        logits, states = tapped(inputs)
        (probed,) = probe_logits(probes, states, inputs)
    torch.testing.assert_close(probed, logits, rtol=1e-12, atol=1e-12)


def test_the_mean_and_the_first_token_know_no_unread_ids() -> None:
    features = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    unread = torch.tensor([[True, False, True, False], [False, True, True, True]])
    pooled = {how: pool(features, mask, how=how, unread=unread).flatten().tolist() for how in ("first", "mean", "last")}
    assert pooled == {"first": [0.0, 5.0], "mean": [1.0, 6.0], "last": [1.0, 5.0]}
