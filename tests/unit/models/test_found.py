"""What was found of a family, kept: whole or not at all, under everything it hangs on, and looked for once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ted_ds.errors import CheckpointError
from ted_ds.models import found
from ted_ds.models.families import FAMILIES, FAMILY_OF
from ted_ds.models.found import cache_folder, family_as_json, family_from_json, family_of_config
from tests.structures import content_of

READ = """
import json, sys
from ted_ds.models.found import family_of_config
from pathlib import Path
try:
    print(family_of_config(json.loads(sys.argv[1]), Path("config.json")).blocks_path)
except Exception as error:
    print(error)
assert "torch" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found._found.cache_clear()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.model_types[0])
def test_a_record_is_the_same_once_it_was_json(family: object) -> None:
    content = json.loads(json.dumps(family_as_json(family)))
    again = family_from_json(content)
    assert json.dumps(family_as_json(again)) == json.dumps(family_as_json(family))
    del content["blocks_path"]
    with pytest.raises(ValueError, match=r"no record of a family: \['blocks_path'\]"):
        family_from_json(content)


def test_two_processes_look_once_and_agree_without_torch() -> None:
    config = {**content_of("bloom"), "num_labels": 5}
    command = [sys.executable, "-c", READ, json.dumps(config)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        said, errors = one.communicate(timeout=280)
        assert said == "transformer.h\n", errors
        assert one.returncode == 0, errors
    (file,) = cache_folder().glob("*.json")

    looked = file.stat().st_mtime_ns
    found._found.cache_clear()
    other_labels = {**config, "num_labels": 7, "id2label": {"0": "a"}, "transformers_version": "1"}
    family = family_of_config(other_labels, Path("config.json"))
    assert family.blocks_path == "transformer.h"
    assert file.stat().st_mtime_ns == looked

    kept = json.loads(file.read_text())
    kept["answer"]["family"]["blocks_path"] = "transformer.other"  # by hand: its hash is another one
    file.write_text(json.dumps(kept))
    assert found._read(file) is None
    for damaged in ("", "{", "[]", '{"answer": {"refused": 1}, "sha256": ""}', "\0"):
        file.write_text(damaged)
        assert found._read(file) is None


def test_a_refusal_is_kept_and_names_the_file() -> None:
    config = {"model_type": "of-a-kind", "vocab_size": 7}
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"^place/config.json: model type 'of-a-kind' has no record here"):
            family_of_config(config, Path("place/config.json"))
    (file,) = cache_folder().glob("*.json")
    assert "refused" in (found._read(file) or {})


def test_what_was_found_is_kept_whole_and_under_what_it_hangs_on(tmp_path: Path) -> None:
    answer = {"family": family_as_json(FAMILY_OF["llama"])}
    file = tmp_path / "folder" / "one.json"
    found._write(file, answer)
    assert found._read(file) == answer
    assert [*file.parent.iterdir()] == [file]
    found._write(Path("/proc/nowhere/one.json"), answer)  # where nothing can be written, it is found again next time
    assert found._read(Path("/proc/nowhere/one.json")) is None
    with found._alone(Path("/proc/nowhere/one.lock")):
        pass


def test_a_type_with_a_record_is_not_looked_for() -> None:
    assert family_of_config({"model_type": "llama"}, Path("config.json")) is FAMILY_OF["llama"]
    assert not cache_folder().exists()


def test_the_finder_says_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "FINDER", "ted_ds.models.nowhere")
    with pytest.raises(CheckpointError, match=r"the process that looks \(ted_ds.models.nowhere\) ended with code 1"):
        family_of_config({"model_type": "other", "vocab_size": 7}, Path("config.json"))
    assert not [*cache_folder().glob("*.json")]


def test_the_finder_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "TIME_LIMIT_S", 0.05)
    with pytest.raises(CheckpointError, match=r"looking for it took longer than 0.05 s; start again"):
        family_of_config({"model_type": "another", "vocab_size": 7}, Path("config.json"))
