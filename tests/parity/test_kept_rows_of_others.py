"""What DistillKit and axolotl kept comes out as it was put in, teaches what its numbers say, or is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ted_ds.config.kept_rows import KeptRows
from ted_ds.data.samples import Sample
from ted_ds.data.token_rows import TokenRow, places_of, read_tokens, sample_of
from ted_ds.numerics import chunks, vocabulary
from ted_ds.numerics.divergences import make_divergence
from ted_ds.numerics.teacher_predictions import KeptPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.teacher_cache.axolotl import OfAxolotl
from ted_ds.teacher_cache.distillkit import Compression, OfDistillKit
from ted_ds.teacher_cache.given_predictions import Given, UnreadableRow, Wanted, hits, seem_shifted, taken
from tests.kept_rows import axolotl_row, bits, compression, distillkit_row, id_bits, packed_logs, renormalised
from tests.plain import DIVERGENCES, plain_divergence

VOCAB, K = 37, 6
BINS = [
    {"scale_dtype": "float16", "element_bits": 8, "num_elements": 3},
    {"scale_dtype": "float32", "element_bits": 3, "num_elements": 2},
    {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 1},
]
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "bf16": {"exact_dtype": "bfloat16"},
    "fp16, deltas": {"exact_dtype": "float16", "delta_encoding": True},
    "fp64": {"exact_dtype": "float64"},
    "polynomial": {"exact_k": 2, "polynomial_terms": [0, 1, 2, "sqrt"], "exact_dtype": "bfloat16"},
    "polynomial from 0 to 1": {"exact_k": 1, "polynomial_terms": [0, "exp"], "normalize_t": True},
    "fp16 terms, no exact one": {"exact_k": 0, "polynomial_terms": [0, 3], "term_dtype": "float16"},
    "bins alone": {"exact_k": 0, "residual_bins": BINS, "delta_encoding": True},
    "all": {"exact_k": 1, "polynomial_terms": [0, 1], "residual_bins": BINS[:2], "error_diffusion": True},
}


@pytest.mark.parametrize("num_ids", [2, 37, 128, 129, 65536, 151_936])
@pytest.mark.parametrize("way", WAYS)
def test_distillkits_bytes_come_out_as_they_were_put_in(way, num_ids):
    how = compression(num_ids, K, **WAYS[way])
    generator = np.random.default_rng(0)
    ids, logs, packed, packed_ids = [], [], [], []
    for place in range(4):
        exact = (-generator.random(how["exact_k"]) * 9).tolist()
        terms = (-generator.random(len(how["polynomial_terms"] or ())) / 7).tolist()
        bins = [
            (float(generator.random()), generator.integers(0, 2 ** one["element_bits"], one["num_elements"]).tolist())
            for one in how["residual_bins"]
        ]
        own, left = packed_logs(how, exact, terms, bins)
        packed.append([*own])
        logs.append(left)
        ids.append([(place * 31 + 7 * one) % num_ids for one in range(K - 1)] + [num_ids - 1])
        packed_ids.append([*bits(ids[-1], id_bits(num_ids))])
    found = OfDistillKit(Compression(**how))({"compressed_logprobs": packed, "bytepacked_indices": packed_ids})
    assert found.ids.tolist() == ids
    np.testing.assert_allclose(found.logs, logs, rtol=1e-12, atol=1e-12)


def test_distillkits_own_figures():
    """The bytes of a token by two settings in its README, which says about 300 and about 114."""
    recommended = compression(
        151_936, 128, exact_k=16, exact_dtype="bfloat16", polynomial_terms=[0, 1, 2, 3, 4, "sqrt"]
    )
    budget = compression(128_256, 50, exact_k=1, exact_dtype="bfloat16", polynomial_terms=[0, 1, "sqrt"])
    assert sum(Compression(**recommended).sizes) == 344
    assert sum(Compression(**budget).sizes) == 121
    assert sum(Compression(**{**budget, "d": 65_536}).sizes) == 114


# --- which token is meant, and what is taken --------------------------------------------------------------------------

IDS = [7, 3, 9, 12, 5, 30, 2]


def predictions(count: int, k: int = K, *, seed: int = 0) -> list[tuple[list[int], list[float]]]:
    """Of tokens from the second on."""
    generator = torch.Generator().manual_seed(seed)
    logs = (torch.randn(count, VOCAB, generator=generator, dtype=torch.float64) * 3).log_softmax(-1)
    top = logs.topk(k, dim=-1)
    return [*zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def wanted(form: str, *, num_kept: int = K, temperature: float = 1.0, **settings: Any) -> Wanted:
    return Wanted(KeptRows(format=form, **settings), num_kept, VOCAB, temperature, of_completions=True)


def read(row: dict[str, Any], *, length: int = 99) -> tuple[TokenRow, Sample]:
    tokens = read_tokens(row)
    (sample,) = sample_of(tokens, num_ids=VOCAB, padding=0, length=length)
    return tokens, sample


def take(reads: Any, row: dict[str, Any], what: Wanted, *, length: int = 99) -> Given:
    return taken(reads(row), *read(row, length=length), what)


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("ends", ["one less", "as many"])
def test_distillkits_places_are_of_the_token_behind(left, ends):
    """With padding before and behind, a prompt, and a row that is cut."""
    said = predictions(len(IDS) - 1)
    how = compression(VOCAB, K, exact_dtype="float64")
    nothing = ([*range(K)], [-1.0] * K)
    padded = [0] * left + IDS + [0]
    of_places = [nothing] * left + said + [nothing] * (1 + (ends == "as many"))
    labels = [-100] * (left + 3) + IDS[3:] + [-100]
    mask = [0] * left + [1] * len(IDS) + [0]
    row = distillkit_row(padded, of_places, how, labels=labels, attention_mask=mask)
    reads = OfDistillKit(Compression(**how))
    tokens, sample = read(row)
    assert [*sample.input_ids] == IDS
    assert places_of(sample, alone=True).tolist() == [3, 4, 5, 6]
    got = take(reads, row, wanted("distillkit"))
    assert got.ids.tolist() == [said[place - 1][0] for place in (3, 4, 5, 6)]
    np.testing.assert_allclose(got.logs[:, :-1], [said[place - 1][1] for place in (3, 4, 5, 6)])
    rest = [math.log(1 - sum(map(math.exp, said[place - 1][1]))) for place in (3, 4, 5, 6)]
    np.testing.assert_allclose(got.logs[:, -1], rest)
    assert len(take(reads, row, wanted("distillkit"), length=5).ids) == 2
    fewer = take(reads, row, wanted("distillkit", num_kept=2))
    assert fewer.ids.tolist() == [said[place - 1][0][:2] for place in (3, 4, 5, 6)]
    np.testing.assert_allclose(np.exp(fewer.logs).sum(-1), 1)
    whole = Wanted(KeptRows(format="distillkit"), K, VOCAB, 1.0, of_completions=False)
    assert len(take(reads, row, whole).ids) == len(IDS) - 1
    assert tokens.start == left


@pytest.mark.parametrize("own", [False, True])
def test_axolotls_places_are_of_the_token_that_the_recipe_says(own):
    said = predictions(len(IDS) - 1)
    labels = [-100, -100, *IDS[2:]]
    row = axolotl_row(IDS, [None, *map(renormalised, said[1:])], labels, own=own)
    assert len(row["target_logprobs"]) == len(IDS)
    row_is_of = "own" if own else "next"
    got = take(OfAxolotl(), row, wanted("axolotl", temperature=2.0, row_is_of=row_is_of))
    assert got.ids.tolist() == [ids for ids, _ in said[1:]]
    np.testing.assert_allclose(got.logs[:, :-1], [renormalised(one, 2.0)[1] for one in said[1:]])
    assert (np.exp(got.logs[:, -1]) == 0).all()
    of_two = Wanted(
        KeptRows(format="axolotl", temperature=2.0, row_is_of=row_is_of), K, VOCAB, 2.0, of_completions=True
    )
    kept_so = take(OfAxolotl(), row, of_two)
    np.testing.assert_allclose(kept_so.logs[:, :-1], [renormalised(one)[1] for one in said[1:]])


def test_places_of_the_other_token_show():
    """Where tokens are among the ids of the place beside, and not among those of their own."""
    ids = [*range(1, 30)]
    said = [([token, 0, 36], [-0.1, -3.0, -4.0]) for token in ids[1:]]
    labels = [-100, *ids[1:]]
    for own in (False, True):
        row = axolotl_row(ids, said, labels, own=own)
        tokens, sample = read(row)
        for right in (False, True):
            what = wanted("axolotl", num_kept=3, row_is_of="own" if own is right else "next")
            here, elsewhere, count = hits(OfAxolotl()(row), tokens, sample, what)
            assert seem_shifted(here, elsewhere, count) is not right
            assert max(here, elsewhere) >= 27
    assert not seem_shifted(1, 15, 15)  # of too few
    assert not seem_shifted(8, 8, 20)
    assert not seem_shifted(0, 3, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["target_logprobs"].pop(), "target_token_ids has 7 places, target_logprobs has 6"),
        (lambda row: row["target_logprobs"][3].pop(), "place 3: target_token_ids has 6, target_logprobs has 5"),
        (
            lambda row: row["target_logprobs"][3].__setitem__(1, math.nan),
            "token 4 of input_ids: the log of a probability is nan",
        ),
        (
            lambda row: row["target_logprobs"][3].__setitem__(1, math.inf),
            "token 4 of input_ids: the log of a probability is inf",
        ),
        (
            lambda row: row["target_logprobs"].__setitem__(2, [0.2] * K),
            "token 3 of input_ids: probabilities add up to 7.328, which is more than 1",
        ),
        (
            lambda row: row["target_token_ids"][2].__setitem__(5, VOCAB),
            "token 3 of input_ids: id 37, and the vocabulary has 37, from 0 on",
        ),
        (lambda row: row["target_token_ids"][2].__setitem__(5, row["target_token_ids"][2][0]), "is there twice"),
        (
            lambda row: row["target_mask"].__setitem__(4, [0] * K),
            "token 5 of input_ids: no prediction; every token that is compared needs one",
        ),
        (
            lambda row: row["target_mask"][4].__setitem__(0, 0),
            r"token 5 of input_ids: 5 ids of 6 \(teacher.cache.top_k\); use top_k: 5 or fewer",
        ),
        (
            lambda row: row["target_logprobs"].__setitem__(4, None),
            "place 4: target_token_ids has 6, target_logprobs has 0",
        ),
        (lambda row: row["target_token_ids"][4].__setitem__(0, "five"), "place 4: .*; ids and logs must be numbers"),
        (
            lambda row: row.pop("target_token_ids"),
            "no predictions in column 'target_token_ids'; it has input_ids, labels, attention_mask, ",
        ),
        (lambda row: row.update(target_mask=3), "target_mask holds 3; it must be a list for each place"),
        (
            lambda row: [row[name].append(row[name][0]) for name in OfAxolotl.columns],
            "predictions at 8 places, and input_ids has 7; they must be as many, or 6",
        ),
        (
            lambda row: [row.__setitem__(name, row[name][:5]) for name in OfAxolotl.columns],
            "predictions at 5 places, and input_ids has 7",
        ),
    ],
)
def test_predictions_that_cannot_be_are_named(change, message):
    row = axolotl_row(IDS, [*map(renormalised, predictions(len(IDS) - 1))], [-100, *IDS[1:]])
    row = {name: [list(one) if isinstance(one, list) else one for one in values] for name, values in row.items()}
    change(row)
    with pytest.raises(UnreadableRow, match=message):
        take(OfAxolotl(), row, wanted("axolotl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row["compressed_logprobs"][3].pop(),
            "compressed_logprobs: place 3 has 23 bytes, and the settings of compression make 24",
        ),
        (
            lambda row: row["bytepacked_indices"][0].append(0),
            "bytepacked_indices: place 0 has 6 bytes, and the settings of compression make 5",
        ),
        (
            lambda row: row["bytepacked_indices"][0].__setitem__(0, 256),
            "bytepacked_indices: .*; it must be a list of bytes for each place",
        ),
        (lambda row: row["bytepacked_indices"].pop(), "bytepacked_indices has 5 places, compressed_logprobs has 6"),
        (
            lambda row: row.update(compressed_logprobs="AAAA"),
            "compressed_logprobs holds 'AAAA'; it must be a list of bytes",
        ),
        (lambda row: row.pop("compressed_logprobs"), "no predictions in column 'compressed_logprobs'"),
    ],
)
def test_bytes_that_cannot_be_are_named(change, message):
    how = compression(VOCAB, K)
    row = distillkit_row(IDS, predictions(len(IDS) - 1), how)
    change(row)
    with pytest.raises(UnreadableRow, match=message):
        take(OfDistillKit(Compression(**how)), row, wanted("distillkit"))


def test_distillkits_older_format_is_said():
    older = {"input_ids": IDS, "packed_indices": [[1]], "exact_values": [[0.5]], "coeffs": [[0.1]]}
    with pytest.raises(UnreadableRow, match="are of DistillKit's older format, which keeps logits and is not read"):
        OfDistillKit(Compression(**compression(VOCAB, K)))(older)


def test_a_little_more_than_1_is_rounding():
    """Of 16 bits and of polynomials: the rest then has nothing."""
    ids, logs = [1, 2, 3], [math.log(0.7), math.log(0.3), math.log(0.015)]
    row = axolotl_row([5, 6], [(ids, logs)], [-100, 6])
    what = Wanted(KeptRows(format="distillkit"), 3, VOCAB, 1.0, of_completions=True)
    got = taken(OfAxolotl()(row), *read(row), what)
    assert np.exp(got.logs[0, -1]) == 0


# --- what is learned --------------------------------------------------------------------------------------------------


@pytest.fixture
def _many_small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "LEAST_ROWS", 5)
    monkeypatch.setattr(vocabulary, "BLOCK_BYTES", {"cpu": 2 * VOCAB * 8, "cuda": 2 * VOCAB * 8})


def learned(
    given: Given, hidden: Tensor, weight: Tensor, divergence: str, *, among_kept: bool, temperature: float
) -> Any:
    """The divergence as the chunked losses have it, and its gradient by both."""
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    measure = make_divergence(divergence, DIVERGENCES[divergence])
    ids, logs = torch.from_numpy(given.ids), torch.from_numpy(given.logs).to(hidden.dtype)
    teacher = KeptPredictions(ids, logs, temperature, 1.7, VOCAB - 2, measure, among_kept=among_kept)
    labels = torch.zeros(len(hidden)).long()
    sums = vocabulary_losses(*leaves, None, VocabularyTargets(labels, 0.0, teacher, max_chunk_bytes=1))
    return sums[2], torch.autograd.grad(sums[0], leaves)


def plain_learned(
    given: Given, hidden: Tensor, weight: Tensor, divergence: str, *, among_kept: bool, temperature: float
) -> Any:
    """From the numbers of the rows and all of the student's, by torch.distributions, in fp64."""
    leaves = [hidden.double().clone().requires_grad_(), weight.double().clone().requires_grad_()]
    total = leaves[0].sum() * 0
    for row, (ids, logs) in enumerate(zip(given.ids, given.logs, strict=True)):
        q = (F.linear(leaves[0][row], leaves[1])[: VOCAB - 2] / temperature).softmax(-1)
        p = torch.from_numpy(logs).exp()
        if among_kept:
            pair = (p[:-1] / p[:-1].sum(), q[ids] / q[ids].sum())
        else:
            others = torch.ones(VOCAB - 2, dtype=torch.bool)
            others[ids] = False
            pair = (p, torch.cat([q[ids], q[others].sum()[None]]))
        total = total + plain_divergence(divergence, DIVERGENCES[divergence], *(one[None].log() for one in pair)).sum()
    return total, torch.autograd.grad(1.7 * total, leaves)


@pytest.mark.usefixtures("_many_small_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("form", "temperature"), [("distillkit", 1.0), ("axolotl", 1.0), ("axolotl", 2.0)])
def test_what_rows_hold_teaches_what_their_numbers_say(form, temperature, divergence, dtype):
    count, among_kept = 13, form == "axolotl"
    said = [one for one in predictions(2 * count) if max(one[0]) < VOCAB - 2][:count]
    ids = [5] * (len(said) + 1)
    if form == "axolotl":
        row, reads = axolotl_row(ids, [*map(renormalised, said)], [-100, *ids[1:]]), OfAxolotl()
    else:
        how = compression(VOCAB, K, exact_dtype="float64")
        row, reads = distillkit_row(ids, said, how), OfDistillKit(Compression(**how))
    given = take(reads, row, wanted(form, temperature=temperature))
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=torch.float64).to(dtype) for n in (len(said), VOCAB))
    options = {"among_kept": among_kept, "temperature": temperature}
    value, gradients = learned(given, hidden, weight, divergence, **options)
    expected, of_expected = plain_learned(given, hidden, weight, divergence, **options)
    # of each gradient's norm, against fp64 from the same numbers; the worst seen were 1e-15 and 4e-7
    bound = {torch.float64: 1e-12, torch.float32: 5e-6}[dtype]
    assert value.item() == pytest.approx(expected.item(), rel=bound * 10)
    for own, other in zip(gradients, of_expected, strict=True):
        assert float((own.double() - other).norm()) <= bound * float(other.norm())
    if among_kept:
        untouched = [one for one in range(VOCAB) if one not in {int(i) for i in given.ids.flatten()}]
        assert untouched
        assert not gradients[1][untouched].any()
