"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast

import pytest

from tests.house import DRAWING, drawn, measure
from tests.tiny import ROOT

MODULES = sorted((ROOT / "ted_ds").rglob("*.py"))


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", [f for f in MODULES if f.parent.name == "numerics"], ids=lambda file: file.stem)
def test_numerics_know_nothing_of_other_ranks(file):
    assert not [name for name in imported(file) if name.startswith("torch.distributed")]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_stays_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.fixture(scope="module")
def house():
    return measure()


def test_two_modules_stand_beside_the_folders(house):
    assert house.loose == ["cli", "errors"], "a new module belongs into the folder whose question it answers"


def test_the_house_grows_in_its_rooms_and_not_in_height(house):
    assert len(house.floors) <= 17
    assert house.num_floors <= 12


def test_the_drawing_shows_the_house(house):
    assert drawn(DRAWING.read_text(encoding="utf-8")) == house, "draw it again: python -m tests.house"
