"""Which test reaches which function of ``ted_ds``: a plugin of pytest, and the table it leaves.

    python -m pytest -p tests.mutants.reach --reach TABLE tests/unit tests/parity ...

Ranks count too where they are forked from this process (``TED_DS_TESTS_START=fork``), programs that tests start do not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

PACKAGE = str(Path(__file__).parent.parent.parent / "ted_ds") + os.sep


class Reach(NamedTuple):
    """What is known of a test."""

    test: str
    seconds: float


class ReachTable:
    """The tests that passed, by the functions they reach."""

    def __init__(self, file: Path) -> None:
        """Read what the plugin left."""
        self._by_function: dict[tuple[str, str], list[Reach]] = defaultdict(list)
        for test, about in json.loads(file.read_text()).items():
            for module, function in about["reached"]:
                self._by_function[module, function].append(Reach(test, about["seconds"]))

    def tests_of(self, module: str, function: str) -> list[Reach]:
        """Those that call a function, or of what runs at import, any of the module: first the quickest case of each
        test, then the second of each.
        """
        found = {
            reach
            for (other, name), reaches in self._by_function.items()
            if other == module and function in ("", name)
            for reach in reaches
        }
        seen: Counter[str] = Counter()
        ranked: list[tuple[int, Reach]] = []
        for reach in sorted(found, key=lambda reach: (reach.seconds, reach.test)):
            test = reach.test.partition("[")[0]
            ranked.append((seen[test], reach))
            seen[test] += 1
        return [reach for _, reach in sorted(ranked, key=lambda one: one[0])]


class _Recorder:
    """Notes the functions that are called while a test runs, in this process and in those forked from it."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._found: dict[str, Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="reach-"))
        self._seen: set[Any] = set()
        self._files: set[str] = set()
        self._file = -1

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code not in self._seen:
            self._seen.add(code)
            if code.co_filename.startswith(PACKAGE) and self._file >= 0:
                # at once: ranks end without a word
                os.write(self._file, f"{code.co_filename.removeprefix(PACKAGE)}\t{code.co_qualname}\n".encode())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        note = self._folder / "reached"
        note.unlink(missing_ok=True)
        self._file = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seen.clear()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            os.close(self._file)
            self._file = -1
            about = self._found.get(item.nodeid)
            if about is not None:
                lines = sorted(set(note.read_text().splitlines()))
                about["reached"] = [line.split("\t") for line in lines]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._found[report.nodeid] = {"seconds": round(report.duration, 3), "reached": []}
        elif report.failed:
            self._found.pop(report.nodeid, None)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._files = {_file_of(item.nodeid) for item in items}

    def pytest_sessionfinish(self) -> None:
        known = json.loads(self._table.read_text()) if self._table.is_file() else {}
        others = {test: about for test, about in known.items() if _file_of(test) not in self._files}
        self._table.write_text(json.dumps(others | self._found))


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reach", type=Path, required=True, help="the table; what it has of other files of tests stays")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Recorder(config.getoption("--reach")))
