"""Which documents are held out, and which are left out."""

from __future__ import annotations

import pytest

from ted_ds.config.data import Cleaning
from ted_ds.data.cleaning import Cleaner, is_heldout


def test_the_heldout_share_is_near_the_fraction() -> None:
    many = [f"text number {index}" for index in range(5000)]
    for fraction in (0.05, 0.2, 0.5):
        share = sum(is_heldout(text, fraction) for text in many) / len(many)
        deviation = (fraction * (1 - fraction) / len(many)) ** 0.5
        assert abs(share - fraction) < 4 * deviation


def test_a_larger_fraction_keeps_every_text_that_a_smaller_one_holds_out() -> None:
    many = [f"text number {index}" for index in range(500)]
    small, large = ({text for text in many if is_heldout(text, fraction)} for fraction in (0.1, 0.3))
    assert small < large


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_what_is_held_out_is_not_kept_and_all_else_is(fraction: float) -> None:
    cleaner = Cleaner(Cleaning(), fraction)
    many = [f"text number {index}" for index in range(300)] * 2
    assert [text for text in many if not cleaner.keeps(text)] == [text for text in many if is_heldout(text, fraction)]


def test_short_documents_are_left_out_whatever_white_space_is_around_them() -> None:
    cleaner = Cleaner(Cleaning(min_characters=3), 0.0)
    assert [text for text in ("abc", " ab\n", "", "\t\n", " äöü ") if cleaner.keeps(text)] == ["abc", " äöü "]


def test_copies_are_left_out_within_a_window_and_only_if_asked_for() -> None:
    texts = ["a", "b", "a", "a ", "b"]
    cleaner = Cleaner(Cleaning(deduplicate=True), 0.0)
    assert [cleaner.keeps(text) for text in texts] == [True, True, False, True, False]
    assert Cleaner(Cleaning(deduplicate=True), 0.0).keeps("a"), "the next window knows nothing of this one"
    cleaner = Cleaner(Cleaning(), 0.0)
    assert all(cleaner.keeps(text) for text in texts)
