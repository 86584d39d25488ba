"""Mutants tried one after the other: each in a process forked from one that has imported what takes long to import."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.dist import START
from tests.mutants.places import Mutant
from tests.mutants.reach import Reach, ReachTable

COPIED = ("ted_ds", "tests", "ds_configs", "docs", "launchers", "benchmarks", "pyproject.toml", "setup.py", "README.md")
WARM = (
    "pytest",
    "torch",
    "transformers",
    "transformers.models.auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.bert.modeling_bert",
    "transformers.models.deberta_v2.modeling_deberta_v2",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "datasets",
    "sklearn.metrics",
    "scipy.optimize",
    "pydantic",
    "omegaconf",
    "rich",
    "wandb",
)
"""What tests import, but nothing of ``ted_ds`` or of the tests' own: that a process imports once it is broken."""
ALREADY_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
"""No error: some of those are plugins of pytest."""
MOST_TESTS = 300
LEAST_S, MOST_S = 60.0, 400.0
TIMES_AS_LONG = 8.0
"""A mutant that takes so much longer than its tests did is one they notice: it hangs."""
PASSED, FAILED, NO_SUCH_TEST, NO_TESTS = 0, 1, 4, 5
TIERS = ("unit", "parity", "distributed", "integration")
WHOLE_RUNS = ("tests/integration/test_run.py", "tests/integration/test_resume.py")
LEVELS, MOST_FILES = 3, 4
"""How far from a module its tests are looked for, and how many files of them are run."""
SECONDS_OF_A_FILE = 20.0
"""About, where nobody has measured it."""


class Outcome(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    noticed: bool
    by: str
    """What noticed it, or why nothing did."""


def try_all(mutants: Sequence[Mutant], table: ReachTable, root: Path, scratch: Path) -> Iterator[Outcome]:
    """Break a copy in one place after the other, and run the tests that reach it until one fails.

    Args:
        mutants: To try.
        table: Which tests reach what, and passed.
        root: Of the repository.
        scratch: An empty folder, for the copy.
    """
    for name in COPIED:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        options = {"ignore": shutil.ignore_patterns("__pycache__")} if (root / name).is_dir() else {}
        copy(root / name, scratch / name, **options)
    os.environ.update({START: "fork", "PYTHONPATH": str(scratch)})
    for name in WARM:
        importlib.import_module(name)
    sound: dict[str, bool] = {}
    for mutant in mutants:
        outcome = Outcome(mutant, False, "no test reaches it")
        # programs that tests start reach it, too, and the table does not see that
        for tests in (table.tests_of(mutant.file, mutant.function)[:MOST_TESTS], importing_tests(mutant.file, root)):
            if tests and not outcome.noticed:
                outcome = _try_until_sound(mutant, tests, sound, scratch)
        yield outcome


def _try_until_sound(mutant: Mutant, tests: Sequence[Reach], sound: dict[str, bool], scratch: Path) -> Outcome:
    """What becomes of it by tests that pass where nothing is broken; ``sound`` takes what is found of that."""
    while True:
        unsound = [test for test, is_sound in sound.items() if not is_sound]
        with _broken(mutant, scratch):
            outcome, test = _try(mutant, tests, unsound, scratch)
        if not outcome.noticed or sound.get(test, False):
            return outcome
        code, said = _run([Reach(test, 0.0)], (), scratch)
        if code not in (PASSED, FAILED, None):
            raise SystemExit(f"{test} ends with {code} where nothing is broken: {said[-2000:]}")
        sound[test] = code == PASSED
        if sound[test]:
            return outcome


def importing_tests(file: str, root: Path) -> list[Reach]:
    """Files of tests for a module that the table does not know, as it runs in programs that tests start.

    Those of its name and those that import it; else those that import what imports it; in the end whole runs.
    """
    texts = {one: one.read_text(encoding="utf-8") for one in sorted((root / "ted_ds").rglob("*.py"))}
    tests = {
        one: one.read_text(encoding="utf-8")
        for tier in TIERS
        for one in sorted((root / "tests" / tier).rglob("test_*.py"))
    }
    level, seen = [file], {file}
    for _ in range(LEVELS):
        wanted = [_import_of(one) for one in level]
        names = {f"test_{Path(one).stem}.py" for one in level}
        found = [one for one, text in tests.items() if one.name in names or any(w.search(text) for w in wanted)]
        if found:
            found.sort(key=lambda one: one.name not in names)  # else unit tests first
            return [Reach(one.relative_to(root).as_posix(), SECONDS_OF_A_FILE) for one in found[:MOST_FILES]]
        above = {
            one.relative_to(root / "ted_ds").as_posix()
            for one, text in texts.items()
            if any(pattern.search(text) for pattern in wanted)
        }
        level = sorted(above - seen)
        seen |= above
    return [Reach(one, SECONDS_OF_A_FILE) for one in WHOLE_RUNS if (root / one).is_file()] if len(seen) > 1 else []


def _import_of(file: str) -> re.Pattern[str]:
    module = ".".join(("ted_ds", *Path(file).with_suffix("").parts)).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    pattern = rf"^\s*(from {module} |import {module}\b|from {package} import .*\b{name}\b)"
    return re.compile(pattern, re.MULTILINE)


@contextlib.contextmanager
def _broken(mutant: Mutant, scratch: Path) -> Iterator[None]:
    file = scratch / "ted_ds" / mutant.file
    source = file.read_bytes()
    file.write_bytes(mutant.apply(source))
    try:
        yield
    finally:
        file.write_bytes(source)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()  # goes by size and seconds, which the next one may share


def _try(mutant: Mutant, tests: Sequence[Reach], unsound: Sequence[str], scratch: Path) -> tuple[Outcome, str]:
    """What became of it, and the test that failed, or the first of those that did not come to an end."""
    code, said = _run(tests, unsound, scratch)
    first = next((one.test for one in tests if one.test not in unsound), tests[0].test)
    if code is None:
        return Outcome(mutant, True, "tests that end without it do not"), first
    if code == NO_SUCH_TEST:
        raise SystemExit(f"the table names tests that there are no more; make it anew with --reach: {said[-300:]}")
    if code in (PASSED, NO_TESTS):  # none is left of those that fail where nothing is broken
        return Outcome(mutant, False, f"{len(tests)} tests that reach it pass, {tests[0].test} first"), first
    lines = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    known = sorted((one.test for one in tests), key=len, reverse=True)  # some begin as others do
    exact = next((test for line in lines for test in known if "::" in test and f" {test}" in line), None)
    failed = exact or next((line.split(" ", maxsplit=1)[1].partition(" - ")[0] for line in lines), None)
    return Outcome(mutant, True, failed or f"a process that ends with {code}: {said[-300:]}"), failed or first


def _run(tests: Sequence[Reach], unsound: Sequence[str], scratch: Path) -> tuple[int | None, str]:
    """Pytest's exit code, None where it did not end in time, and what it said."""
    limit_s = min(LEAST_S + TIMES_AS_LONG * sum(one.seconds for one in tests), MOST_S)
    log = scratch / "pytest.log"
    log.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        os.setsid()
        _test([*(one.test for one in tests), *(f"--deselect={test}" for test in unsound)], scratch, log)
    code = _wait(process, limit_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # ranks that it left
    return code, log.read_text(errors="replace") if log.is_file() else ""


def _test(words: Sequence[str], scratch: Path, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(scratch)
    # what this process has of its own package is the unbroken one
    for name in [one for one in sys.modules if one.partition(".")[0] in ("tests", "ted_ds")]:
        del sys.modules[name]
    sys.path[:] = [str(scratch), *(place for place in sys.path if place and not (Path(place) / "ted_ds").is_dir())]
    import pytest

    code = 3
    try:
        ours = ["-q", "-x", "--no-header", "--tb=no", "--rootdir", ".", "-W", ALREADY_IMPORTED]
        code = int(pytest.main([*ours, *words]))
    except BaseException:  # nobody above this process would say it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int, limit_s: float) -> int | None:
    """Its exit code; None if it was killed for the time it took."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None
