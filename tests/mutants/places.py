"""Every place of ``ted_ds`` that can be broken in one of these ways, outside of what is only said to people."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import NamedTuple

OTHER_COMPARISON = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OTHER_OPERATOR = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SAYING = {"say", "print", "warn", "_say", "write_line"}
"""Functions whose arguments are words for people."""


class Mutant(NamedTuple):
    """One expression that would be another."""

    file: str
    """Below ``ted_ds``."""
    line: int
    function: str
    """Its qualified name; empty for what a module does as it is imported."""
    start: int
    end: int
    """Bytes of the file that are replaced."""
    right: str
    wrong: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line} {self.function or 'at import'}"
        return f"{where}: {' '.join(self.right.split())} -> {' '.join(self.wrong.split())}"

    def apply(self, source: bytes) -> bytes:
        """The file with it."""
        return source[: self.start] + self.wrong.encode() + source[self.end :]


def sample(root: Path, number: int, seed: int) -> list[Mutant]:
    """So many of all mutants of a package, each equally likely."""
    every = [mutant for file in sorted(root.rglob("*.py")) for mutant in mutants_of(file, root)]
    return random.Random(seed).sample(every, min(number, len(every)))


def mutants_of(file: Path, root: Path) -> list[Mutant]:
    """All of a file, in its order."""
    source = file.read_bytes()
    visitor = _Places(source, file.relative_to(root).as_posix())
    visitor.visit(ast.parse(source))
    return visitor.found


class _Places(ast.NodeVisitor):
    def __init__(self, source: bytes, name: str) -> None:
        self._source, self._name = source, name
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._path: list[str] = []
        self.found: list[Mutant] = []

    # --- what is left out: words for people, types, what only a reader of the code is told ---------------------------

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in SAYING:
            return
        if name in ("isinstance", "issubclass"):
            self.visit(node.args[0])
            return
        self.generic_visit(node)

    # --- where it is ------------------------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._path.append(node.name)
        for part in node.body:
            self.visit(part)
        self._path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)):
            self.visit(default)
        self._path += [node.name, "<locals>"]
        for part in node.body:
            self.visit(part)
        del self._path[-2:]

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)  # type: ignore[arg-type]

    # --- what is broken ---------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            for other in OTHER_COMPARISON[type(operator)]:
                operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                self._add(node, ast.Compare(node.left, operators, node.comparators))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = OTHER_OPERATOR.get(type(node.op))
        if other is not None and not _is_text(node.left) and not _is_text(node.right):
            self._add(node, ast.BinOp(node.left, other(), node.right))
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        other = OTHER_OPERATOR.get(type(node.op))
        if other is not None and not _is_text(node.value):
            self._add(node, ast.AugAssign(node.target, other(), node.value), brackets=False)
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._add(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        for index in range(len(node.values)):  # a clause less
            rest = node.values[:index] + node.values[index + 1 :]
            self._add(node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._add(node, node.operand)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not _is_for_checkers(node.test):
            self._negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if _is_text(node.body) and _is_text(node.orelse):
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        # that of a comparison, or of a negation, is there already
        is_compared_once = isinstance(test, ast.Compare) and len(test.ops) == 1
        has_opposite = is_compared_once and type(test.ops[0]) in OTHER_COMPARISON
        if not has_opposite and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            self._add(test, ast.UnaryOp(ast.Not(), test))

    def _add(self, node: ast.expr | ast.stmt, wrong: ast.expr | ast.stmt, *, brackets: bool = True) -> None:
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        text = ast.unparse(ast.fix_missing_locations(wrong))
        function = ".".join(self._path[:-1] if self._path and self._path[-1] == "<locals>" else [])
        self.found.append(
            Mutant(
                self._name,
                node.lineno,
                function,
                start,
                end,
                self._source[start:end].decode(),
                f"({text})" if brackets else text,
            )
        )


def _is_text(node: ast.expr) -> bool:
    """Words, or what can only be words."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_for_checkers(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING" or (
        isinstance(test, ast.Compare) and ast.unparse(test).startswith("__name__ ==")
    )
