"""Plans of studies, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.errors import ConfigError
from ted_ds.planning.study_plan import StudyPlan, plan_study
from ted_ds.tasks.kind import kind_of
from tests.refusals import without_overrides


def planned(path: Path, *overrides: str) -> StudyPlan:
    return plan_study(str(path), overrides, kind_of)


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        planned(path, *overrides)
    return without_overrides(str(caught.value)).replace(str(path), "R").splitlines()
