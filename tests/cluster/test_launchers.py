"""The launchers on hosts of their own, over ssh and under Slurm: all leave the student of one node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest

from tests.cluster.runs import local, mpirun, multinode, slurm, weights
from tests.tiny import ROOT, write_run

pytestmark = pytest.mark.cluster
PHASES = ("teacher.finetune", "student.finetune", "filters.teacher", "filters.student", "distill")
SHORTENED = [
    *(f"{phase}.{key}" for phase in PHASES for key in ("max_steps=3", "warmup_steps=1", "micro_batch_size=8")),
    "evaluation.max_examples=32",
    "preflight=warn",  # a teacher of three steps has nothing to teach
]


def finish(job, code=0):
    assert job.wait() == code, job.text()[-6000:]
    return job


def test_ssh_and_slurm_leave_the_same_student(cluster, shared):
    """That it is the student of one node, too, is seen on the quickstart's recipe, which is slow."""
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    found = []
    for launch in (multinode, slurm):
        folder = shared / launch.__name__
        folder.mkdir()
        job = finish(launch(cluster, folder, 2, ["run", str(recipe), f"output_dir={folder / 'run'}"]))
        found.append(weights(folder / "run"))
        records = job.records()
        assert [one.code for one in records] == [0, 0]
        assert len({one.host for one in records}) == 2
        assert "distill 2/2" in job.printed(0)
        assert "distill 2/2" in job.text()
        assert "distill 2/2" not in job.printed(1)
        assert len(list((folder / "run" / "wandb").glob("offline-run-*"))) == 1
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="NOT RUN: mpirun is missing; of Debian: openmpi-bin")
def test_torchrun_on_each_node_and_mpirun_leave_the_student_of_one_node(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")

    def torchrun(cluster, folder, count, arguments):
        return slurm(cluster, folder, 2, arguments, TED_DS_PER_NODE=str(count // 2))

    found = {}
    smaller = [f"{phase}.micro_batch_size=1" for phase in ("filters.teacher", "filters.student", "distill")]
    for name, launch in (("local", local), ("torchrun", torchrun), ("mpirun", mpirun)):
        (shared / name).mkdir()
        run = shared / name / "run"
        job = finish(launch(cluster, shared / name, 4, ["run", str(recipe), f"output_dir={run}", *smaller]))
        found[name] = weights(run)
        hosts = ["node1"] * 4 if name == "local" else ["node1", "node1", "node2", "node2"]
        assert [(one.rank, one.code, one.host) for one in job.records()] == [(n, 0, hosts[n]) for n in range(4)]
        assert "distill 2/2" in job.text()
    assert found["torchrun"] == found["local"]
    assert found["mpirun"] == found["local"]


@pytest.mark.slow
def test_torchrun_on_each_node_ends_with_a_bad_recipe_and_goes_on_after_a_lost_rank(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    (shared / "bad").mkdir()
    words = ["run", str(recipe), "distill.max_stepz=3"]
    job = finish(slurm(cluster, shared / "bad", 2, words, TED_DS_PER_NODE="1"), code=2)
    assert "distill.max_stepz" in job.text()
    assert (len(job.attempts()), job.restarts()) == (1, 0)
    words = ["run", str(recipe), "distill.max_steps=100", "checkpoint.every_steps=10"]
    job = slurm(cluster, shared, 2, words, TED_DS_PER_NODE="1")
    job.wait_for("distill 20/100")
    cluster.kill("node2", "KILL", job.records()[1].process)
    assert job.wait() == 0, job.text()[-4000:]
    assert len(job.attempts()) == 2
    assert "restart 1 of at most" in job.text()


@pytest.mark.slow
def test_a_bad_recipe_is_neither_started_again_nor_requeued(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    for launch in (multinode, slurm):
        folder = shared / launch.__name__
        folder.mkdir()
        started = time.monotonic()
        job = finish(launch(cluster, folder, 2, ["run", str(recipe), "distill.max_stepz=3"]), code=2)
        assert time.monotonic() - started < 60
        assert "distill.max_stepz" in job.text()
        assert "was the first to fail: it ended with exit code 2" in job.text()
        assert len(job.attempts()) == 1
    assert job.state() == "FAILED"
    assert job.restarts() == 0


@pytest.mark.slow
def test_a_study_is_an_array_of_runs_in_one_group(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    words = ["study", str(recipe), 'study={"arms":{"lwd":null,"ted":null},"seeds":[5]}']
    study = [sys.executable, "-m", "ted_ds", *words]
    subprocess.run([*study, "--array", str(shared / "lines")], check=True, timeout=120)
    lines = shared / "lines" / "arms.txt"
    job = slurm(cluster, shared, 1, ["run", *words[1:]], ["--array=1-2"], TED_DS_STUDY=str(lines))
    deadline = time.monotonic() + 200
    while cluster.run("login", ["squeue", "--noheader"]).stdout.strip():
        assert time.monotonic() < deadline, job.text()[-4000:]
        time.sleep(0.5)
    runs = [shared / "run" / "runs" / arm / "seed-5" for arm in ("lwd", "ted")]
    students = {(run / "export" / "model.safetensors").read_bytes() for run in runs}
    assert len(students) == 2, "each has changes of its own"
    for run in runs:
        (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
        assert f"ted_ds-{job.number}".encode() in file.read_bytes()
    done = {run: (run / "distill" / "phase.json").stat().st_mtime_ns for run in runs}
    subprocess.run(study, check=True, timeout=200)
    assert done == {run: (run / "distill" / "phase.json").stat().st_mtime_ns for run in runs}, "done in the array"
    assert json.loads((shared / "run" / "study.json").read_text())["verdicts"]


@pytest.mark.slow
def test_a_task_of_an_array_requeues_itself_alone(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    study = shared / "study.txt"
    study.write_text("".join(f"output_dir={shared}/run{n} distill.max_steps={100 * n}\n" for n in (1, 2)))
    # the last task has the number of the whole array
    job = slurm(cluster, shared, 1, ["run", str(recipe)], ["--array=1-2"], TED_DS_STUDY=str(study))
    job.wait_for("distill 20/200")
    cluster.run("login", ["scancel", "--batch", "--signal=USR1", f"{job.number}_2"])
    job.wait_for(f"requeue job {job.number}_2, restart 1")
    deadline = time.monotonic() + 200
    while cluster.run("login", ["squeue", "--noheader"]).stdout.strip():
        assert time.monotonic() < deadline, job.text()[-4000:]
        time.sleep(1)
    assert [(shared / f"run{n}" / "export").is_dir() for n in (1, 2)] == [True, True]
    attempts = {place.name: len(list(place.iterdir())) for place in job.logs.iterdir()}
    assert sorted(attempts.values()) == [1, 2], attempts


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 4])
def test_the_quickstarts_recipe_leaves_the_student_of_one_node(cluster, shared, count):
    recipe = str(ROOT / "ds_configs" / "recipes" / "minilm_rotten_tomatoes.yaml")
    found = {}
    launchers = {"local": local, "ssh": multinode, **({"slurm": slurm} if count == 2 else {})}
    for name, launch in launchers.items():
        (shared / name).mkdir()
        run = shared / name / "run"
        job = launch(cluster, shared / name, count, ["run", recipe, f"output_dir={run}", *SHORTENED])
        assert job.wait(600) == 0, job.text()[-6000:]
        found[name] = weights(run)
        print(name, json.dumps(found[name], indent=1))
    for name in launchers:
        assert found[name] == found["local"], name


@pytest.mark.slow
def test_hosts_that_see_other_things_are_named(cluster, shared):
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    other, script = shared / "other.yaml", f"mount --bind {shared}/other.yaml {recipe}"
    other.write_text(recipe.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    weights_there = shared / "teacher" / "model.safetensors"
    try:
        assert cluster.run("node2", ["bash", "-c", script]).returncode == 0
        job = finish(multinode(cluster, shared, 2, ["run", str(recipe)]), code=2)
        assert "hosts do not agree" in job.text()
        assert "recipe distill.learning_rate: 0.001 on node1; 0.002 on node2" in job.text()
        cluster.run("node2", ["umount", str(recipe)])
        content = bytearray(weights_there.read_bytes())
        content[-1] ^= 1
        (shared / "other.safetensors").write_bytes(content)
        cluster.run("node2", ["mount", "--bind", str(shared / "other.safetensors"), str(weights_there)])
        job = finish(multinode(cluster, shared, 2, ["run", str(recipe)]), code=2)
        assert "teacher model.safetensors: " in job.text()
        assert not (shared / "run").exists()
    finally:
        cluster.run("node2", ["umount", str(recipe), str(weights_there)])
