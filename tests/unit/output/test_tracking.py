"""Numbers on disk, and W&B beside them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ted_ds.errors import ConfigError
from ted_ds.output.trackers.backend import Backend, TrackedRun
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE, JsonlBackend
from ted_ds.output.trackers.wandb_backend import START_TIMEOUT_S, WandbBackend
from ted_ds.output.tracking import Tracker

pytestmark = pytest.mark.lengthy


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def opened(folder: Path, *backends: Backend) -> Tracker:
    run = TrackedRun(folder, run_id="0123abcd", name="tiny", project="ted_ds_tests", config={"seed": 1})
    return Tracker(run, backends)


def test_each_record_is_a_json_line_with_time_phase_and_step(tmp_path: Path) -> None:
    tracker = opened(tmp_path / "run")
    before = time.time()
    tracker.log("distill", 5, {"loss/total": 1.25, "train/tokens": 64})
    tracker.log("evaluate", 0, {"student_after/loss": 2.0})
    first, second = lines_of(tmp_path / "run")  # flushed before it is closed: a killed run keeps its numbers
    tracker.close()
    assert before - 0.001 <= first.pop("time") <= time.time() + 0.001  # rounded
    assert first == {"phase": "distill", "step": 5, "loss/total": 1.25, "train/tokens": 64}
    assert (second["phase"], second["step"]) == ("evaluate", 0)


def test_a_run_that_continues_adds_to_its_file(tmp_path: Path) -> None:
    for step in (1, 2):
        tracker = opened(tmp_path)
        tracker.log("distill", step, {"loss/total": 1.0})
        tracker.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .*file: cannot be written: "):
        opened(tmp_path / "file")


def test_an_offline_run_is_really_written(tmp_path: Path) -> None:
    tracker = opened(tmp_path, WandbBackend("offline"))
    assert [*tracker.places()] == [("W&B", f"offline, {tmp_path / 'wandb'}")]
    tracker.log("distill", 1, {"loss/total": 1.0})
    tracker.summarise({"student_after/perplexity": 9.5})
    tracker.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("run-*.wandb")
    names = (b"distill/loss/total", b"distill/step", b"student_after/perplexity", b"ted_ds_tests")
    deadline = time.monotonic() + 60
    while not all(name in record.read_bytes() for name in names):  # W&B's own process writes it
        assert time.monotonic() < deadline, record.read_bytes()
        time.sleep(0.05)
    assert len(lines_of(tmp_path)) == 1


def test_what_comes_again_is_forgotten_and_a_half_written_line_too(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.log("finetune", 9, {"loss/total": 1.0})
    for step in (1, 2, 3):
        tracker.log("distill", step, {"loss/total": 1.0})
        tracker.log("distill", step, {"eval/accuracy": 1.0})
    tracker.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"phase": "dist')
    tracker = opened(tmp_path)
    tracker.rewind("distill", 2, 1)  # the score after step 2 was not yet known when the state was saved
    tracker.log("distill", 3, {"loss/total": 2.0})
    tracker.close()
    found = [(line["phase"], line["step"], "eval/accuracy" in line) for line in lines_of(tmp_path)]
    expected = [("finetune", 9, False), ("distill", 1, False), ("distill", 1, True), ("distill", 2, False)]
    assert found == [*expected, ("distill", 3, False)]


def test_a_full_disk_is_said_once_and_not_again_as_the_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    tracker = opened(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        tracker.log("distill", 1, {"loss/total": 1.0})
    tracker.close()


def test_a_service_that_breaks_is_said_once_and_the_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = WandbBackend("offline")
    tracker = opened(tmp_path, backend)

    def broken(_values: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(backend._wandb, "log", broken)
    for step in (1, 2):
        tracker.log("distill", step, {"loss/total": 1.0})
    tracker.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    assert capsys.readouterr().err.count("W&B no longer answers") == 1


def test_wandb_that_is_disabled_is_said_and_writes_nothing(tmp_path: Path) -> None:
    tracker = opened(tmp_path, WandbBackend("disabled"))
    tracker.log("distill", 1, {"loss/total": 1.0})
    tracker.summarise({"student_after/perplexity": 9.5})
    tracker.close()
    assert [*tracker.places()] == [("W&B", f"disabled, {tmp_path / 'wandb'}")]
    assert [file.name for file in tmp_path.iterdir()] == [METRICS_FILE]


class Slow(JsonlBackend):
    """A second file, which takes its time to be closed."""

    def __init__(self, title: str, seconds: float) -> None:
        self.title, self._seconds = title, seconds

    def close(self) -> None:
        time.sleep(self._seconds)
        super().close()


def test_backends_finish_side_by_side_and_the_slow_are_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ted_ds.output.tracking.FINISH_TIMEOUT_S", 0.5)
    tracker = opened(tmp_path, Slow("one", 3.0), Slow("another", 0.01), Slow("a third", 3.0))
    started = time.monotonic()
    tracker.close()
    assert time.monotonic() - started < 2.5
    said = capsys.readouterr().err
    assert said == "".join(f"WARN {name} does not finish within 0.5 s: left behind\n" for name in ("one", "a third"))


KEY = "0123456789" * 4


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("5ecre7", "API key must have 40+ characters"),  # known to be wrong at once
        (KEY, "connection refused"),  # by a service that is not there
    ],
)
def test_a_service_that_does_not_start_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, reason: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ted_ds.output.trackers.wandb_backend.START_TIMEOUT_S", 2.0)
    started = time.monotonic()
    tracker = opened(tmp_path, WandbBackend("online"))
    assert time.monotonic() - started < START_TIMEOUT_S
    tracker.log("distill", 1, {"loss/total": 1.0})
    tracker.close()
    assert [*tracker.places()] == [("W&B", f"offline, {tmp_path / 'wandb'}")]
    assert [*(tmp_path / "wandb").glob("offline-run-*")]  # to be synced later
    assert [line["step"] for line in lines_of(tmp_path)] == [1]
    said = capsys.readouterr().err
    assert said.count("WARN W&B does not start online") == 1
    assert reason in said
    assert key not in said
    assert "WARN" not in said.replace("WARN W&B does not start online", "")
