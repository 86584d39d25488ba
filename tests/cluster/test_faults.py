"""What happens to a run when a rank, a host, a link or a disk fails, or Slurm wants its nodes back."""

from __future__ import annotations

import re
import time

import pytest

from tests.cluster.runs import multinode, slurm, weights
from tests.tiny import write_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_STEPS, SAVE_EVERY = 120, 20
FAULT_AFTER = 50
"""Steps of distill."""
COLLECTIVE_TIMEOUT_S = 30
BOUND_S = 180
"""From a fault to the end of all its attempt's ranks and its launcher."""
CHANGES = [
    f"distill.max_steps={NUM_STEPS}",
    f"checkpoint.every_steps={SAVE_EVERY}",
    f"collective_timeout_s={COLLECTIVE_TIMEOUT_S}",
    "filters.teacher.max_steps=2",
]
TABLE: list[tuple[str, ...]] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    columns = ("launcher", "fault", "s to the end of the attempt", "exit", "steps lost", "same student")
    print("\n" + "\n".join(" | ".join(row) for row in (columns, *TABLE)))


@pytest.fixture(scope="module")
def expected(whole_cluster, tmp_path_factory):
    """The weights of a run that nothing happens to."""
    whole_cluster.reset()
    folder = tmp_path_factory.mktemp("expected")
    recipe = write_run(folder, kind="sequence_classification", family="bert")
    job = multinode(whole_cluster, folder, 2, ["run", str(recipe), *CHANGES])
    assert job.wait() == 0, job.text()[-4000:]
    return weights(folder / "run")


def start(launch, cluster, shared, *options, changes=(), **variables):
    """A run that has done some steps of distill."""
    recipe = write_run(shared, kind="sequence_classification", family="bert")
    arguments = ["run", str(recipe), *CHANGES, *changes]
    more = (options,) if launch is slurm else ()
    job = launch(cluster, shared, 2, arguments, *more, **variables)
    job.wait_for(rf"distill {FAULT_AFTER}/")
    return job


def until_attempt_ended(job, number=1):
    """Seconds until all ranks of an attempt and what had started them were gone."""
    started = time.monotonic()
    wanted = re.compile(rf"attempt_{number:04d}: (complete|stopped|rank|the ranks|no rank)")
    while not wanted.search(job.text()) and not job.is_over():
        if job.process is None and job.restarts():  # Slurm ended the script, too
            break
        assert time.monotonic() - started < BOUND_S, job.text()[-6000:]
        time.sleep(0.2)
    return time.monotonic() - started


def steps_lost(job):
    """Of the first attempt, those that were done again by the second."""
    done = [int(step) for step in re.findall(rf"distill (\d+)/{NUM_STEPS}", job.printed(0, attempt=0))]
    went_on = re.findall(r"going on after step (\d+)", job.printed(0, attempt=1))
    return max(done) - (int(went_on[0]) if went_on else 0)


def note(launch, fault, seconds, code, lost, same):
    TABLE.append((launch.__name__, fault, f"{seconds:.0f}", str(code), str(lost), same))
    print(" | ".join(TABLE[-1]))


def finish(job, launch, fault, seconds, expected, shared, most_lost=SAVE_EVERY + 10):
    code = job.wait()
    assert code == 0, job.text()[-6000:]
    lost, is_same = steps_lost(job), weights(shared / "run") == expected
    note(launch, fault, seconds, code, lost, "yes" if is_same else "no")
    assert is_same
    assert lost <= most_lost


@pytest.mark.parametrize("launch", [multinode, slurm])
@pytest.mark.parametrize("fault", ["kill -9 of a rank", "SIGSTOP of a rank"])
def test_a_rank_that_dies_or_hangs(cluster, shared, expected, launch, fault):
    job = start(launch, cluster, shared, TED_DS_RESTARTS="3")
    rank = job.records()[1]
    cluster.kill(rank.host, "KILL" if "kill" in fault else "STOP", rank.process)
    seconds = until_attempt_ended(job)
    said = [f"rank 1 on {rank.host} was the first to fail: it died or hangs"]
    if "STOP" in fault and launch is slurm:  # which wakes it, to end it
        said.append(f"the ranks lost each other; the last to say so was rank 1 on {rank.host}")
    assert any(one in job.text() for one in said), job.text()[-3000:]
    finish(job, launch, fault, seconds, expected, shared)
    assert cluster.run(rank.host, ["kill", "-0", str(rank.process)]).returncode != 0


@pytest.mark.parametrize("fault", ["kill", "mute"])
def test_a_host_that_goes_over_ssh_leaves_the_run_to_the_others(cluster, shared, fault):
    job = start(multinode, cluster, shared, TED_DS_MIN_HOSTS="1", TED_DS_HOST_WAIT="5", TED_DS_RESTARTS="3")
    cluster.power(fault, "node2")
    seconds = until_attempt_ended(job)
    code = job.wait()
    assert code == 0, job.text()[-6000:]
    assert "going on without node2" in job.text()
    assert [one.host for one in job.records()] == ["node1"]
    lost = steps_lost(job)
    name = {"kill": "host killed", "mute": "link cut"}[fault]
    note(multinode, f"{name}, goes on with the other", seconds, code, lost, "other world")
    assert lost <= SAVE_EVERY + 10


@pytest.mark.parametrize("fault", ["kill", "mute"])
def test_a_node_that_goes_under_slurm_is_replaced(cluster, shared, expected, fault):
    job = start(slurm, cluster, shared)
    gone = job.records()[1].host
    cluster.power(fault, gone)
    seconds = until_attempt_ended(job)
    finish(job, slurm, {"kill": "host killed", "mute": "link cut"}[fault], seconds, expected, shared)
    assert gone not in {one.host for one in job.records()}


def test_the_host_of_the_batch_script_goes(cluster, shared, expected):
    job = start(slurm, cluster, shared)
    cluster.power("kill", job.records()[0].host)
    seconds = until_attempt_ended(job)
    finish(job, slurm, "host of the batch script killed", seconds, expected, shared)


def test_a_time_limit_is_survived_by_being_requeued(cluster, shared, expected):
    job = start(slurm, cluster, shared)
    # what --signal=B:USR1@300 does before the limit
    cluster.run("login", ["scancel", "--batch", "--signal=USR1", job.number])
    seconds = until_attempt_ended(job)
    finish(job, slurm, "time limit", seconds, expected, shared, most_lost=0)
    assert job.restarts() == 1
    assert "stopped on the file" in job.text()


def test_preemption_is_survived_by_being_requeued(cluster, shared, expected):
    job = start(slurm, cluster, shared, "--partition=low")
    done = cluster.run("login", ["sbatch", "--parsable", "--nodes=4", "--exclusive", "--wrap=srun sleep 5"])
    assert done.returncode == 0, done.stderr
    seconds = until_attempt_ended(job)
    finish(job, slurm, "preemption", seconds, expected, shared, most_lost=0)
    assert job.restarts() == 1
    assert "stopped on SIGTERM" in job.text()


def test_a_cancelled_job_stays_cancelled(cluster, shared):
    job = start(slurm, cluster, shared)
    cluster.run("login", ["scancel", job.number])
    time.sleep(20)
    assert job.state() == "CANCELLED"
    assert job.restarts() == 0


@pytest.mark.parametrize("launch", [multinode, slurm])
def test_a_disk_that_is_full_on_one_host(cluster, shared, expected, launch):
    job = start(launch, cluster, shared)
    host = job.records()[1].host
    run, small = shared / "run", f"/run/small_{shared.name}"
    full = (
        f"mkdir {small} && mount -t tmpfs -o size=64k tmpfs {small} && mkdir {small}/upper {small}/work && "
        f"{{ dd if=/dev/zero of={small}/filler bs=1k 2>/dev/null; "
        f"mount -t overlay overlay -o lowerdir={run},upperdir={small}/upper,workdir={small}/work {run}; }}"
    )
    done = cluster.run(host, ["bash", "-c", full])
    assert done.returncode == 0, done.stderr
    seconds = until_attempt_ended(job)
    assert job.wait() == 2, job.text()[-6000:]
    assert "No space left on device" in job.text()
    assert len(job.attempts()) == 1
    cluster.run(host, ["umount", str(run)])
    cluster.run(host, ["umount", small])
    again = launch(cluster, shared, 2, ["run", str(shared / "recipe.yaml"), *CHANGES])
    assert again.wait() == 0, again.text()[-6000:]
    lost = steps_lost(again)
    is_same = weights(run) == expected
    note(launch, "disk full on one host (then mended)", seconds, 2, lost, "yes" if is_same else "no")
    assert is_same
