"""The quickstart on any number of ranks: batches that divide, and with two those the figures were measured with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.verbs.quickstart import fitting_batches
from tests.tiny import ROOT

RECIPES = {
    name: str(ROOT / "ds_configs" / "recipes" / f"{name}.yaml")
    for name in ("smollm2_continual", "minilm_rotten_tomatoes")
}


@pytest.fixture
def without_assets(lm_run, classification_run):
    """Each recipe's changes for a machine that has not fetched the demo assets: models and data of the tests' own."""
    own = {"smollm2_continual": lm_run, "minilm_rotten_tomatoes": classification_run}
    small = {
        "smollm2_continual": ["task.sequence_length=16", "student.from_teacher.blocks=[0, 3]"],
        "minilm_rotten_tomatoes": [
            "task.max_length=16",
            "student.from_teacher.blocks=[0, 3]",
            "layer_map.pairs=[[1, 1], [2, 4]]",
        ],
    }
    return {
        name: [f"teacher.path={run}/teacher", f"data.train=[{{path: {run}/train.jsonl}}]", *small[name]]
        for name, run in own.items()
    }


@pytest.mark.parametrize("ranks", [*range(1, 9), 16])
@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_ranks_shares_the_batches(name, ranks, without_assets, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    changes = fitting_batches(RECIPES[name], without_assets[name], num_ranks=ranks)
    code = main(["check", RECIPES[name], *changes, *without_assets[name], "--ranks", str(ranks)])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("smollm2_continual", {1: 4, 2: 4, 3: 6, 4: 8, 5: 10, 8: 16, 16: 32}),
        ("minilm_rotten_tomatoes", {1: 32, 2: 32, 3: 48, 4: 64, 7: 112, 8: 128}),
    ],
)
def test_batches_grow_no_more_than_they_must(name, batches):
    for ranks, expected in batches.items():
        changes = fitting_batches(RECIPES[name], [], num_ranks=ranks)
        plans = load_recipe(RECIPES[name], changes).phase_plans()
        assert {plan.global_batch_size for plan in plans.values()} == {expected}, ranks
        assert bool(changes) == (ranks > 2)


def test_changes_that_are_wanted_anyway_count():
    others = ("teacher.finetune", "student.finetune", "filters.teacher", "filters.student")
    assert fitting_batches(RECIPES["minilm_rotten_tomatoes"], ["distill.micro_batch_size=1"], num_ranks=8) == [
        f"{path}.global_batch_size=128" for path in others
    ]


def test_a_pipeline_shares_batches_between_its_replicas_alone():
    recipe = str(ROOT / "ds_configs" / "recipes" / "smollm2_pipeline.yaml")
    assert fitting_batches(recipe, [], num_ranks=16) == []
    assert fitting_batches(recipe, [], num_ranks=24) == [
        "filters.both.global_batch_size=12",
        "distill.global_batch_size=12",
    ]


def test_a_wrong_recipe_is_refused():
    with pytest.raises(ConfigError, match="max_stepz: unknown key"):
        fitting_batches(RECIPES["smollm2_continual"], ["distill.max_stepz=1"], num_ranks=3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([RECIPES["smollm2_continual"], "2"], 0, "\n"),
        (
            [RECIPES["smollm2_continual"], "3", "distill.method=sft"],
            0,
            "distill.global_batch_size=6\n",
        ),
        (["none.yaml", "3"], 2, ""),
        ([RECIPES["smollm2_continual"], "0"], 2, ""),
        ([RECIPES["smollm2_continual"]], 2, ""),
    ],
)
def test_what_the_script_reads(words, code, said):
    command = [sys.executable, "-m", "ted_ds.verbs.quickstart", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert (code == 0) == (done.stderr == "")


@pytest.mark.parametrize(
    ("own", "batches"),
    [
        (["distill.global_batch_size=48"], {"distill": 128, "filters.student": 128, "filters.teacher": 128}),
        (
            ["distill.global_batch_size=12", "distill.micro_batch_size=3", "seed=5"],
            {"distill": 24, "filters.student": 128, "filters.teacher": 128},
        ),
    ],
)
def test_the_script_starts_the_run_with_them_whatever_the_user_gives(own, batches):
    """The script's own line, where ``deepspeed`` is a function that prints its words."""
    name = "minilm_rotten_tomatoes"
    changes = fitting_batches(RECIPES[name], own, num_ranks=8)
    script = (ROOT / "launchers" / "quickstart.sh").read_text()
    (line,) = [line for line in script.splitlines() if line.startswith("deepspeed ")]
    program = f"""deepspeed() {{ printf '%s\\n' "$@"; }}\nranks=8 recipe={RECIPES[name]}\nread -ra changes\n{line}"""
    done = subprocess.run(
        ["bash", "-euc", program, "bash", *own],
        input=f"{' '.join(changes)}\n",
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    given = words[words.index(RECIPES[name]) + 1 :]
    assert set(own) <= set(given)
    plans = load_recipe(RECIPES[name], given).phase_plans()
    assert {path: plans[path].global_batch_size for path in batches} == batches
