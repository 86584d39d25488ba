"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast
import re

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ted_ds.config import tasks
from ted_ds.config.places import TASK_KINDS
from ted_ds.models.families import FAMILIES
from tests.house import DRAWING, drawn, measure
from tests.tiny import ROOT

MODULES = sorted((ROOT / "ted_ds").rglob("*.py"))
OF_FAMILIES = ROOT / "ted_ds" / "models" / "families"
OTHER_MEANINGS = {"bitnet"}  # also a way to quantise weights
BODIES = {family.blocks_path.split(".")[0] for family in FAMILIES if family.body_has_own_name}
FAMILY_NAMES = BODIES | {name for family in FAMILIES for name in family.model_types}
FAMILY_NAME = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, FAMILY_NAMES - {'model', 'transformer'}))})(?![\w-])")


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


def strings(tree):
    """What is said in code, but for docstrings."""
    nodes = [*ast.walk(tree)]
    remarks = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in remarks:
            yield node.value


def names_of_model_types(text):
    """The strings of a module that are a model type of transformers, or name one that ted_ds knows."""
    of_any = {*CONFIG_MAPPING_NAMES} - OTHER_MEANINGS
    return [one for one in strings(ast.parse(text)) if one in of_any or FAMILY_NAME.search(one)]


@pytest.mark.parametrize(
    "file", [f for f in MODULES if f.parent != OF_FAMILIES], ids=lambda file: str(file.relative_to(ROOT))
)
def test_what_hangs_on_a_model_type_is_said_by_its_family_alone(file):
    assert names_of_model_types(file.read_text(encoding="utf-8")) == []


def test_names_of_model_types_are_found():
    assert names_of_model_types('if kind in ("gpt2", "opt"): name = f"{prefix}bert.pooler"') == [
        "gpt2",
        "opt",
        "bert.pooler",
    ]
    assert names_of_model_types('"""For gpt2."""\nrule, kind = "llama3", "distilgpt2"  # not "bert"') == []
    assert {"llama", "deberta-v2", "deberta", "t5"} <= {
        *names_of_model_types(repr(["llama", "deberta-v2", "deberta", "t5"]))
    }


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_stays_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.fixture(scope="module")
def house():
    return measure()


def test_two_modules_stand_beside_the_folders(house):
    assert house.loose == ["cli", "errors"], "a new module belongs into the folder whose question it answers"


def test_the_house_grows_in_its_rooms_and_not_in_height(house):
    assert len(house.floors) <= 18
    assert house.num_floors <= 12


def test_the_drawing_shows_the_house(house):
    assert drawn(DRAWING.read_text(encoding="utf-8")) == house, "draw it again: python -m tests.house"


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
    """Lines that decide by a section of ``ted_ds/config/tasks/`` or by a kind's name."""
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


# --- who writes into the assembly? ---------------------------------------------------------------------------------


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


def long_signatures(tree, holder=""):
    """The functions of a module that take more than a reader can hold, beside ``self``.

    Triton's kernels know numbers and pointers alone, which cannot be held in fewer.
    """
    for node in ast.iter_child_nodes(tree):
        name = f"{holder}{getattr(node, 'name', '')}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            is_kernel = any(ast.unparse(one) == "triton.jit" for one in node.decorator_list)
            if not is_kernel and sum(one.arg not in ("self", "cls") for one in arguments) > LONGEST_SIGNATURE:
                yield name
        yield from long_signatures(node, f"{name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else holder)


def test_signatures_stay_short():
    found = {
        f"{file.relative_to(ROOT / 'ted_ds')}: {name}"
        for file in MODULES
        for name in long_signatures(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert not found


def test_a_long_signature_is_found_wherever_it_is():
    inner = "class A:\n    def f(self, a, b, c, *, d, e, f, g): ...\n    def h(self, a, b, c, *, d, e, f, g, i): ...\n"
    nested = "def k(a):\n    if a:\n        async def m(b, c, d, e, f, g, h, /, i): ...\n"
    assert [*long_signatures(ast.parse(inner + nested))] == ["A.h", "k.m"]
