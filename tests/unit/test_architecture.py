"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast

import pytest

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


def written_attributes(file):
    """Attributes of the assembly that code beside it sets, by line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            holder = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if holder.lstrip("_") in ("build", "assembly"):
                yield f"{node.lineno}: {holder}.{node.attr}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_writes_into_the_assembly(file):
    assert not list(written_attributes(file))


def test_a_write_into_the_assembly_is_found(tmp_path):
    place = tmp_path / "module.py"
    place.write_text("self._build.tracker = 1\nassembly.ledger = 2\nbuild.run.x, y = 3, 4\nprint(build.plan)\n")
    assert list(written_attributes(place)) == ["1: _build.tracker", "2: assembly.ledger"]
