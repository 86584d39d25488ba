"""What setuptools builds is complete: what ships beside the modules is found without a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.tiny import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the package as a wheel would install it."""
    folder = tmp_path_factory.mktemp("installed")
    build = ["build_py", "--build-lib", str(folder / "lib"), "egg_info", "--egg-base", str(folder)]
    build += ["sdist", "--dist-dir", str(folder / "sdist")]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True, capture_output=True)
    return folder


def ted_ds_of(installed, folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "ted_ds", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed / "lib")},
        capture_output=True,
        text=True,
    )


def files_of(*folders):
    return {str(file.relative_to(ROOT)) for name in folders for file in (ROOT / name).rglob("*") if file.is_file()}


def test_it_has_every_recipe_deepspeed_file_template_and_launcher(installed):
    shipped = installed / "lib" / "ted_ds" / "shipped"
    assert {str(file.relative_to(shipped)) for file in shipped.rglob("*") if file.is_file()} == {
        name for name in files_of("ds_configs", "launchers") if "__pycache__" not in name
    }


def test_the_sdist_can_be_built_again(installed):
    (archive,) = (installed / "sdist").iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {name for name in files_of("ds_configs", "launchers") if "__pycache__" not in name} <= names
    assert {"setup.py", "README.md", "LICENSE", "pyproject.toml", "ted_ds/cli.py"} <= names


def test_names_of_what_ships_are_known_anywhere(installed, tmp_path):
    (tmp_path / "zero1").write_text("{", encoding="utf-8")
    shipped = installed / "lib" / "ted_ds" / "shipped"
    done = ted_ds_of(installed, tmp_path, "check", "smollm2_chat", "deepspeed=zero7")
    recipe = shipped / "ds_configs" / "recipes" / "smollm2_chat.yaml"
    assert done.returncode == 2
    assert f"{recipe}: data.train[0].path: demo_assets/answers.jsonl: no such data file or folder" in done.stderr
    assert f"{recipe}: task.chat_template" not in done.stderr
    ships = "give a file, or one that ships: zero0, zero1, zero2, zero3"
    assert f"{recipe}: deepspeed: zero7: no such DeepSpeed config; {ships}" in done.stderr
    # a file of that name is meant before one that ships
    done = ted_ds_of(installed, tmp_path, "check", "smollm2_chat", "deepspeed=zero1")
    assert (done.returncode, f"{recipe}: deepspeed: zero1: " in done.stderr) == (2, True), done.stderr
    done = ted_ds_of(installed, tmp_path, "check", "none.yaml")
    assert f"none.yaml: no such recipe file; the recipes that ship are in {recipe.parent}" in done.stderr


SHORT = (
    "teacher.finetune.max_steps=1",
    "teacher.finetune.warmup_steps=0",
    "distill.max_steps=1",
    "distill.warmup_steps=0",
    "evaluation.max_examples=64",
    "preflight=warn",
    "student.calibration={tokens: 512, heldout_tokens: 64}",
)


@pytest.mark.slow
def test_the_demo_runs_anywhere_and_ends_with_what_changed(installed, tmp_path):
    """With few steps; the packages with model and texts are those of the tests."""
    done = ted_ds_of(installed, tmp_path, "demo", *SHORT)
    assert done.returncode == 0, done.stderr
    run = Path("ted_ds_demo", "run")
    assert "✓ export: " in done.stdout
    assert re.search(r"^report      .*report", done.stdout, re.MULTILINE)
    assert re.search(r"^Of 64 held-out sentences, training turned \d+ predictions", done.stdout, re.MULTILINE)
    assert f"ted-ds predict {run} 'a text'" in done.stdout
    card = (tmp_path / run / "export" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert {one.name for one in tmp_path.iterdir()} == {"ted_ds_demo"}
