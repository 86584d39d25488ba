"""Notebooks in a real Jupyter kernel: ``distill`` called again and again, a notebook's interrupt, a tutorial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_tutorials import FETCHES, SMALL
from tests.optional import JUPYTER, NO_JUPYTER, NO_SITE, SITE
from tests.tiny import ROOT, write_run

pytestmark = [pytest.mark.lengthy, pytest.mark.skipif(not JUPYTER.is_dir(), reason=NO_JUPYTER)]

RUN = """
import time

from ted_ds import Callback, distill


class Steps(Callback):
    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def on_step(self, event):
        print("step", event.step, flush=True)
        time.sleep(self.seconds)


def go(name, **settings):
    changes = {"tracking.to": [], "distill.method": "sft", "filters": None, "distill.max_steps": 8}
    result = distill("recipe.yaml", overrides={**changes, "output_dir": name}, callbacks=[Steps(**settings)])
    return (result.student / "model.safetensors").read_bytes()
"""
SESSION = """
import sys
import time

from jupyter_client.manager import start_new_kernel

LONGEST = 120


def carry_out(source, interrupt_at=None):
    '''What a cell printed, and the name of its error.'''
    request, printed, error = client.execute(source), "", ""
    end = time.monotonic() + LONGEST
    while True:
        message = client.get_iopub_msg(timeout=end - time.monotonic())
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            printed += content["text"]
            if interrupt_at is not None and interrupt_at in printed:
                manager.interrupt_kernel()
                interrupt_at = None
        elif kind == "error":
            error = content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return printed, error


manager, client = start_new_kernel(startup_timeout=LONGEST)
try:
    printed, error = carry_out(sys.stdin.read())
    assert not error, printed
    printed, error = carry_out("whole = go('whole')")
    assert not error and printed.count("step ") == 8, (printed, error)
    printed, error = carry_out("go('stopped', seconds=0.5)", interrupt_at="step 3")
    assert error == "StoppedOnRequest", (printed, error)
    done = printed.count("step ")
    assert 3 <= done <= 4, printed
    printed, error = carry_out("print('the same:', go('stopped') == whole)")
    assert not error and "the same: True" in printed, (printed, error)
    assert printed.count("step ") == 8 - done, printed
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
EXECUTED = """
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from website.notebooks import write_notebook

page, fetches = Path(sys.argv[1]), sys.argv[2]
write_notebook(page)
notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
notebook.cells = [cell for cell in notebook.cells if fetches not in cell.source]
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(*(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])), sep="\\n")
"""


def in_jupyter(folder: Path, script: str, *words: str, told: str = "") -> str:
    """What a script prints that has Jupyter's packages, started in a folder; ``told`` is its standard input."""
    own = {name: str(folder / ".jupyter") for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    paths = os.pathsep.join(str(path) for path in (JUPYTER, SITE, ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        input=told,
        cwd=folder,
        env={**os.environ, **own, "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter" / "runtime"), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_kernel_runs_is_interrupted_and_goes_on_to_the_same_weights(tmp_path):
    write_run(tmp_path)
    in_jupyter(tmp_path, SESSION, told=RUN)


SHOWN = {"classify": "accuracy", "language_model": "perplexity", "chat": "perplexity", "cluster": "ranks"}
"""In the outputs of each one's cells."""


@pytest.mark.slow
@pytest.mark.skipif(not SITE.is_dir(), reason=NO_SITE)
@pytest.mark.parametrize("name", SMALL)
def test_a_tutorials_notebook_is_executed(name, tmp_path):
    SMALL[name](tmp_path / "demo_assets")
    page = tmp_path / f"{name}.md"
    page.write_text((ROOT / "docs" / "tutorials" / page.name).read_text(encoding="utf-8"), encoding="utf-8")
    assert SHOWN[name] in in_jupyter(tmp_path, EXECUTED, str(page), FETCHES)
