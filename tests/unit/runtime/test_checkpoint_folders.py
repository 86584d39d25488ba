"""Checkpoints on the disk: manifests that notice every damage, atomic places, retention."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ted_ds.errors import CheckpointError, OtherVersionError
from ted_ds.runtime.checkpoints.folders import (
    LATEST_FILE,
    MANIFEST_FILE,
    CheckpointFolders,
    FileRecord,
    Retention,
    _manifest_text,
)

CONTENT = {
    "engine/mp_rank_00_model_states.pt": b"weights" * 100,
    "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt": b"moments" * 50,
    "ranks/rank_00000.json": b'{"random": 1}',
    "state.json": b'{"step": 7}',
    "stream.json": b'{"lanes": {}}',
    "zero_to_fp32.py": b"print()\n",
}


def write(folders, step):
    place = folders.begin(step)
    known = {}
    for name, content in CONTENT.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
        known[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    del known["zero_to_fp32.py"]  # DeepSpeed copies it itself: it is read and added
    folders.commit(step, known, {"run": "abc", "inputs": {}})


@pytest.fixture
def folders(tmp_path):
    folders = CheckpointFolders(tmp_path / "distill")
    write(folders, 7)
    return folders


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def empty(file):
    os.truncate(file, 0)


def delete(file):
    file.unlink()


def test_a_checkpoint_is_listed_named_and_without_fault(folders):
    assert folders.steps() == [7]
    assert folders.faults(7) == []
    assert folders.latest_fault() is None
    assert (folders.root / LATEST_FILE).read_text() == "step_00000007\n"
    assert set(folders.manifest(7)["files"]) == set(CONTENT)
    assert not list(folders.root.glob(".*"))


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete])
@pytest.mark.parametrize("name", [*CONTENT, MANIFEST_FILE])
def test_every_damage_of_every_file_is_seen(folders, name, damage):
    damage(folders.path(7) / name)
    (fault,) = folders.faults(7)
    assert fault.startswith(str(folders.path(7) / name))


def test_every_single_byte_of_the_manifest_counts(folders):
    file = folders.path(7) / MANIFEST_FILE
    content = file.read_bytes()
    for place in range(len(content)):
        for bit in (1, 0x80):
            broken = bytearray(content)
            broken[place] ^= bit
            file.write_bytes(broken)
            assert folders.faults(7), f"byte {place}: {bytes(broken[place - 5 : place + 5])!r}"


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete])
def test_the_name_of_the_latest_is_checked_too(folders, damage):
    file = folders.root / LATEST_FILE
    damage(file)
    assert str(file) in folders.latest_fault()


def test_an_unlisted_file_is_a_fault(folders):
    (folders.path(7) / "engine" / "mp_rank_01_model_states.pt").write_bytes(b"not ours")
    (fault,) = folders.faults(7)
    assert "mp_rank_01_model_states.pt: is not in the manifest" in fault


def test_a_checkpoint_under_another_step_is_a_fault(folders):
    folders.path(7).rename(folders.path(8))
    (fault,) = folders.faults(8)
    assert "is that of step 7" in fault


def test_one_of_another_version_is_told_from_a_damaged_one(folders):
    file = folders.path(7) / MANIFEST_FILE
    content = json.loads(file.read_text())
    del content["sha256"], content["files"]  # who knows what they will be called
    file.write_text(_manifest_text({**content, "version": 2}))
    with pytest.raises(
        OtherVersionError, match=r"manifest\.json: has version 2; this ted_ds reads version 1\. Nothing"
    ):
        folders.faults(7)
    file.write_text(file.read_text().replace('"version": 2', '"version": 3'))
    (fault,) = folders.faults(7)
    assert "is damaged" in fault, "a digit that flipped is no version"


def test_a_file_is_doubted_when_it_is_read_wrongly_twice(folders, monkeypatch):
    plain, wrong = Path.read_bytes, []

    def read_bytes(self: Path) -> bytes:
        if self.name == MANIFEST_FILE and wrong:
            raise wrong.pop()
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    wrong[:] = [OSError(errno.ESTALE, "Stale file handle")]
    assert folders.faults(7) == []
    wrong[:] = [OSError(errno.ESTALE, "Stale file handle")] * 2
    (fault,) = folders.faults(7)
    assert "Stale file handle" in fault


def test_what_is_put_aside_replaces_nothing(folders):
    asides = [folders.put_aside(7)]
    write(folders, 7)
    asides.append(folders.put_aside(7))
    assert [one.name for one in asides] == ["step_00000007.damaged", "step_00000007.damaged.2"]
    assert all((one / "state.json").read_bytes() == CONTENT["state.json"] for one in asides)
    assert folders.steps() == []


def test_ranks_share_the_reading_and_together_see_everything(folders):
    for name in CONTENT:
        flip(folders.path(7) / name)
    found = [fault for part in range(3) for fault in folders.faults(7, part=part, num_parts=3)]
    assert sorted(found) == sorted(folders.faults(7))
    assert len(found) == len(CONTENT)


def test_a_file_that_did_not_arrive_whole_is_not_committed(tmp_path):
    folders = CheckpointFolders(tmp_path)
    place = folders.begin(3)
    (place / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"state\.json did not arrive whole"):
        folders.commit(3, {"state.json": FileRecord(3, "0" * 64)}, {})
    assert folders.steps() == []


def test_what_is_half_written_or_half_removed_is_no_checkpoint_and_is_cleaned(folders):
    folders.begin(9)
    (folders.root / ".step_00000005.removing").mkdir()
    assert folders.steps() == [7]
    folders.clean()
    assert sorted(entry.name for entry in folders.root.iterdir()) == [LATEST_FILE, "step_00000007"]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"step_00000001: cannot be written: .*untouched"):
        CheckpointFolders(tmp_path / "file").begin(1)


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folders = CheckpointFolders(tmp_path / "distill")
        write(folders, 1)
    finally:
        os.umask(before)
    for entry in folders.root.rglob("*"):
        expected = 0o750 if entry.is_dir() else 0o640
        assert stat.S_IMODE(entry.stat().st_mode) == expected, entry


def test_pruning_keeps_what_it_is_told_and_names_the_newest_of_it(folders):
    for step in (8, 9):
        write(folders, step)
    folders.prune({7, 8})
    assert folders.steps() == [7, 8]
    assert folders.latest_fault() is None
    assert (folders.root / LATEST_FILE).read_text() == "step_00000008\n"
    assert folders.faults(7) == folders.faults(8) == []


@st.composite
def saved(draw):
    """Steps, and the best of them: mostly one that is there, and not always one that is kept anyway."""
    steps = draw(st.sets(st.integers(1, 60), min_size=1, max_size=20))
    there = st.sampled_from(sorted(steps))
    return steps, draw(st.one_of(there, there, st.none(), st.integers(1, 60)))


def test_retention_keeps_the_last_the_archived_and_the_best():
    met: Counter[str] = Counter()

    @settings(max_examples=300)
    @given(saved=saved(), keep_last=st.integers(1, 4), every=st.none() | st.integers(2, 10), keep_best=st.booleans())
    def holds(saved, keep_last, every, keep_best):
        steps, best = saved
        retention = Retention(keep_last, every, keep_best)
        newest = set(sorted(steps)[-keep_last:])
        of_every = {step for step in steps if every is not None and step % every == 0}
        of_best = {best} & steps if keep_best else set()
        assert retention.kept(steps, best) == newest | of_every | of_best
        assert retention.archived(steps, best) == of_every | of_best
        met["only as one of the last"] += bool(newest - of_every - of_best)
        met["only as one of every so many"] += bool(of_every - newest - of_best)
        met["only as the best"] += bool(of_best - newest - of_every)
        met["not as the best, which is not kept"] += not keep_best and bool({best} & steps - newest - of_every)
        met["the best is not there"] += keep_best and best is not None and best not in steps
        met["none has a score"] += keep_best and best is None
        met["not every so many"] += every is None

    holds()
    assert len(met) == 7
    assert min(met.values()) >= 5, met


@pytest.mark.parametrize("keep_last", [0, 1])
def test_the_newest_is_kept_always(keep_last):
    assert Retention(keep_last, keep_best=False).kept({3, 5, 4}, 3) == {5}


def test_a_step_that_is_saved_again_is_never_missing(folders):
    """Killed between the two renames, the old one is put back."""
    place = folders.begin(7)
    (place / "state.json").write_bytes(b"new")
    folders.path(7).replace(folders.root / ".step_00000007.replaced")
    folders.clean()
    assert folders.steps() == [7]
    assert folders.faults(7) == []
    write(folders, 7)
    assert folders.faults(7) == []
    assert not list(folders.root.glob(".*"))


def test_a_file_that_cannot_be_read_is_a_fault(folders, monkeypatch):
    from ted_ds.runtime.checkpoints import folders as module

    def unreadable(_file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "file_sha256", unreadable)
    assert all("cannot be read ([Errno 5] Input/output error)" in fault for fault in folders.faults(7))
    assert len(folders.faults(7)) == len(CONTENT)
