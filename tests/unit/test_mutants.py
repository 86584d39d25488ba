"""The tool that breaks the product at random: where it does, what it leaves alone, and which tests it picks."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.places import mutants_of, sample
from tests.mutants.reach import ReachTable
from tests.mutants.trial import importing_tests
from tests.tiny import ROOT

pytestmark = pytest.mark.lengthy


def wrong(tmp_path, source):
    """What becomes of each place of a module."""
    (tmp_path / "module.py").write_text(source)
    return [(one.right, one.wrong) for one in mutants_of(tmp_path / "module.py", tmp_path)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a < b", [("a < b", "(a <= b)"), ("a < b", "(a >= b)")]),
        ("y = a == b", [("a == b", "(a != b)")]),
        ("y = a is not None", [("a is not None", "(a is None)")]),
        ("y = a + b * 2", [("a + b * 2", "(a - b * 2)"), ("b * 2", "(b / 2)")]),
        ("n += 1", [("n += 1", "n -= 1")]),
        ("y = a and b", [("a and b", "(a or b)"), ("a and b", "(b)"), ("a and b", "(a)")]),
        ("y = not a", [("not a", "(a)")]),
        ("y = -a", [("-a", "(a)")]),
        ("if ready():\n    go()", [("ready()", "(not ready())")]),
        ("while ready():\n    go()", [("ready()", "(not ready())")]),
        ("y = 1 if a else 2", [("a", "(not a)")]),
        ("y = [x for x in z if x]", [("x", "(not x)")]),
        ("y = {*a} | b", [("{*a} | b", "({*a} & b)")]),
    ],
)
def test_each_kind_of_place_is_broken(tmp_path, source, expected):
    assert wrong(tmp_path, source) == expected


@pytest.mark.parametrize(
    "source",
    [
        'raise ValueError(f"{a + b}" if a < b else "x")',
        "assert a < b",
        'y = f"{a + b}"',
        'say("x" if a else "y")',
        'self._say(f"{a}" + str(a < b))',
        'y = "one" if a < b else "many"',
        'y = "a" + b',
        "def f(x: int | None) -> int | str: ...",
        "x: int | None = None",
        "isinstance(a, int | str)",
        "if TYPE_CHECKING:\n    import a",
        'if __name__ == "__main__":\n    main()',
        "while True:\n    go()",
    ],
)
def test_words_types_and_what_checkers_read_are_left_alone(tmp_path, source):
    assert wrong(tmp_path, source) == []


def test_a_mutant_is_named_by_its_function_and_replaces_its_bytes_alone(tmp_path):
    source = "class A:\n    def go(self):\n        text = 'ä'; y = self.a < 3  # why\n        return lambda: y\n"
    (tmp_path / "module.py").write_text(source)
    mutant = mutants_of(tmp_path / "module.py", tmp_path)[0]
    assert (mutant.file, mutant.line, mutant.function) == ("module.py", 3, "A.go")
    assert mutant.apply(source.encode()).decode() == source.replace("self.a < 3", "(self.a <= 3)")


@pytest.mark.slow
def test_every_mutant_of_the_package_is_python_and_something_else():
    mutants = sample(ROOT / "ted_ds", 400, seed=3)
    assert len(set(mutants)) == 400
    assert mutants == sample(ROOT / "ted_ds", 400, seed=3)
    assert mutants != sample(ROOT / "ted_ds", 400, seed=4)
    unbroken = {file: (ROOT / "ted_ds" / file).read_bytes() for file in {mutant.file for mutant in mutants}}
    trees = {file: ast.dump(ast.parse(source)) for file, source in unbroken.items()}
    for mutant in mutants:
        assert ast.dump(ast.parse(mutant.apply(unbroken[mutant.file]))) != trees[mutant.file], mutant


@pytest.mark.parametrize(
    ("module", "first"),
    [
        ("runtime/devices.py", "tests/unit/runtime/test_devices.py"),
        ("runtime/checkpoints/folders.py", "tests/unit/runtime/test_checkpoint_folders.py"),
        ("launching/supervise.py", "tests/unit/launching/test_supervise.py"),  # by its name: it starts programs
        ("phases/export.py", "tests/distributed/test_export.py"),  # through what imports it
    ],
)
def test_a_module_that_the_table_does_not_know_has_tests_near_it(module, first):
    assert first in [one.test for one in importing_tests(module, ROOT)]


def test_nothing_tests_a_module_that_is_not_there():
    assert importing_tests("no/such_module.py", ROOT) == []


def test_the_quickest_tests_of_a_function_come_first(tmp_path):
    table = tmp_path / "table.json"
    table.write_text(
        '{"slow": {"seconds": 2.0, "reached": [["a.py", "f"], ["a.py", "g"]]},'
        ' "quick": {"seconds": 0.5, "reached": [["a.py", "f"]]}, "other": {"seconds": 0.1, "reached": [["b.py", "f"]]}}'
    )
    found = ReachTable(table)
    assert [one.test for one in found.tests_of("a.py", "f")] == ["quick", "slow"]
    assert [one.test for one in found.tests_of("a.py", "g")] == ["slow"]
    assert [one.test for one in found.tests_of("a.py", "")] == ["quick", "slow"]
    assert found.tests_of("a.py", "h") == []
