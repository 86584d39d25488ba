"""Puts all pages of the site into one folder: those that people write, as they are, and those that are generated."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from website import command_line, glossary, messages, python_api, recipe_keys
from website.figures import with_figures
from website.notebooks import write_notebook
from website.places import HERE, ROOT
from website.plots import PLOTS

FOLDERS = ("docs", "ds_configs", "launchers")
"""Kept beside each other, so that links between their files hold."""
FILES = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
LEFT_OUT = ("hub", "__pycache__")


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as GitHub makes it: links to it hold there and here."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", separator)


def generated() -> Iterator[tuple[str, str]]:
    """Pages that are made from the code, by name."""
    yield "reference/recipe.md", recipe_keys.page()
    yield "reference/command_line.md", command_line.page()
    yield "reference/python.md", python_api.page()
    yield "reference/messages.md", messages.page()
    yield "reference/glossary.md", glossary.page()


def stage(out: Path) -> Path:
    """Write all pages into ``out``; returns the file that the builder is started with."""
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "pages"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, pages / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in FILES:
        shutil.copy(ROOT / name, pages / name)
    shutil.copytree(HERE / "pages", pages, dirs_exist_ok=True)
    for name, text in generated():
        (pages / name).parent.mkdir(exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8")
    for page in (pages / "docs" / "tutorials").glob("*.md"):
        write_notebook(page)
    for page in pages.rglob("*.md"):
        text = with_figures(page.read_text(encoding="utf-8"), page.parent, PLOTS)
        page.write_text(text, encoding="utf-8")
    config = out / "mkdocs.yml"
    shutil.copy(HERE / "site.yml", config)
    return config
