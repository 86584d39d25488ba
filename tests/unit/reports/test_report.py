"""``ted-ds report``: what it says of a run's files, and that the page needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ted_ds.cli import main
from ted_ds.errors import DataError
from ted_ds.reports import study
from ted_ds.reports.pace import time_split
from ted_ds.reports.reading import read_run_record, told_apart
from ted_ds.reports.study import section_of_study
from ted_ds.reports.tables import comparison, tables_of
from ted_ds.reports.verdict import gap_closed, standard_error, verdict_of
from tests.optional import NO_REPORT, REPORT
from tests.refusals import without_overrides

TASK = {"kind": "sequence_classification", "labels": ["bad", "good"], "headline": None}
MODELS = {
    "teacher": {"accuracy": 0.9, "loss": 0.25, "num_examples": 400, "num_parameters": 2e7, "perf/tokens_per_s": 100.0},
    "student before": {"accuracy": 0.6, "loss": 0.7, "num_examples": 400, "num_parameters": 5e6},
    "student after": {
        "accuracy": 0.84,
        "loss": 0.4,
        "num_examples": 400,
        "num_parameters": 5e6,
        "perf/tokens_per_s": 250.0,
    },
}


def write_run(folder: Path, *, task: dict = TASK, models: dict = MODELS, rate: float = 1e-3, records=()) -> Path:
    """A folder as a run leaves it."""
    (folder / "evaluate").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc123"}))
    filters = {"layer_03": {"accuracy": 0.7}, "layer_06": {"accuracy": 0.8}}
    phases = {
        "heal_student": ({}, {"blocks": [None, healed_block(1, 0.9, 0.3), healed_block(2, 0.5, 0.2)]}),
        "filters_teacher": ({}, {"filters": {"teacher": filters}}),
        "distill": ({"plan": {"learning_rate": rate, "max_steps": 40}}, {}),
        "evaluate": ({"task": task}, models),
    }
    for name, (inputs, result) in phases.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "phase.json").write_text(json.dumps({"inputs": inputs, "result": result}))
    (folder / "evaluate" / "evaluation.json").write_text(json.dumps(models))
    lines = [*records] or [
        {
            "time": 1000.0 + step,
            "phase": "distill",
            "step": step,
            "loss/total": 3.0 / step,
            "loss/task": 1.0 / step,
            "loss/kl_teacher_student": 2.0 / step,
            "loss/feature_mse/layer_01": 0.5,
            "train/total_tokens": 100 * step,
            "train/skipped_steps": 2,
            "perf/tokens_per_s": 50.0,
            "data/<reviews & more>/tokens": 123456,
        }
        for step in (10, 20, 30, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def healed_block(block: int, before: float, after: float) -> dict:
    return {"block": block, "teacher_layer": 3 * block, "error_before": before, "error_after": after}


@pytest.fixture
def with_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    if not REPORT.is_dir():
        pytest.skip(NO_REPORT)
    monkeypatch.syspath_prepend(str(REPORT))


class Page(HTMLParser):
    """What a browser would load, and the words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith("#"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# --- words and numbers ------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_was_reached_and_what_is_not_known(tmp_path):
    run = read_run_record(write_run(tmp_path / "run"))
    assert gap_closed(run) == pytest.approx(0.8)
    assert standard_error(run, "student after") == pytest.approx(math.sqrt(0.84 * 0.16 / 400))
    verdict = verdict_of(run)
    assert verdict.reached == [
        "The student (5.0 M parameters, 25% of its teacher's) reaches 0.8400 in accuracy on held-out data; its teacher "
        "has 0.9000, and it began at 0.6000.",
        "That is 80% of the way to its teacher.",
        "A forward pass reads 250 tokens/s, 2.50 times as many as the teacher's.",
    ]
    assert verdict.warnings[0] == "The standard error of one accuracy is 0.018 here: smaller differences are chance."
    assert "one run of one seed" in verdict.warnings[1]
    assert verdict.warnings[2:] == ["distill: skipped 2 steps, as a loss or gradient was not finite."]


def test_of_a_perplexity_the_way_is_measured_in_loss(tmp_path):
    losses = {"teacher": 3.0, "student before": 9.0, "student after": 4.5}
    models = {name: {"perplexity": math.exp(loss), "loss": loss} for name, loss in losses.items()}
    run = read_run_record(write_run(tmp_path / "run", task={"kind": "causal_lm", "headline": None}, models=models))
    assert gap_closed(run) == pytest.approx(0.75)
    assert verdict_of(run).reached[1] == "That is 75% of the way to its teacher in loss."


def test_a_student_that_lost_and_one_that_passed_its_teacher_are_said(tmp_path):
    scores = {"teacher": 0.7, "student before": 0.9, "student after": 0.8}
    models = {name: {"accuracy": score} for name, score in scores.items()}
    run = read_run_record(write_run(tmp_path / "run", models=models))
    assert gap_closed(run) is None
    warnings = " ".join(verdict_of(run).warnings)
    assert "no better than it began" in warnings
    assert "ahead of its teacher" in warnings


def test_a_run_that_is_not_complete_has_a_report_too(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "evaluate" / "evaluation.json").unlink()
    (folder / "evaluate" / "phase.json").unlink()
    reached = verdict_of(read_run_record(folder)).reached
    assert reached == [
        "The run is not complete: no model was scored yet. Complete phases: heal_student, filters_teacher, distill."
    ]


def test_a_run_that_went_on_reports_each_step_once(tmp_path):
    records = [{"phase": "distill", "step": step, "loss/total": loss} for step, loss in ((1, 9.0), (2, 8.0), (1, 9.5))]
    folder = write_run(tmp_path / "run", records=records)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "distill", "step": 3, "loss')  # is being written
    found = [(one["step"], one["loss/total"]) for one in read_run_record(folder).of_phase("distill")]
    assert found == [(1, 9.5), (2, 8.0)]


def test_tables_have_the_files_numbers(tmp_path):
    run = read_run_record(write_run(tmp_path / "run"))
    tables = {table.title: table for table in tables_of(run)}
    assert tables["Models"].rows[2][:3] == ["student after", "5.0 M", "0.8400"]
    heat = tables["Filters of the teacher: held-out accuracy of each"]
    assert (heat.rows, heat.shades) == ([["score", "0.7000", "0.8000"]], [[0.0, 1.0]])
    assert tables["Phases"].rows[0] == ["distill", "40", "4,000", "30", "50"]
    assert tables["Data read"].rows == [["distill: <reviews & more>", "123,456", "–", "–"]]


def test_runs_beside_each_other_differ_in_what_differs(tmp_path):
    worse = MODELS | {"student after": MODELS["student after"] | {"accuracy": 0.7}}
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", rate=1e-4, models=worse)]
    runs, settings = comparison([read_run_record(folder) for folder in folders])
    assert [row[0] for row in runs.rows] == ["a", "b"]
    assert [row[-1] for row in runs.rows] == ["80%", "33%"]
    assert settings.rows == [["distill.plan.learning_rate", "0.001", "0.0001"]]


def with_live_numbers(folder: Path, *, num_layers: int) -> Path:
    """A run that was stopped once, of the numbers that come with each report, and samples."""
    records = [
        {
            "time": 1000.0 + step,
            "phase": "distill",
            "step": step,
            "perf/step_s": first + 0.01,
            "perf/step_s/forward": first,
            "perf/step_s/communication": 0.01,
            "perf/peak_host_gib": 1.0 + step / 10,
            "perf/tflops_per_rank": 2.0 * step,
            "gap/closed": step / 10,
            **{f"match/cka/layer_{layer:02d}": layer / step for layer in range(1, num_layers + 1)},
        }
        for step, first in ((1, 9.0), (2, 0.02), (3, 0.04))
    ]
    write_run(folder, records=records)
    starts = [
        {"time": 0.0, "ranks": 2, "hosts": 1},
        {"time": 90.0, "ranks": 4, "hosts": 1},
        {"time": 91.0, "phase": "distill", "after_step": 2},
    ]
    lines = [*map(json.dumps, starts), '{"time": 9']  # a kill may cut the last one short
    (folder / "starts.jsonl").write_text("\n".join(lines))
    changed = {"change": "wrong before training", "text": "a <b>text</b>", "label": "good"}
    changed["predictions"] = {"teacher": "good", "student after": "bad"}
    written = {"beginning": "once", "written": {"teacher": "upon a time"}}
    (folder / "evaluate" / "samples.json").write_text(json.dumps({"changed": [changed], "written": [written]}))
    return folder


def test_time_memory_and_starts_are_those_of_the_reports(tmp_path):
    run = read_run_record(with_live_numbers(tmp_path / "run", num_layers=2))
    tables = {table.title: table for table in tables_of(run)}
    # the first report has what happens once
    assert time_split(run) == {"distill": {"forward": pytest.approx(0.03), "communication": pytest.approx(0.01)}}
    of_step = tables["Time of a step, in milliseconds"]
    assert (of_step.columns, of_step.rows) == (
        ("phase", "step", "forward", "communication"),
        [["distill", "40.0", "30.0", "10.0"]],
    )
    machine = tables["Memory and speed"]
    assert machine.columns == ("phase", "peak host memory, GiB", "TFLOP/s per rank")
    assert machine.rows == [["distill", "1.30", "5"]]
    assert tables["Starts"].rows == [
        ["01 January 1970, 00:00:00", "2", "–"],
        ["01 January 1970, 00:01:30", "4", "distill, after step 2"],
    ]
    once = read_run_record(write_run(tmp_path / "once"))
    assert not {"Starts", "Memory and speed", "Time of a step, in milliseconds"} & {
        one.title for one in tables_of(once)
    }


@pytest.mark.parametrize("num_layers", [2, 9])
def test_live_numbers_and_samples_are_on_the_page(tmp_path, with_matplotlib, num_layers):
    folder = with_live_numbers(tmp_path / "run", num_layers=num_layers)
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links == []
    assert len(page.ids) == len(set(page.ids))
    assert {"Where the time of a step goes", "distill: cka by layer", "a <b>text</b>", "upon a time"} <= {*page.words}
    assert "b" not in page.tags
    drawn = {file.stem for file in (folder / "report_figures").iterdir()}
    assert {"time_split", "distill_cka_by_layer", "distill_gap"} <= drawn
    # more layers than colours: a row each
    assert ("layer_09" in page.words) == (num_layers == 9)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path, with_matplotlib, capsys):
    folder = write_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links == []
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids)) > 0
    for used in set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text)):
        assert (used[0] or used[1]) in page.ids
    assert "distill: <reviews & more>" in page.words  # and no tag
    assert page.tags.count("svg") == 5  # quality, two of losses, healing, speed
    assert "80% of the way" in " ".join(page.words)
    pictures = sorted(file.name for file in (folder / "report_figures").iterdir())
    assert pictures == [
        "distill_feature_mse_by_layer.png",
        "distill_loss.png",
        "healing.png",
        "quality.png",
        "speed.png",
    ]
    assert all((folder / "report_figures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert capsys.readouterr().out == (
        f"report      {folder / 'report.html'}\nfigures     5 in {folder / 'report_figures'}\n"
    )


def test_the_same_files_make_the_same_page_and_two_runs_share_one(tmp_path, with_matplotlib):
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    both = tmp_path / "both" / "page.html"
    for words in ([folders[0]], [folders[0], "--out", tmp_path / "again.html"], [*folders, "--out", both]):
        assert main(["report", *map(str, words)]) == 0
    assert (folders[0] / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    ids = Page(both.read_text(encoding="utf-8")).ids
    assert len(ids) == len(set(ids))
    assert {one.name for one in (tmp_path / "both" / "page_figures").iterdir()} == {"a", "b"}


def test_runs_and_studies_whose_folders_are_called_alike_are_told_apart(tmp_path, with_matplotlib, monkeypatch):
    runs = [write_run(tmp_path / arm / "seed-17") for arm in ("sft", "kd")]
    studies = [write_study(tmp_path / name) for name in ("first", "second")]
    page = tmp_path / "page.html"
    for folders, names in ((runs, ["sft/seed-17", "kd/seed-17"]), (studies, ["first", "second"])):
        assert main(["report", *map(str, folders), "--out", str(page)]) == 0
        text = page.read_text(encoding="utf-8")
        assert all(name in text for name in names)
        pictures = [{one.name for one in (tmp_path / "page_figures" / name).glob("*.png")} for name in names]
        assert pictures[0] == pictures[1] != set()
    monkeypatch.chdir(runs[0])
    assert told_apart([Path(), runs[1]]) == ["sft/seed-17", "kd/seed-17"]
    assert told_apart([runs[0], runs[0]]) == ["seed-17", "seed-17"], "one and the same"


# --- a study ----------------------------------------------------------------------------------------------------------


def write_study(folder: Path, *, higher_is_better: bool = True, holm_p: float = 0.004) -> Path:
    difference = {"estimate": 0.02, "low": 0.01, "high": 0.035, "p_value": 0.004}
    difference |= {"error_of_examples": 0.005, "error_of_seeds": 0.001}
    arms = {
        "sft": {"by_seed": {"1": 0.7, "2": 0.72}, "mean": 0.71, "difference": None, "holm_p": None},
        "kd": {"by_seed": {"1": 0.72, "2": 0.74}, "mean": 0.73, "difference": difference, "holm_p": holm_p},
    }
    part = {"decides": True, "metric": "accuracy" if higher_is_better else "perplexity", "num_examples": 1234}
    part |= {"higher_is_better": higher_is_better, "teacher": 0.9, "arms": arms}
    cost = {"steps": 100, "total_operations": 2.5e12}
    content = {
        "name": "tiny",
        "seeds": [1, 2],
        "equal": "tokens",
        "baseline": "sft",
        "verdicts": ["kd is better than sft by 2.0 points [+1.0, +3.5]"],
        "tables": [{"title": "scores", "columns": ["arm", "mean"], "rows": [["sft", "0.71"], ["kd", "0.73"]]}],
        "parts": {"held-out": part},
        "arms": {"sft": {"changes": {}, **cost}, "kd": {"changes": {"distill.method": "kd"}, **cost}},
        "failed": {"kd.seed-2": "exit code 1"},
        "version": "0.1.0",
        "recipe": {"name": "tiny", "seed": 1},
        "runs": {
            f"{arm}.seed-{seed}": {
                "folder": "x",
                "seconds": {"finetune_teacher": 900.0, "heal_student": 2.0, "distill": 10.0 * seed, "evaluate": 70.0},
            }
            for arm, seed in (("sft", 1), ("sft", 2), ("kd", 1))
        },
    }
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def test_a_study_has_a_page_too(tmp_path, with_matplotlib):
    folder = write_study(tmp_path / "study")
    assert main(["report", str(folder)]) == 0
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert page.links == []
    assert "kd is better than sft by 2.0 points [+1.0, +3.5]." in words
    assert "kd.seed-2 is not complete: exit code 1" in words
    assert page.tags.count("svg") == 3
    scores, costs = section_of_study(folder).tables
    assert scores.rows == [["sft", "0.71"], ["kd", "0.73"]]
    assert costs.rows == [["sft", "100", "2.5", "17"], ["kd", "100", "2.5", "12"]], "of making the student alone"
    assert "recipe, by ted_ds 0.1.0" in words


def test_of_a_perplexity_less_is_better(tmp_path, with_matplotlib, monkeypatch):
    drawn = []
    monkeypatch.setattr(study, "draw_intervals", lambda _, title, *what: drawn.append((title, *what)))
    section_of_study(write_study(tmp_path / "study", higher_is_better=False))
    ((title, gains, told),) = drawn
    assert title.startswith("Better than sft on held-out, perplexity: ")
    assert gains == {"kd": (-0.02, -0.035, -0.01)}
    assert told == ["kd"]


def test_what_holms_correction_takes_back_has_no_colour(tmp_path, with_matplotlib, monkeypatch):
    told = []
    monkeypatch.setattr(study, "draw_intervals", lambda *what: told.append(what[-1]))
    section_of_study(write_study(tmp_path / "study", holm_p=0.06))
    assert told == [[]]


def test_a_damaged_study_is_named(tmp_path, with_matplotlib):
    folder = write_study(tmp_path / "study")
    (folder / "study.json").write_text('{"name": "tiny"}')
    with pytest.raises(DataError) as caught:
        section_of_study(folder)
    assert without_overrides(str(caught.value)) == (
        f"{folder / 'study.json'}: damaged (KeyError('tables')); start the study again, which writes it anew"
    )


# --- what cannot be reported ------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_run_record(folder)
    return without_overrides(str(caught.value))


def test_what_is_no_run_is_refused(tmp_path):
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder; give the output_dir of a run or a study"
    assert refusal(tmp_path) == (
        f"{tmp_path}: no run began in this folder (it has no run.json); give the output_dir of a run or a study"
    )


def test_the_folder_of_a_study_is_said_to_be_one(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sft.seed-17.log").touch()
    ended = "it has no study.json, which is written at its end); wait for its end, or start it again if it was stopped"
    goes_on = f"{tmp_path}: a study that goes on, or was stopped ({ended}; meanwhile "
    assert refusal(tmp_path) == f"{goes_on}none of its runs has begun yet"
    run = write_run(tmp_path / "runs" / "sft" / "seed-17")
    such_as = f"give the folder of one of its runs, such as {run}"
    assert refusal(tmp_path) == f"{goes_on}{such_as}"
    (tmp_path / "study.json").touch()
    assert refusal(tmp_path) == f"{tmp_path}: a study, and no single run; {such_as}"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "metrics.jsonl",
            '{"phase": "distill"}\n',
            "metrics.jsonl, line 1: no report of a run (KeyError('step')); remove",
        ),
        ("metrics.jsonl", '{"phase": "a", "step": 1}\nwhat\n', "metrics.jsonl, line 2: no report of a run (JSONDecode"),
        ("distill/phase.json", "{}", "distill/phase.json: damaged (KeyError('inputs')); run the phase again"),
        ("evaluate/evaluation.json", "{", "evaluate/evaluation.json: cannot be read (Expecting"),
        ("run.json", "{}", "run.json: damaged (KeyError('run_id'))"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content, says):
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(content)
    assert says in refusal(folder)


def test_a_task_of_another_version_is_named(tmp_path):
    run = read_run_record(write_run(tmp_path / "run", task={"kind": "riddles"}))
    with pytest.raises(DataError, match="its task is a 'riddles', which this version does not know"):
        print(run.headline)


def test_without_matplotlib_it_says_what_to_install(tmp_path):
    folder = write_run(tmp_path / "run")
    done = subprocess.run([sys.executable, "-m", "ted_ds", "report", str(folder)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "ted-ds report: error:\na report draws its figures with matplotlib, which is not installed: "
        "pip install 'ted_ds[report]'\n"
    )
    assert not (folder / "report.html").exists()
