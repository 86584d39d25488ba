"""Whether the doctor looks at learned filters, or at fresh ones in their place."""

from __future__ import annotations

import pytest

from ted_ds.vetting.doctor import has_filters
from ted_ds.vetting.verdict import Status, Verdict


@pytest.mark.parametrize(("status", "expected"), [("pass", True), ("warn", True), ("fail", False), ("skip", False)])
def test_what_is_missing_or_damaged_on_one_side_is_so_on_no_other(status: Status, expected: bool) -> None:
    verdicts = [Verdict("student weights", "fail", ""), Verdict("filters of teacher", status, "")]
    assert has_filters("teacher", verdicts) is expected
    assert has_filters("student", verdicts)
