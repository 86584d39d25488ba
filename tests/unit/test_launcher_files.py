"""The launchers' files: shell scripts that say how they are used, and a manifest that Kubernetes would take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import ROOT

LAUNCHERS = ROOT / "launchers"
SCRIPTS = ("local.sh", "multinode.sh", "slurm.sbatch")
SCHEMAS = Path(sys.prefix) / "schemas"
KUBERNETES = "1.36"
JOBSET_KEYS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"},
    "failurePolicy": {"maxRestarts", "rules", "restartStrategy"},
    "rule": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "replicatedJob": {"name", "template", "replicas", "dependsOn", "groupName"},
}
"""Of jobset.x-k8s.io/v1alpha2 (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2)."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_a_recipe_says_how_it_is_used(script):
    done = subprocess.run(["bash", str(LAUNCHERS / script)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "VERB RECIPE [a.b=value ...]" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("variables", "srun"),
    [
        ({}, "srun --kill-on-bad-exit=1 python -u -m ted_ds run r.yaml"),
        (
            {"SLURM_CPUS_PER_TASK": "12"},
            "srun --kill-on-bad-exit=1 --cpus-per-task=12 python -u -m ted_ds run r.yaml",
        ),
        (
            {"SLURM_CPUS_PER_TASK": "12", "SLURM_NTASKS_PER_NODE": "8", "TED_DS_PER_NODE": "8"},
            "srun --kill-on-bad-exit=1 --cpus-per-task=96 --ntasks-per-node=1 --ntasks=2 bash",
        ),
        (
            {"SLURM_CPUS_PER_TASK": "64", "TED_DS_PER_NODE": "8"},
            "srun --kill-on-bad-exit=1 --cpus-per-task=64 --ntasks-per-node=1 --ntasks=2 bash",
        ),
    ],
)
def test_the_cores_of_a_slurm_job_reach_its_tasks(tmp_path, variables, srun):
    """What the script would start is shown: a program in the place of ``ted-ds`` prints its words."""
    (tmp_path / "bin").mkdir()
    for name, says in (("ted-ds", 'echo "$*"'), ("scontrol", "echo node1")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "2", "TED_DS_VENV": str(tmp_path)}
    command = ["bash", str(LAUNCHERS / "slurm.sbatch"), "run", "r.yaml"]
    environment = {"PATH": os.environ["PATH"], **job, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().partition(" -- ")[2].startswith(srun)


def test_the_scripts_are_free_of_known_mistakes():
    if shutil.which("shellcheck") is None:
        pytest.skip("NOT CHECKED: shellcheck is not installed")
    files = [*LAUNCHERS.glob("*.sh"), LAUNCHERS / "slurm.sbatch", ROOT / "tests" / "run.sh"]
    done = subprocess.run(["shellcheck", "-x", *map(str, files)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCHERS / "kubernetes" / "jobset.yaml").read_text())


def test_the_jobset_has_the_fields_of_its_schema(jobset):
    spec = jobset["spec"]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset.keys() <= JOBSET_KEYS[""]
    assert spec.keys() <= JOBSET_KEYS["spec"]
    assert spec["failurePolicy"].keys() <= JOBSET_KEYS["failurePolicy"]
    assert spec["network"].keys() <= JOBSET_KEYS["network"]
    for rule in spec["failurePolicy"]["rules"]:
        assert rule.keys() <= JOBSET_KEYS["rule"]
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
    (nodes,) = spec["replicatedJobs"]
    assert nodes.keys() <= JOBSET_KEYS["replicatedJob"]


def check_job(job):
    script = "import sys, yaml, kubernetes_validate as k; "
    script += f"k.validate(yaml.safe_load(sys.stdin), {KUBERNETES!r}, strict=True)"
    return subprocess.run(
        [sys.executable, "-c", script],
        input=yaml.safe_dump(job),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCHEMAS)},
        timeout=60,
    )


def test_kubernetes_takes_the_jobs_of_the_jobset(jobset):
    assert SCHEMAS.is_dir(), "the schemas of Kubernetes are missing: tests/run.sh installs them"
    (nodes,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, **nodes["template"]}
    done = check_job(job)
    assert done.returncode == 0, done.stderr
    assert check_job({**job, "spec": {**job["spec"], "paralelism": 4}}).returncode != 0


def test_the_number_of_nodes_is_the_same_wherever_it_is_written(jobset):
    (nodes,) = jobset["spec"]["replicatedJobs"]
    job = nodes["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert str(job["parallelism"]) == str(job["completions"]) == variable["value"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc_per_node={gpus}" in container["args"][0]
    address = f"{jobset['metadata']['name']}-{nodes['name']}-0-0.{jobset['metadata']['name']}"
    assert f"--master_addr={address}" in container["args"][0]
