"""What the recipe may say of where numbers go: what it means, what is refused, and what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ted_ds.config.load import load_recipe
from ted_ds.config.tracking import Tracking
from ted_ds.config.without_effect import settings_without_effect
from tests.optional import NO_TRACKERS, TRACKERS
from tests.refusals import without_overrides
from tests.tiny import ROOT, write_run
from tests.unit.test_cli import ted_ds


@pytest.mark.parametrize(
    ("section", "backends"),
    [
        ({}, ("wandb",)),  # as before there was a list
        ({"wandb": "disabled"}, ("wandb",)),
        ({"to": None, "wandb": "offline"}, ("wandb",)),
        ({"to": []}, ()),
        ({"to": [], "wandb": "disabled"}, ()),
        ({"to": ["tensorboard"]}, ("tensorboard",)),
        ({"to": ["trackio", "wandb"], "wandb": "offline"}, ("trackio", "wandb")),
    ],
)
def test_numbers_go_where_the_list_says(section: dict[str, Any], backends: tuple[str, ...]) -> None:
    assert Tracking.model_validate(section).backends == backends
    assert Tracking.model_validate(Tracking.model_validate(section).model_dump()).backends == backends


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"to": ["trackio", "wandb", "trackio"]}, "to has trackio more than once; name each once"),
        (
            {"to": ["tensorboard"], "wandb": "online"},
            "wandb is online, but to is [tensorboard]; add wandb to it, or leave wandb: online out",
        ),
        (
            {"to": [], "wandb": "offline"},
            "wandb is offline, but to is []; add wandb to it, or leave wandb: offline out",
        ),
        (
            {"to": ["wandb", "trackio"], "wandb": "disabled"},
            "to is [wandb, trackio], but wandb is disabled; take it off the list, or leave wandb: disabled out",
        ),
    ],
)
def test_contradictions_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Tracking.model_validate(section)
    assert [str(error["ctx"]["error"]) for error in caught.value.errors()] == [message]


def test_check_says_what_is_not_installed_and_how_to_install_it(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path))
    done = ted_ds("check", recipe, "tracking.to=[tensorboard,wandb,trackio]")
    assert done.returncode == 2
    for name in ("tensorboard", "trackio"):
        said = (
            f"{recipe}: tracking.to: {name} needs the package {name}, which is not installed here: pip install "
            f"'ted_ds[{name}]'; or take {name} off the list"
        )
        assert without_overrides(done.stderr).splitlines().count(said) == 1
    assert not (tmp_path / "run").exists()
    done = ted_ds("check", recipe, "tracking.to=[tensorboard]", "tracking.wandb=offline")
    assert done.returncode == 2
    assert f"{recipe}: tracking: wandb is offline, but to is [tensorboard]; " in done.stderr


def test_check_takes_what_is_installed(tmp_path: Path) -> None:
    assert TRACKERS.is_dir(), NO_TRACKERS
    recipe = str(write_run(tmp_path))
    path = os.pathsep.join((str(ROOT), str(TRACKERS)))
    done = ted_ds("check", recipe, "tracking.to=[tensorboard,trackio]", PYTHONPATH=path, WANDB_MODE="Offline")
    assert done.returncode == 0, done.stderr  # a word for W&B is not looked at where it gets nothing


@pytest.mark.parametrize(("to", "is_said"), [("[tensorboard]", True), ("[]", True), ("[trackio]", False)])
def test_a_project_that_nobody_asks_for_is_said(tmp_path: Path, to: str, is_said: bool) -> None:
    recipe = load_recipe(write_run(tmp_path), ["tracking.project=mine", f"tracking.to={to}"])
    line = "without effect: tracking.project (tracking.to names neither wandb nor trackio)"
    assert (line in settings_without_effect(recipe)) == is_said
