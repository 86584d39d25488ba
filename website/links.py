"""Looks at what was built: links lead to a file, or a place on a page, that is there; nothing comes from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}
"""Relations of ``link`` that say something, and bring nothing."""


class _Page(HTMLParser):
    """The links and places of one."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag leads to, brings along, and is called."""
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        of_link = tag != "link" or not NOT_LOADED & {*values.get("rel", "").split()}
        if tag in LOADED and LOADED[tag] in values and of_link:
            self.loaded.add(values[LOADED[tag]])


def faults(html: Path) -> list[str]:
    """What is wrong with the links of the pages below a folder, a line each."""
    pages = {file: _read(file) for file in sorted(html.rglob("*.html")) if file.name != "404.html"}
    found = []
    for file, page in pages.items():
        here = file.relative_to(html)
        found += [f"{here}: loads {one}" for one in sorted(page.loaded) if urlsplit(one).netloc]
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            places = pages[target].places if target in pages else None
            is_there = target.exists() and (places is None or parts.fragment in {"", *places})
            found += [] if is_there else [f"{here}: {link} leads nowhere"]
    return found


def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page
