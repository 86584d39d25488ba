"""References of docstrings (``:class:`Name```), which are Sphinx's, as code."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

BEFORE_CODE = 196
"""Priority: code between backticks has 190."""


class _Reference(InlineProcessor):
    """One, within a sentence."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: ARG002
        """Put its name in its place."""
        code = ElementTree.Element("code")
        code.text = AtomicString(m[1])
        return code, m.start(0), m.end(0)


class Roles(Extension):
    """See the module."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register it."""
        md.inlinePatterns.register(
            _Reference(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`", md), "roles", BEFORE_CODE
        )


def makeExtension(**settings: Any) -> Roles:
    """As Markdown finds it."""
    return Roles(**settings)
