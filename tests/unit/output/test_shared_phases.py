"""Phases that runs have in common: found by what they depend on, taken whole, waited for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import CheckpointError
from ted_ds.launching.processes import Process
from ted_ds.output import shared_phases
from ted_ds.output.phase_folder import MANIFEST, PhaseFolder
from ted_ds.output.shared_phases import SharedPhases, key_of

MODEL = {"path": "/here/model", "sha256": "ab" * 32}
INPUTS = {"model": MODEL, "plan": {"max_steps": 2}}


def phase(run: Path, inputs: dict[str, Any] = INPUTS) -> PhaseFolder:
    return PhaseFolder(run / "distill", inputs)


def leave(folder: Path) -> dict[str, Any]:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"0123")
    return {"loss": 1.0}


@pytest.fixture
def shared(tmp_path: Path) -> SharedPhases:
    return SharedPhases(tmp_path / "phases")


def test_what_one_run_does_the_next_one_takes(tmp_path: Path, shared: SharedPhases) -> None:
    first, second = phase(tmp_path / "a"), phase(tmp_path / "b")
    assert shared.claim(first) == "own"
    first.write(leave)
    shared.give(first)
    shared.release(first)
    assert shared.claim(second) == "taken"
    assert second.is_complete()
    assert second.result() == {"loss": 1.0}
    weights = second.path / "model" / "weights"
    assert weights.samefile(first.path / "model" / "weights"), "no second copy on the disk"
    assert sorted(one.name for one in second.path.parent.iterdir()) == ["distill"]
    assert [one.name for one in (tmp_path / "phases").iterdir()] == [shared.place(first).name]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"model": {**MODEL, "path": "/elsewhere"}}, True),
        ({"model": {**MODEL, "sha256": "cd" * 32}}, False),
        ({"plan": {"max_steps": 3}}, False),
        ({"more": None}, False),
    ],
)
def test_models_are_the_same_by_their_hash_and_all_else_by_what_it_is(change: dict[str, Any], is_same: bool) -> None:
    assert (key_of({**INPUTS, **change}) == key_of(INPUTS)) == is_same


def test_a_tuple_and_the_list_that_json_makes_of_it_are_one() -> None:
    assert key_of({"pairs": [(1, 2)]}) == key_of({"pairs": [[1, 2]]})


def test_a_phase_that_another_process_is_at_is_waited_for_until_that_ends(tmp_path: Path, shared: SharedPhases) -> None:
    mine = phase(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from ted_ds.output.shared_phases import SharedPhases;"
        "from ted_ds.output.phase_folder import PhaseFolder;"
        f"print(SharedPhases(Path({str(tmp_path / 'phases')!r})).claim(PhaseFolder(Path('x/distill'), {INPUTS!r})),"
        "flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "own\n"
        assert shared.claim(mine) == "wait"
        assert shared.claim(mine) == "wait"
    finally:
        other.kill()
        other.communicate()
    assert shared.claim(mine) == "own"


def test_who_is_on_another_machine_is_not_waited_for(tmp_path: Path, shared: SharedPhases) -> None:
    mine = phase(tmp_path / "a")
    assert shared.claim(mine) == "own"
    sign = shared.place(mine).with_suffix(".claim")
    sign.write_text(json.dumps(asdict(replace(Process.own(), host="elsewhere", number=1))))
    assert shared.claim(mine) == "own"


def test_a_run_that_was_slower_leaves_what_is_there(tmp_path: Path, shared: SharedPhases) -> None:
    first, second = phase(tmp_path / "a"), phase(tmp_path / "b")
    for one in (first, second):
        one.write(leave)
        shared.give(one)
    assert (shared.place(first) / "model" / "weights").samefile(first.path / "model" / "weights")


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, shared: SharedPhases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(shared_phases.errno.EXDEV, "other device")

    first, second = phase(tmp_path / "a"), phase(tmp_path / "b")
    first.write(leave)
    monkeypatch.setattr(shared_phases.os, "link", refuse)
    shared.give(first)
    monkeypatch.undo()
    assert shared.claim(second) == "taken"
    assert not (second.path / "model" / "weights").samefile(first.path / "model" / "weights")


def test_a_damaged_result_is_refused(tmp_path: Path, shared: SharedPhases) -> None:
    first = phase(tmp_path / "a")
    first.write(leave)
    shared.give(first)
    (shared.place(first) / "model" / "weights").unlink()
    with pytest.raises(
        CheckpointError, match=f"changed or missing since its phase was completed; remove {shared.place(first)}"
    ):
        shared.claim(phase(tmp_path / "b"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^shared_phases: .*file/phases: cannot be written: "):
        SharedPhases(tmp_path / "file" / "phases").claim(phase(tmp_path / "a"))


def test_the_manifest_says_how_long_it_took(tmp_path: Path) -> None:
    one = phase(tmp_path / "a")
    one.write(leave)
    assert 0 <= json.loads((one.path / MANIFEST).read_text())["seconds"] < 60
