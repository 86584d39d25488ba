"""Draws a sequence that Mermaid describes as SVG, so that a page needs no script for it.

Of Mermaid's language it knows what these pages use: participants, messages, and ``loop`` and ``opt`` around them.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from typing import NamedTuple

PARTICIPANT = re.compile(r"participant (\w+) as (.+)")
MESSAGE = re.compile(r"(\w+)(--?>>)(\w+): (.+)")
LANE, HEAD, LINE, CHAR = 150, 56, 15, 6.4
"""Widths and heights in pixels: between participants, of their names, of a line of words, of a character."""


class Message(NamedTuple):
    """From one participant to another, or to itself."""

    sender: int
    receiver: int
    words: list[str]
    is_answer: bool


class Frame(NamedTuple):
    """What is repeated, or happens at times."""

    title: str
    top: float
    depth: int


def drawn(text: str) -> str:
    """The drawing.

    Raises:
        ValueError: A line is none that it knows.
    """
    lines = [line.strip() for line in text.strip().split("\n")[1:]]
    names = {found[1]: found[2] for line in lines if (found := PARTICIPANT.fullmatch(line))}
    place = {name: index for index, name in enumerate(names)}
    body: list[str] = []
    frames: list[Frame] = []
    y = HEAD + 14.0
    for line in lines:
        if PARTICIPANT.fullmatch(line):
            continue
        if line == "end":
            body.append(_frame(frames.pop(), y, len(names)))
            y += 8
        elif line.startswith(("loop ", "opt ")):
            frames.append(Frame(line, y, len(frames)))
            y += 24
        elif found := MESSAGE.fullmatch(line):
            sender, receiver = place[found[1]], place[found[3]]
            room = max(abs(receiver - sender), 1.3) * LANE - 16
            message = Message(sender, receiver, textwrap.wrap(found[4], int(room / CHAR)), found[2] == "-->>")
            y += LINE * len(message.words) + 4
            body.append(_message(message, y))
            y += 22 if sender == receiver else 12
        else:
            raise ValueError(f"website/sequence.py does not draw {line!r}")
    width, height = LANE * (len(names) - 1) + 194, y + 10
    lifelines = [
        f'<path class="way dash" d="M{_x(index)} {HEAD - 8}V{height - 6}"/>'
        f'<rect class="{"one" if index else "three"}" x="{_x(index) - 70}" y="4" width="140" height="{HEAD - 12}" '
        'rx="5"/>' + _words(_x(index), 4 + (HEAD - 12) / 2 + 5, textwrap.wrap(name, 20), "mid")
        for index, name in enumerate(names.values())
    ]
    head = (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img">'
        '<defs><marker id="tip-sequence" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return "\n".join([head, *lifelines, *body, "</svg>"])


def _x(index: int) -> int:
    return 74 + LANE * index


def _words(x: float, middle: float, lines: list[str], kind: str) -> str:
    top = middle - LINE * (len(lines) - 1) / 2
    return "".join(
        f'<text class="{kind}" x="{x:g}" y="{top + LINE * number:g}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )


def _message(one: Message, y: float) -> str:
    x, dash = _x(one.sender), " dash" if one.is_answer else ""
    last = y - 5
    if one.sender == one.receiver:
        way = f"M{x} {y}h26v14h-24"
        words = _words(x + 6, last - LINE * (len(one.words) - 1) / 2, one.words, "soft over")
    else:
        way = f"M{x} {y}H{_x(one.receiver) + (-3 if one.receiver > one.sender else 3)}"
        middle = (x + _x(one.receiver)) / 2
        words = _words(middle, last - LINE * (len(one.words) - 1) / 2, one.words, "mid soft over")
    return f'<path class="way{dash}" marker-end="url(#tip-sequence)" d="{way}"/>{words}'


def _frame(frame: Frame, bottom: float, num_names: int) -> str:
    inset = 4 + 6 * frame.depth
    width = LANE * (num_names - 1) + 194 - 2 * inset
    return (
        f'<rect class="frame" x="{inset}" y="{frame.top:g}" width="{width}" height="{bottom - frame.top:g}" rx="4"/>'
        f'<text class="soft head over" x="{inset + 8}" y="{frame.top + 16:g}">{escape(frame.title)}</text>'
    )
