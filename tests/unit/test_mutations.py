"""The list of mutations is of lines that are there: one that no longer applies would show nothing."""

from __future__ import annotations

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_of_one_line_and_python(name: str) -> None:
    one = MUTATIONS[name]
    text = (ROOT / "ted_ds" / one.file).read_text(encoding="utf-8")
    assert text.count(one.right) == 1, f"{one.file} has {text.count(one.right)} times {one.right!r}"
    assert one.right != one.wrong
    ast.parse(text.replace(one.right, one.wrong))
