"""Which student layer is matched with which teacher layer."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ted_ds.numerics.layer_map import LayerPairs, layer_names, make_layer_map


def layer_map(kind: str, student: int, teacher: int, **options: Any) -> LayerPairs:
    return make_layer_map(kind, num_student_blocks=student, num_teacher_blocks=teacher, **options)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (6, 12, ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))),
        (3, 3, ((1, 1), (2, 2), (3, 3))),
        (4, 6, ((1, 1), (2, 3), (3, 4), (4, 6))),
        (1, 12, ((1, 12),)),
    ],
)
def test_uniform_spreads_one_pair_per_student_block(student: int, teacher: int, expected: LayerPairs) -> None:
    assert layer_map("uniform", student, teacher) == expected


@pytest.mark.parametrize(
    ("num_pairs", "expected"),
    [(1, ((10, 30),)), (2, ((5, 15), (10, 30))), (5, ((2, 6), (4, 12), (6, 18), (8, 24), (10, 30)))],
)
def test_uniform_with_num_pairs_spreads_over_both_models_and_ends_with_the_last_blocks(
    num_pairs: int, expected: LayerPairs
) -> None:
    assert layer_map("uniform", 10, 30, num_pairs=num_pairs) == expected


@pytest.mark.parametrize("student", range(1, 13))
@pytest.mark.parametrize("teacher", [12, 13, 30])
def test_uniform_is_strictly_increasing_on_both_sides(student: int, teacher: int) -> None:
    for num_pairs in range(1, student + 1):
        pairs = layer_map("uniform", student, teacher, num_pairs=num_pairs)
        assert len(pairs) == num_pairs
        assert pairs[-1] == (student, teacher)
        for side in (0, 1):
            layers = [pair[side] for pair in pairs]
            assert layers == sorted(set(layers))
            assert layers[0] >= 1


def test_distilgpt2_takes_the_blocks_of_its_first_release() -> None:
    pairs = layer_map("distilgpt2", 6, 12)
    assert [t for _, t in pairs] == [1, 3, 5, 8, 10, 12]
    assert [s for s, _ in pairs] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(2, 4, [1, 4]), (4, 24, [1, 7, 18, 24]), (2, 12, [1, 12])],
)
def test_distilgpt2_takes_first_then_last_blocks_of_intervals(student: int, teacher: int, expected: list[int]) -> None:
    assert [t for _, t in layer_map("distilgpt2", student, teacher)] == expected


def test_last_matches_the_last_blocks() -> None:
    assert layer_map("last", 6, 24) == ((6, 24),)


def test_explicit_pairs_are_kept_in_their_order_with_embeddings_as_layer_0() -> None:
    pairs = [(2, 12), (0, 0), (1, 12)]
    assert layer_map("explicit", 2, 12, pairs=pairs) == ((2, 12), (0, 0), (1, 12))


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "options", "message"),
    [
        (
            "explicit",
            16,
            32,
            {"pairs": [(1, 2), (2, 33)]},
            "layer_map.pairs[1]: teacher block 33 does not exist (the model has 32 blocks); use 1..32",
        ),
        ("explicit", 2, 4, {"pairs": [(3, 1)]}, "layer_map.pairs[0]: student block 3 does not exist"),
        ("explicit", 2, 4, {"pairs": [(-1, 1)]}, "layer_map.pairs[0]: student block -1 does not exist"),
        ("explicit", 2, 4, {"pairs": [(1, 1), (1, 2)]}, "student layer 1 is matched twice; match it once"),
        ("explicit", 2, 4, {"pairs": []}, "layer_map.pairs: empty; give at least one"),
        ("uniform", 2, 4, {"num_pairs": 3}, "uniform with 3 pairs does not fit 2 student and 4 teacher blocks"),
        ("uniform", 6, 4, {}, "set num_pairs to at most 4"),
        ("distilgpt2", 5, 10, {}, "distilgpt2 needs an even number of student blocks"),
        ("distilgpt2", 4, 10, {}, "the models have 4 and 10: use uniform or explicit"),
        ("distilgpt2", 4, 4, {}, "at least twice as many teacher blocks"),
        ("nearest", 2, 4, {}, "layer_map.kind: 'nearest' is not a strategy"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    kind: str, student: int, teacher: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_map(kind, student, teacher, **options)


def test_every_wrong_pair_is_listed() -> None:
    with pytest.raises(ValueError, match="student block 9") as caught:
        layer_map("explicit", 2, 4, pairs=[(9, 1), (1, 8), (1, 9)])
    assert len(str(caught.value).splitlines()) == 4


def test_a_layer_matched_twice_has_two_names() -> None:
    assert layer_names([3, 6, 3, 3]) == ["layer_03", "layer_06", "layer_03_2", "layer_03_3"]
