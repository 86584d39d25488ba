"""Tasks of lm-eval on an exported student: the package's own API, a task in a file, a run of one rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import optional
from tests.integration.launching import forked
from tests.runs import run
from tests.tiny import texts, write_rows, write_run

TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"question": text, "good": "ba", "bad": "be", "gold": i % 2} for i, text in enumerate(texts(6))]
    content = TASK.format(rows=write_rows(tmp_path / "rows.jsonl", rows))
    (tmp_path / "tiny.yaml").write_text(content, encoding="utf-8")
    return write_run(tmp_path, method="sft")


def with_lm_eval(_rank: int) -> None:
    """It is installed in a folder beside the environment: for this rank, and for the process that it starts."""
    sys.path.append(str(optional.LM_EVAL))
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(optional.LM_EVAL)])


@pytest.mark.slow
@pytest.mark.skipif(not optional.LM_EVAL.is_dir(), reason=optional.NO_LM_EVAL)
def test_a_task_in_a_file_is_run_on_the_exported_student(recipe: Path) -> None:
    folder = recipe.parent
    settings = ["run", str(recipe), "tracking.to=[]"]
    run([*settings, f"evaluation.lm_eval=[{folder / 'tiny.yaml'}]"], num_ranks=1, fault=with_lm_eval)
    scores = json.loads((folder / "run" / "lm_eval" / "lm_eval.json").read_text())
    assert scores["tiny_choice/acc"] in [n / 6 for n in range(7)]
    assert "tiny_choice/acc_stderr" in scores
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["tiny_choice/acc"] for one in records if one["phase"] == "lm_eval"] == [scores["tiny_choice/acc"]]
    # a task that lm-eval cannot read ends the phase with its own words, and leaves nothing
    of_nothing = f"task: other\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/none.jsonl}}}}\n"
    (folder / "other.yaml").write_text(of_nothing, encoding="utf-8")
    (folder / "run" / "lm_eval").rename(folder / "aside")
    other = [*settings, f"evaluation.lm_eval=[{folder / 'other.yaml'}]"]
    output = run(other, num_ranks=1, fault=with_lm_eval, codes=2)
    assert "evaluation.lm_eval: lm-eval ended with code 1; its last lines: " in output
    assert not (folder / "run" / "lm_eval").exists()


def test_without_the_package_nothing_is_begun(recipe: Path) -> None:
    outcome = forked("run", str(recipe), f"evaluation.lm_eval=[{recipe.parent / 'tiny.yaml'}, /none.yaml]")
    assert outcome.code == 2
    assert (
        f"{recipe}: evaluation.lm_eval: the package lm-eval, which runs these tasks, is not installed here: pip "
        "install 'ted_ds[lm_eval]'; or remove them"
    ) in outcome.output
    assert f"{recipe}: evaluation.lm_eval: /none.yaml: no such task file" in outcome.output
    assert not (recipe.parent / "run").exists()
