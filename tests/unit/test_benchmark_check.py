"""The guard against getting slower: what counts as worse."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from benchmarks import check
from benchmarks.report import ROOT, at_least, at_most


def content(*claims):
    return {"claims": [vars(claim) for claim in claims]}


def test_a_ratio_may_be_ten_percent_worse_and_no_more():
    recorded = content(at_most("time", 0.8, 1.0), at_least("speed", 0.9, 0.8))
    assert check.worse(recorded, content(at_most("time", 0.87, 1.0), at_least("speed", 0.82, 0.8))) == {}
    found = content(at_most("time", 0.89, 1.0), at_least("speed", 0.80, 0.8))
    assert check.worse(recorded, found) == {"time": (0.8, 0.89), "speed": (0.9, 0.8)}


def test_next_to_nothing_may_be_a_little_more() -> None:
    recorded = content(at_most("added", -0.0001, 0.1))
    assert check.worse(recorded, content(at_most("added", 0.015, 0.1))) == {}
    assert [*check.worse(recorded, content(at_most("added", 0.03, 0.1)))] == ["added"]


def test_a_claim_that_is_not_recorded_is_named() -> None:
    found = content(at_most("time", 0.8, 1.0), at_most("memory", 0.5, 1.0))
    (name, (before, now)) = next(iter(check.worse(content(at_most("time", 0.8, 1.0)), found).items()))
    assert (name, math.isnan(before), now) == ("memory", True, 0.5)


def test_better_is_never_worse_and_a_claim_that_is_gone_is():
    recorded = content(at_most("time", 0.8, 1.0), at_least("speed", 0.9, 0.8))
    (name, (before, after)) = next(iter(check.worse(recorded, content(at_least("speed", 5.0, 0.8))).items()))
    assert (name, before) == ("time", 0.8)
    assert math.isnan(after)


def test_what_is_worse_once_is_measured_again(monkeypatch):
    recorded = content(at_most("time", 0.8, 1.0), at_most("memory", 0.5, 1.0))
    measured = [
        content(at_most("time", 1.5, 1.0), at_most("memory", 0.9, 1.0)),
        content(at_most("time", 0.8, 1.0), at_most("memory", 0.8, 1.0)),
    ]
    monkeypatch.setattr(check, "measure", lambda _name, _place: measured.pop(0))
    assert check.check("step_time", recorded) == {"memory": (0.5, 0.8)}


@pytest.mark.slow
def test_the_plans_memory_is_what_engines_hold(tmp_path):
    place = tmp_path / "zero_memory.json"
    command = [sys.executable, "-m", "benchmarks.zero_memory", "--quick", "--json", str(place)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=300)
    claims = json.loads(place.read_text())["claims"]
    assert len(claims) == 7
    assert [claim["name"] for claim in claims if not claim["holds"]] == []
