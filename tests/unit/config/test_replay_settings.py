"""What goes with steps that are computed twice, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.phase_memory import phase_memories
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import recipe_dict, write_recipe, write_run


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["replay.every_steps=20"],
            "replay.every_steps: 20: without deterministic: true a sound GPU, too, may come to other bits the second "
            "time; set it, or remove replay",
        ),
        (
            ["replay.every_steps=20", "deterministic=true", "pipeline.stages=2"],
            "replay.every_steps: 20: a pipeline's step cannot be computed a second time; remove it, or use "
            "pipeline.stages: 1 (ZeRO 0-3)",
        ),
    ],
)
def test_what_does_not_go_with_it(tmp_path: Path, overrides: list[str], says: str) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    assert without_overrides(str(caught.value)) == f"{path}: {says}"


def test_a_whole_gradient_is_counted(tmp_path: Path) -> None:
    path = str(write_run(tmp_path))
    sizes = []
    for overrides in ([], ["deterministic=true", "replay.every_steps=20"]):
        recipe, plan = plan_recipe(path, overrides)
        config = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}
        memory = phase_memories(recipe, plan, config, world_size=2)[-1]
        sizes.append(memory.total(config, device_is_host=True))
    assert sizes[1] - sizes[0] == 4 * memory.num_trained
