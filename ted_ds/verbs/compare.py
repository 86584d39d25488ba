"""The verb ``compare``: in what two runs differ, settings and results, on the screen or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ted_ds.output.screen import Screen
from ted_ds.reports.reading import RunRecord, is_number, read_run_record
from ted_ds.reports.tables import in_words, settings_of
from ted_ds.reports.verdict import shown

MISSING = "–"
HASH_LENGTH = 12
"""Characters of a hash that are shown."""

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
    settings = _differing(*(_settings(run, in_both) for run in runs))
    results = _differing(*(_results(run) for run in runs))
    if as_json:
        names = {"runs": [str(first), str(second)], "phases": done}
        as_lists = (
            {key: [_or_null(one) for one in pair] for key, pair in part.items()} for part in (settings, results)
        )
        print(json.dumps({**names, **dict(zip(("settings", "results"), as_lists, strict=True))}, indent=2))
        return
    screen, folders = Screen(shown=True), (str(first), str(second))
    rows = [] if done[0] == done[1] else [["phases", *(" ".join(one) for one in done)]]
    rows += [[key, *(_setting(key, one) for one in pair)] for key, pair in _grouped(settings).items()]
    of_results = [_result(key, pair) for key, pair in results.items()]
    _show(screen, "Settings that differ", ("setting", *folders), rows, numbers=False)
    _show(screen, "Results that differ", ("result", *folders, "change"), of_results, numbers=True)
    for run, folder in zip(runs, folders, strict=True):
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
    return {key: _in_run(value, run.folder) if key.endswith(".path") else value for key, value in found.items()}


def _in_run(path: str, folder: Path) -> str:
    place, own = Path(path).resolve(), folder.resolve()
    return str(Path(IN_RUN) / place.relative_to(own)) if place.is_relative_to(own) else path


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


def _setting(key: str, value: Any) -> str:
    if value is NOTHING:
        return MISSING
    return in_words(value)[:HASH_LENGTH] if key.endswith("sha256") else in_words(value)


def _result(key: str, pair: tuple[Any, Any]) -> list[str]:
    words = [shown(value) if is_number(value) else MISSING for value in pair]
    change = f"{pair[1] - pair[0]:+.4g}" if all(map(is_number, pair)) else MISSING
    return [key, *words, change]
