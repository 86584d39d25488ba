"""Runs that keep their checkpoints at an S3 (moto's server), too, which misbehaves, or is all that is left of them."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ted_ds.runtime.checkpoints.folders import _manifest_text
from tests.faults import of_distill, signal_at
from tests.runs import Run, differences, run, traces, with_dropout
from tests.stores import StoreServer, reach, reach_and
from tests.tiny import write_run

pytestmark = pytest.mark.lengthy

RANKS = 2
STEPS = 8


class Uploading:
    """A run that was never stopped and has no store, and others like it that have one."""

    def __init__(self, folder: Path, server: StoreServer) -> None:
        self.folder, self.server = folder, server
        recipe = with_dropout(write_run(folder, family="gpt2"))
        self._arguments = [
            "run",
            str(recipe),
            "filters.teacher.max_steps=2",
            "filters.student.max_steps=2",
            f"distill.max_steps={STEPS}",
            "distill.micro_batch_size=1",
            "checkpoint.every_steps=2",
            "evaluation.every_steps=3",
            "tracking.log_every_steps=1",
            "collective_timeout_s=60",
        ]
        run([*self._arguments, f"output_dir={folder / 'whole'}"])
        self.whole = traces(folder / "whole")
        self._number = 0

    def new(self) -> tuple[str, Path]:
        """The name of a run, which is that of its place at the store, and its folder."""
        self._number += 1
        name = f"run-{self._number}"
        return name, self.folder / name

    def arguments(self, name: str, *, timeout_s: float = 30.0) -> list[str]:
        place = f"{{to: '{self.server.url(f'runs/{name}')}', timeout_s: {timeout_s}}}"
        return [*self._arguments, f"output_dir={self.folder / name}", f"checkpoint.upload={place}"]

    def run(self, name: str, *, codes: int = 0, timeout_s: float = 30.0) -> str:
        arguments = self.arguments(name, timeout_s=timeout_s)
        return run(arguments, codes=codes, fault=reach, fault_arguments=(self.server.environment,))

    def start(self, name: str, *fault: Any, timeout_s: float = 30.0) -> Run:
        """One that ``fault`` breaks something in."""
        arguments = (self.server.environment, *fault)
        return Run(self.arguments(name, timeout_s=timeout_s), fault=reach_and, fault_arguments=arguments)

    def resume(self, name: str) -> int:
        """Go on where nothing is left but what the store has, and hold the result to that of the whole run."""
        place = self.folder / name
        shutil.rmtree(place)
        self.last = output = self.run(name)
        went_on = re.search(rf"going on after step (\d+) of {STEPS}", output)
        step = int(went_on[1]) if went_on else 0
        assert bool(went_on) == (f"fetched {self.server.url(f'runs/{name}')}/checkpoints/distill" in output), output
        self.check(place)
        return step

    def there(self, name: str) -> list[str]:
        """What the store has of a run."""
        return [one.removeprefix(f"runs/{name}/") for one in self.server.names(f"runs/{name}/")]

    def check(self, place: Path) -> None:
        """That a run came to what it would have without a store: every report, weight and score.

        A phase whose result was not at the store yet is done again, behind reports of the next one that were.
        """
        found, whole = traces(place), dict(self.whole)
        for one in (found, whole):
            one["reports"] = sorted(one["reports"], key=lambda report: report["phase"])
        assert differences(whole, found) == []


@pytest.fixture(scope="module")
def uploading(tmp_path_factory):
    server = StoreServer()
    try:
        yield Uploading(tmp_path_factory.mktemp("uploads"), server)
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def in_order(uploading):
    """Each test begins with a server that does what it is asked."""
    uploading.server.do()


def whole_at(names: list[str], phase: str = "distill") -> list[int]:
    """Steps whose checkpoints have a manifest."""
    found = (re.fullmatch(rf"checkpoints/{phase}/step_(\d+)/manifest\.json", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def test_a_run_is_the_same_and_all_of_it_is_at_the_store(uploading):
    name, place = uploading.new()
    output = uploading.run(name)
    assert "at the store" not in output, output
    uploading.check(place)
    there = uploading.there(name)
    here = [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]
    phases = [one.split("/")[0] for one in here if one.endswith("/phase.json")]
    assert "distill" in phases
    for phase in phases:
        assert [one for one in there if one.startswith(f"{phase}/")] == sorted(
            one for one in here if one.startswith(f"{phase}/")
        )
    best = json.loads((place / "distill" / "phase.json").read_text())["result"]["best"]["step"]
    assert whole_at(there) == [step for step in (best,) if step != STEPS]
    assert json.loads(uploading.server.read(f"runs/{name}/run.json")) == json.loads((place / "run.json").read_text())
    # the machine is gone
    shutil.move(place, place.with_name("gone"))
    asked = len(uploading.server.asked())
    output = uploading.run(name)
    assert "distill: complete, skipped" in output
    assert "distill 1/" not in output
    puts = [one for one in uploading.server.asked()[asked:] if one.startswith("PUT")]
    assert not [one for one in puts if "safetensors" in one], "what is there is not put there again"
    uploading.check(place)


@pytest.mark.parametrize(
    ("place", "occurrence", "of_rank"),
    [
        ("upload", 6, 0),
        pytest.param("upload", 1, 1, marks=pytest.mark.slow),
        ("stored manifest", 3, 0),
        pytest.param("stored manifest", 1, 0, marks=pytest.mark.slow),
        pytest.param("stored removal", 1, 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_while_it_uploads_goes_on_from_the_store_alone(uploading, place, occurrence, of_rank):
    name, _ = uploading.new()
    killed = uploading.start(name, kill_in_stage_two, place, occurrence, of_rank)
    codes = killed.wait()
    assert codes[of_rank] == -signal.SIGKILL, killed.output()
    assert codes[1 - of_rank] == 76, killed.output()
    before = whole_at(uploading.there(name))
    assert uploading.resume(name) == max(before, default=0)


def kill_in_stage_two(rank: int, place: str, occurrence: int, of_rank: int) -> None:
    """Kill a rank at the n-th time that it comes to a place in the upload of a checkpoint of Stage II."""
    keep_step_with_the_store()
    counter = itertools.count(1)

    def arrive() -> None:
        if next(counter) == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == of_rank:
        of_distill(place, arrive)


def keep_step_with_the_store() -> None:
    """Each checkpoint is at the store before the next step begins, however quick these steps are."""
    from ted_ds.phases.training import PhaseTraining

    plain = PhaseTraining.between_steps

    @functools.wraps(plain)
    def between_steps(self: PhaseTraining, progress: Any) -> None:
        plain(self, progress)
        self._checkpoints.finish()
        self._checkpoints.settle_uploads()

    PhaseTraining.between_steps = between_steps


def kill_after(rank: int, step: int) -> None:
    """Kill all ranks as that step of Stage II begins."""
    keep_step_with_the_store()
    signal_at(rank, "step", 4 + step, signal.SIGKILL, (0, 1))


def test_a_store_that_answers_500_for_a_while_is_asked_again(uploading):
    name, place = uploading.new()
    started = uploading.start(name, slow_steps)
    started.wait_for("distill 3/")
    uploading.server.do(methods=["PUT", "POST"], match="checkpoints", status=500)
    started.wait_for("fails again and again")
    uploading.server.do()
    assert started.wait() == [0] * RANKS, started.output()
    output = started.output(0)
    (told,) = re.findall(r"WARN the upload of the checkpoint after step .*", output)
    assert uploading.server.url(f"runs/{name}") in told
    assert "rank " in told
    assert "Internal Server Error" in told
    assert "is not at s3" not in output
    uploading.check(place)
    best = json.loads((place / "distill" / "phase.json").read_text())["result"]["best"]["step"]
    assert whole_at(uploading.there(name)) == [step for step in (best,) if step != STEPS]


def slow_steps(_rank: int) -> None:
    """Steps of Stage II take their time, so that an upload ends between two of them."""
    from ted_ds.runtime.zero_runner import ZeroRunner

    plain = ZeroRunner.step

    @functools.wraps(plain)
    def step(self: ZeroRunner, *arguments: Any) -> Any:
        time.sleep(0.4)
        return plain(self, *arguments)

    ZeroRunner.step = step


@pytest.mark.slow
def test_a_store_that_cuts_files_off_is_noticed(uploading):
    name, place = uploading.new()
    uploading.server.do(methods=["PUT"], match=r"step_0000000[24]/engine", keep=100, count=3)
    output = uploading.run(name)
    assert "is not at" not in output
    uploading.check(place)
    # for good: nothing that was cut off becomes a checkpoint, and nothing is lost here
    name, place = uploading.new()
    uploading.server.do(methods=["PUT"], match=r"checkpoints/distill/.*/engine", keep=100)
    started = uploading.start(name, slow_steps, timeout_s=8.0)
    started.wait_for("distill 7/")
    there = uploading.there(name)
    here = sorted(int(folder.name[5:]) for folder in (place / "checkpoints" / "distill").glob("step_*"))
    assert started.wait() == [0] * RANKS, started.output()
    assert whole_at(there) == []
    assert 4 in here, here
    output = started.output(0)
    assert re.search(
        r"WARN the checkpoint after step \d is not at s3://bucket/runs/\S+/checkpoints/distill: rank \d: engine/\S+: "
        r"it did not arrive whole: has 100 bytes, not [\d,]+ \(\d tr(y|ies)\)(; rank .*)?\. It is whole here, in ",
        output,
    ), output
    uploading.check(place)


# --- a host that does not read well ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_run(uploading):
    """The name of a run that was killed behind its last step: :func:`gone` makes copies of what the store has of it."""
    uploading.server.do()
    name, place = uploading.new()
    killed = uploading.start(name, kill_after, STEPS)
    assert killed.wait() == [-signal.SIGKILL] * RANKS, killed.output()
    steps = whole_at(uploading.there(name))
    assert steps == sorted(int(folder.name[5:]) for folder in (place / "checkpoints" / "distill").glob("step_*")), (
        "the same rules hold there"
    )
    assert len(steps) >= 2, killed.output()
    return name


def gone(uploading: Uploading, killed_run: str) -> tuple[str, list[int]]:
    """A run of which the store alone is left, and the steps of its checkpoints there."""
    name, place = uploading.new()
    for one in uploading.there(killed_run):
        uploading.server.write(f"runs/{name}/{one}", uploading.server.read(f"runs/{killed_run}/{one}"))
    place.mkdir()
    return name, whole_at(uploading.there(name))


def contents(uploading: Uploading, name: str) -> dict[str, bytes]:
    """All that the store has of a run's Stage II."""
    names = [one for one in uploading.there(name) if one.startswith("checkpoints/distill/")]
    return {one: uploading.server.read(f"runs/{name}/{one}") for one in names}


@pytest.mark.parametrize(
    "spoilt", [{"garbled": True}, pytest.param({"cut": 100}, marks=pytest.mark.slow)], ids=["garbled", "cut"]
)
def test_one_bad_answer_about_a_checkpoint_costs_nothing(uploading, killed_run, spoilt):
    name, steps = gone(uploading, killed_run)
    uploading.server.do(methods=["GET"], match=rf"step_{steps[-1]:08d}/manifest", count=1, **spoilt)
    assert uploading.resume(name) == steps[-1]
    assert "damaged" not in uploading.last


@pytest.mark.slow
@pytest.mark.parametrize("what", ["manifest", "engine"])
def test_a_host_that_reads_nothing_well_ends_and_leaves_all_as_it_is(uploading, killed_run, what):
    name, steps = gone(uploading, killed_run)
    before = contents(uploading, name)
    uploading.server.do(methods=["GET"], match=f"{name}/checkpoints/distill/.*/{what}", garbled=True)
    output = uploading.run(name, codes=2)
    (said,) = re.findall(r".*no checkpoint can be read whole.*", output)
    for step in steps:
        assert f"{uploading.server.url(f'runs/{name}')}/checkpoints/distill/step_{step:08d}" in said
    assert "Nothing was removed or changed" in said
    assert "distill 1/" not in output
    uploading.server.do()  # another host
    assert contents(uploading, name) == before
    assert uploading.resume(name) == steps[-1]


@pytest.mark.slow
def test_checkpoints_of_another_version_at_the_store_are_left_alone(uploading, killed_run):
    name, steps = gone(uploading, killed_run)
    for step in steps:
        manifest = f"runs/{name}/checkpoints/distill/step_{step:08d}/manifest.json"
        content = json.loads(uploading.server.read(manifest))
        del content["sha256"]
        uploading.server.write(manifest, _manifest_text({**content, "version": 2}).encode())
    before = contents(uploading, name)
    output = uploading.run(name, codes=2)
    (said,) = re.findall(r".*has version 2.*", output)
    assert f"runs/{name}/checkpoints/distill/step_{steps[-1]:08d}" in said
    assert "start it with the ted_ds that wrote it" in said
    assert contents(uploading, name) == before


@pytest.mark.slow
def test_a_damaged_checkpoint_at_the_store_is_passed_over_and_left_there(uploading, killed_run):
    name, steps = gone(uploading, killed_run)
    damaged = f"checkpoints/distill/step_{steps[-1]:08d}/engine/mp_rank_00_model_states.pt"
    content = bytearray(uploading.server.read(f"runs/{name}/{damaged}"))
    content[len(content) // 2] ^= 1
    uploading.server.write(f"runs/{name}/{damaged}", bytes(content))
    before = contents(uploading, name)
    killed = uploading.start(name, kill_after, -3)  # as the first step begins
    assert killed.wait() == [-signal.SIGKILL] * RANKS, killed.output()
    assert contents(uploading, name) == before
    assert uploading.resume(name) == steps[-2]
    assert f"{damaged.removeprefix('checkpoints/distill/')}: its SHA-256 differs" in uploading.last
    assert "is left as it is" in uploading.last


def test_a_full_disk_here_ends_a_fetch_at_once(uploading, killed_run):
    name, steps = gone(uploading, killed_run)
    fault = (uploading.server.environment, fill_disk_at_fetch, 20_000)
    started = time.monotonic()
    output = run(uploading.arguments(name, timeout_s=600), codes=2, fault=reach_and, fault_arguments=fault)
    assert time.monotonic() - started < 150
    assert re.search(rf"step_{steps[-1]:08d}\.unfinished/\S+: cannot be written on the disk here: \[Errno 27\]", output)
    assert "checkpoint.upload.to" not in output
    assert "once the store answers" not in output
    assert not list((uploading.folder / name / "checkpoints" / "distill").glob(".*")), "a full disk needs the room"
    assert uploading.resume(name) == steps[-1]


def fill_disk_at_fetch(_rank: int, num_bytes: int) -> None:
    """The disk takes no more than so many bytes of a file of a checkpoint that is fetched."""
    from ted_ds.runtime.checkpoints.stored import StoredCheckpoints

    plain = StoredCheckpoints.fetch_files

    @functools.wraps(plain)
    def fetch_files(self: StoredCheckpoints, *arguments: Any) -> list[str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        return plain(self, *arguments)

    StoredCheckpoints.fetch_files = fetch_files


@pytest.mark.slow
def test_the_result_of_a_phase_that_cannot_be_read_whole_is_not_done_again(uploading, killed_run):
    name, steps = gone(uploading, killed_run)
    phase = f"{name}/filters_student/"
    before = [one for one in uploading.there(name) if one.startswith("filters_student/")]
    assert before
    uploading.server.do(methods=["GET"], match=f"{phase}phase.json", garbled=True, count=1)
    assert uploading.resume(name) == steps[-1]
    name, _ = gone(uploading, killed_run)
    uploading.server.do(methods=["GET"], match=f"{name}/filters_student/", garbled=True)
    output = uploading.run(name, codes=2)
    assert output.count("cannot be read whole") == 1
    assert f"remove {uploading.server.url(f'runs/{name}')}/filters_student there to have the phase done again" in output
    assert [one for one in uploading.there(name) if one.startswith("filters_student/")] == before


@pytest.mark.slow
def test_a_newer_checkpoint_at_the_store_is_taken_before_an_older_one_here(uploading):
    name, place = uploading.new()
    killed = uploading.start(name, kill_after, 8)
    assert killed.wait() == [-signal.SIGKILL] * RANKS
    steps = whole_at(uploading.there(name))
    newest = place / "checkpoints" / "distill" / f"step_{steps[-1]:08d}"
    (newest / "state.json").write_text("{}")  # damaged
    for later in newest.parent.glob("step_*"):
        if later.name > newest.name:
            shutil.rmtree(later)
    output = uploading.run(name)
    assert "damaged checkpoint, skipped and replaced by that of the store" in output
    assert f"going on after step {steps[-1]} of" in output
    assert "steps lost" not in output
    uploading.check(place)


@pytest.mark.slow
def test_the_best_model_is_fetched_where_it_is_not_here(uploading):
    best = [
        "export=best",
        "evaluation.every_steps=1",
        "distill.learning_rate=8",
        "distill.warmup_steps=7",
    ]  # ever worse
    whole = uploading.folder / "best"
    run([*uploading.arguments("none")[:-2], *best, f"output_dir={whole}"])
    step = json.loads((whole / "distill" / "phase.json").read_text())["result"]["best"]["step"]
    assert step < STEPS - 3, "an early one, which keep_last does not keep"
    name, place = uploading.new()
    arguments = [*uploading.arguments(name), *best]
    killed = Run(arguments, fault=reach_and, fault_arguments=(uploading.server.environment, kill_after, STEPS))
    assert killed.wait() == [-signal.SIGKILL] * RANKS, killed.output()
    shutil.rmtree(place)
    output = run(arguments, fault=reach, fault_arguments=(uploading.server.environment,))
    assert f"fetched {uploading.server.url(f'runs/{name}')}/checkpoints/distill/step_{step:08d}" in output
    assert f"the model of step {step} is taken" in output
    assert differences(traces(whole), traces(place)) == []


@pytest.mark.slow
def test_a_stop_waits_for_the_store_and_says_where_the_state_is(uploading):
    name, place = uploading.new()
    started = uploading.start(name, slow_steps, timeout_s=3.0)
    started.wait_for("distill 3/")
    started.send(signal.SIGTERM)
    assert started.wait() == [75] * RANKS
    stopped = json.loads((place / "stopped.json").read_text())["message"]
    step = int(re.search(r"after step (\d)", stopped)[1])
    assert "not at the store" not in stopped
    assert whole_at(uploading.there(name))[-1] == step
    uploading.server.do(methods=["PUT", "POST"], match="checkpoints", status=500)
    started = uploading.start(name, slow_steps, timeout_s=3.0)
    started.wait_for("distill 5/")
    started.send(signal.SIGTERM)
    assert started.wait() == [75] * RANKS
    stopped = json.loads((place / "stopped.json").read_text())["message"]
    assert re.search(r"The state is in \S+, but not at the store \(.*Internal Server Error", stopped), stopped
    uploading.server.do()
    uploading.run(name)
    uploading.check(place)


@pytest.mark.slow
def test_what_is_not_at_the_store_in_the_end_is_said_and_put_there_later(uploading):
    name, place = uploading.new()
    uploading.server.do(methods=["PUT", "POST"], match=f"{name}/(distill|export)/", status=500)
    output = uploading.run(name, codes=2, timeout_s=4.0)
    assert re.search(
        r"checkpoint\.upload\.to: s3://\S+: the run is complete here, in \S+, but not there: distill: distill/\S+: .*"
        r"\. Start the same command again once the store answers",
        output,
    ), output
    assert "student after" in output, "what it came to is shown all the same"
    uploading.check(place)
    uploading.server.do()
    uploading.run(name)
    assert {"distill/phase.json", "export/phase.json"} <= {*uploading.there(name)}


@pytest.mark.parametrize(
    ("place", "orders", "expected"),
    [
        ("s3://nosuchbucket/run", {}, "cannot be used: FileNotFoundError: The specified bucket does not exist"),
        ("s3://bucket/refused", {"match": "refused", "status": 403}, "cannot be used: PermissionError: Forbidden"),
        ("gs://bucket/run", {}, "gs:// needs the package gcsfs, which cannot be imported here"),
        ("ftp://host/run", {}, "checkpoints are put at one of s3://"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_at_once_on_all_ranks(uploading, place, orders, expected):
    name, folder = uploading.new()
    uploading.server.do(**orders)
    started = time.monotonic()
    arguments = [*uploading.arguments(name)[:-1], f"checkpoint.upload.to={place}"]
    output = run(arguments, codes=2, fault=reach, fault_arguments=(uploading.server.environment,))
    assert "checkpoint.upload.to: " in output
    assert expected in output
    assert time.monotonic() - started < 60
    assert not (folder / "run.json").exists()


def test_the_place_of_another_run_is_refused(uploading):
    name, _ = uploading.new()
    killed = uploading.start(name, kill_after, 3)
    assert killed.wait() == [-signal.SIGKILL] * RANKS
    _, place = uploading.new()
    arguments = uploading.arguments(name)
    arguments = [f"output_dir={place}" if one.startswith("output_dir=") else one for one in arguments]
    shutil.copytree(uploading.folder / "whole", place)
    output = run(arguments, codes=2, fault=reach, fault_arguments=(uploading.server.environment,))
    assert "holds what another run left" in output
