"""Tutorials as notebooks: a page is the source, and what stands in fences of ``bash`` and ``python`` are the cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CELL = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KERNEL = """---
jupyter:
  kernelspec: {name: python3, display_name: Python 3, language: python}
---

"""
"""Without it jupytext takes a page's most frequent language for the kernel's, and does not mark cells of ``bash``."""
NOTE = "\n\n[This page as a notebook]({name}){{ .md-button download }}\n"


class Cell(NamedTuple):
    """What is run at once."""

    language: str
    source: str


def cells(text: str) -> Iterator[Cell]:
    """Those of a page, in their order."""
    return (Cell(found[1], found[2]) for found in CELL.finditer(text))


def write_notebook(page: Path) -> None:
    """Write a page as a notebook beside it, and name it in the page."""
    import jupytext

    text = page.read_text(encoding="utf-8")
    notebook = jupytext.reads(KERNEL + text, fmt="md")
    jupytext.write(notebook, page.with_suffix(".ipynb"))
    heading, _, rest = text.partition("\n\n")
    page.write_text(heading + NOTE.format(name=page.with_suffix(".ipynb").name) + "\n" + rest, encoding="utf-8")
