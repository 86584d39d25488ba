"""Messages to users, found in the source: what is raised, and what rules and checks yield, by where it arises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from ted_ds import errors
from website.markdown import plain
from website.places import ROOT

PACKAGE = ROOT / "ted_ds"
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.TedError)}
OF_VALUES = "ValueError"
"""What validators of the recipe raise: it becomes a ConfigError."""
WORDS_OF_A_MESSAGE = 5
"""Shorter strings that are yielded are names and parts."""
COLLECTING = ("config", "planning", "models", "data")
"""Folders whose rules and checks yield messages, or collect them, for somebody above to raise all at once."""
GROUPS = {
    "The command line and shipped files": ("cli", "verbs", "config/environment", "config/shipped"),
    "The recipe": ("config",),
    "The DeepSpeed JSON": ("config/deepspeed",),
    "Models, tokenizers and their files": ("models",),
    "Data": ("data",),
    "Tasks, labels and scores": ("tasks",),
    "Memory, ranks and plans": ("planning",),
    "Before the first step": ("assembly", "vetting", "teacher_cache"),
    "Ranks, hosts and devices": ("runtime",),
    "While a phase runs": ("phases", "objectives", "numerics", "runtime/nonfinite", "runtime/step"),
    "Checkpoints": ("runtime/checkpoints",),
    "Folders, trackers and exports": ("output", "reports"),
    "Launching and watching": ("launching",),
}
"""Headings of the page, and where in the package each's messages arise; the longest beginning of a path decides."""
HEAD = """# Messages

Every message that ends a run, a check or a verb, as the source has it; `‹…›` is what a run fills in. A message says
where the mistake is, what was given, the rule, and what to do; what is behind each group, and what to look at first,
says [Troubleshooting](../docs/troubleshooting.md). Messages that are put together from parts may read a little
differently.

<p><label>Filter
<input type="search" id="filter-of-messages" placeholder="words of a message" autocomplete="off"></label>
<span id="messages-found" role="status"></span></p>

"""
FOOT = '\n<script src="../messages.js"></script>\n'


class Message(NamedTuple):
    """One, and where it arises."""

    module: str
    """As ``config/schema``."""
    kind: str
    """The error's class."""
    text: str


def group_of(module: str) -> str:
    """The heading that a module's messages stand under.

    Raises:
        LookupError: No group takes it.
    """
    fitting = [(len(part), name) for name, parts in GROUPS.items() for part in parts if module.startswith(part)]
    if not fitting:
        raise LookupError(f"{module}: its messages are in no group; name its folder in website/messages.py: GROUPS")
    return max(fitting)[1]


def found() -> Iterator[Message]:
    """All of them, module after module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        module = file.relative_to(PACKAGE).with_suffix("").as_posix()
        seen = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for kind, said in _said(node, module):
                text = "".join(said)
                if text not in seen and any(char.isalpha() for char in re.sub("‹.*?›", "", text)):
                    seen.add(text)
                    yield Message(module, kind, text)


def _said(node: ast.AST, module: str) -> Iterator[tuple[str, list[str]]]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        kind = node.exc.func.id
        if node.exc.args and (kind in ERRORS or (kind == OF_VALUES and module.startswith("config/"))):
            for text in _texts(node.exc.args[0]):
                yield "ConfigError" if kind == OF_VALUES else kind, [text]
    if module.split("/")[0] not in COLLECTING:
        return
    for one in _collected(node):
        # a pair: the place, and what is wrong there
        parts = one.elts if isinstance(one, ast.Tuple) and len(one.elts) == 2 else [one]
        for text in _texts(parts[-1]):
            if len(text.split()) >= WORDS_OF_A_MESSAGE:
                yield "ConfigError", [*(f"{place}: " for place in [*_texts(parts[0])][: len(parts) - 1]), text]


def _collected(node: ast.AST) -> list[ast.expr]:
    """What is yielded, or added to a list of messages."""
    if isinstance(node, ast.Yield) and node.value is not None:
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
        return node.args if _is_of_messages(node.func.value) else []
    if (
        isinstance(node, ast.AugAssign)
        and isinstance(node.value, ast.List | ast.ListComp)
        and _is_of_messages(node.target)
    ):
        return node.value.elts if isinstance(node.value, ast.List) else [node.value.elt]
    return []


def _is_of_messages(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "messages"


def _texts(node: ast.expr) -> Iterator[str]:
    """What an expression may come to, with what is filled in by its name."""
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"‹{_name(part.value)}›"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = [*_texts(node.left)] or ["‹…›"], [*_texts(node.right)] or ["‹…›"]
        yield from (one + other for one in left for other in right)


def _name(node: ast.expr) -> str:
    """Of what is filled in, as far as it has one."""
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").replace("_", " ")
    if isinstance(node, ast.Name) and len(node.id) > 1:
        return node.id.strip("_").replace("_", " ")
    return "…"


def page() -> str:
    """The whole page."""
    groups: dict[str, list[Message]] = {name: [] for name in GROUPS}
    for message in found():
        groups[group_of(message.module)].append(message)
    return HEAD + "\n".join(_shown(name, messages) for name, messages in groups.items()) + FOOT


def _shown(name: str, messages: list[Message]) -> str:
    items = "\n".join(
        f'<li class="message">{plain(one.text)}<br><small>{one.kind}, <code>{one.module}.py</code></small></li>'
        for one in messages
    )
    details = f'<details class="messages"><summary>{len(messages)} messages</summary><ul>'
    return f"## {name}\n\n{details}\n{items}\n</ul></details>\n"
