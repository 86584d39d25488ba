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


LONGEST_SIGNATURE = 7
OWED = {
    "data/labelled_stream.py: LabelledStream.__init__",
    "data/stream/corpus_stream.py: CorpusStream.__init__",
    "data/tasks.py: CausalLmData.stream",
    "models/loading.py: load_model",
    "objectives/distill.py: DistillObjective.__init__",
}
"""Longer ones that are left; no other may come."""


def long_signatures(tree, holder=""):
    """The functions of a module that take more than a reader can hold, beside ``self``."""
    for node in ast.iter_child_nodes(tree):
        name = f"{holder}{getattr(node, 'name', '')}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if sum(one.arg not in ("self", "cls") for one in arguments) > LONGEST_SIGNATURE:
                yield name
        yield from long_signatures(node, f"{name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else holder)


def test_signatures_stay_short():
    found = {
        f"{file.relative_to(ROOT / 'ted_ds')}: {name}"
        for file in MODULES
        for name in long_signatures(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == OWED


def test_a_long_signature_is_found_wherever_it_is():
    inner = "class A:\n    def f(self, a, b, c, *, d, e, f, g): ...\n    def h(self, a, b, c, *, d, e, f, g, i): ...\n"
    nested = "def k(a):\n    if a:\n        async def m(b, c, d, e, f, g, h, /, i): ...\n"
    assert [*long_signatures(ast.parse(inner + nested))] == ["A.h", "k.m"]
