"""What the output folder says of the run as a whole, and what may be written down of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ted_ds.config.redaction import without_secrets
from ted_ds.errors import CheckpointError
from ted_ds.output.run_folder import (
    Run,
    begin_run,
    forget_not_finite,
    mark_not_finite,
    mark_stopped,
    new_run,
    read_run,
    was_not_finite,
)


def test_a_run_keeps_its_id_and_its_teachers_host(tmp_path):
    assert read_run(tmp_path) is None
    first, second = new_run(), new_run()
    assert first.run_id != second.run_id
    begin_run(tmp_path, first)
    assert read_run(tmp_path) == first
    hosted = replace(first, teacher_host="int8")
    begin_run(tmp_path, hosted)
    assert read_run(tmp_path) == hosted


def test_a_folder_of_before_there_were_hosts_is_read(tmp_path):
    (tmp_path / "run.json").write_text('{"run_id": "a1"}')
    assert read_run(tmp_path) == Run("a1", None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run_id": 7}', '{"run_id": "../x"}'])
def test_a_damaged_id_is_said(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json: .*restore it, or choose another output_dir"):
        read_run(tmp_path)


def test_the_sign_of_a_stop_goes_when_the_run_goes_on(tmp_path):
    begin_run(tmp_path, Run("a1"))
    mark_stopped(tmp_path, {"exit_code": 75})
    assert json.loads((tmp_path / "stopped.json").read_text()) == {"exit_code": 75}
    begin_run(tmp_path, Run("a1"))
    assert not (tmp_path / "stopped.json").exists()


def test_the_sign_of_numbers_goes_when_the_run_goes_on_or_is_to_be_tried_again(tmp_path):
    for take_away in (lambda: begin_run(tmp_path, Run("a1")), lambda: forget_not_finite(tmp_path)):
        mark_not_finite(tmp_path, "step 3: nan")
        assert was_not_finite(tmp_path)
        take_away()
        assert not was_not_finite(tmp_path)
    forget_not_finite(tmp_path / "not begun yet")


def test_addresses_lose_users_passwords_and_signatures():
    recipe = {
        "path": "https://me:secret@host:8080/a/b.jsonl?X-Amz-Signature=secret#x",
        "list": ["s3://key:secret@bucket/x.parquet", "local/file?name.txt", 3, None],
        "https://u:secret@host/c": {"size": 1},
    }
    clean = without_secrets(recipe)
    assert "secret" not in json.dumps(clean)
    assert clean["path"] == "https://host:8080/a/b.jsonl"
    assert clean["list"] == ["s3://bucket/x.parquet", "local/file?name.txt", 3, None]
    assert clean["https://host/c"] == {"size": 1}
