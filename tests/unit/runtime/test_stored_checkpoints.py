"""Checkpoints at a store, as one host sees them: nothing that another one may read well is removed or disowned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ted_ds.output import store as stores
from ted_ds.output.store import Patience, Store
from ted_ds.runtime.checkpoints.fetching import Fetching
from ted_ds.runtime.checkpoints.folders import MANIFEST_FILE, CheckpointFolders, FileRecord, Retention, _manifest_text
from ted_ds.runtime.checkpoints.stored import StoredCheckpoints, kept_by, step_folder
from ted_ds.runtime.world import World
from tests.dist import run_ranks

STEPS = (3, 5, 7)
FILE = "engine/weights"


def fill(root: Path, *steps: int) -> StoredCheckpoints:
    """A store in a folder with whole checkpoints of some steps."""
    stored = StoredCheckpoints(Store(f"file://{root / 'there'}"))
    for step in steps:
        content = f"weights of {step}".encode() * 100
        folders = CheckpointFolders(root / "written")
        place = folders.begin(step)
        (place / FILE).parent.mkdir()
        (place / FILE).write_bytes(content)
        record = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        folders.commit(step, {FILE: record}, {"run": "abc", "inputs": {}})
        stored.put_files(step, folders.path(step), {FILE: record}, Patience(10))
        stored.put_manifest(step, folders.path(step), Patience(10))
    return stored


def contents(root: Path) -> dict[str, bytes]:
    there = root / "there"
    return {str(file.relative_to(there)): file.read_bytes() for file in there.rglob("*") if file.is_file()}


def steps_in(root: Path) -> list[int]:
    return sorted({int(name[5:13]) for name in contents(root)})


def spoil(root: Path, step: int, how: Callable[[bytes], bytes], file: str = MANIFEST_FILE) -> None:
    place = root / "there" / step_folder(step) / file
    place.write_bytes(how(place.read_bytes()))


def garble(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_version_2(content: bytes) -> bytes:
    manifest = json.loads(content)
    del manifest["sha256"]
    return _manifest_text({**manifest, "version": 2}).encode()


def keep_last(number: int) -> Callable[[list[int]], set[int]]:
    return kept_by(Retention(keep_last=number), None)


def test_what_is_not_kept_is_removed_and_what_is_half_there(tmp_path):
    stored = fill(tmp_path, *STEPS)
    (tmp_path / "there" / step_folder(3) / MANIFEST_FILE).unlink()
    assert stored.prune(keep_last(1), Patience(10), newest=7) == []
    assert steps_in(tmp_path) == [7]


@pytest.mark.parametrize("how", [garble, of_version_2, lambda content: content[:100]])
def test_data_whose_manifest_cannot_be_read_is_not_removed(tmp_path, monkeypatch, how):
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    stored = fill(tmp_path, *STEPS)
    spoil(tmp_path, 3, how)
    before = contents(tmp_path)
    (left,) = stored.prune(keep_last(1), Patience(10), newest=7)
    assert str(tmp_path / "there" / step_folder(3)) in left
    assert steps_in(tmp_path) == [3, 7]
    assert contents(tmp_path).items() <= before.items()


def test_what_this_run_has_not_come_to_again_neither_counts_nor_is_removed(tmp_path):
    stored = fill(tmp_path, *STEPS)
    stored.doubted = {5, 7}  # it goes on from 3
    fill(tmp_path, 4)
    assert stored.prune(keep_last(2), Patience(10), newest=4) == []
    assert steps_in(tmp_path) == [3, 4, 5, 7]
    fill(tmp_path, 6)
    stored.prune(keep_last(2), Patience(10), newest=6)
    assert steps_in(tmp_path) == [4, 5, 6, 7]
    fill(tmp_path, 7)
    again = fill(tmp_path)  # a later start, which has no doubts
    again.prune(keep_last(2), Patience(10), newest=7)
    assert steps_in(tmp_path) == [6, 7]


def test_a_listing_that_hides_a_manifest_removes_nothing(tmp_path, monkeypatch):
    stored = fill(tmp_path, *STEPS)
    plain = Store.sizes
    hidden = f"{step_folder(5)}/{MANIFEST_FILE}"
    monkeypatch.setattr(
        Store, "sizes", lambda self, folder: {k: v for k, v in plain(self, folder).items() if k != hidden}
    )
    (left,) = stored.prune(keep_last(3), Patience(10), newest=7)
    assert "is not listed" in left
    assert steps_in(tmp_path) == [*STEPS]


def fetched(world: World, root: Path, spoilt: dict[int, int]) -> tuple[int | None, list[str], dict[int, list[str]]]:
    """What a host fetches that is given manifests garbled, so often each; what it says, and what it doubts."""
    stores.FIRST_PAUSE_S = 0.01
    plain = Store.text

    def text(self: Store, name: str) -> str | None:
        found, step = plain(self, name), int(name[5:13])
        if found is None or not spoilt.get(step):
            return found
        spoilt[step] -= 1
        return garble(found.encode()).decode()

    Store.text = text
    said: list[str] = []
    stored = StoredCheckpoints(Store(f"file://{root / 'there'}"))
    fetching = Fetching(stored, CheckpointFolders(root / "here"), world, timeout_s=10, say=said.append)
    return fetching.newest(-1, lambda *_: None), said, fetching.doubted


@pytest.mark.parametrize(
    ("spoilt", "step", "doubted"), [({7: 1}, 7, []), ({7: 2}, 5, [7]), (dict.fromkeys(STEPS, 99), None, [7, 5, 3])]
)
def test_a_host_that_reads_badly_leaves_all_as_it_is(tmp_path, spoilt, step, doubted):
    fill(tmp_path, *STEPS)
    before = contents(tmp_path)
    for found, said, in_doubt in run_ranks(fetched, 2, tmp_path, spoilt):
        assert found == step
        assert list(in_doubt) == doubted
        warnings = [text for text in said if "WARN" in text]
        assert len(warnings) == len(doubted)
        assert all(step_folder(one) in text for one, text in zip(doubted, warnings, strict=True))
    assert contents(tmp_path) == before


def test_damaged_data_is_passed_over_and_left(tmp_path):
    fill(tmp_path, *STEPS)
    spoil(tmp_path, 7, garble, FILE)
    before = contents(tmp_path)
    for found, said, _ in run_ranks(fetched, 2, tmp_path, {}):
        assert found == 5
        assert "is left as it is" in said[0]
    assert contents(tmp_path) == before
