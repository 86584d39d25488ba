"""``ted-ds push`` against a Hub of this machine: what is uploaded, and what is not."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ted_ds.cli import main
from tests.terminals import on_terminal
from tests.tiny import ROOT

CARD = "---\nlicense: mit\n---\n# A model\n"


class Hub(ThreadingHTTPServer):
    """Takes what the Hub's client sends to make a model and to commit files; ``token`` is the only one it knows."""

    token = "hf_ours"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(401, {"error": "Invalid credentials"})
        elif self.path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._send(200, {"url": f"{self.server.address}/org/small"})
        elif self.path == "/api/models/org/small/preupload/main":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self._send(200, {"files": [{**one, "shouldIgnore": False} for one in files]})
        elif self.path == "/api/models/org/small/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._send(200, {"commitUrl": f"{self.server.address}/org/small/commit/0", "commitOid": "0" * 40})
        else:
            self._send(404, {"error": f"no {self.path} here"})

    def _send(self, code: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    export = tmp_path / "run" / "export"
    (export / "LICENSES").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for name, text in {
        "config.json": "{}",
        "README.md": CARD,
        "phase.json": "{}",
        "LICENSES/MIT": "MIT License",
    }.items():
        (export / name).write_text(text)
    (export / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    return tmp_path / "run"


def command(run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ted_ds", "push", str(run), "--to", "org/small", *words]


def environment(hub: Hub, token: str = Hub.token) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}


def answered(run: Path, hub: Hub, answer: str) -> str:
    """What it prints on a terminal, where a person types ``answer``."""
    return on_terminal(command(run, "--public"), environment(hub), typed=answer)


def test_all_of_an_export_goes_to_a_private_model_in_one_commit(run, hub):
    done = subprocess.run(command(run, "--yes"), env=environment(hub), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"uploaded    {hub.address}/org/small\n" in done.stdout
    (made,) = hub.created
    assert (made["name"], made["organization"]) == ("small", "org")
    assert made.get("private", made.get("visibility")) in (True, "private")
    sent = {str(file.relative_to(run / "export")): file.read_bytes() for file in (run / "export").rglob("*.*")}
    del sent["phase.json"]
    assert hub.files == {**sent, "LICENSES/MIT": b"MIT License"}


def test_a_person_is_asked_and_may_say_no(run, hub):
    said = answered(run, hub, "n\n")
    assert "upload 4 files as org/small (public, if it is new)? [y/N]" in said
    assert "nothing is uploaded" in said
    assert (hub.created, hub.files) == ([], {})
    assert "uploaded    " in answered(run, hub, "y\n")
    assert hub.created[0].get("private", hub.created[0].get("visibility")) in (False, "public", None)


def test_a_hub_that_refuses_is_said_in_one_message(run, hub):
    done = subprocess.run(command(run, "--yes"), env=environment(hub, "hf_other"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ted-ds push: error:\n--to org/small: the Hub refuses, or is not reached: ")
    assert "Traceback" not in done.stderr


def test_a_dry_run_lists_files_and_sizes(run, capsys):
    capsys.readouterr()
    assert main(["push", str(run), "--to", "org/small", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["LICENSES/MIT", "0.0 kB"],
        ["README.md", "0.0 kB"],
        ["config.json", "0.0 kB"],
        ["model.safetensors", "2.0 kB"],
        ["together", "2.1 kB"],
    ]
    assert lines[-1] == "a dry run: nothing is uploaded"


@pytest.mark.parametrize(
    ("words", "gone", "says"),
    [
        (["--to", "small"], "", "--to small: no name of a model on the Hub (it has no /); use ORG/NAME"),
        (["--to", "a/b/c"], "", "--to a/b/c: no name of a model on the Hub ("),
        (
            ["--to", "org/small"],
            "config.json",
            "no exported model is in it (no config.json and no adapter_config.json)",
        ),
        (["--to", "org/small"], "README.md", "the model has no card (README.md); give an export, which has one"),
        (["--to", "org/small"], "", "the standard input is no terminal, so that nobody can be asked; give --yes"),
        (["--to", "org/small", "--yes"], "", "--to org/small: $HF_HUB_OFFLINE keeps this offline; unset it to upload"),
    ],
)
def test_what_cannot_be_uploaded_is_said(run, capsys, monkeypatch, words, gone, says):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    if gone:
        (run / "export" / gone).unlink()
    assert main(["push", str(run), *words]) == 2
    assert says in capsys.readouterr().err


def test_an_export_with_an_odd_licence_warns(run, capsys):
    (run / "export" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert main(["push", str(run), "--to", "org/small", "--dry-run"]) == 0
    assert "WARN what it was made from is under cc-by-nc-4.0, which forbids commercial use" in capsys.readouterr().out
