"""Pipelines of 2 and 3 stages and of 2 x 2 ranks, against ZeRO on one rank and against formulas in one fp64 process."""

from __future__ import annotations

import pytest
import torch

from tests.dist import run_ranks
from tests.distributed.pipelines import (
    FAMILIES,
    MAPS,
    OTHER_DECODERS,
    PLAIN,
    Case,
    Layout,
    plain_train,
    saved_weights,
    train,
    train_with_a_bad_step,
    write_pair,
)

LAYOUTS = (Layout(2, 1, 0), Layout(2, 1, 1), Layout(3, 1, 1), Layout(3, 1, 0), Layout(2, 2, 1), Layout(2, 2, 0))
CLIPPING = 0.05
TOLERANCE = 1e-5
"""Relative, of fp32: loss terms each, gradients and weights by their largest number."""
SMALLEST = 1e-7
"""What is left of a KL between predictions that nearly agree is a difference of much larger numbers."""


PASSED_ON = "layer_map.pairs=[[1, 8], [4, 8]]"
STAGE_ONE = ("filters_teacher", "filters_student", "filters_both")
WEIGHED = ("task.class_weights=[0.3, 1.9]", "task.label_smoothing=0.2")
JSD_AND_COSINE = ("distill.divergence=jsd", "distill.divergence_beta=0.3", "distill.feature_distance=cosine")
SAMPLE = {
    "llama": (
        Layout(2, 1, 1),
        [
            ("last", "distill", CLIPPING),
            ("last", "filters_student", CLIPPING),
            ("last", "distill", 0.0, JSD_AND_COSINE),
        ],
    ),
    "gpt2": (Layout(3, 1, 0), [("explicit", "distill", 0.0), ("explicit", "filters_teacher", CLIPPING)]),
    "bert": (
        Layout(2, 2, 0),
        [
            ("distilgpt2", "distill", CLIPPING),
            ("explicit", "filters_both", CLIPPING),
            ("distilgpt2", "distill", 0.0, ("distill.divergence=reverse_kl", "distill.feature_distance=cka")),
        ],
    ),
    "deberta-v2": (Layout(2, 2, 1), [("uniform", "distill", CLIPPING, WEIGHED)]),
    "llama-chat": (Layout(2, 1, 1), [("uniform", "distill", 0.0)]),
    "mistral": (
        Layout(2, 1, 0),
        [
            ("explicit", "distill", 0.0, ("data.padding={side: left, multiple_of: 8}",)),
            ("last", "filters_student", CLIPPING),
        ],
    ),
}


def all_cases(family):
    distill = [Case(family, one, "distill", clipping) for one in MAPS for clipping in (0.0, CLIPPING)]
    filters = [Case(family, one, phase, CLIPPING) for one in ("last", "explicit") for phase in STAGE_ONE]
    others = [f"distill.divergence={kind}" for kind in ("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tv")]
    return [*distill, *filters, *(Case(family, "uniform", "distill", 0.0, (one,)) for one in others)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for family in FAMILIES:
        write_pair(folder / family, family)
    return folder


@pytest.fixture(scope="module")
def references(pairs):
    """Of cases: what they come to by formulas, and under ZeRO-0 on one rank."""
    made = {}

    def of(cases):
        new = [case for case in cases if case not in made]
        if new:
            (plain,) = run_ranks(plain_train, 1, pairs, new, timeout_s=300)
            (zero,) = run_ranks(train, 1, pairs, PLAIN, new, timeout_s=300)
            made.update(zip(new, zip(plain, zero, strict=True), strict=True))
        return [made[case] for case in cases]

    return of


def close(found, expected, what, largest):
    found, expected = found.double(), expected.double()
    # some are zero but for rounding: the bias of attention's keys; and, with nothing at all left in fp64 and 1.5e-7 of
    # the largest seen in fp32, that of a head of positions, which moves the logits of all of them alike
    own = float(expected.abs().max())
    scale = largest if own < 1e-6 * largest else max(own, 0.01 * largest)
    error = float((found - expected).abs().max()) / scale
    assert error <= TOLERANCE, f"{what}: off by {error:.2g} of its largest"


def compare(case, found, gradients, plain, zero):
    for step, (report, expected) in enumerate(zip(found.reports, plain.reports, strict=bool(plain.reports))):
        for name, value in expected.items():
            got = report.get(name, report["loss/total"])
            assert got == pytest.approx(value, rel=TOLERANCE, abs=SMALLEST), (str(case), step, name)
    for step, (report, expected) in enumerate(zip(found.reports, zero.reports, strict=True)):
        for name in expected:
            if name.startswith("loss/"):
                assert report[name] == pytest.approx(expected[name], rel=TOLERANCE, abs=SMALLEST), (
                    str(case),
                    step,
                    name,
                )
    largest = max(float(one.abs().max()) for one in zero.gradients.values())
    for of_rank in gradients:
        assert {name for name in of_rank if not name.startswith("stand_in_")} <= zero.gradients.keys()
    for name, expected in zero.gradients.items():
        here = [of_rank[name] for of_rank in gradients if name in of_rank]
        assert here, f"{case}: nobody trains {name}"
        for one in here:
            if case.clipping == 0:  # those of ZeRO-0 were clipped before they came to the optimizer
                close(one, expected, f"{case}, gradient of {name}, ZeRO", largest)
            if name in plain.gradients:
                close(one, plain.gradients[name], f"{case}, gradient of {name}, formulas", largest)
    for name in zero.gradients:
        for reference in (zero, plain):
            close(found.weights[name], reference.weights[name], f"{case}, {name} after the steps", 0.1)
    assert len(found.scores) == len(zero.scores)
    for got, expected in zip(found.scores, zero.scores, strict=True):
        assert got == pytest.approx(expected, rel=1e-4)


def check(pairs, references, layout, cases):
    results = run_ranks(train, layout.stages * layout.replicas, pairs, layout, cases, timeout_s=300)
    for index, (case, (plain, zero)) in enumerate(zip(cases, references(cases), strict=True)):
        compare(case, results[0][index], [of_rank[index].gradients for of_rank in results], plain, zero)


@pytest.mark.parametrize("family", SAMPLE)
def test_each_family_trains_on_a_pipeline_like_one_process(pairs, references, family):
    layout, chosen = SAMPLE[family]
    check(pairs, references, layout, [Case(family, *one) for one in chosen])


@pytest.mark.parametrize(
    ("family", "layout", "phase", "changes"),
    [
        # a stage that only passes the teacher's state on; one that has nothing of it; one that has its last state,
        # which GPT-2 knows by another module; isolated documents; Stage 0
        ("llama", Layout(3, 1, 1), "distill", [PASSED_ON, "task.packing.isolate_documents=true"]),
        ("gpt2", Layout(3, 1, 1), "distill", ["layer_map.pairs=[[1, 2], [2, 4]]", "distill.kl_weight=0"]),
        ("gpt2", Layout(2, 1, 1), "distill", ["layer_map.pairs=[[1, 3], [4, 3]]", "distill.kl_weight=0"]),
        ("gpt2", Layout(2, 1, 1), "distill", ["task.packing.isolate_documents=true"]),
        ("gpt2", Layout(2, 2, 1), "finetune_student", []),
    ],
)
def test_a_pipeline_trains_like_zero(pairs, family, layout, phase, changes):
    case = Case(family, "explicit", phase, 0.0, tuple(changes))
    ((zero,),) = run_ranks(train, 1, pairs, PLAIN, [case])
    results = run_ranks(train, layout.stages * layout.replicas, pairs, layout, [case])
    compare(case, results[0][0], [of_rank[0].gradients for of_rank in results], zero._replace(reports=[]), zero)


@pytest.mark.slow
def test_other_decoders_train_on_a_pipeline_like_zero(tmp_path):
    for family in OTHER_DECODERS:
        write_pair(tmp_path / family, family)
    cases = [Case(family, "explicit", "distill", 0.0) for family in OTHER_DECODERS]
    cases.append(Case("opt", "explicit", "distill", 0.0, ("task.packing.isolate_documents=true",)))
    (zero,) = run_ranks(train, 1, tmp_path, PLAIN, cases)
    results = run_ranks(train, 2, tmp_path, Layout(2, 1, 1), cases)
    for index, (case, one) in enumerate(zip(cases, zero, strict=True)):
        gradients = [of_rank[index].gradients for of_rank in results]
        compare(case, results[0][index], gradients, one._replace(reports=[]), one)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: "x".join(map(str, one)))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_and_layout_trains_like_one_process(pairs, references, family, layout):
    check(pairs, references, layout, all_cases(family))


@pytest.mark.parametrize(
    ("layout", "what", "bad_rank", "origin"),
    [
        (Layout(2, 1, 0), "loss", 0, "loss/feature_mse/layer_01 not finite on rank 0"),
        (Layout(2, 1, 1), "loss", 1, "not finite on rank 1"),
        (Layout(2, 2, 1), "loss", 3, "not finite on rank 3"),
        (Layout(2, 2, 1), "gradient", 0, "gradient"),
        (Layout(2, 1, 0), "gradient", 1, "gradient"),
    ],
)
def test_a_number_that_is_not_finite_on_one_stage_makes_all_of_them_skip(pairs, layout, what, bad_rank, origin):
    case = Case("llama", "uniform", "distill", 0.0)
    results = run_ranks(train_with_a_bad_step, layout.stages * layout.replicas, pairs, layout, case, what, bad_rank)
    for skipped, _, report in results:
        assert [one is not None for one in skipped] == [False, True, False]
        assert report["train/skipped_steps"] == 1
        assert all(torch.tensor(value).isfinite() for value in report.values())
    reasons = {skipped[1].reason for skipped, *_ in results}
    assert len(reasons) == 1
    assert origin in reasons.pop()
    first, second, third = results[0][1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in first)


@pytest.mark.parametrize("layout", [PLAIN, Layout(1, 2, 1), Layout(2, 1, 1)], ids=lambda one: "x".join(map(str, one)))
def test_a_checkpoint_of_stage_one_holds_what_trains_and_not_the_frozen_head_of_each_filter(pairs, layout):
    case = Case("gpt2", "uniform", "filters_teacher", 0.0)
    saved = run_ranks(saved_weights, layout.stages * layout.replicas, pairs, layout, case)
    assert any(found for found, _ in saved)
    for found, trained in saved:
        assert not found or found == trained


def test_documents_by_their_borders_are_those_by_masks(pairs):
    """``attention: packed``, where a stage is given rows by the one before it, beside masks on one rank."""
    isolated = ("task.packing.isolate_documents=true",)
    by_masks, by_borders = (
        Case("llama", "last", "distill", 0.0, (*isolated, f"attention={one}")) for one in ("sdpa", "packed")
    )
    ((expected, alone),) = run_ranks(train, 1, pairs, PLAIN, [by_masks, by_borders], timeout_s=300)
    (((staged,)), _) = run_ranks(train, 2, pairs, Layout(2, 1, 1), [by_borders], timeout_s=300)
    for found in (alone, staged):
        for report, other in zip(found.reports, expected.reports, strict=True):
            losses = {name: value for name, value in other.items() if name.startswith("loss/")}
            assert {name: report[name] for name in losses} == pytest.approx(losses, rel=TOLERANCE, abs=SMALLEST)
