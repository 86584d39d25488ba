"""A plot as SVG in the site's own colours, which follow the reader's choice of light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

HEIGHT, LEFT, TOP, BOTTOM, RIGHT, CHAR = 300, 80, 34, 46, 24, 6.3
STYLES = ("one", "two", "three", "one dashed", "two dashed", "three dashed")


class Axes:
    """One panel: from data to places on it."""

    def __init__(
        self, title: str, x_title: str, *, points: Sequence[tuple[float, float]], log_y: bool = False, width: int = 350
    ) -> None:
        """Axes that hold ``points``."""
        self.title, self.x_title, self.log_y, self.width = title, x_title, log_y, width
        self._body: list[str] = []
        self._labels: list[tuple[float, float, float]] = []
        self._x = _wider(min(x for x, _ in points), max(x for x, _ in points))
        ys = [self._height_of(y) for _, y in points]
        self._y = _wider(min(ys), max(ys))

    def _height_of(self, y: float) -> float:
        return math.log10(y) if self.log_y else y

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Of a point, in pixels."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (self._height_of(y) - self._y[0]) / (self._y[1] - self._y[0])
        return LEFT + across * (self.width - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def dot(self, x: float, y: float, kind: str, name: str | None) -> None:
        """A point, and what it is."""
        left, top = self.place(x, y)
        radius = 5 if name else 2.5
        self._body.append(f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}"/>')
        if name is None:
            return
        length = len(name) * CHAR
        is_left = left + 9 + length > self.width
        start = left - 9 - length if is_left else left + 9
        line = top + 4
        while any(
            abs(line - other) < 13 and start < end and begin < start + length for begin, end, other in self._labels
        ):
            line += 13
        self._labels.append((start, start + length, line))
        kind, at = ("soft over right", left - 9) if is_left else ("soft over", left + 9)
        self._body.append(f'<text class="{kind}" x="{at:.1f}" y="{line:.1f}">{name}</text>')

    def line(self, points: Sequence[tuple[float, float]], number: int, name: str) -> None:
        """A curve, named in the corner."""
        way = "L".join("{:.1f} {:.1f}".format(*self.place(x, y)) for x, y in points)
        kind = STYLES[number]
        y = TOP + 16 + 17 * number
        right = self.width - RIGHT - 150
        self._body.append(
            f'<path class="curve {kind}" d="M{way}"/><path class="curve {kind}" d="M{right} {y - 4}h26"/>'
        )
        self._body.append(f'<text class="soft over" x="{right + 34}" y="{y}">{escape(name)}</text>')

    def drawn(self, left: int) -> str:
        """The panel, so far to the right."""
        parts = [f'<g transform="translate({left} 0)"><text class="head" x="8" y="18">{escape(self.title)}</text>']
        bottom = HEIGHT - BOTTOM
        for x in _ticks(*self._x):
            at, _ = self.place(x, 1)
            parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text class="soft mid" x="{at:.1f}" y="{bottom + 16}">{_shown(x)}</text>')
        marks = (
            [10.0**power for power in range(math.ceil(self._y[0]), math.floor(self._y[1]) + 1)]
            if self.log_y
            else _ticks(*self._y)
        )
        for y in marks:
            _, at = self.place(self._x[0], y)
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{self.width - RIGHT}"/>')
            parts.append(f'<text class="soft right" x="{LEFT - 6}" y="{at + 4:.1f}">{_shown(y)}</text>')
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(f'<text class="soft mid" x="{middle:g}" y="{HEIGHT - 8}">{escape(self.x_title)}</text>')
        return "".join([*parts, *self._body, "</g>"])


def row_of_panels(title: str, panels: Sequence[Axes]) -> str:
    """A drawing of several beside each other."""
    lefts = [sum(one.width + 10 for one in panels[:index]) for index in range(len(panels))]
    width = lefts[-1] + panels[-1].width
    head = f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img">'
    body = [one.drawn(left) for one, left in zip(panels, lefts, strict=True)]
    return "\n".join([head, f"<title>{escape(title)}</title>", *body, "</svg>"])


def _wider(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.08 or 1.0
    return low - margin, high + margin


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(times for times in (5, 2, 1) if (high - low) / (step * times) >= 2)
    return [round(step * index, 10) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
