"""Runs whose teacher of a corpus is on a disk."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from ted_ds.teacher_cache.store import MANIFEST, Reader
from ted_ds.teacher_cache.token_record import TokenRecord
from tests.faults import signal_at
from tests.layouts import STOPPED
from tests.runs import Run, differences, run, traces
from tests.tiny import VOCAB_SIZE, write_run


def reports(folder: Path) -> list[dict[str, Any]]:
    """Those of Stage II."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "distill" and "loss/total" in line]


def records(root: Path) -> dict[int, bytes]:
    """All that is kept in the one cache that is there."""
    (manifest,) = root.glob(f"*/{MANIFEST}")
    record = TokenRecord(**json.loads(manifest.read_text())["record"])
    reader = Reader(manifest.parent, record)
    return {sample: reader.read(sample)[0].tobytes() for sample in reader.samples.tolist()}


@pytest.mark.parametrize(
    "kind", ["causal_lm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("masked_lm", "chat"))]
)
def test_one_cache_serves_runs_of_any_seed_and_ranks(tmp_path, kind):
    recipe = write_run(tmp_path, kind=kind, method="lwd")
    common = [str(recipe), "data.order_seed=3", "distill.max_steps=3", "evaluation.max_examples=2"]
    cached = [*common, f"teacher.cache={{max_gib: 1, top_k: {VOCAB_SIZE}, dir: {tmp_path / 'caches'}}}"]
    output = run(["cache", *cached], num_ranks=2)
    assert output.count(f"{tmp_path}/teacher: ") == 1
    assert re.search(r"[\d.]+ bytes a token; of \d+ predictions that were looked at, what is kept is \d", output)
    assert " nats (KL) from the whole, and the rest has 0.00% of the probability" in output
    assert not (tmp_path / "run" / "distill").exists()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "caches").rglob("*")}
    common += ["seed=5", "distill.kl_weight=0.5"]
    output = run(["run", *cached, *common[1:], f"output_dir={tmp_path / 'one'}"], num_ranks=1)
    assert output.count(f"{tmp_path}/teacher: ") == 1  # to be evaluated
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "caches").rglob("*")} == files
    run(["run", *common, f"output_dir={tmp_path / 'live'}"], num_ranks=1)
    for one, live in zip(reports(tmp_path / "one"), reports(tmp_path / "live"), strict=True):
        compared = [name for name in live if name.startswith(("loss/", "gap/task_loss", "match/"))]
        assert len(compared) > 6
        for name in compared:
            assert one[name] == pytest.approx(live[name], rel=1e-2), name


def test_a_cache_that_is_of_no_use_is_refused(tmp_path):
    recipe = write_run(tmp_path, method="kd")
    output = run(["run", str(recipe), "teacher.cache.max_gib=1"], codes=2, num_ranks=1)
    assert (
        "teacher.cache: Stage II reads each of 8 sequences once; give it a dir, where it stays for other runs, or "
        "remove it"
    ) in output
    output = run(["cache", str(recipe)], codes=2, num_ranks=1)
    assert "teacher.cache: this key is required to fill a cache; give it, with max_gib and a dir" in output
    assert not (tmp_path / "run").exists()


def in_small_parts(rank: int, *fault: Any) -> None:
    """Let each sequence count as soon as it is written, and break something."""
    from ted_ds.teacher_cache import fill

    fill.PART_BYTES = 1
    if fault:
        signal_at(rank, *fault)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm", "chat"])
def test_a_corpus_that_is_cached_goes_on_from_anywhere(tmp_path, kind):
    """Killed while it fills, filled by another number of ranks, killed and stopped while it reads."""
    recipe = write_run(tmp_path, kind=kind, method="lwd")
    steps = ["distill.max_steps=8", "checkpoint.every_steps=2", "evaluation.max_examples=2"]

    def arguments(name: str, output: str = "run") -> list[str]:
        cache = f"teacher.cache={{max_gib: 1, precision: int8, top_k: 8, dir: {tmp_path / name / 'caches'}}}"
        return ["run", str(recipe), *steps, cache, f"output_dir={tmp_path / name / output}"]

    run(arguments("whole"), num_ranks=1)
    killed = Run(arguments("cut"), fault=in_small_parts, fault_arguments=("cache", 5, signal.SIGKILL, (1,)))
    assert killed.wait()[1] == -signal.SIGKILL
    stopped = Run(arguments("cut"), fault=in_small_parts, fault_arguments=("cache", 4, signal.SIGTERM))
    assert stopped.wait() == [STOPPED, STOPPED], stopped.output()
    left = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut" / "caches").glob(".*/*.bin")}
    assert len(left) >= 6
    killed = Run(arguments("cut"), fault=in_small_parts, fault_arguments=("step", 5, signal.SIGKILL, (0,)))
    assert killed.wait()[0] == -signal.SIGKILL
    whole = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut" / "caches").glob("*/*.bin")}
    assert all(whole[file.name] == time for file, time in left.items())  # nothing was written again
    assert re.search(r"going on after step [24] of 8", run(arguments("cut")))
    assert records(tmp_path / "cut" / "caches") == records(tmp_path / "whole" / "caches")
    run(arguments("whole", "again"))
    assert differences(traces(tmp_path / "whole" / "again"), traces(tmp_path / "cut" / "run")) == []
