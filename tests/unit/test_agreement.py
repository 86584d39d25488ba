"""What differs between hosts is named, with who sees what."""

from __future__ import annotations

from ted_ds.agreement import differences_between


def test_equal_hosts_agree():
    assert differences_between([("a", {"x": "1"}), ("b", {"x": "1"})]) == []


def test_what_most_see_comes_first_and_hosts_are_named_once():
    views = [("a", {"x": "2", "y": "1"}), ("b", {"x": "1", "y": "1"}), ("b", {"x": "1", "y": "1"}), ("c", {"x": "1"})]
    assert differences_between(views) == ["x: 1 on b, c; 2 on a", "y: 1 on a, b; not there on c"]


def test_many_hosts_are_counted():
    views = [(f"host{number}", {"x": "1"}) for number in range(100)] + [("odd", {"x": "2"})]
    assert differences_between(views) == ["x: 1 on host0, host1, host2 and 97 others; 2 on odd"]
