"""The plan of the house, measured from the imports: rooms on floors, and who asks whom. Draws ``docs/house.svg``.

    python -m tests.house

A room is a folder of ``ted_ds`` or a module beside the folders; an arrow says that something in one room imports
something in another. A room's floor is one above the highest that it asks, so that every arrow points down.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import grimp

PACKAGE = "ted_ds"
DRAWING = Path(__file__).parent.parent / "docs" / "house.svg"
ENTRANCE = "__main__"
"""No room: it is the way into ``cli``."""

WIDTH, FLOOR_HEIGHT, MARGIN, HEAD = 980, 92, 24, 64
ROOM_HEIGHT, ROOM_WIDTH, GAP = 44, 150, 42
INK, PAPER, FAINT, WALL = "#1f2933", "#ffffff", "#c3ccd6", "#eef2f6"


class House(NamedTuple):
    """What is drawn."""

    num_modules: Mapping[str, int]
    """Of each room."""
    floors: Mapping[str, int]
    """Of each room, from 1 at the bottom."""
    arrows: Set[tuple[str, str]]
    """From a room to one that it imports from."""

    @property
    def num_floors(self) -> int:
        """How high it is."""
        return max(self.floors.values())

    @property
    def loose(self) -> list[str]:
        """Modules that stand beside the folders."""
        return sorted(room for room in self.floors if (Path(__file__).parent.parent / PACKAGE / f"{room}.py").exists())

    @property
    def needed(self) -> set[tuple[str, str]]:
        """Arrows without which the floors would be others: no way round leads there too."""
        reached = {room: {below for above, below in self.arrows if above == room} for room in self.floors}
        for room in sorted(self.floors, key=self.floors.__getitem__):
            reached[room] |= {far for below in reached[room] for far in reached[below]}
        return {
            (above, below)
            for above, below in self.arrows
            if not any(below in reached[via] for over, via in self.arrows if over == above)
        }


def measure() -> House:
    """The house as it is.

    Raises:
        ValueError: Rooms ask each other in a circle.
    """
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = {child.rpartition(".")[2] for child in graph.find_children(PACKAGE)} - {ENTRANCE}
    parts = [name.split(".") for name in graph.modules if "." in name]
    num_modules = Counter(words[1] for words in parts if words[1] in rooms)
    arrows: set[tuple[str, str]] = set()
    for words in parts:
        for imported in graph.find_modules_directly_imported_by(".".join(words)):
            room = imported.split(".")[1] if "." in imported else None
            if words[1] in rooms and room is not None and room != words[1]:
                arrows.add((words[1], room))
    return House(dict(num_modules), _floors(rooms, arrows), arrows)


def _floors(rooms: set[str], arrows: set[tuple[str, str]]) -> dict[str, int]:
    floors: dict[str, int] = {}
    while left := rooms - floors.keys():
        ready = {room for room in left if all(below in floors for above, below in arrows if above == room)}
        if not ready:
            raise ValueError(f"a circle among {sorted(left)}")
        for room in ready:
            floors[room] = 1 + max((floors[below] for above, below in arrows if above == room), default=0)
    return floors


def draw(house: House) -> str:
    """An SVG: the drawing, and in its attributes the numbers."""
    places = _places(house)
    height = HEAD + house.num_floors * FLOOR_HEIGHT + MARGIN
    title = (
        f"The house of {PACKAGE}: {len(house.floors)} rooms on {house.num_floors} floors, {len(house.arrows)} arrows, "
        f"{len(house.loose)} modules beside the folders"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        f' fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        f'<text x="{MARGIN}" y="28" font-size="17" font-weight="bold">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="48" font-size="12">An arrow says: imports. Dark ones make the floors; faint ones go'
        " where a dark way leads too. In a room: its modules.</text>",
    ]
    for floor in range(1, house.num_floors + 1):
        y = _top(house, floor) - (FLOOR_HEIGHT - ROOM_HEIGHT) / 4
        lines.append(
            f'<rect x="{MARGIN}" y="{y:g}" width="{WIDTH - 2 * MARGIN}" height="{ROOM_HEIGHT + 23:g}"'
            f' fill="{WALL}" rx="6"/><text x="{MARGIN + 8}" y="{y + 16:g}" font-size="11" fill="#7b8794">{floor}</text>'
        )
    needed = house.needed
    # the dark ones over the faint ones
    for arrow in sorted(house.arrows, key=lambda one: (one in needed, one)):
        lines.append(_arrow(house, places, *arrow, is_needed=arrow in needed))
    for room, (x, y) in sorted(places.items()):
        count = house.num_modules[room]
        name = f"{room}.py" if room in house.loose else f"{room}/"
        lines.append(
            f'<g class="room" data-room="{room}" data-floor="{house.floors[room]}" data-modules="{count}">'
            f'<rect x="{x - ROOM_WIDTH / 2:g}" y="{y:g}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}" rx="5"'
            f' fill="{PAPER}" stroke="{INK}"/>'
            f'<text x="{x:g}" y="{y + 19:g}" font-size="14" font-weight="bold" text-anchor="middle">{name}</text>'
            f'<text x="{x:g}" y="{y + 35:g}" font-size="11" text-anchor="middle">{_in_words(count)}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def drawn(svg: str) -> House:
    """What a drawing shows, read back."""
    root = ElementTree.fromstring(svg)
    tag = re.escape(root.tag.removesuffix("svg"))
    rooms = [one for one in root.iter() if re.fullmatch(f"{tag}g", one.tag) and one.get("class") == "room"]
    arrows = [one for one in root.iter() if one.get("class") == "arrow"]
    return House(
        {one.attrib["data-room"]: int(one.attrib["data-modules"]) for one in rooms},
        {one.attrib["data-room"]: int(one.attrib["data-floor"]) for one in rooms},
        {(one.attrib["data-from"], one.attrib["data-to"]) for one in arrows},
    )


def _top(house: House, floor: int) -> float:
    return HEAD + (house.num_floors - floor) * FLOOR_HEIGHT + (FLOOR_HEIGHT - ROOM_HEIGHT) / 2


def _places(house: House) -> dict[str, tuple[float, float]]:
    """The middle of each room's upper wall; rooms that are alone stand left and right in turns, so that arrows show."""
    places: dict[str, tuple[float, float]] = {}
    for floor in range(1, house.num_floors + 1):
        rooms = sorted(room for room, its in house.floors.items() if its == floor)
        lean = 0.0 if len(rooms) > 1 else (-1) ** floor * ROOM_WIDTH * 0.8
        start = WIDTH / 2 + lean - (len(rooms) - 1) * (ROOM_WIDTH + GAP) / 2
        for number, room in enumerate(rooms):
            places[room] = (start + number * (ROOM_WIDTH + GAP), _top(house, floor))
    return places


def _arrow(house: House, places: Mapping[str, tuple[float, float]], above: str, below: str, *, is_needed: bool) -> str:
    """A curve from the lower wall of one room to the upper wall of another, beside the rooms between."""
    (x1, y1), (x2, y2) = places[above], places[below]
    x1 += _spread(places, [two for one, two in house.arrows if one == above], below)
    x2 += _spread(places, [one for one, two in house.arrows if two == below], above)
    y1 += ROOM_HEIGHT
    bow = 0.5 * (y2 - y1)
    style = f'stroke="{INK}" stroke-width="1.6" marker-end="url(#tip)"' if is_needed else f'stroke="{FAINT}"'
    return (
        f'<path class="arrow" data-from="{above}" data-to="{below}" fill="none" {style}'
        f' d="M{x1:g} {y1:g}C{x1:g} {y1 + bow:g} {x2:g} {y2 - bow:g} {x2:g} {y2:g}">'
        f"<title>{above} imports {below}</title></path>"
    )


def _spread(places: Mapping[str, tuple[float, float]], others: list[str], other: str) -> float:
    """How far from the middle of a wall an arrow meets it: those to and from the left on the left, none on another."""
    from_the_left = sorted(others, key=lambda room: (places[room], room))
    return ((from_the_left.index(other) + 0.5) / len(others) - 0.5) * (ROOM_WIDTH - 20)


def _in_words(count: int) -> str:
    return f"{count} module" if count == 1 else f"{count} modules"


if __name__ == "__main__":
    DRAWING.write_text(draw(measure()), encoding="utf-8")
