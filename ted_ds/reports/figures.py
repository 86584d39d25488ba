"""The figures of a report, drawn with matplotlib: readable on a light and on a dark page."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.errors import DataError
from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.output.step_parts import PARTS
from ted_ds.reports.pace import time_split
from ted_ds.reports.reading import OF_LAYER, RunRecord, is_number

INK = "#808890"
"""Of axes and words: seen on white and on black."""
COLOURS = ("#2f7ed8", "#e4761b", "#23a267", "#b455c8", "#d2a500", "#d63d5c", "#17a2b8", "#8a6d3b")
WIDE = (7.2, 2.9)
ONE_TERM = 2
"""Metrics of a loss with one term: that, and their total."""
GAP = "gap/closed"
FEWEST_POINTS = 3
"""Of a curve of scores."""
SPREAD = 20.0
"""Curves whose largest value is so many times the smallest are drawn on a logarithmic axis."""
FORMATTED = {"svg.fonttype": "none", "svg.hashsalt": "ted_ds", "font.size": 9.0, "font.family": "sans-serif"}


@dataclass(frozen=True)
class Drawing:
    """A figure in both forms."""

    name: str
    title: str
    svg: str
    """For the page, without a header of its own."""
    png: bytes


def drawings_of(run: RunRecord) -> list[Drawing]:
    """All figures that a run's files have numbers for, the most important first.

    Raises:
        DataError: matplotlib is not installed.
    """
    return drawing_with(lambda: _drawn(run))


def drawing_with(make: Callable[[], Iterable[Drawing]]) -> list[Drawing]:
    """Drawings, made under the settings that all have.

    Raises:
        DataError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(FORMATTED):
        return [*make()]


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise DataError(
            "a report draws its figures with matplotlib, which is not installed: pip install 'ted_ds[report]'"
        ) from error


def _drawn(run: RunRecord) -> Iterator[Drawing]:
    scores = {model: run.score(model) for model in run.models}
    if run.headline is not None and any(is_number(one) for one in scores.values()):
        yield _scatter(run)
    for phase in run.reported_phases:
        records = run.of_phase(phase)
        terms = _series(records, lambda name: name.startswith("loss/") and not OF_LAYER.fullmatch(name))
        if len(terms) == ONE_TERM:
            terms.pop("loss/total", None)
        if terms:
            yield _curves(f"{phase}_loss", f"{phase}: loss terms", terms, "step", "loss")
        by_layer: dict[str, dict[str, Series]] = {}
        for name, points in _series(records, lambda name: bool(OF_LAYER.fullmatch(name))).items():
            match = OF_LAYER.fullmatch(name)
            assert match is not None
            if match["metric"].startswith(("loss/", "match/")):
                by_layer.setdefault(match["metric"], {})[match["layer"]] = points
        for family, layers in by_layer.items():
            short = family.removeprefix("loss/").removeprefix("match/")
            name = f"{phase}_{short}_by_layer".replace("/", "_")
            if len(layers) <= len(COLOURS):
                yield _curves(name, f"{phase}: {short} by layer", layers, "step", short)
            else:
                yield _heat(name, f"{phase}: {short} by layer", layers, short)
        gaps = _series(records, lambda name: name == GAP)
        if len(gaps.get(GAP, ())) >= FEWEST_POINTS:
            title = f"{phase}: share of the gap to the teacher's task loss that is closed, on training batches"
            yield _curves(f"{phase}_gap", title, gaps, "step", "share")
        scored = _series(records, lambda name: run.headline is not None and name == f"eval/{run.headline.name}")
        if any(len(points) >= FEWEST_POINTS for points in scored.values()) and run.headline is not None:
            yield _curves(f"{phase}_heldout", f"{phase}: held-out score", scored, "step", run.headline.name)
    healed = run.finished("heal_student")
    if healed is not None:
        blocks = [block for block in healed.result.get("blocks", []) if block]
        if blocks:
            yield _bars(blocks)
    times = time_split(run)
    if times:
        yield _split(times)
    speed = {
        phase: points["perf/tokens_per_s"]
        for phase in run.reported_phases
        if (points := _series(run.of_phase(phase), lambda name: name == "perf/tokens_per_s"))
    }
    if speed:
        yield _curves("speed", "Tokens per second while training", speed, "step", "tokens/s", from_zero=True)


Series = list[tuple[float, float]]


def _series(records: Sequence[Mapping[str, Any]], wanted: Any) -> dict[str, Series]:
    """Of the metrics that are wanted, the points by step."""
    found: dict[str, Series] = {}
    for record in records:
        for name, value in record.items():
            if wanted(name) and is_number(value):
                found.setdefault(name, []).append((record["step"], value))
    return found


def _axes(figure: Any, place: int, across: str, up: str) -> Any:
    axes = figure.add_subplot(place)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(visible=True, color=INK, alpha=0.2, linewidth=0.6)
    return axes


def _figure(size: tuple[float, float]) -> Any:
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _finish(figure: Any, name: str, title: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.patch.set_alpha(1)  # a picture by itself has a ground of its own
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    text = svg.getvalue()
    body = text[text.index("<svg") :]
    # it takes the width of the page, and its ids are its own among several on one page
    body = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", body, count=1)
    body = re.sub(r'<svg ([^>]*?)height="[^"]*"', r'<svg \1role="img"', body, count=1)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"<metadata>.*?</metadata>", f"<title>{title}</title>", body, count=1, flags=re.DOTALL)
    return Drawing(name, title, body, png.getvalue())


def _legend(axes: Any) -> None:
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    legend.set_zorder(3)


def _curves(
    name: str, title: str, lines: Mapping[str, Series], across: str, up: str, *, from_zero: bool = False
) -> Drawing:
    figure = _figure(WIDE)
    axes = _axes(figure, 111, across, up)
    values = [value for points in lines.values() for _, value in points]
    for index, (label, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points, strict=True),
            label=label.removeprefix("loss/"),
            color=COLOURS[index % len(COLOURS)],
            linestyle="-" if index < len(COLOURS) else "--",
            marker="o" if len(points) < 12 else None,
            markersize=3,
            linewidth=1.6,
        )
    if min(values) > 0 and max(values) > SPREAD * min(values):
        axes.set_yscale("log")
    elif from_zero:
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        _legend(axes)
    return _finish(figure, name, title)


def _scatter(run: RunRecord) -> Drawing:
    """Quality beside size and beside speed."""
    assert run.headline is not None
    figure = _figure(WIDE)
    name = run.headline.name.replace("_", " ")
    for place, key, across, unit in (
        (121, "num_parameters", "parameters, millions", 1e6),
        (122, "perf/tokens_per_s", "tokens/s, forward", 1.0),
    ):
        axes = _axes(figure, place, across, name)
        for index, (model, scores) in enumerate(run.models.items()):
            score = run.score(model)
            if score is None or not is_number(scores.get(key)):
                continue
            mark = {TEACHER: "s", STUDENT: "D"}.get(model, "o")
            colour = COLOURS[index % len(COLOURS)]
            axes.scatter([scores[key] / unit], [score], color=colour, marker=mark, s=45, label=model)
        values = [score for model in run.models if (score := run.score(model)) is not None]
        if min(values) > 0 and max(values) > SPREAD * min(values):
            axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.margins(0.15)
        if place == 121:
            _legend(axes)
    return _finish(figure, "quality", f"{name} beside size and speed")


def _bars(blocks: Sequence[Mapping[str, Any]]) -> Drawing:
    """Healing: each block's error before and after."""
    figure = _figure(WIDE)
    axes = _axes(figure, 111, "block of the student, and the layer of the teacher it is brought to", "relative error")
    places = range(len(blocks))
    for shift, key, colour, label in (
        (-0.2, "error_before", COLOURS[1], "cut"),
        (0.2, "error_after", COLOURS[2], "healed"),
    ):
        axes.bar([place + shift for place in places], [one[key] for one in blocks], 0.4, color=colour, label=label)
    axes.set_xticks(list(places), [f"{one['block']}\nto {one['teacher_layer']}" for one in blocks])
    _legend(axes)
    return _finish(figure, "healing", "Healing, block by block")


def _heat(name: str, title: str, layers: Mapping[str, Series], up: str) -> Drawing:
    """More layers than there are colours: a row each, a column for each report that has all of them."""
    figure = _figure((WIDE[0], 1.0 + 0.16 * len(layers)))
    axes = _axes(figure, 111, "step", "")
    steps = sorted(set.intersection(*({step for step, _ in points} for points in layers.values())))
    rows = [[dict(points)[step] for step in steps] for points in layers.values()]
    drawn = axes.pcolormesh(range(len(steps) + 1), range(len(layers) + 1), rows, cmap="viridis")
    shown = range(0, len(steps), max(1, len(steps) // 6))
    axes.set_xticks([place + 0.5 for place in shown], [f"{steps[place]:.0f}" for place in shown])
    axes.set_yticks([place + 0.5 for place in range(len(layers))], list(layers), fontsize=7)
    axes.invert_yaxis()
    axes.grid(visible=False)
    bar = figure.colorbar(drawn, ax=axes, label=up)
    bar.solids.set_rasterized(False)  # no picture within the picture
    bar.ax.yaxis.label.set_color(INK)
    bar.ax.tick_params(colors=INK)
    return _finish(figure, name, title)


def _split(times: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Of each phase, what the parts of a step take of it."""
    figure = _figure((WIDE[0], 1.1 + 0.38 * len(times)))
    axes = _axes(figure, 111, "share of a step's time", "")
    parts = [part for part in PARTS if any(part in of_phase for of_phase in times.values())]
    begins = [0.0] * len(times)
    for index, part in enumerate(parts):
        shares = [of_phase.get(part, 0.0) / sum(of_phase.values()) for of_phase in times.values()]
        axes.barh(range(len(times)), shares, 0.6, left=begins, color=COLOURS[index % len(COLOURS)], label=part)
        begins = [begin + share for begin, share in zip(begins, shares, strict=True)]
    axes.set_yticks(range(len(times)), list(times))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
    return _finish(figure, "time_split", "Where the time of a step goes")


def draw_intervals(
    name: str, title: str, gains: Mapping[str, tuple[float, float, float]], told: Collection[str]
) -> Drawing:
    """Of each arm, by its name, a gain and the ends of its interval, beside 0; coloured where a difference is told."""
    figure = _figure((WIDE[0], 0.9 + 0.38 * len(gains)))
    axes = _axes(figure, 111, "", "")
    for place, (arm, (gain, low, high)) in enumerate(gains.items()):
        colour = INK if arm not in told else COLOURS[2] if gain > 0 else COLOURS[5]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([gain], [place], color=colour, marker="o", markersize=6)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.invert_yaxis()
    axes.margins(y=0.15)
    return _finish(figure, name, title)


def draw_costs(
    name: str,
    title: str,
    points: Mapping[str, tuple[float, Sequence[float]]],
    labels: tuple[str, str],
    teacher: float | None,
) -> Drawing:
    """Of each arm, by its name, what it takes and the score of each seed; beside the teacher's score, if it is known.

    ``labels`` are those of what it takes, and of the score.
    """
    figure = _figure(WIDE)
    axes = _axes(figure, 111, *labels)
    if teacher is not None:
        axes.axhline(teacher, color=INK, linewidth=1, linestyle="--", label="teacher")
    for index, (arm, (cost, scores)) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.scatter([cost] * len(scores), scores, color=colour, s=14, alpha=0.6)
        axes.scatter([cost], [sum(scores) / len(scores)], color=colour, s=50, marker="D", label=arm)
    axes.margins(0.15)
    _legend(axes)
    return _finish(figure, name, title)
