"""Figures of the site: drawings of ``docs/figures`` as part of their pages, in the colours that the reader chose."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

from website.sequence import drawn

DRAWING = re.compile(r"^!\[([^\]]+)\]\(([\w/.-]+\.svg)\)$", re.MULTILINE)
SEQUENCE = re.compile(r"^```mermaid\n(sequenceDiagram\n.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"^<!-- figure: (\w+) -->$", re.MULTILINE)


def with_figures(text: str, folder: Path, plots: dict[str, Callable[[], str]]) -> str:
    """A page with its drawings in it, its sequences drawn, and plots where it names them.

    Args:
        text: Markdown.
        folder: The page's, which its links begin at.
        plots: What draws each, by the name that ``<!-- figure: NAME -->`` asks for.

    Raises:
        KeyError: A page names a plot that there is not.
    """
    text = DRAWING.sub(lambda found: _figure((folder / found[2]).read_text(encoding="utf-8"), found[1]), text)
    text = SEQUENCE.sub(lambda found: _figure(drawn(found[1]), None), text)
    return PLACE.sub(lambda found: _figure(plots[found[1]](), None), text)


def _figure(svg: str, caption: str | None) -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    lines = [line for line in svg.split("\n") if line.strip()]  # a blank line would end the HTML
    return "\n".join(["", '<figure class="drawing"><div>', *lines, "</div>", f"{words}</figure>", ""])
