"""The glossary: the table of ``CONTRIBUTING.md``, which is its one source, by the alphabet."""

from __future__ import annotations

from website.places import ROOT

BEGINNING = "| word | means | and not |"
HEAD = """# Glossary

One word has one meaning, in these pages, in messages and in the code. Names of files are where it is made.

"""


def table(text: str) -> list[str]:
    """The lines of the one table of words in a page."""
    _, after = text.split(BEGINNING, 1)
    lines = after.strip().split("\n")
    rows = lines[1 : next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [BEGINNING, lines[0], *sorted(rows, key=lambda row: row.strip("|` ").lower())]


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) + "\n"
