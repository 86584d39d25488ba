"""Phase folders: complete or not there, and never mistaken for another run's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import MANIFEST, PhaseFolder, differences, model_identity

INPUTS = {"plan": {"max_steps": 10, "betas": (0.9, 0.999)}, "seed": 0, "layers": [1, 2]}


def leave_a_file(folder: Path) -> dict[str, Any]:
    (folder / "sub").mkdir()
    (folder / "sub" / "weights.bin").write_bytes(b"0123456789")
    return {"loss": 1.5}


@pytest.fixture
def done(tmp_path: Path) -> PhaseFolder:
    phase = PhaseFolder(tmp_path / "run" / "distill", INPUTS)
    phase.write(leave_a_file)
    return phase


def test_a_phase_is_incomplete_before_and_complete_after_its_work(tmp_path: Path) -> None:
    phase = PhaseFolder(tmp_path / "run" / "distill", INPUTS)
    assert not phase.is_complete()
    phase.write(leave_a_file)
    assert phase.is_complete()
    assert json.loads((phase.path / "phase.json").read_text(encoding="utf-8"))["result"] == {"loss": 1.5}
    assert (phase.path / "sub" / "weights.bin").read_bytes() == b"0123456789"


def test_only_the_finished_folder_is_left(done: PhaseFolder) -> None:
    assert [path.name for path in done.path.parent.iterdir()] == ["distill"]
    assert sorted(path.name for path in done.path.iterdir()) == [MANIFEST, "sub"]


def test_other_inputs_are_refused_with_what_differs(done: PhaseFolder) -> None:
    other = {"plan": {"max_steps": 20, "betas": (0.9, 0.999)}, "seed": 0, "layers": [1, 3], "new": True}
    with pytest.raises(CheckpointError) as caught:
        PhaseFolder(done.path, other).is_complete()
    message = str(caught.value)
    assert message.startswith(f"{done.path}: was completed with other settings: ")
    assert "plan.max_steps was 10, now 20" in message
    assert "layers was [1, 2], now [1, 3]" in message
    assert "new was None, now True" in message
    assert "seed" not in message
    assert "betas" not in message
    assert "Remove this folder and those of later phases" in message


def test_a_section_that_one_of_two_lacks_is_a_difference() -> None:
    assert differences({"seed": 0}, {"seed": 0, "plan": {"steps": 1}}) == ["plan was None, now {'steps': 1}"]
    assert differences({"plan": {"steps": 1}}, {"plan": 3}) == ["plan was {'steps': 1}, now 3"]
    assert differences({"plan": {"steps": 1}}, {"plan": {}}) == ["plan.steps was 1, now None"]


def test_the_same_model_in_another_folder_is_no_difference(tmp_path: Path) -> None:
    here, there, other = (
        {"model": {"path": path, "sha256": digest}} for path, digest in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    PhaseFolder(tmp_path / "distill", here).write(leave_a_file)
    assert PhaseFolder(tmp_path / "distill", there).is_complete()
    with pytest.raises(CheckpointError, match=r"model was a \(SHA-256 1\), now a \(SHA-256 2\)"):
        PhaseFolder(tmp_path / "distill", other).is_complete()


def test_settings_that_differ_come_before_hashes_which_are_not_shown_whole(tmp_path: Path) -> None:
    one, two = "0123456789ab" + "0" * 52, "cdef01234567" + "0" * 52
    old, new = (
        {
            "filters": {"a.safetensors": [9, digest]},
            "model": {"path": place, "sha256": digest},
            "plan": {"steps": steps},
        }
        for digest, place, steps in ((one, "here", 1), (two, "there", 2))
    )
    PhaseFolder(tmp_path / "distill", old).write(leave_a_file)
    with pytest.raises(CheckpointError) as caught:
        PhaseFolder(tmp_path / "distill", new).is_complete()
    assert (
        "with other settings: plan.steps was 1, now 2; "
        "filters.a.safetensors was [9, '0123456789ab...'], now [9, 'cdef01234567...']; "
        "model was here (SHA-256 0123456789ab...), now there (SHA-256 cdef01234567...). Remove"
    ) in str(caught.value)


@pytest.mark.parametrize("content", [b"0123456780", b"012345678", None])
def test_a_file_that_changed_since_is_refused(done: PhaseFolder, content: bytes | None) -> None:
    file = done.path / "sub" / "weights.bin"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{file}: changed or missing since its phase was completed")):
        done.is_complete()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_a_damaged_manifest_is_refused(done: PhaseFolder, content: str) -> None:
    (done.path / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(f"{done.path / MANIFEST}: damaged")):
        done.is_complete()


def test_work_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    phase = PhaseFolder(tmp_path / "run" / "distill", INPUTS)

    def fail(folder: Path) -> dict[str, Any]:
        leave_a_file(folder)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        phase.write(fail)
    assert not phase.is_complete()
    assert not any((tmp_path / "run").iterdir())


def test_what_a_killed_run_left_is_not_mixed_into_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".distill.unfinished"
    left.mkdir()
    (left / "old.bin").touch()
    phase = PhaseFolder(tmp_path / "distill", INPUTS)
    phase.write(leave_a_file)
    assert not (phase.path / "old.bin").exists()
    assert not left.exists()


def test_a_disk_that_cannot_be_written_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    phase = PhaseFolder(tmp_path / "run" / "distill", INPUTS)
    with pytest.raises(CheckpointError, match=re.escape(f"{phase.path}: cannot be written: ")):
        phase.write(leave_a_file)


def test_a_foreign_folder_in_the_way_is_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "distill"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep me", encoding="utf-8")
    phase = PhaseFolder(foreign, INPUTS)
    with pytest.raises(CheckpointError, match="is in the way, and no completed phase; move it away"):
        phase.is_complete()
    with pytest.raises(CheckpointError, match="cannot be written"):
        phase.write(leave_a_file)
    assert (foreign / "mine.txt").read_text(encoding="utf-8") == "keep me"


# --- what names a model -----------------------------------------------------------------------------------------------


def changed_weights(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    name = sorted(state)[0]
    state[name] = torch.nextafter(state[name], torch.tensor(9.0))
    save_file(state, model / "model.safetensors")


def changed_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}), encoding="utf-8")


def changed_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("change", [changed_weights, changed_config, changed_tokenizer])
def test_a_models_identity_changes_with_its_weights_and_config(lm_run: Path, tmp_path: Path, change: Any) -> None:
    model = Path(shutil.copytree(lm_run / "teacher", tmp_path / "model"))
    before = model_identity(model)
    assert before["sha256"] == model_identity(lm_run / "teacher")["sha256"]
    assert before["path"] == str(model)
    change(model)
    assert model_identity(model)["sha256"] != before["sha256"]


def test_a_models_identity_does_not_depend_on_other_files(lm_run: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(lm_run / "teacher", tmp_path / "model"))
    before = model_identity(model)
    (model / "README.md").write_text("hello", encoding="utf-8")
    assert model_identity(model) == before
