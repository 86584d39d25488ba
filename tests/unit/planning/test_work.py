"""Passes over the data and hours of training, as ``check`` says them; cards of data sets that sizes are taken from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ted_ds.cli import main
from ted_ds.data.dataset_card import SplitSize, size_of_split
from ted_ds.errors import ConfigError, DataError
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.pipeline_cut import operations_per_token
from ted_ds.planning.stage_memory import bubble
from ted_ds.planning.work import BYTES_PER_TOKEN, Pace, describe_work
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import write_corpus, write_labelled, write_run

SLOW = Pace(2, 1e-9)
"""So that tiny models take hours."""
ON_HUB = "data.train=[{path: org/set, split: learn}]"


def said(run: Path, *overrides: str, pace: Pace = SLOW, phase: str = "distill") -> str:
    recipe, plan = plan_recipe(str(run / "recipe.yaml"), overrides, looks_up_hub=True, num_ranks=pace.num_ranks)
    (line,) = (line for line in describe_work(recipe, plan, pace).splitlines() if line.split()[1] == phase)
    return line.removeprefix(f"work      {phase:16} ")


def hours(line: str) -> float:
    match = re.search(r"([\d.e+-]+) h of training", line)
    assert match, line
    return float(match[1])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A run on 40 rows, none of them held out."""
    write_run(tmp_path, kind="sequence_classification")
    rows = write_labelled(tmp_path / "rows.jsonl", 40)
    recipe = tmp_path / "recipe.yaml"
    content = re.sub(r"^data:\n(  .*\n|- .*\n)*", "", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    recipe.write_text(f"{content}\ndata: {{train: [{{path: {rows}}}], validation: [{{path: {rows}}}]}}\n")
    return tmp_path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A run on one corpus, none of it held out."""
    write_run(tmp_path)
    text = write_corpus(tmp_path / "text.jsonl", 400)
    recipe = tmp_path / "recipe.yaml"
    content = re.sub(r"^data:\n(  .*\n|- .*\n)*", "", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    recipe.write_text(f"{content}\ndata: {{train: [{{path: {text}}}], validation: [{{path: {text}}}]}}\n")
    return tmp_path


def card(run: Path, content: str, name: str = "org--set") -> Path:
    folder = run / "hub" / f"datasets--{name}"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{content}\n---\n", encoding="utf-8")
    return folder


# --- passes -----------------------------------------------------------------------------------------------------------


def test_steps_are_so_many_passes_over_the_rows(labelled: Path) -> None:
    assert said(labelled, "distill.max_steps=25").startswith("2.5 passes over 40 rows; ")
    assert said(labelled, "distill.max_steps=10").startswith("1 pass over 40 rows; ")


def test_epochs_are_passes(labelled: Path) -> None:
    assert said(labelled, "distill.max_steps=null", "distill.epochs=2.5").startswith("2.5 passes over 40 rows; ")


@pytest.mark.parametrize(
    ("share", "words"),
    [("0.25", "3 passes over 40 rows"), ("size", "passes over the rows are known once those of data.transfer are")],
)
def test_transfer_texts_are_none_of_the_rows(labelled: Path, share: str, words: str) -> None:
    more = (f"data.transfer=[{{path: {labelled / 'rows.jsonl'}}}]", f"data.transfer_share={share}")
    finetune = "student.finetune={max_steps: 40, learning_rate: 1, global_batch_size: 4, micro_batch_size: 2}"
    given = ("distill.max_steps=40", "distill.method=kd", *more, finetune)
    assert said(labelled, *given).startswith(words)
    assert said(labelled, *given, phase="finetune_student").startswith("4 passes over 40 rows")


def test_rows_that_are_elsewhere_are_not_guessed(labelled: Path) -> None:
    assert said(labelled, ON_HUB).startswith("passes over the rows are known once these are counted; at most ")
    assert said(labelled, ON_HUB, "distill.max_steps=null", "distill.epochs=2") == (
        "2 passes over the rows; hours are known once the rows are counted"
    )


def test_rows_of_the_hub_are_those_of_the_card(labelled: Path) -> None:
    card(labelled, "dataset_info: {splits: [{name: learn, num_examples: 80}]}")
    given = (ON_HUB, "distill.max_steps=null", "distill.epochs=2")
    assert said(labelled, *given).startswith("2 passes over about 80 rows; ")
    part = ("data.validation=null", "data.heldout_fraction=0.25")
    assert said(labelled, *given, *part).startswith("2 passes over about 60 rows; ")
    two = "data.train=[{path: org/set, split: learn}, {path: org/other}]"
    assert said(labelled, *given, two).startswith("2 passes over the rows; "), "the other's are not known"


def test_a_corpus_is_gone_through_by_its_bytes(corpus: Path) -> None:
    size = (corpus / "text.jsonl").stat().st_size
    passes = 50 * 4 * 16 * BYTES_PER_TOKEN / size
    words = f"about {passes:.3g} passes over {corpus / 'text.jsonl'} ({size:,} bytes), if 4 bytes are a token; "
    assert said(corpus, "distill.max_steps=50").startswith(words)


@pytest.mark.parametrize(("tokens", "number"), [(40, None), (60, "60"), (5900, "5,900"), (123_456, "120,000")])
def test_so_many_passes_that_a_corpus_is_learned_by_heart_are_warned_of(corpus: Path, tokens, number) -> None:
    (corpus / "text.jsonl").write_text(json.dumps({"text": "x" * 16 * 4 * 4}) + "\n")
    size = (corpus / "text.jsonl").stat().st_size
    steps = round(tokens * size / (16 * 4 * 4))
    recipe, plan = plan_recipe(str(corpus / "recipe.yaml"), [f"distill.max_steps={steps}"], looks_up_hub=True)
    warnings = [one for one in describe_work(recipe, plan, Pace(1, 1.0)).splitlines() if one.startswith("WARN")]
    why = "passes over the same texts, which models learn by heart (above 50); give more data, or train for less"
    assert warnings == ([] if number is None else [f"WARN      distill: {number} {why}"])


def test_a_mixture_is_gone_through_by_shares(corpus: Path) -> None:
    card(corpus, "dataset_info: {splits: [{name: train, num_examples: 1, num_bytes: 1000}]}")
    card(corpus, "dataset_info: {splits: [{name: train, num_examples: 1}]}", "other")
    sources = "{path: org/set, weight: 3}, {path: other, weight: 1}, {path: org/third, name: x, weight: 4}"
    tokens = 50 * 4 * 16
    held = ("data.validation=null", "data.heldout_fraction=0.5")
    for more, kept in (((), 1.0), (held, 0.5)):
        passes = tokens * 3 / 8 * BYTES_PER_TOKEN / (1000 * kept)
        assert said(corpus, "distill.max_steps=50", f"data.train=[{sources}]", *more).startswith(
            f"about {passes:.3g} passes over org/set (1,000 bytes), passes over other are not known before it is read, "
            "passes over org/third x are not known before it is read, if 4 bytes are a token; "
        )


# --- hours ------------------------------------------------------------------------------------------------------------


def test_hours_are_operations_by_their_rate(corpus: Path) -> None:
    recipe, plan = plan_recipe(str(corpus / "recipe.yaml"), [])
    assert plan.student is not None
    assert plan.teacher is not None
    facts = {"student": plan.student, "teacher": plan.teacher}
    per_token = operations_per_token(recipe, facts, plan.layer_pairs, plan.filter_dim, DISTILL)
    seconds = per_token * 50 * 4 * 16 / 2 / 1e3
    line = said(corpus, "distill.max_steps=50")
    assert hours(line) == pytest.approx(seconds / 3600, rel=5e-3)
    assert line.endswith(" h of training if each of 2 ranks computes 1e-09 TFLOP/s (--tflops)")
    assert "at most" not in line, "sequences are full"
    alone = said(corpus, "distill.max_steps=50", pace=Pace(1, 4e-9))
    assert hours(alone) == pytest.approx(hours(line) / 2, rel=5e-3)
    assert alone.endswith(" h of training if the one rank computes 4e-09 TFLOP/s (--tflops)")


def test_rows_may_be_shorter_than_the_longest(labelled: Path) -> None:
    assert re.search(r"; at most [\d.e+]+ h of training", said(labelled))
    assert "; less than 0.1 h of training" in said(labelled, pace=Pace(2, 400))


def test_a_pipeline_waits(corpus: Path) -> None:
    given = ("distill.max_steps=50", "distill.global_batch_size=8", "distill.micro_batch_size=2")
    whole = hours(said(corpus, *given))
    plan = plan_recipe(str(corpus / "recipe.yaml"), [*given, "pipeline.stages=2"], num_ranks=2)[1]
    costs = [stage.cost for stage in plan.stages["distill"]]
    longer = max(costs) * 2 / sum(costs) / (1 - bubble(2, 4))
    assert hours(said(corpus, *given, "pipeline.stages=2")) == pytest.approx(whole * longer, rel=1e-2)
    assert longer > 1.2


def test_a_cached_teacher_is_counted_and_said(labelled: Path) -> None:
    assert said(labelled, "teacher.cache={max_gib: 1}").endswith(
        " (--tflops), the cached teacher counted as if it ran in every step"
    )


def test_models_that_are_not_known_have_no_hours(corpus: Path) -> None:
    assert said(corpus, "teacher.path=org/none").endswith("; hours are known once both models are")


def test_the_rate_is_given_on_the_command_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(corpus / "recipe.yaml"), "--tflops", "2.5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("work  ")]
    assert len(lines) == 3
    assert all(line.endswith("if the one rank computes 2.5 TFLOP/s (--tflops)") for line in lines)


# --- cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("dataset_info: {splits: [{name: train, num_examples: 5, num_bytes: 9}]}", None, SplitSize(5, 9)),
        ("dataset_info: {config_name: a, splits: [{name: train, num_examples: 5}]}", None, SplitSize(5, None)),
        ("dataset_info: {config_name: a, splits: [{name: train, num_examples: 5}]}", "a", SplitSize(5, None)),
        (
            "dataset_info:\n- {config_name: a}\n- {config_name: default, splits: [{name: train, num_examples: 6}]}",
            None,
            SplitSize(6, None),
        ),
        (
            "dataset_info:\n- {config_name: a, splits: [{name: train, num_examples: 7}]}\n- {config_name: b}",
            "a",
            SplitSize(7, None),
        ),
    ],
)
def test_a_card_says_how_large_a_split_is(tmp_path: Path, content: str, name: str | None, expected: SplitSize) -> None:
    assert size_of_split(card(tmp_path, content), name, "train") == expected


NOTHING = "dataset_info says no num_examples of split 'train' of configuration "
REMEDY = "; add it, or correct the source"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            "license: mit",
            None,
            "no dataset_info in its front matter; copy the card of the data set there, or remove the folder",
        ),
        (
            "dataset_info: {splits: [{name: test, num_examples: 5}]}",
            None,
            f"{NOTHING}'default', a whole number (it has the splits test){REMEDY}",
        ),
        (
            "dataset_info: {config_name: a, splits: [{name: train, num_examples: 5}]}",
            "b",
            f"{NOTHING}'b', a whole number (it has the configurations a){REMEDY}",
        ),
        (
            "dataset_info: {splits: [{name: train, num_examples: many}]}",
            None,
            f"{NOTHING}'default', a whole number (it has the splits train){REMEDY}",
        ),
    ],
)
def test_a_card_that_does_not_say_is_refused(tmp_path: Path, content: str, name: str | None, message: str) -> None:
    folder = card(tmp_path, content)
    with pytest.raises(DataError) as caught:
        size_of_split(folder, name, "train")
    assert without_overrides(str(caught.value)) == f"{folder / 'README.md'}: {message}"


def test_a_card_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"README\.md: its front matter is no YAML"):
        size_of_split(card(tmp_path, "dataset_info: ["), None, "train")


@pytest.mark.parametrize("run_name", ["labelled", "corpus"])
def test_a_wrong_card_is_a_mistake_of_its_source(run_name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(run_name)
    folder = card(run, "license: mit")
    with pytest.raises(ConfigError) as caught:
        said(run, "data.train=[{path: org/set}]")
    assert without_overrides(str(caught.value)) == (
        f"{run / 'recipe.yaml'}: data.train[0]: {folder / 'README.md'}: no dataset_info in its front matter; copy the "
        "card of the data set there, or remove the folder"
    )
