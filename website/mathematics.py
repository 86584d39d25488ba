"""Formulas as MathML, which browsers show by themselves: no script, nothing that is loaded from elsewhere.

Pages write them as GitHub reads them: dollars around backticks within a sentence, a fence called ``math`` for one on
its own.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

BEFORE_CODE = 195
"""Priority: code between backticks has 190."""
BEFORE_FENCES = 30
"""Priority: fences of code have 25."""
FENCE = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class InSentences(InlineProcessor):
    """A formula within a sentence."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: ARG002
        """Put MathML in its place."""
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class OnTheirOwn(Preprocessor):
    """Formulas on lines of their own."""

    def run(self, lines: list[str]) -> list[str]:
        """Put MathML in the place of each fence."""
        return FENCE.sub(self._store, "\n".join(lines)).split("\n")

    def _store(self, fence: re.Match[str]) -> str:
        formula = convert(fence[1], display="block")
        return "\n" + self.md.htmlStash.store(f'<div class="formula">{formula}</div>') + "\n"


class Mathematics(Extension):
    """See the module."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register both."""
        md.inlinePatterns.register(InSentences(r"\$`([^`]+)`\$", md), "formulas", BEFORE_CODE)
        md.preprocessors.register(OnTheirOwn(md), "formulas", BEFORE_FENCES)


def makeExtension(**settings: Any) -> Mathematics:
    """As Markdown finds it."""
    return Mathematics(**settings)
