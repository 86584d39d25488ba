"""The invariance matrix of :mod:`tests.distributed.matrix`: every pair of values once; more of them are slow."""

from __future__ import annotations

import itertools

import pytest

from tests.distributed.kept_answers import WAYS
from tests.distributed.matrix import (
    DOCUMENT,
    FACTORS,
    OF_FROZEN_TERMS,
    RENDERED,
    SIZES,
    TOLERANCE,
    Case,
    bounds_in_words,
    full_product,
    is_allowed,
    of_caches,
    of_distances,
    of_divergences,
    of_frozen_blocks,
    of_weighed_losses,
    pair_covered,
    run_cases,
    sample,
    sections_of,
    wide_product,
    wide_sample,
)

CASES = [
    *sample(companies=1),
    *of_divergences(),
    *of_weighed_losses(),
    *of_distances(),
    *of_caches(),
    *of_frozen_blocks(),
]
LOOKED_AT = {"fp32": 1e-5, "bf16": 3e-2}
"""Relative errors of what is looked at beside the losses, and errors of CKA; the worst seen were 4e-7 and 1.3e-2."""
MOST_RANKS, NUM_OF_MOST = max(FACTORS["ranks"]), 3
"""How many cases with the most ranks are not slow."""
LONGER = {case for case in of_divergences() if case.setup.ranks != 2}
"""Which others are: each divergence is held to its plain form in one process by tests/parity/test_divergences.py."""
LONGER |= {case for case in of_frozen_blocks() if case.setup.ranks != 2 or case.setup.stage in (1, 2)}
FULL = full_product()


def check(case: Case, errors) -> None:
    bounds = TOLERANCE[case.setup.precision]
    assert max(errors.terms.values()) <= bounds["loss"], (case, errors)
    assert errors.gradient <= max(bounds["gradient"], 2 * errors.plain), (case, errors)
    assert max(errors.beside.values(), default=0.0) <= LOOKED_AT[case.setup.precision], (case, errors.beside)


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """The sampled cases of one number of ranks that were asked for, run once in one group of processes."""
    here = [item for item in request.session.items if item.path == request.path]
    asked = [item.callspec.params["case"] for item in here if "results" in item.fixturenames]
    made = {}

    def of(world_size):
        if world_size not in made:
            chosen = [case for case in asked if case.setup.ranks == world_size]
            made[world_size] = run_cases(tmp_path_factory.mktemp("matrix"), chosen)
        return made[world_size]

    return of


def marked():
    """The cases, those beyond some with the most ranks slow: many processes share few cores."""
    slow = {*[case for case in CASES if case.setup.ranks == MOST_RANKS][NUM_OF_MOST:], *LONGER}
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in CASES]


@pytest.mark.parametrize("case", marked(), ids=str)
def test_a_batch_gives_the_same_terms_and_gradients(results, case):
    check(case, results(case.setup.ranks)[case])


def test_a_batch_of_a_real_width_does_so_too(tmp_path):
    for case, errors in run_cases(tmp_path, wide_sample()).items():
        check(case, errors)
        assert errors.terms["loss/feature_mse/layer_01"] <= 1e-6  # of 1.5 million squares: 1e-8 seen


def test_the_sample_holds_every_pair_of_values():
    values = [{**case.setup._asdict(), **case.layout._asdict()} for case in CASES]
    for a, b in itertools.combinations(FACTORS, 2):
        for x, y in itertools.product(FACTORS[a], FACTORS[b]):
            if is_allowed({a: x, b: y}):
                assert any(pair_covered(((a, x), (b, y)), one) for one in values), (a, x, b, y)


def test_the_document_shows_this_matrix():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"{bounds_in_words()}, or twice" in text
    sections = sections_of(text)
    assert [*sections] == ["whole", *RENDERED]
    whole, of_disk, of_frozen = sections.values()
    for row in [*of_disk.splitlines(), *of_frozen.splitlines()]:
        if row.startswith(("| cache |", "| what |")):
            worst = [float(cell.replace("–", "0")) for cell in row.split("|")[4:8]]
            bounds = [TOLERANCE[precision][of] for precision in TOLERANCE for of in ("loss", "gradient")]
            assert all(one <= bound for one, bound in zip(worst, bounds, strict=True)), row
    assert of_disk.count("| cache | ") == len(WAYS)
    assert of_frozen.count("| what | ") == len(OF_FROZEN_TERMS)
    rows = whole.splitlines()
    for factor, values in {**FACTORS, "width": (*SIZES,)}.items():
        for value in values:
            (row,) = (row for row in rows if row.startswith(f"| {factor.replace('_', ' ')} | {value} |"))
            *worst, plain = (float(cell.replace("–", "0")) for cell in row.split("|")[4:9])
            bounds = [TOLERANCE[precision][of] for precision in TOLERANCE for of in ("loss", "gradient")]
            bounds[-1] = max(bounds[-1], 2 * plain)
            assert all(one <= bound for one, bound in zip(worst, bounds, strict=True)), row


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pair
        for pair in itertools.product(FACTORS["stage"], FACTORS["precision"])
        if is_allowed(dict(zip(("stage", "precision"), pair, strict=True)))
    ],
)
@pytest.mark.parametrize("world_size", FACTORS["ranks"])
def test_the_full_product(tmp_path, world_size, stage, precision):
    chosen = [
        case
        for case in FULL
        if (case.setup.ranks, case.setup.stage, case.setup.precision) == (world_size, stage, precision)
    ]
    for case, errors in run_cases(tmp_path, chosen, timeout_s=1500).items():
        check(case, errors)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", FACTORS["ranks"])
def test_every_pair_of_values_in_other_company(tmp_path, world_size):
    chosen = [case for case in sample() if case.setup.ranks == world_size and case not in CASES]
    for case, errors in run_cases(tmp_path, chosen, timeout_s=1500).items():
        check(case, errors)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", FACTORS["ranks"])
def test_every_pair_of_values_at_a_real_width(tmp_path, world_size):
    chosen = [case for case in wide_product() if case.setup.ranks == world_size]
    for case, errors in run_cases(tmp_path, chosen, timeout_s=1500).items():
        check(case, errors)
