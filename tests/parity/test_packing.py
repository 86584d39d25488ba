"""Rows of several documents, and padding on either side, against each document alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, modeling_flash_attention_utils

from ted_ds.data import loader
from ted_ds.data.loader import Batch
from ted_ds.data.packing import pack
from ted_ds.data.samples import Sample
from ted_ds.models.document_attention import in_tiles
from ted_ds.models.document_mask import DOCUMENTS, Documents
from ted_ds.models.execution import ATTENTION, checkpoint_activations, compile_blocks
from ted_ds.models.families import family_of
from ted_ds.models.heads import classification_probes
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import IGNORED_LABEL, cross_entropy_sum, kept_labels
from tests.device import DEVICE, of_the_cpu
from tests.plain import probe_logits
from tests.tiny import CAUSAL_LM_TYPES, DECODERS_WITH_LABELS, IN_ALL_WAYS, VOCAB_SIZE, model_config

EOS = 1
PAD = 0


class Collator(loader.Collator):
    """Whose batches are where tests compute."""

    def __call__(self, samples: Any) -> Batch:
        return super().__call__(samples).to(DEVICE)


NUM_BLOCKS = 3
LAYERS = range(NUM_BLOCKS + 1)
IMPLEMENTATIONS = ("sdpa", "eager")
# The worst difference seen, relative to the largest entry: 1e-15 for sdpa in fp64, 5.3e-7 for eager in fp32. (Eager
# attention of all but GPT-2 takes its softmax in fp32 whatever the dtype; the lowest number of fp64, with which it
# masks, is -inf there, and rows of padding are NaN. So it is not compared in fp64.)
DTYPES = {"sdpa": torch.float64, "eager": torch.float32}
TOLERANCES = {"sdpa": 1e-13, "eager": 5e-6}


PADDINGS = [("right", 1), ("left", 1), ("right", 8), ("left", 8)]
IMPLEMENTED = [
    (name, one, side, multiple_of)
    for name in CAUSAL_LM_TYPES
    for one in IMPLEMENTATIONS
    for side, multiple_of in PADDINGS
    if one in family_of(name).attention
    and (name in IN_ALL_WAYS or (side, multiple_of) == (("left", 8) if one == "sdpa" else ("right", 1)))
]
"""How a model attends, and on which side and to a multiple of which length rows are padded."""


def tapped_model(
    model_type: str, implementation: str | None = None, *, classify: bool = False, **changes: Any
) -> TappedModel:
    implementation = implementation or ("sdpa" if "sdpa" in family_of(model_type).attention else "eager")
    # experts in products of groups are not computed in fp64
    how = {"attn_implementation": implementation, "experts_implementation": "eager"}
    config = model_config(model_type, blocks=NUM_BLOCKS, **how, **changes)
    auto: Any = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config).to(DEVICE, DTYPES[implementation]).eval()
    assert model.config._attn_implementation == implementation
    return TappedModel(model, family_of(model_type), LAYERS)


def random_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(5, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def packed_samples() -> list[Sample]:
    """Rows of 13 tokens, with documents of 1 token at the start, in the middle and in a row; the last row is ragged."""
    documents = random_ids(3, 0, 9, 0, 0, 15, 2, 3, 8)
    samples = [Sample(ids, document_lengths=pieces) for ids, pieces in pack(documents, length=13, separator=EOS)]
    assert [list(sample.document_lengths) for sample in samples] == [[4, 1, 8], [2, 1, 1, 9], [7, 3, 3], [1, 9]]
    return samples


def starts_of(batch: Batch) -> list[int]:
    return [int(kept.int().argmax()) if kept.any() else kept.shape[0] for kept in batch.kept_tokens]


def documents_of(samples: list[Sample], batch: Batch) -> Iterator[tuple[int, slice, list[int]]]:
    """Each document's row, place in the row, and tokens."""
    for row, (sample, start) in enumerate(zip(samples, starts_of(batch), strict=False)):
        ids = list(sample.input_ids)
        for length in sample.document_lengths:
            yield row, slice(start, start + length), ids[:length]
            start, ids = start + length, ids[length:]
        assert not ids


@torch.no_grad()
def run(model: TappedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits, then the state of each layer."""
    logits, states = model(inputs)
    assert logits is not None
    return [logits, *states]


def worst_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Over logits and layers, relative to each one's largest entry; NaN where anything is NaN."""
    differences = [(a - b).abs().max() / a.abs().max() for a, b in zip(one, other, strict=True)]
    return torch.stack(differences).max().item()


def differences_from_documents_alone(model: TappedModel, samples: list[Sample], batch: Batch) -> list[float]:
    packed = run(model, batch.inputs)
    return [
        worst_difference(
            run(model, {"input_ids": torch.tensor([ids], device=DEVICE)}),
            [of_rows[row : row + 1, place] for of_rows in packed],
        )
        for row, place, ids in documents_of(samples, batch)
    ]


# --- isolated documents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "implementation", "side", "multiple_of"), IMPLEMENTED)
def test_an_isolated_document_is_to_the_model_as_if_it_were_alone(
    model_type: str, implementation: str, side: Any, multiple_of: int
) -> None:
    model, samples = tapped_model(model_type, implementation), packed_samples()
    collate = Collator(PAD, "tokens", side=side, multiple_of=multiple_of, isolate_documents=True)
    batch = collate([*samples, None])
    assert batch.input_ids.shape == (5, 13 if multiple_of == 1 else 16)
    differences = differences_from_documents_alone(model, samples, batch)
    assert len(differences) == 12
    assert all(one <= TOLERANCES[implementation] for one in differences), max(differences)


@pytest.mark.parametrize(
    ("model_type", "implementation", "side"),
    [(name, one, side) for name, one, side, multiple in IMPLEMENTED if multiple == 1],
)
def test_documents_that_are_not_isolated_do_see_those_before_them(
    model_type: str, implementation: str, side: Any
) -> None:
    model, samples = tapped_model(model_type, implementation), packed_samples()
    batch = Collator(PAD, "tokens", side=side)(samples)
    differences = differences_from_documents_alone(model, samples, batch)
    first_of_row = [place.start == starts_of(batch)[row] for row, place, _ in documents_of(samples, batch)]
    for difference, first in zip(differences, first_of_row, strict=True):
        assert difference <= TOLERANCES[implementation] if first else difference > 0.1


@pytest.mark.parametrize("side", ["right", "left"])
def test_isolation_holds_within_a_sliding_window(side: Any) -> None:
    model, samples = tapped_model("mistral", sliding_window=3), packed_samples()
    wide = tapped_model("mistral")
    batch = Collator(PAD, "tokens", side=side, isolate_documents=True)(samples)
    differences = differences_from_documents_alone(model, samples, batch)
    assert all(one <= TOLERANCES["sdpa"] for one in differences), max(differences)
    assert worst_difference(run(model, batch.inputs), run(wide, batch.inputs)) > 0.1


@pytest.mark.parametrize("isolate", [True, False])
def test_rows_of_one_document_are_the_same_isolated_or_not(isolate: bool) -> None:
    samples = [Sample(ids, document_lengths=[len(ids)]) for ids in random_ids(9, 9, 4)]
    batch = Collator(PAD, "tokens", isolate_documents=isolate)(samples)
    differences = differences_from_documents_alone(tapped_model("llama"), samples, batch)
    assert all(one <= TOLERANCES["sdpa"] for one in differences), max(differences)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_isolation_holds_for_any_lengths(model_type: str, seed: int) -> None:
    generator = random.Random(seed)
    documents = random_ids(*(generator.choice([0, 0, 1, 2, 5, 11, 30]) for _ in range(12)), seed=seed)
    samples = [Sample(ids, document_lengths=pieces) for ids, pieces in pack(documents, length=17, separator=EOS)]
    batch = Collator(PAD, "tokens", side=generator.choice(["left", "right"]), isolate_documents=True)([*samples, None])
    differences = differences_from_documents_alone(tapped_model(model_type), samples, batch)
    assert all(one <= TOLERANCES["sdpa"] for one in differences), max(differences)


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_token_of_a_document_predicts_the_next_and_its_last_one_nothing(side: Any) -> None:
    samples = packed_samples()
    batch = Collator(PAD, "tokens", side=side, multiple_of=8, isolate_documents=True)([*samples, None])
    labelled = torch.zeros_like(batch.kept_tokens)
    for row, place, ids in documents_of(samples, batch):
        assert batch.input_ids[row, place].tolist() == ids
        assert batch.labels[row, place].tolist() == [*ids[1:], IGNORED_LABEL]
        assert batch.position_ids is not None
        assert batch.position_ids[row, place].tolist() == list(range(len(ids)))
        labelled[row, place.start : place.stop - 1] = True
    assert torch.equal(kept_labels(batch.labels), labelled)
    assert kept_labels(batch.labels).sum() == 3 * 13 + 10 - 12


@pytest.mark.parametrize(
    ("model_type", "side"),
    [*((name, "left") for name in CAUSAL_LM_TYPES), *((name, "right") for name in ("llama", "gpt2"))],
)
def test_the_loss_of_isolated_documents_and_its_gradient_are_the_sum_of_theirs(model_type: str, side: Any) -> None:
    model, samples = tapped_model(model_type), packed_samples()
    batch = Collator(PAD, "tokens", side=side, multiple_of=8, isolate_documents=True)([*samples, None])
    alone = Collator(PAD, "tokens")
    batches = {
        "packed": [batch],
        "alone": [alone([Sample(ids)]) for _, _, ids in documents_of(samples, batch)],
        "joined": [alone(samples)],
    }
    losses, gradients = {}, {}
    for name, parts in batches.items():
        model.zero_grad()
        total = sum(
            (cross_entropy_sum(model(part.inputs)[0], part.labels) for part in parts),
            start=torch.zeros((), device=DEVICE),
        )
        total.backward()
        losses[name] = total.item()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    # the worst seen was 8e-16; but the loss is taken in fp32, where a last digit may fall otherwise
    assert losses["packed"] == pytest.approx(losses["alone"], rel=1e-6)
    assert worst_difference([gradients["alone"]], [gradients["packed"]]) < 1e-6
    assert losses["joined"] != pytest.approx(losses["alone"], rel=1e-2)
    assert worst_difference([gradients["alone"]], [gradients["joined"]]) > 1e-2


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "implementation", "side", "multiple_of"), IMPLEMENTED)
def test_padding_on_either_side_leaves_a_text_as_it_is_alone(
    model_type: str, implementation: str, side: Any, multiple_of: int
) -> None:
    model = tapped_model(model_type, implementation)
    samples = [Sample(ids, document_lengths=[len(ids)]) for ids in random_ids(9, 1, 5, 2)]
    batch = Collator(PAD, "tokens", side=side, multiple_of=multiple_of)([*samples, None])
    differences = differences_from_documents_alone(model, samples, batch)
    assert all(one <= TOLERANCES[implementation] for one in differences), max(differences)
    for one in run(model, batch.inputs):
        assert one.isfinite().all()


@pytest.mark.parametrize("isolate_documents", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2"])
def test_rows_of_padding_without_a_key_have_no_gradient(
    model_type: str, implementation: str, isolate_documents: bool
) -> None:
    # left padding comes before all that a causal model may see: such a row of a softmax has nothing to choose from
    samples = [Sample(ids, document_lengths=[len(ids)]) for ids in random_ids(9, 1, 5, 2)]
    gradients = []
    for side in ("left", "right"):
        model = tapped_model(model_type, implementation)
        batch = Collator(PAD, "tokens", side=side, isolate_documents=isolate_documents)([*samples, None])
        logits, _ = model(batch.inputs)
        cross_entropy_sum(logits, batch.labels).backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
        assert all(one.isfinite().all() for one in gradients[-1])
    # of padding, absolute positions have none either way; what is left is rounding
    assert worst_difference(*gradients) <= TOLERANCES[implementation] * 10


def test_absolute_positions_go_wrong_without_position_ids() -> None:
    # transformers counts a row's positions from its padding: left padding is right by the batch's position_ids alone
    model = tapped_model("gpt2")
    samples = [Sample(ids, document_lengths=[len(ids)]) for ids in random_ids(9, 5)]
    batch = Collator(PAD, "tokens", side="left")(samples)
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    row = slice(1, 2)
    alone = run(model, {"input_ids": torch.tensor([samples[1].input_ids], device=DEVICE)})
    assert worst_difference(alone, [one[row, 4:] for one in run(model, batch.inputs)]) <= TOLERANCES["sdpa"]
    assert worst_difference(alone, [one[row, 4:] for one in run(model, inputs)]) > 0.1


@pytest.mark.parametrize(
    ("model_type", "implementation", "side", "multiple_of"),
    [one for one in IMPLEMENTED if one[0] in DECODERS_WITH_LABELS],
)
def test_a_decoder_classifies_a_padded_text_as_it_does_alone(
    model_type: str, implementation: str, side: Any, multiple_of: int
) -> None:
    model = tapped_model(model_type, implementation, classify=True, num_labels=3)
    texts = random_ids(9, 1, 5, 2)
    batch = Collator(PAD, "class", side=side, multiple_of=multiple_of)([*(Sample(ids, 1) for ids in texts), None])
    logits, *states = run(model, batch.inputs)
    assert logits.isfinite().all()
    for row, (ids, start) in enumerate(zip(texts, starts_of(batch), strict=False)):
        alone = run(model, {"input_ids": torch.tensor([ids], device=DEVICE)})
        place = slice(start, start + len(ids))
        padded = [logits[row : row + 1], *(one[row : row + 1, place] for one in states)]
        assert worst_difference(alone, padded) <= TOLERANCES[implementation]


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_a_filters_head_reads_a_text_padded_on_the_left_as_on_the_right(pooling: str) -> None:
    model = tapped_model("gpt2", classify=True, num_labels=3)
    probes = classification_probes(FilterBank(LAYERS, 16, 8), dim=8, num_labels=3, pooling=pooling).to(DEVICE).double()
    samples = [*(Sample(ids, 1) for ids in random_ids(9, 1, 5, 2)), None]
    results = []
    for side in ("right", "left"):
        batch = Collator(PAD, "class", side=side)(samples)
        _, *states = run(model, batch.inputs)
        with torch.no_grad():
            results.append([one[:4] for one in probe_logits(probes, states, batch.inputs)])
            assert all(one.isfinite().all() for one in probe_logits(probes, states, batch.inputs))
    assert worst_difference(*results) <= 1e-12


# --- flash attention --------------------------------------------------------------------------------------------------


def plain_flash(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    """What flash attention computes of ``[batch, seq, heads, width]``, causal, without a mask."""
    assert more["causal"]
    window = more.get("window_size", (-1, -1))[0]
    k, v = (one.repeat_interleave(q.shape[2] // one.shape[2], dim=2) for one in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * more["softmax_scale"]
    softcap = more.get("softcap", 0.0)
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    places = torch.arange(q.shape[1], device=q.device)
    distance = places[:, None] - places
    seen = (distance >= 0) if window < 0 else (distance >= 0) & (distance <= window)
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


class Flash:
    """Stands for the package, which needs a GPU: the same functions, one sequence after the other."""

    def __init__(self) -> None:
        self.borders: list[list[int]] = []

    def whole(self, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        return plain_flash(q, k, v, **settings)

    def varlen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        **settings: Any,
    ) -> Tensor:
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        borders = cu_seqlens_q.tolist()
        self.borders.append(borders)
        parts = [
            plain_flash(*(one[start:end].unsqueeze(0) for one in (q, k, v)), **settings)
            for start, end in itertools.pairwise(borders)
        ]
        return torch.cat(parts, dim=1).squeeze(0)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    """In the place of what transformers would import."""
    package = Flash()

    def settings(**given: Any) -> dict[str, Any]:
        window = given.get("sliding_window")
        size = (-1, -1) if window is None else (window - 1, window - 1)  # as transformers has it
        found = {"softmax_scale": given["softmax_scale"], "causal": given["is_causal"], "window_size": size}
        return {**found, "softcap": given.get("softcap") or 0.0}

    functions = (package.whole, package.varlen, None, None, None)
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *_: (functions, (settings, None))
    )
    return package


@pytest.mark.parametrize("num_rows", [1, 2, 4])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *((model_type, {}) for model_type in CAUSAL_LM_TYPES),
        ("mistral", {"sliding_window": 3}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
    ],
)
def test_flash_attention_keeps_documents_apart_in_every_row(
    flash: Flash, model_type: str, num_rows: int, changes: dict[str, Any]
) -> None:
    model = tapped_model(model_type, **changes)
    samples = packed_samples()[:num_rows]
    batch = Collator(PAD, "tokens", isolate_documents=True)([*samples, None])
    expected = run(model, batch.inputs)
    model.model.config._attn_implementation = "flash_attention_2"
    found = run(model, batch.inputs)
    tolerance = 1e-12 if expected[0].dtype == torch.float64 else TOLERANCES["eager"]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    documents = [length for sample in samples for length in sample.document_lengths]
    padding = batch.kept_tokens.numel() - sum(documents)
    assert len(flash.borders) == NUM_BLOCKS
    assert all(len(borders) == len(documents) + padding + 1 for borders in flash.borders)


def test_flash_attention_of_several_rows_leaks_without_being_joined(flash: Flash) -> None:
    # else the test above could not fail
    model = tapped_model("llama")
    batch = Collator(PAD, "tokens", isolate_documents=True)(packed_samples())
    expected = run(model, batch.inputs)[0]
    model.model.config._attn_implementation = "flash_attention_2"
    with torch.no_grad():
        leaking = model.model(**batch.inputs).logits
    assert not flash.borders
    assert (leaking - expected).abs().max() > 1e-2


# --- borders in the place of masks ------------------------------------------------------------------------------------

PACKED_TYPES = [name for name in CAUSAL_LM_TYPES if "sdpa" in family_of(name).attention]
WINDOWS = [
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
]


@pytest.fixture
def no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a mask over rows fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a mask was made")

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", refuse)
    monkeypatch.setattr("ted_ds.models.joined_rows.mask_of_documents", refuse)


@of_the_cpu  # in fp64 there is no kernel: tests/gpu compares that
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize(("model_type", "changes"), [*((name, {}) for name in PACKED_TYPES), *WINDOWS])
def test_attention_by_borders_is_that_by_masks(
    request: pytest.FixtureRequest, model_type: str, changes: dict[str, Any], num_rows: int, side: Any
) -> None:
    model = tapped_model(model_type, **changes)
    batch = Collator(PAD, "tokens", side=side, isolate_documents=True)([*packed_samples()[:num_rows], None])
    found = {}
    for implementation in ("sdpa", ATTENTION["packed"]):
        model.model.config._attn_implementation = implementation
        if implementation != "sdpa":
            request.getfixturevalue("no_masks")
        model.zero_grad()
        logits, states = model(batch.inputs)
        cross_entropy_sum(logits, batch.labels).backward()
        gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        found[implementation] = [logits.detach(), *(one.detach() for one in states), gradients]
    kept = batch.kept_tokens
    (*by_mask, of_mask), (*by_borders, of_borders) = found.values()
    assert worst_difference([one[kept] for one in by_mask], [one[kept] for one in by_borders]) <= TOLERANCES["sdpa"]
    assert worst_difference([of_mask], [of_borders]) <= 1e-6  # the loss is taken in fp32


def test_borders_are_those_of_positions_and_go_with_the_batch() -> None:
    batch = Collator(PAD, "tokens", isolate_documents=True)([*packed_samples(), None])
    documents = batch.documents
    assert documents is not None
    assert documents.borders.tolist() == [0, 4, 5, 13, 15, 16, 17, 26, 33, 36, 39, 40, 49, *range(50, 66)]
    assert documents.longest == 9
    moved = batch.to(DEVICE).documents
    assert moved is not None
    assert torch.equal(moved.borders, documents.borders)
    again = Documents.from_tensor(batch.inputs[DOCUMENTS])
    assert torch.equal(again.borders, documents.borders)
    assert again.longest == documents.longest
    assert batch.inputs[DOCUMENTS].untyped_storage().nbytes() == documents.borders.untyped_storage().nbytes()
    assert DOCUMENTS not in Collator(PAD, "tokens")(packed_samples()).inputs


def test_heads_that_are_widened_for_the_kernel_attend_as_before() -> None:
    query, key, value = torch.randn(3, 1, 2, 9, 5, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    found = F.scaled_dot_product_attention(
        in_tiles(query), in_tiles(key), in_tiles(value), is_causal=True, scale=5**-0.5
    )
    torch.testing.assert_close(found[..., :5], expected)
    assert found.shape[-1] == in_tiles(found).shape[-1] == 8


def test_without_isolated_documents_it_is_sdpa() -> None:
    model = tapped_model("llama")
    batch = Collator(PAD, "tokens")(packed_samples())
    expected = run(model, batch.inputs)
    model.model.config._attn_implementation = ATTENTION["packed"]
    assert all(map(torch.equal, run(model, batch.inputs), expected))


def test_a_model_of_this_attention_computes_its_activations_again() -> None:
    model = tapped_model("llama").train()
    batch = Collator(PAD, "tokens", isolate_documents=True)(packed_samples())
    model.model.config._attn_implementation = ATTENTION["packed"]
    gradients = []
    for recompute in (False, True):
        if recompute:
            checkpoint_activations(model.model, model.family)
        model.zero_grad()
        cross_entropy_sum(model(batch.inputs)[0], batch.labels).backward()
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
    assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile hides those it makes itself, but not from errors
def test_a_compiled_model_of_this_attention_computes_the_same() -> None:
    model = tapped_model("llama")
    batch = Collator(PAD, "tokens", isolate_documents=True)(packed_samples())
    model.model.config._attn_implementation = ATTENTION["packed"]
    expected = run(model, batch.inputs)
    torch._dynamo.reset()
    compile_blocks(model.model, model.family)
    # 2e-7 was seen: compiled code leaves out that rotary positions are rounded to fp32 on their way
    assert worst_difference(run(model, batch.inputs), expected) <= 1e-6


def test_flash_attention_is_told_the_borders(flash: Flash, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers would look for them on the device, in each block
    monkeypatch.delattr(modeling_flash_attention_utils, "_is_packed_sequence")
    monkeypatch.delattr(modeling_flash_attention_utils, "prepare_fa_kwargs_from_position_ids")
    for model_type in CAUSAL_LM_TYPES:
        model = tapped_model(model_type)
        model.model.config._attn_implementation = "flash_attention_2"
        run(model, Collator(PAD, "tokens", isolate_documents=True)(packed_samples()).inputs)
    assert len(flash.borders) == NUM_BLOCKS * len(CAUSAL_LM_TYPES)
