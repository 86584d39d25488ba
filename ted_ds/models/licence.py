"""Under which licence a model is, as its card and files say, and what to know before what is made of it is passed on.

Not legal advice: names are looked up, texts are not understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ted_ds.models.companions import CARD, licences_in

FREE = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    *(
        "bsl-1.0",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "ecl-2.0",
        "epl-2.0",
    ),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "eupl-1.1", "eupl-1.2", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl"),
    *("lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl", "ncsa", "odc-by", "pddl", "postgresql", "unlicense", "wtfpl"),
    "zlib",
}
"""The Hub's names of licences that let anyone use, change and pass on, also for money."""
OTHER = "other"
"""The Hub's name of a licence that has none."""
BEGINNINGS = (
    ("apache-2.0", re.compile(r"\s*Apache License\s+Version 2\.0")),
    ("mit", re.compile(r"\s*(The )?MIT License")),
)
"""Of the texts of licences that are known by them."""
LONGEST_BEGINNING = 500
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Licence:
    """What is known of a model's licence."""

    name: str | None
    """The Hub's, in small letters; None where nothing names it."""
    own_name: str | None = None
    link: str | None = None
    """What the card calls one that is ``other``, and where it is."""

    def doubt(self, model: str) -> str | None:
        """What to look at before what is made of ``model`` is passed on; None where nothing is."""
        if self.name is None:
            return f"the licence of {model} is not known: neither a card nor a licence file beside it names one"
        parts = self.name.split("-")
        if "nd" in parts:
            return f"{model} is under {self.name}, which forbids to pass on what is made of it"
        if "nc" in parts:
            return f"{model} is under {self.name}, which forbids commercial use, also of what is made of it"
        if self.name not in FREE:
            return f"{model} is under {self.own_name or self.name}, which may bind what is made of it: read its terms"
        return None


def licence_of(folder: Path) -> Licence:
    """That of a model folder: as its card says, else as one of its licence files begins."""
    said = _front_matter(folder / CARD)
    name = said.get("license")
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if isinstance(name, str) and name.strip():
        own_name, link = (said.get(key) for key in ("license_name", "license_link"))
        return Licence(name.strip().lower(), *(one if isinstance(one, str) else None for one in (own_name, link)))
    for file in licences_in(folder):
        beginning = (folder / file).read_text(encoding="utf-8", errors="replace")[:LONGEST_BEGINNING]
        for known, pattern in BEGINNINGS:
            if pattern.match(beginning):
                return Licence(known)
    return Licence(None)


def _front_matter(card: Path) -> dict[str, Any]:
    """Of a card; empty where it has none that can be read."""
    match = FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    if match is None:
        return {}
    try:
        content = yaml.safe_load(match[1])
    except yaml.YAMLError:  # then nobody can know what it says
        return {}
    return content if isinstance(content, dict) else {}
