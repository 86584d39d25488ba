"""A process that says nothing for too long is noticed, and one that goes on is not."""

from __future__ import annotations

import time
from pathlib import Path

from ted_ds.phases.lm_eval_tasks import SignsOfLife


def test_a_log_that_grows_is_a_sign_and_one_that_does_not_is_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    signs, patient = SignsOfLife(log, 0.2), SignsOfLife(log, 1000.0)
    assert not signs.are_missing()
    time.sleep(0.25)
    log.write_text("more")
    assert not signs.are_missing()
    time.sleep(0.25)
    assert signs.are_missing()
    assert signs.missing_s is not None
    assert signs.missing_s > 0.2
    assert not patient.are_missing()
