"""The student that begins with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from ted_ds.assembly.assembly import Assembly
from ted_ds.models.companions import accompany
from ted_ds.models.folder import read_config
from ted_ds.models.skeleton import changed_config, model_of
from ted_ds.planning.student_facts import config_folder
from ted_ds.runtime.determinism import seed_everything


def make_random_student(build: Assembly, place: Path) -> None:
    """Write the student of the recipe's config with weights as transformers draws them. On one rank only.

    They are drawn in fp32 on the CPU from the recipe's seed, whatever ranks and devices there are.
    """
    recipe, teacher = build.recipe, build.origins.teacher
    from_config, folder = recipe.student.from_config, config_folder(recipe, teacher)
    assert from_config is not None
    assert folder is not None
    config = changed_config(read_config(folder), from_config.changes)
    transformers_logging.disable_progress_bar()
    seed_everything(recipe.seed, phase="random_student")
    model: Any = model_of(config, recipe.task.architecture, build.kind.head_config or {})
    model.to(build.dtype).save_pretrained(place)
    accompany(place, build.origins, "student")
