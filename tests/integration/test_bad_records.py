"""A corpus with bad records: they are skipped and listed; too many end the run at a checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from ted_ds.config.load import load_recipe
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.reading.listing import list_data
from ted_ds.models.loading import load_tokenizer
from tests.integration.launching import forked, forked_ranks
from tests.streams import open_stream
from tests.tiny import texts, write_corpus, write_run

SMALL_WINDOWS = "data.shuffle_mib=0.002"  # that is, the smallest there are: 16 KiB for each lane


def write_bad_run(folder, bad_rows):
    """A run whose corpus has, in these rows, what is no JSON."""
    recipe = write_run(folder)
    lines = [json.dumps({"text": text}) for text in texts(400, longest=300)]
    for row in bad_rows:
        lines[row - 1] = '{"text": '
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluation = write_corpus(folder / "evaluation.jsonl", 20, seed=1)
    return str(recipe), [f"data.evaluation=[{{path: {evaluation}}}]", SMALL_WINDOWS]


def listed(folder):
    return [json.loads(line) for line in (folder / "run" / "bad_records.jsonl").read_text().splitlines()]


def stream_of(recipe, world_size, rank, state=None):
    tokenizer = load_tokenizer(Path(recipe.teacher.path))
    data = CorpusData(recipe.data, recipe.task, tokenizer, list_data(recipe.data), max_heldout=8)
    return open_stream(data, num_lanes=4, seed=recipe.seed, rank=rank, world_size=world_size, state=state)


def test_a_few_are_skipped_and_listed_once_with_file_and_position(tmp_path):
    recipe, arguments = write_bad_run(tmp_path, [5, 350])
    limits = "data.bad_records={max_fraction: 1, max_count: 2}"
    two_epochs = [
        "distill.method=kd",
        "distill.max_steps=175",
        "distill.global_batch_size=16",
        "distill.micro_batch_size=8",
        "task.sequence_length=64",
        "tracking.log_every_steps=25",
    ]
    outcome = forked("run", recipe, *arguments, *two_epochs, limits, num_ranks=2)
    assert outcome.code == 0, outcome.output
    records = listed(tmp_path)
    assert len(records) == 2, "though each was read twice"
    assert {record["file"] for record in records} == {str(tmp_path / "train.jsonl")}
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines(keepends=True)
    starts = {f"byte {sum(map(len, lines[: row - 1]))}" for row in (5, 350)}
    assert {record["position"] for record in records} == starts
    assert all(record["fault"].startswith("not JSON in UTF-8") for record in records)


@pytest.mark.parametrize(
    ("bad_rows", "message"),
    [
        (range(20, 400, 20), "more than data.bad_records allows (max_fraction 1, max_count 8)"),
        (range(200, 220), "Bad records on the way to one sequence: 9, more than"),
    ],
    ids=["here-and-there", "all-at-once"],
)
def test_too_many_stop_every_rank_at_a_checkpoint_from_which_the_data_goes_on(tmp_path, bad_rows, message):
    path, arguments = write_bad_run(tmp_path, bad_rows)
    arguments += [
        "data.bad_records={max_fraction: 1, max_count: 8}",
        "filters.teacher.max_steps=3000",
        "tracking.log_every_steps=10",
    ]
    outcomes = forked_ranks(2, ["run", path, *arguments])
    everything = "".join(outcome.output for outcome in outcomes)
    assert [outcome.code for outcome in outcomes] == [2, 2], everything
    assert "Traceback" not in everything
    (saved,) = (tmp_path / "run" / "checkpoints" / "filters_teacher").glob("step_*")
    assert everything.count(message) == 1
    assert f"is in {saved}" in everything
    assert not (tmp_path / "run" / "filters_teacher").exists()
    assert len(listed(tmp_path)) > 8

    state = json.loads((saved / "stream.json").read_text())
    assert f"The state after step {state['step']} " in everything
    assert (saved.parent / "latest").read_text() == f"{saved.name}\n"
    assert saved.name == f"step_{state['step']:08d}"
    assert state["step"] > 0
    recipe = load_recipe(tmp_path / "recipe.yaml", arguments)
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            if bad_rows == range(200, 220):  # the next steps cannot be made, then as now
                continue
            never_stopped = itertools.islice(stream_of(recipe, world_size, rank), state["step"], state["step"] + 40)
            resumed = itertools.islice(stream_of(recipe, world_size, rank, state), 40)
            for one, other in zip(never_stopped, resumed, strict=True):
                assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, other, strict=True))
