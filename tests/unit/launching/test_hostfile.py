"""Hostfiles, and what of the environment reaches other hosts."""

from __future__ import annotations

import subprocess

import pytest

from ted_ds.errors import ConfigError
from ted_ds.launching.hosts import read_hostfile, write_environment


def test_a_hostfile_may_have_comments(tmp_path):
    file = tmp_path / "hostfile"
    file.write_text("# two\nnode1 slots=8\n\nnode-2.cluster  slots=4 # less\n")
    assert [(host.name, host.line) for host in read_hostfile(file)] == [
        ("node1", "node1 slots=8"),
        ("node-2.cluster", "node-2.cluster  slots=4"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", ":1: 'node1': must be a host and its processes, such as node1 slots=8"),
        ("node1 slots=0\n", ":1: 'node1 slots=0': must be"),
        ("node1 slots=2\nnode1 slots=2\n", ":2: node1 is there twice"),
        ("-oProxyCommand=x slots=1 extra\n", "must be a host"),
        ("# none\n", "names no host"),
    ],
)
def test_a_bad_hostfile_is_refused(tmp_path, text, message):
    file = tmp_path / "hostfile"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_hostfile(file)
    assert message in str(caught.value)


def test_a_hostfile_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as a hostfile"):
        read_hostfile(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("PYTORCH_ALLOC_CONF", True),
        ("CUDA_LAUNCH_BLOCKING", True),
        ("CUDA_HOME", True),
        ("TRITON_CACHE_DIR", True),
        ("TORCHINDUCTOR_CACHE_DIR", True),
        ("TMPDIR", True),
        ("OFI_NCCL_PROTOCOL", True),
        ("SHARP_COLL_ENABLE_SAT", True),
        ("NVIDIA_TF32_OVERRIDE", True),
        ("CUDA_VISIBLE_DEVICES", False),
        ("NVIDIA_VISIBLE_DEVICES", False),
        ("NVIDIA_API_KEY", False),
        ("PYTORCH_PASSWD", False),
        ("CUDA_CREDENTIALS", False),
        ("TRITON_ACCESS_TOKEN", False),
        ("TRACKIO_DIR", True),
        ("TRACKIO_WRITE_TOKEN", False),
        ("TRACKIO_SERVER_URL", False),
        ("MY_TMPDIR", False),
        ("AWS_ACCESS_KEY_ID", False),
    ],
)
def test_what_gpus_and_networks_go_by_travels(tmp_path, monkeypatch, name, travels):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_environment(tmp_path / "environment", {name: "value"}, tmp_path)
    assert (tmp_path / "environment").read_text() == (f"{name}=value\n" if travels else "")


def test_keys_do_not_travel_and_values_arrive_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text("\n# no assignment\nNCCL_DEBUG=WARN\n")
    odd = 'a "b" $HOME `c` \\d'
    given = {"WANDB_API_KEY": "x", "HF_TOKEN": "y", "NCCL_DEBUG": "INFO", "HF_ODD": odd, "PATH": "/bin", "OTHER": "1"}
    given["TOKENIZERS_PARALLELISM"] = "false"
    file = tmp_path / "environment"
    write_environment(file, given, tmp_path / "elsewhere")
    exported = [line.split("=", maxsplit=1) for line in file.read_text().splitlines()]
    assert [name for name, _ in exported] == ["HF_ODD", "NCCL_DEBUG", "PATH", "TOKENIZERS_PARALLELISM", "NCCL_DEBUG"]
    assert file.stat().st_mode & 0o777 == 0o600
    # as deepspeed writes them into the command of each host
    script = "; ".join(f'export {name}="{value}"' for name, value in exported) + '; echo "$HF_ODD|$NCCL_DEBUG"'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == f"{odd}|WARN"
