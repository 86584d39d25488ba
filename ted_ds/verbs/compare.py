"""The verb ``compare``: in what two runs differ, settings and results, on the screen or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ted_ds.output.screen import Screen
from ted_ds.reports.places import Places
from ted_ds.reports.reading import RunRecord, is_number, read_run_record, told_apart
from ted_ds.reports.tables import in_words, settings_of
from ted_ds.reports.verdict import shown

MISSING = "–"
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""A SHA-256, and what of it is shown."""
SPEED = "perf/"
"""What measures of speed begin with: they differ whenever a run is started."""

PATH, SHA256 = ".path", ".sha256"
"""Ends of the settings that name a model."""
IN_RUN, EVERY_PHASE = "RUN", "*"
"""Stand for the folder of each run, and for several phases."""

Pairs = Mapping[str, tuple[Any, Any]]
"""What differs, by name: of the first run and of the second; :data:`NOTHING` where it has none."""


class Nothing:
    """Stands for what a run does not have; ``None`` is a value."""


NOTHING = Nothing()


def compare(first: Path, second: Path, *, as_json: bool) -> None:
    """Print the phases, settings and results that differ.

    Raises:
        DataError: A folder is no run's, or a file of it is damaged.
    """
    runs = (read_run_record(first), read_run_record(second))
    done = [[one.name for one in run.phases] for run in runs]
    in_both = {*done[0]} & {*done[1]}
    all_settings = [_settings(run, in_both) for run in runs]
    settings = _without_places(_differing(*all_settings), all_settings[0])
    all_results = _differing(*(_results(run) for run in runs))
    speeds = {key: pair for key, pair in all_results.items() if _is_speed(key)}
    results = {key: pair for key, pair in all_results.items() if key not in speeds}
    if as_json:
        names = {"runs": [str(first), str(second)], "phases": done}
        as_lists = (
            {key: [_or_null(one) for one in pair] for key, pair in part.items()} for part in (settings, results, speeds)
        )
        print(json.dumps({**names, **dict(zip(("settings", "results", "speeds"), as_lists, strict=True))}, indent=2))
        return
    screen, folders = Screen(shown=True), told_apart((first, second))
    rows = [] if done[0] == done[1] else [["phases", *(" ".join(one) for one in done)]]
    rows += [[key, *map(_setting, pair)] for key, pair in _grouped(settings).items()]
    of_results, of_speeds = ([_result(key, pair) for key, pair in part.items()] for part in (results, speeds))
    _show(screen, "Settings that differ", ("setting", *folders), rows, numbers=False)
    _show(screen, "Results that differ", ("result", *folders, "change"), of_results, numbers=True)
    if of_speeds:
        _show(
            screen, "Speeds, which differ from start to start", ("speed", *folders, "change"), of_speeds, numbers=True
        )
    for run, folder in zip(runs, (first, second), strict=True):
        if not run.models:
            screen.say(f"{folder}: its models are not scored yet")


def _show(screen: Screen, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool) -> None:
    if rows:
        screen.table(title, columns, rows, numbers=numbers)
    else:
        screen.say(f"{title}: none")


def _settings(run: RunRecord, phases: Set[str]) -> dict[str, Any]:
    """What decided these phases; places in the run's own folder are the same in every run."""
    found = {key: value for key, value in settings_of(run).items() if key.partition(".")[0] in phases}
    places = Places(run)
    return {key: _in_run(value, places) if key.endswith(PATH) else value for key, value in found.items()}


def _in_run(path: str, places: Places) -> str:
    within = places.in_run(path)
    return path if within is None else str(Path(IN_RUN) / within)


def _without_places(settings: Pairs, first: Mapping[str, Any]) -> Pairs:
    """Without paths of models that are the same by their hash: wherever these are, they decide nothing."""

    def is_alike(key: str) -> bool:
        of_hash = f"{key.removesuffix(PATH)}{SHA256}"
        return key.endswith(PATH) and of_hash in first and of_hash not in settings

    return {key: pair for key, pair in settings.items() if not is_alike(key)}


def _is_speed(key: str) -> bool:
    """Of a result, by its model and its metric."""
    return key.partition(": ")[2].startswith(SPEED)


def _results(run: RunRecord) -> dict[str, float]:
    """Every score of every model, by both names."""
    return {f"{model}: {metric}": value for model, scores in run.models.items() for metric, value in scores.items()}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Pairs:
    names = dict.fromkeys([*first, *second])
    pairs = {name: (first.get(name, NOTHING), second.get(name, NOTHING)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _grouped(settings: Pairs) -> Pairs:
    """With one row for what differs alike in several phases."""
    alike: dict[str, list[str]] = {}
    for key, pair in settings.items():
        alike.setdefault(f"{key.partition('.')[2]} {pair}", []).append(key)
    rows = {}
    for keys in alike.values():
        setting = keys[0].partition(".")[2]
        rows[keys[0] if len(keys) == 1 else f"{EVERY_PHASE}.{setting}"] = settings[keys[0]]
    return rows


def _or_null(value: Any) -> Any:
    return None if value is NOTHING else value


def _setting(value: Any) -> str:
    return MISSING if value is NOTHING else HASH.sub(r"\1…", in_words(value))


def _result(key: str, pair: tuple[Any, Any]) -> list[str]:
    words = [shown(value) if is_number(value) else MISSING for value in pair]
    change = f"{pair[1] - pair[0]:+.4g}" if all(map(is_number, pair)) else MISSING
    return [key, *words, change]
