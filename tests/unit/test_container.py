"""The image and the development container: what they copy, install and set is there, and is what the launchers set."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import ted_ds
from tests.optional import HADOLINT, NO_HADOLINT
from tests.tiny import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
DEVCONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
ENVIRONMENT = (ROOT / "launchers" / "environment.sh").read_text(encoding="utf-8")
BUILDER = next(filter(shutil.which, ("docker", "podman", "buildah")), None)
OPTIONS = "TED_DS_TEST_BUILD_OPTIONS"
"""Further words for ``build``: where it has mirrors, certificates and packages of its own."""
IMAGE = "ted_ds:tested"
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def stages():
    """The lines of each stage, by its name."""
    found = {}
    for line in LINES:
        if begun := re.match(r"FROM \S+ AS (\S+)", line):
            found[begun[1]] = []
        elif found:
            [*found.values()][-1].append(line)
    return found


def copied(lines):
    """What is copied from the repository, and where to."""
    for line in lines:
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            yield from ((source, target) for source in sources)


def extras_in(text):
    return re.search(r"make_environment ([\w,]+)", text)[1].split(",")


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    used = {source.split("/")[0] for source, _ in copied(LINES)}
    assert all((ROOT / source).exists() for source, _ in copied(LINES))
    assert used == sent


def test_the_layer_of_packages_has_what_an_installation_reads(tmp_path):
    for source, target in copied(stages()["environment"]):
        place = tmp_path / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    words = [sys.executable, "setup.py", "-q", "egg_info"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert "deepspeed" in (tmp_path / "ted_ds.egg-info" / "requires.txt").read_text(encoding="utf-8")
    sourced = "source launchers/environment.sh && declare -F make_environment"
    subprocess.run(["bash", "-euo", "pipefail", "-c", sourced], cwd=tmp_path, check=True, capture_output=True)
    assert all((tmp_path / name).exists() for name in re.findall(r"launchers/[\w.]+\.txt", ENVIRONMENT))


@pytest.mark.parametrize("text", [DOCKERFILE, DEVCONTAINER["postCreateCommand"]], ids=["Dockerfile", "devcontainer"])
def test_extras_that_are_installed_exist(text):
    assert [extra for extra in extras_in(text) if f'        "{extra}": [' not in SETUP] == []


def test_an_image_for_cpus_sets_what_the_launchers_set():
    said = "source launchers/environment.sh; use_cpu; env"
    done = subprocess.run(["bash", "-c", said], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    exported = (line for line in done.stdout.splitlines() if line.startswith(("DS_", "OMP_")))
    set_there = dict(line.split("=", 1) for line in exported)
    (line,) = (line for line in stages()["device-cpu"] if line.startswith("ENV "))
    values = dict(word.split("=", 1) for word in line.split()[1:])
    torch = values.pop("TED_DS_TORCH"), values.pop("PIP_EXTRA_INDEX_URL")
    assert values == set_there
    tested = re.search(r"torch==[\d.]+", ENVIRONMENT)
    # whoever builds it names the index
    assert torch == (f"{tested[0]}+cpu", "${PIP_EXTRA_INDEX_URL}")
    assert 'ARG PIP_EXTRA_INDEX_URL=""' in stages()["device-cpu"]
    assert "PIP_EXTRA_INDEX_URL" in DEVCONTAINER["build"]["args"]


def test_nothing_runs_as_root_and_both_devices_have_a_stage():
    (user,) = (line.split()[1] for line in stages()["run"] if line.startswith("USER "))
    assert user not in ("0", "root")
    assert f"useradd --create-home --uid {user} " in DOCKERFILE
    assert {"device-cuda", "device-cpu"} < {*stages()}
    assert LINES[0] == "ARG DEVICE=cuda"


def test_the_development_container_is_of_a_stage_and_a_user_that_there_are():
    build = DEVCONTAINER["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
    assert build["target"] in stages()
    assert f"device-{build['args']['DEVICE']}" in stages()
    assert f" {DEVCONTAINER['remoteUser']}" in "".join(stages()[build["target"]])


@pytest.mark.skipif(not HADOLINT.exists(), reason=NO_HADOLINT)
def test_the_dockerfile_has_no_fault_that_a_linter_knows():
    done = subprocess.run([str(HADOLINT), "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(BUILDER is None, reason="no docker, podman or buildah here")
def test_an_image_for_cpus_is_built_and_answers():
    words = [BUILDER, "build", "--build-arg", "DEVICE=cpu", *shlex.split(os.environ.get(OPTIONS, ""))]
    subprocess.run([*words, "--tag", IMAGE, "."], cwd=ROOT, check=True, timeout=3000)
    # as whom it runs, what is installed, that torch computes, and that shipped recipes and DeepSpeed files are there
    said = "id -u; ted-ds --version; python -c 'import deepspeed, torch; print(torch.__version__, torch.ones(3).sum())'"
    said += "; ls /opt/ted_ds/ds_configs/recipes/demo.yaml; ted-ds families | grep llama"
    if BUILDER == "buildah":
        container = subprocess.run([BUILDER, "from", IMAGE], check=True, capture_output=True, text=True).stdout.strip()
        run, clean = [BUILDER, "run", container, "--"], [BUILDER, "rm", container]
    else:
        run, clean = [BUILDER, "run", "--rm", IMAGE], [BUILDER, "rmi", IMAGE]
    try:
        done = subprocess.run([*run, "bash", "-euc", said], capture_output=True, text=True, timeout=300)
    finally:
        subprocess.run(clean, check=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    user, version, torch, *_ = done.stdout.splitlines()
    assert user == "1001"
    assert version == f"ted_ds {ted_ds.__version__}"
    assert torch == "2.13.0+cpu tensor(3.)"
