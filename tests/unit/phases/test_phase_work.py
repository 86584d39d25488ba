"""The records of phases, and what is attached to each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ted_ds.output.run_folders import RunFolders
from ted_ds.phases.chain import WORK_OF_PHASE
from ted_ds.planning.phase import FILTERS_BOTH, PHASES, phase_named
from tests.task_kinds import plan_recipe
from tests.tiny import ROOT, write_run


def test_every_phase_has_work_and_a_name_of_its_own() -> None:
    assert tuple(WORK_OF_PHASE) == PHASES
    assert [phase_named(phase.name) for phase in PHASES] == [*PHASES]


@pytest.mark.parametrize("name", ["filters_student", "finetune_teacher"])
def test_a_phase_that_trains_is_either_of_a_model_or_of_filters(name: str) -> None:
    phase = phase_named(name)
    assert phase.learns_filters == name.startswith("filters")
    assert phase.sides == (name.split("_")[1],)


@pytest.mark.parametrize(
    ("overrides", "side", "place"), [([], "student", "filters_student"), (["both"], "teacher", "")]
)
def test_filters_are_where_their_phase_left_them(tmp_path: Path, overrides: list[str], side: str, place: str) -> None:
    changes = ["filters.teacher=null", "filters.student=null", "filters.both={max_steps: 2, learning_rate: 0.01, "
               "global_batch_size: 4, micro_batch_size: 2}"] if overrides else []  # fmt: skip
    recipe, _ = plan_recipe(str(write_run(tmp_path)), changes)
    folders = RunFolders(recipe, teacher=tmp_path / "teacher", student=tmp_path / "student")
    expected = recipe.output_dir / (place or f"{FILTERS_BOTH.name}/{side}")
    assert folders.filters_path(side) == expected


def test_the_records_need_no_torch() -> None:
    code = (
        "import sys, ted_ds.cli, ted_ds.planning.phase; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
