"""Every case of ``tests/cases/folders`` does what its README expects; the runner says so where one does not."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cases.__main__ import main
from tests.cases.verdicts import AT_ONCE, VERDICTS, judge

FOLDERS = Path(__file__).parent.parent / "cases" / "folders"
NAMES = sorted(one.name for one in FOLDERS.iterdir())


@pytest.fixture(scope="module")
def judging():
    """All that is wrong with each case, while it is being found out."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(judge, FOLDERS / name) for name in NAMES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_case_does_what_is_expected(judging, name):
    faults = judging[name].result()
    assert not faults, "\n".join(faults)


def test_each_case_has_a_verdict_and_each_verdict_a_case():
    assert sorted(VERDICTS) == NAMES


def test_a_case_that_does_something_else_is_told(tmp_path, capsys):
    """Two cases, named as two others are: one runs where a refusal is expected, the other has no recipe."""
    shutil.copytree(FOLDERS / "tokenizer-truncation", tmp_path / "pad-outside-clf")
    shutil.copytree(FOLDERS / "tokenizer-truncation" / "teacher", tmp_path / "csv-stars")
    (tmp_path / "of-another-name").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "FAIL pad-outside-clf" in said
    assert "ted-ds check recipe.yaml: exit code 0, not 2 with a message" in said
    assert "FAIL csv-stars" in said
    assert "exit code 2, not 0" in said
    assert "FAIL of-another-name" in said
    assert "no verdict for a case of this name is known" in said
    assert "0 of 3 cases do what is expected" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("words", "message"), [(["none"], "no such folder"), ([".", "x"], "no case x")])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
