"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast

import pytest

from ted_ds.config import tasks
from ted_ds.config.places import TASK_KINDS
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


# --- which task is this? ----------------------------------------------------------------------------------------------

SECTIONS = {
    name
    for name, value in vars(tasks).items()
    if (isinstance(value, type) and issubclass(value, tasks.TaskSection)) or name in ("Task", "HeadTask")
}
ASKS = {  # what each of these is must be seen
    "isinstance(task, CausalLm)": True,
    "isinstance(recipe.task, (int, tasks.Regression))": True,
    "issubclass(type(task), TextTask)": True,
    "type(task) is Regression": True,
    "if recipe.task.kind == 'causal_lm': pass": True,
    "if 'regression' != kind: pass": True,
    "if kind in ('causal_lm', 'regression'): pass": True,
    "TERMS = {'causal_lm': 1}": True,
    "match task:\n case CausalLm(): pass": True,
    "match kind:\n case 'regression': pass": True,
    "isinstance(task, Path)": False,
    "print(f'{recipe.task.kind} by {method}')": False,
    "if recipe.layer_map.kind == 'uniform': pass": False,
    "def f(task: CausalLm) -> None: pass": False,
}


def asks_for_a_task(source):
    """Lines that decide by a section of ``ted_ds/config/tasks.py`` or by a kind's name."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            parts = node.args[1:]
        elif isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        inside = [one for part in parts for one in ast.walk(part)]
        named = {getattr(one, "id", getattr(one, "attr", None)) for one in inside}
        if named & SECTIONS or {one.value for one in inside if isinstance(one, ast.Constant)} & TASK_KINDS:
            yield ast.unparse(node)


@pytest.mark.parametrize(("source", "expected"), ASKS.items())
def test_a_question_for_the_task_is_seen(source, expected):
    assert bool([*asks_for_a_task(source)]) == expected


@pytest.mark.parametrize(
    "file",
    [f for f in MODULES if f.relative_to(ROOT / "ted_ds").parts[0] not in ("tasks", "config")],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_nobody_but_tasks_and_config_asks_which_task_it_is(file):
    """What they want to know is a fact of the section, or the kind's to answer (``ted_ds/tasks/``)."""
    assert [*asks_for_a_task(file.read_text(encoding="utf-8"))] == []
