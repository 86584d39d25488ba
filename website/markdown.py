"""Words of the code as Markdown."""

from __future__ import annotations

import re
from html import escape

ROLE = re.compile(r":\w+:`~?([^`]+)`")


def text_of_docstring(docstring: str) -> str:
    """A docstring's first words, up to its first heading, as Markdown: its paragraphs on a line each."""
    text = ROLE.sub(r"`\1`", docstring).replace("``", "`")
    paragraphs = [" ".join(one.split()) for one in re.split(r"\n\s*\n", text.strip())]
    return "\n\n".join(paragraphs)


def cell(text: str) -> str:
    """Text within a table."""
    return text.replace("|", r"\|").replace("\n\n", "<br>").replace("\n", " ")


def plain(text: str) -> str:
    """Text that is shown as it is, whatever Markdown or HTML would make of it."""
    return escape(text).replace("\n", "<br>")
