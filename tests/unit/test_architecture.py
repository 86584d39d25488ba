"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast
import re

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ted_ds.models.families import FAMILIES
from tests.tiny import ROOT

MODULES = sorted((ROOT / "ted_ds").rglob("*.py"))
OF_FAMILIES = ROOT / "ted_ds" / "models" / "families.py"
OTHER_MEANINGS = {"bitnet"}  # also a way to quantise weights
FAMILY_NAMES = {name for family in FAMILIES for name in (*family.model_types, family.blocks_path.split(".")[0])}
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


@pytest.mark.parametrize("file", [f for f in MODULES if f != OF_FAMILIES], ids=lambda file: str(file.relative_to(ROOT)))
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
