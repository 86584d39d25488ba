"""The reference of what Python sees: the public names of ``ted_ds``, and the formulas, from their docstrings."""

from __future__ import annotations

import ast

from website.places import ROOT

PACKAGE = ROOT / "ted_ds"
FORMULAS = "numerics"
HEAD = """# Python

Made of docstrings. Formulas are functions of tensors, without a recipe, ranks or DeepSpeed: they can be used alone.
"""


def public_names() -> list[str]:
    """What ``ted_ds`` itself offers: its ``__all__``."""
    for one in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(one, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == "__all__" for name in one.targets
        ):
            return [name for name in ast.literal_eval(one.value) if not name.startswith("_")]
    return []


def page() -> str:
    """The whole reference, as mkdocstrings reads it."""
    lines = [HEAD]
    names = public_names()
    lines += ["## ted_ds\n", *(f"::: ted_ds.{name}\n" for name in names)] if names else []
    for file in sorted((PACKAGE / FORMULAS).glob("[!_]*.py")):
        lines += [f"## {FORMULAS}.{file.stem}\n", f"::: ted_ds.{FORMULAS}.{file.stem}", "    options:"]
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false", ""]
    return "\n".join(lines)
