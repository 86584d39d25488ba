"""Epochs of task data come to steps: the same in check, on every rank and after a stop."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted_ds.config.data import Data, Source
from ted_ds.config.load import load_recipe
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.tasks import SequenceClassification, TokenClassification
from ted_ds.data import row_counts
from ted_ds.data.reading.listing import list_data
from ted_ds.data.row_counts import RowCount, count_training_rows
from ted_ds.data.transfer import Transfer, share_of
from ted_ds.errors import ConfigError, DataError
from ted_ds.planning.plan import plan_recipe
from ted_ds.planning.plan_in_words import describe
from ted_ds.planning.steps import with_rows
from ted_ds.tasks.kind import kind_of
from tests.refusals import without_overrides
from tests.task_kinds import OF_NAME
from tests.tiny import LABELS, ROOT, WORD_LABELS, write_labelled, write_rows, write_run, write_tokenizer

PLAN = {"learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
ONE = SequenceClassification(kind="sequence_classification", labels=[*LABELS], max_length=16)
IN_EPOCHS = ("distill.max_steps=null", "distill.epochs=3")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_run(tmp_path, kind="sequence_classification")


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(path), overrides, kind_of)
    return without_overrides(str(caught.value))


# --- the arithmetic ---------------------------------------------------------------------------------------------------


@given(
    epochs=st.one_of(st.integers(1, 50), st.decimals("0.01", "20", places=2)),
    num_rows=st.integers(1, 10**6),
    batch=st.integers(1, 512),
)
def test_the_steps_are_the_fewest_that_hold_each_row_so_often(epochs: Any, num_rows: int, batch: int) -> None:
    plan = PhasePlan(epochs=float(epochs), learning_rate=1.0, global_batch_size=batch, micro_batch_size=1)
    steps = plan.with_rows(num_rows).steps
    seen = Fraction(str(epochs)) * num_rows
    assert steps * batch >= seen > (steps - 1) * batch


@given(
    epochs=st.one_of(st.integers(1, 9), st.decimals("0.01", "9", places=2)),
    num_rows=st.integers(1, 300),
    batch=st.integers(1, 40),
    share=st.decimals("0.01", "0.99", places=2),
)
def test_rows_of_a_step_beside_those_of_transfer_are_counted_as_the_stream_gives_them(
    epochs: Any, num_rows: int, batch: int, share: Any
) -> None:
    transfer = Transfer([], share_of(float(share)))
    plan = PhasePlan(epochs=float(epochs), learning_rate=1.0, global_batch_size=batch, micro_batch_size=1)
    steps = plan.with_rows(num_rows, share=1 - transfer.share).steps

    def num_seen(step: int) -> int:
        return step * batch - transfer.rows_before(step, batch)

    assert num_seen(steps) >= Fraction(str(epochs)) * num_rows > num_seen(steps - 1)


def test_a_tenth_is_a_tenth() -> None:
    assert PhasePlan(epochs=0.1, **PLAN).with_rows(1200).steps == 30  # not 31, for 0.1 * 1200 = 120.00000000000001
    assert math.ceil(0.1 * 3 * 40 / 4) == 4
    assert PhasePlan(epochs=0.3, **PLAN).with_rows(40).steps == 3


def test_what_was_given_in_steps_stays() -> None:
    plan = PhasePlan(max_steps=7, **PLAN)
    assert plan.with_rows(1000) is plan


def test_epochs_decide_by_the_steps_they_come_to() -> None:
    by_steps, by_epochs = PhasePlan(max_steps=30, **PLAN), PhasePlan(epochs=3, **PLAN).with_rows(40)
    assert by_steps.deciding_values() == by_epochs.deciding_values()


# --- what a recipe may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill.epochs=3"],
            "distill: give exactly one of max_steps (optimizer steps) and epochs (passes over the rows of task data)",
        ),
        (["distill.max_steps=null", "distill.epochs=0"], "distill.epochs: 0: use a number above 0"),
        ([*IN_EPOCHS, "distill.warmup_steps=1000"], "distill: warmup_steps (1000) must be smaller than the steps of"),
    ],
)
def test_a_plan_gives_steps_or_epochs(recipe_file: Path, overrides: list[str], message: str) -> None:
    assert f"{recipe_file}: {message}" in refusal(recipe_file, *overrides)


def test_corpora_have_no_epochs_of_rows(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    assert refusal(recipe, *IN_EPOCHS) == (
        f"{recipe}: distill.epochs: 3: a causal_lm packs documents as they come, and how many sequences they make is "
        "known once all are read; give max_steps (a source of data.train may have epochs, by which it ends)"
    )


def test_a_deepspeed_json_that_counts_steps_itself_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "ds.json"
    config.write_text(
        '{"zero_optimization": {"stage": 1}, "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}}'
    )
    found = refusal(recipe_file, *IN_EPOCHS, f"deepspeed={config}", "filters=null", "distill.method=kd")
    assert found == (
        f"{recipe_file}: {config}: scheduler.params.total_num_steps: 9, but the steps are those that distill.epochs "
        "comes to; write 'auto'"
    )
    config.write_text(config.read_text().replace("9", '"auto"'))
    plan_recipe(str(recipe_file), [*IN_EPOCHS, f"deepspeed={config}"], kind_of)


def test_every_warm_up_that_is_too_long_is_named_once_rows_are_counted(recipe_file: Path) -> None:
    overrides = [
        *IN_EPOCHS,
        "distill.warmup_steps=6",
        "student.finetune={epochs: 1, learning_rate: 1, warmup_steps: 9, global_batch_size: 4, micro_batch_size: 2}",
    ]
    recipe = load_recipe(recipe_file, overrides)
    with pytest.raises(ConfigError) as caught:
        with_rows(recipe, 8)
    assert without_overrides(str(caught.value)).splitlines() == [
        "student.finetune: warmup_steps (9) must be smaller than the steps of epochs: 1 (2)",
        "distill: warmup_steps (6) must be smaller than the steps of epochs: 3 (6)",
    ]
    known = with_rows(recipe, 100)
    assert [plan.steps for plan in known.phase_plans().values()] == [25, 2, 2, 75]


# --- what check can tell ----------------------------------------------------------------------------------------------


def counted(folder: Path, *paths: Path, task: Any = ONE, **data: Any) -> RowCount | None:
    settings = Data(train=[Source(path=str(path)) for path in paths], **data)
    return count_training_rows(settings, kind_of(task))


def test_few_rows_are_counted_as_a_run_counts_them(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.jsonl", 200)
    with path.open("a") as file:
        file.write('{"text": " ", "label": 0}\nno JSON\n\n')
    data = Data(train=[Source(path=str(path))], heldout_fraction=0.3, bad_records={"max_fraction": 0.1})
    run = kind_of(ONE).open_data(data, write_tokenizer(tmp_path / "t"), list_data(data), max_heldout=9)
    assert count_training_rows(data, kind_of(ONE)) == RowCount(run.num_rows or 0, is_exact=True)
    assert 100 < (run.num_rows or 0) < 200
    whole = counted(tmp_path, path, validation=[Source(path=str(path))])
    assert whole == RowCount(200, is_exact=True)


@pytest.mark.parametrize(
    ("fraction", "says"),
    [
        (1e-9, "no held-out rows to evaluate on; raise data.heldout_fraction"),
        (1 - 1e-9, "no training rows; the files are empty or all is held out"),
    ],
)
def test_few_rows_of_which_none_is_left_are_refused_as_a_run_refuses_them(
    tmp_path: Path, fraction: float, says: str
) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification")
    with pytest.raises(ConfigError) as planned:
        plan_recipe(str(recipe), [f"data.heldout_fraction={fraction}"], kind_of, looks_up_hub=True)
    data = Data(train=[Source(path=str(tmp_path / "train.jsonl"))], heldout_fraction=fraction)
    with pytest.raises(DataError) as run:
        kind_of(ONE).open_data(data, write_tokenizer(tmp_path / "t"), list_data(data), max_heldout=9)
    assert str(run.value).endswith(says)
    assert without_overrides(str(planned.value)) == f"{recipe}: {run.value}"


def test_words_of_sentences_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- O\n\nba O\nbe O\n\nbi O\n\n")
    task = TokenClassification(kind="token_classification", labels=[*WORD_LABELS], rows="conll", max_length=16)
    source = Source(path=str(tmp_path / "a.conll"), format="text", documents="block")
    data = Data(train=[source], validation=[source])
    assert count_training_rows(data, kind_of(task)) == RowCount(2, is_exact=True)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet", "arrow"])
def test_many_rows_are_counted_by_lines_or_as_tables_say(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = [{"text": f"ba {number}", "label": 0} for number in range(120)]
    path = tmp_path / f"a.{ending}"
    table = datasets.Dataset.from_list(rows)
    if ending == "jsonl":
        write_rows(path, rows)
    elif ending == "parquet":
        table.to_parquet(str(path))
    elif ending == "arrow":
        table.save_to_disk(str(path))
    else:
        table.to_csv(str(path), index=False, sep="," if ending == "csv" else "\t")
    monkeypatch.setattr(row_counts, "MOST_BYTES_READ", 0)
    assert counted(tmp_path, path, heldout_fraction=0.25) == RowCount(90, is_exact=False)
    assert counted(tmp_path, path, validation=[Source(path=str(path))]) == RowCount(120, is_exact=False)
    monkeypatch.setattr(row_counts, "MOST_BYTES_COUNTED", 0)
    assert counted(tmp_path, path) is None


def test_what_would_have_to_be_unpacked_or_fetched_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "ba", "label": 0}\n'))
    assert counted(tmp_path, tmp_path / "a.jsonl.gz") is None
    assert counted(tmp_path, Path("some/name")) is None
    (tmp_path / "a.json").write_text('[{"text": "ba", "label": 0}]')
    assert counted(tmp_path, tmp_path / "a.json", validation=[Source(path="x")]) == RowCount(1, is_exact=True)
    monkeypatch.setattr(row_counts, "MOST_BYTES_READ", 0)
    assert counted(tmp_path, tmp_path / "a.json") is None


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            {},
            "3 epochs of 30 rows = 23 steps x 4 sequences = 1 rank x 2 microbatches x 2; at most 1,472 tokens",
        ),
        (
            {"MOST_BYTES_READ": 0},
            "3 epochs of about 30 rows = about 23 steps x 4 sequences = 1 rank x 2 microbatches x 2; "
            "at most 1,472 tokens",
        ),
        (
            {"MOST_BYTES_READ": 0, "MOST_BYTES_COUNTED": 0},
            "3 epochs = steps that are known once the data are read x 4 sequences = 1 rank x 2 microbatches x 2",
        ),
    ],
)
def test_check_says_what_epochs_come_to_or_that_it_does_not_know(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], words: str
) -> None:
    path = write_labelled(recipe_file.parent / "rows.jsonl", 30)
    for name, value in limits.items():
        monkeypatch.setattr(row_counts, name, value)
    given = [*IN_EPOCHS, f"data.train=[{{path: {path}}}]", f"data.validation=[{{path: {path}}}]"]
    recipe, plan = plan_recipe(str(recipe_file), given, kind_of)
    lines = describe(recipe, plan, num_ranks=1).splitlines()
    assert f"{'distill':16} {words}" in lines
    assert "filters.teacher  2 steps x 4 sequences = 1 rank x 2 microbatches x 2; at most 128 tokens" in lines


@pytest.mark.parametrize(
    ("share", "num_transfer", "steps", "words"),
    [
        ("0.5", None, 45, "3 epochs of 30 rows = 45 steps x 4 sequences"),
        ("0.3", 7, 32, "3 epochs of 30 rows = 32 steps x 4 sequences"),  # 2.8 rows of each: 87 in 31, 90 in 32
        ("size", 7, 28, "3 epochs = steps that are known once the data are read x 4 sequences"),
    ],
)
def test_epochs_of_stage_two_are_of_labelled_rows_or_of_all_texts(
    recipe_file: Path, share: str, num_transfer: int | None, steps: int, words: str
) -> None:
    path = write_labelled(recipe_file.parent / "rows.jsonl", 30)
    tuned = "student.finetune={epochs: 3, learning_rate: 1, global_batch_size: 4, micro_batch_size: 2}"
    of_transfer = [f"data.transfer=[{{path: {path}}}]", f"data.transfer_share={share}"]
    given = [*IN_EPOCHS, tuned, f"data.train=[{{path: {path}}}]", f"data.validation=[{{path: {path}}}]", *of_transfer]
    recipe, plan = plan_recipe(str(recipe_file), given, kind_of)
    (line,) = (line for line in describe(recipe, plan, num_ranks=1).splitlines() if line.startswith("distill  "))
    assert words in line
    known = with_rows(recipe, 30, num_transfer)
    assert known.distill.steps == steps
    assert known.student.finetune is not None
    assert known.student.finetune.steps == 23, "which learns from labels alone"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("question_answering", (), "3 epochs of at least 48 rows = at least 36 steps x 4 sequences"),
        ("chat", ("task.pack=true",), "3 epochs of at most 45 rows = at most 34 steps x 4 sequences"),
        ("chat", (), "3 epochs of 45 rows = 34 steps x 4 sequences"),
    ],
)
def test_check_says_which_limit_rows_are_where_they_are_not_sequences(
    tmp_path: Path, kind: str, changes: tuple[str, ...], words: str
) -> None:
    recipe, plan = plan_recipe(str(write_run(tmp_path, kind=kind)), [*IN_EPOCHS, *changes], kind_of)
    (line,) = (line for line in describe(recipe, plan, num_ranks=1).splitlines() if line.startswith("distill  "))
    assert line.startswith(f"{'distill':16} {words}")
    assert ("; about 2,304 tokens" in line) == (kind == "question_answering"), "sequences may be more, and shorter"


def test_rows_that_no_conversation_can_be_read_of_are_not_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "ba be", "completion": f" bi {number}"} for number in range(4)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": "ba be"}])
    task = OF_NAME["chat"].task
    assert counted(tmp_path, path, task=task, validation=[Source(path=str(path))]) == RowCount(4, is_exact=True)


def test_check_needs_no_torch_to_count() -> None:
    import subprocess
    import sys

    code = "import sys, ted_ds.planning.steps; assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
