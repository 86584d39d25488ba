"""The command line: verbs, exit codes, and one clear message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ted_ds import __version__
from ted_ds.cli import WORK_OF_VERB, main
from ted_ds.errors import counted
from ted_ds.models.families import FAMILIES
from ted_ds.planning.phase import PHASES, phases_of_verb
from ted_ds.verbs.words import HELP_OF_VERB, WORDS_OF_VERB, parse
from tests.terminals import on_terminal
from tests.tiny import ROOT


def ted_ds(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ted_ds", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_verbs_cover_all_phases_in_order() -> None:
    verbs = dict.fromkeys(phase.verb for phase in PHASES)
    assert tuple(phase for verb in verbs for phase in phases_of_verb(verb)) == phases_of_verb("run") == PHASES
    assert HELP_OF_VERB.keys() == WORK_OF_VERB.keys() > verbs.keys()
    assert WORDS_OF_VERB.keys() < WORK_OF_VERB.keys()


def test_the_launchers_local_rank_is_accepted_before_the_verb() -> None:
    options = parse(["--local_rank=3", "run", "r.yaml", "a.b=1", "c=2"])
    assert (options.verb, options.recipe, options.overrides) == ("run", "r.yaml", ["a.b=1", "c=2"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "r.yaml", "a.b=1", "--ranks", "2"],
        ["check", "--ranks", "2", "r.yaml", "a.b=1"],
        ["check", "r.yaml", "--ranks", "2", "a.b=1"],
    ],
)
def test_check_takes_its_option_anywhere(arguments: list[str]) -> None:
    options = parse(arguments)
    assert (options.recipe, options.overrides, options.ranks) == ("r.yaml", ["a.b=1"], 2)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [([], "required: verb"), (["fly", "r.yaml"], "invalid choice: 'fly'"), (["run"], "required: recipe")],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], phrase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert phrase in capsys.readouterr().err


@pytest.mark.parametrize("ranks", ["0", "-2"])
def test_fewer_than_one_rank_is_refused(lm_run: Path, ranks: str) -> None:
    done = ted_ds("check", str(lm_run / "recipe.yaml"), "--ranks", ranks)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"ted_ds {__version__}"


def test_check_prints_the_plan(lm_run: Path) -> None:
    done = ted_ds("check", str(lm_run / "recipe.yaml"), "distill.max_steps=7", "--ranks", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny: causal_lm by ted, 2 ranks, fp32"
    assert "phases    cut_student > filters_teacher > filters_student > distill > evaluate > export" in lines
    assert "distill          7 steps x 4 sequences = 2 ranks x 1 microbatch x 2; at most 448 tokens" in lines
    assert f"output    {lm_run / 'run'}" in lines
    assert lines[-1].startswith("memory    teacher, per rank: replica ")
    assert not (lm_run / "run").exists(), "check writes nothing"


def test_a_bad_recipe_exits_with_2_and_one_message(lm_run: Path) -> None:
    recipe = lm_run / "recipe.yaml"
    done = ted_ds("check", str(recipe), "distil.max_steps=3", "seed=x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "ted-ds check: error:",
        f"{recipe}: seed: 'x': use a whole number, 0 or more (given as seed=x)",
        f"{recipe}: distil: unknown key; did you mean 'distill'? (given as distil.max_steps=3)",
    ]


def test_a_wrong_plan_exits_with_2_and_lists_its_mistakes(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(lm_run / "recipe.yaml")
    assert main(["check", recipe, "teacher.path=/none", "data.train[0].path=/none.csv"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "ted-ds check: error:",
        f"{recipe}: data.train[0].path: /none.csv: no such data file or folder (given as data.train[0].path=/none.csv)",
        f"{recipe}: teacher.path: /none: no such model folder (given as teacher.path=/none)",
    ]


def test_a_missing_recipe_of_a_run_exits_with_2_without_a_traceback() -> None:
    done = ted_ds("run", "none.yaml")
    assert done.returncode == 2
    assert "none.yaml: no such recipe file; the recipes that ship are in ds_configs/recipes" in done.stderr
    assert "Traceback" not in done.stderr


def test_families_are_told_as_the_page_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FAMILIES) + 2
    assert lines[0].startswith("type ")
    assert lines[-1].startswith("generic (by structure) ")
    assert main(["families", "--markdown"]) == 0
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page, "write it again: ted-ds families --markdown > docs/families.md"


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "rank", "1 rank"),
        (0, "step", "0 steps"),
        (1000, "step", "1,000 steps"),
        (1.0, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
        (2, "microbatch", "2 microbatches"),
        (3, "process", "3 processes"),
    ],
)
def test_one_of_a_thing_is_called_one(number: float, noun: str, said: str) -> None:
    assert counted(number, noun) == said
    assert counted(2, "entry", "entries") == "2 entries"


def on_60_columns(*arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return on_terminal([sys.executable, "-m", "ted_ds", *arguments], environment, columns=60).splitlines()


def test_a_narrow_terminal_gets_no_line_that_is_wider(lm_run: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for arguments in (["families"], ["check", str(lm_run / "recipe.yaml")]):
        assert main(arguments) == 0
        whole = capsys.readouterr().out
        assert max(map(len, whole.splitlines())) > 100, "a log has whole lines"
        narrow = on_60_columns(*arguments)
        assert [line for line in narrow if len(line) > 60 and len(line.split()) > 2] == []
        monkeypatch.setenv("COLUMNS", "60")
        assert main(arguments) == 0
        assert capsys.readouterr().out.splitlines() == narrow, "as $COLUMNS says, without a terminal"
        monkeypatch.delenv("COLUMNS")
        if arguments == ["families"]:
            assert narrow.count("language model      causal") > 5
            assert "heads               texts, tokens, spans" in narrow
        else:
            assert " ".join(" ".join(narrow).split()) == " ".join(whole.split()), "nothing is lost"
            first = next(number for number, line in enumerate(narrow) if line.startswith("phases    "))
            assert narrow[first + 1].startswith(" " * 10 + "distill > "), "below what the label says"


def test_what_is_known_of_one_model_is_told(lm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", str(lm_run / "teacher")]) == 0
    said = capsys.readouterr().out
    assert "type                llama\n" in said
    assert "heads               texts, tokens\n" in said
    assert main(["families", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder; give the folder of a transformers model" in capsys.readouterr().err
