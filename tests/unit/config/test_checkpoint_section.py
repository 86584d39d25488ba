"""Where checkpoints may be kept beside the local disk."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ted_ds.config.checkpoint import Checkpoint, Upload, refuse_missing_package
from ted_ds.errors import ConfigError


@pytest.mark.parametrize(
    "url", ["s3://bucket/folder", "gs://bucket/a/b", "az://container/a", "abfs://box@account.dfs/a", "file:///mnt/a"]
)
def test_a_folder_at_a_store_is_taken(url):
    assert Upload(to=f"{url}/").to == url


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("bucket/folder", "checkpoints are put at one of s3://"),
        ("https://host/folder", "checkpoints are put at one of s3://"),
        ("memory://folder", "checkpoints are put at one of s3://"),
        ("s3://bucket", "is a whole bucket; name a folder in it"),
        ("s3:///folder", "names no bucket; use s3://bucket/folder"),
        ("file://", "names no folder of this machine; use file:///path/to/folder"),
        ("file://host/folder", "names no folder of this machine; use file:///path/to/folder"),
        ("s3://key:secret@bucket/folder", "a user or a password has no place in it"),
        ("s3://bucket/folder?versionId=1", "has '::', '?' or '#'"),
        ("s3://bucket/a::zip://b", "has '::', '?' or '#'"),
    ],
)
def test_what_is_no_folder_at_a_store_is_refused(url, rule):
    with pytest.raises(ValidationError) as caught:
        Checkpoint.model_validate({"upload": {"to": url}})
    assert rule in str(caught.value)
    message = caught.value.errors()[0]["msg"]
    assert "secret" not in message


def test_a_bound_is_above_nothing():
    with pytest.raises(ValidationError, match="greater than 0"):
        Upload(to="s3://bucket/folder", timeout_s=0)


def test_a_missing_package_is_named():
    refuse_missing_package(None)
    refuse_missing_package(Upload(to="file:///mnt/a"))
    words = r"^checkpoint\.upload\.to: gs://b/a: gs:// needs the package gcsfs, which .*pip install gcsfs"
    with pytest.raises(ConfigError, match=words):
        refuse_missing_package(Upload(to="gs://b/a"))
