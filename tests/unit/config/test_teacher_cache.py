"""What no teacher's cache is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from tests.refusals import without_overrides
from tests.tiny import recipe_dict, write_recipe, write_run

CACHE = "teacher.cache.max_gib=1"


def refusal(folder: Path, kind: str, *overrides: str) -> list[str]:
    """Each mistake, without the recipe's file."""
    path = write_recipe(folder / "recipe.yaml", recipe_dict(folder, kind=kind, method="kd"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [CACHE, *overrides])
    return [line.removeprefix(f"{path}: ") for line in without_overrides(str(caught.value)).splitlines()]


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm", "chat"])
def test_language_models_have_one(tmp_path, kind):
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind=kind)), [CACHE])
    assert recipe.teacher.cache is not None
    assert recipe.teacher.cache.num_kept == 64


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (
            "sequence_classification",
            ["teacher.cache.top_k=8"],
            "teacher.cache.top_k: 8: a sequence_classification has no LM head, and all that its own puts out is kept; "
            "remove it",
        ),
        (
            "causal_lm",
            ["teacher.cache.top_k=8", "distill.method=lwd", "distill.kl_weight=0"],
            "teacher.cache.top_k: 8: distill.kl_weight is 0, and no prediction is kept; remove it, or raise the weight",
        ),
        (
            "causal_lm",
            ["teacher.cache.sampled=50", "distill.divergence=jsd"],
            "teacher.cache.sampled: 50: distill.divergence: jsd needs more of a prediction than what was drawn says "
            "without bias; use divergence: kl, or top_k in its place",
        ),
        (
            "causal_lm",
            ["teacher.cache.sampled=50", "teacher.cache.top_k=8"],
            "teacher.cache: top_k and sampled: a prediction is kept in one of the two ways; remove one of them",
        ),
        ("masked_lm", ["distill.method=sft"], "teacher.cache: distill.method: sft has no teacher; remove it"),
        (
            "chat",
            ["pipeline.stages=2"],
            "teacher.cache: with pipeline.stages above 1 each stage runs its blocks of the teacher; remove one of the "
            "two",
        ),
        (
            "causal_lm",
            ["distill.relation_weight=1"],
            "distill.relation_weight: the cache holds no queries, keys and values; remove teacher.cache, or the weight",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, kind, overrides, message):
    assert refusal(tmp_path, kind, *overrides) == [message]


def test_the_divergence_of_a_package_is_refused(tmp_path, monkeypatch):
    packages = tmp_path / "site"
    (packages / "far-1.0.dist-info").mkdir(parents=True)
    (packages / "far-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    (packages / "far-1.0.dist-info" / "entry_points.txt").write_text("[ted_ds.divergences]\nfar = far:FAR\n")
    monkeypatch.syspath_prepend(packages)
    message = (
        "distill.divergence: far: a cache keeps the most probable ids of a prediction, and what a package's divergence "
        "makes of the rest as one outcome is not known; use one of ted_ds, or remove teacher.cache"
    )
    assert refusal(tmp_path, "causal_lm", "distill.divergence=far") == [message]
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification", method="kd"))
    assert load_recipe(path, [CACHE, "distill.divergence=far"]).distill.divergence == "far"


def test_one_order_of_data_for_several_seeds(tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))
    assert load_recipe(path, ["seed=4"]).order_seed == 4
    assert load_recipe(path, ["seed=4", "data.order_seed=0"]).order_seed == 0


def test_the_plan_knows_what_a_corpus_takes(tmp_path, capsys):
    path = str(write_run(tmp_path))
    cache = "teacher.cache={max_gib: 1, top_k: 8, precision: int8}"
    assert main(["check", path, cache]) == 0
    # two layers of 16 dimensions in 8 bits; 2 steps of 4 sequences of 16 tokens
    assert (
        f"cache     about {128 * (8 * 4 + 4 + 2 * 20) / 2**20:.3g} MiB: 36 bytes for each token that is predicted, 40 "
        "for the states of each\n"
    ) in capsys.readouterr().out
    assert main(["check", path, cache, "teacher.cache.max_gib=1e-9", "teacher.cache.precision=bf16"]) == 2
    assert (
        "teacher.cache.max_gib: 1e-09 is less than the 0.0122 MiB that 8 sequences of 16 tokens take; raise it, use a "
        "smaller teacher.cache.top_k, precision: int8, a smaller filters.dim or fewer layers, or remove teacher.cache"
    ) in capsys.readouterr().err
    assert main(["check", path, "distill.method=kd", "teacher.cache={max_gib: 1, sampled: 8}"]) == 0
    assert "MiB: at most 38 bytes for each token that is predicted, 0 for the states" in capsys.readouterr().out


ROWS = "teacher.cache.rows={format: distillkit}"
TOKENS = "task={kind: chat, form: tokens}"


def test_rows_of_other_tools_take_the_place_of_a_teacher(tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="chat", method="kd"))
    recipe = load_recipe(path, [CACHE, ROWS, TOKENS, "distill.temperature=1"])
    assert recipe.teacher.speaks_from_rows
    assert not load_recipe(path, [CACHE]).teacher.speaks_from_rows
    assert recipe.teacher.cache is not None
    rows = {"format": "distillkit", "temperature": 1.0, "rest": True, "row_is_of": "next"}
    assert recipe.teacher.cache.deciding_values(recipe.task, recipe.distill) == {"top_k": 64, "rows": rows}
    of_axolotl = load_recipe(path, [CACHE, TOKENS, "teacher.cache.rows={format: axolotl}"])
    assert of_axolotl.teacher.cache is not None
    assert of_axolotl.teacher.cache.rows is not None
    assert not of_axolotl.teacher.cache.rows.rest_is_known
    assert "form" not in load_recipe(path).task.model_dump()
    assert recipe.task.model_dump()["form"] == "tokens"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [ROWS, "distill.temperature=1"],
            "teacher.cache.rows: predictions stand beside tokens; use task: {kind: chat, form: tokens}, or remove it",
        ),
        (
            [ROWS, TOKENS, "distill.temperature=1", "task.pack=true"],
            "teacher.cache.rows: they are of single rows, which task.pack puts together; remove one of them",
        ),
        (
            [ROWS, TOKENS, "distill.temperature=1", "distill.method=lwd"],
            "teacher.cache.rows: other tools keep no states of layers; use distill.method: kd, or remove it",
        ),
        (
            [ROWS, TOKENS],
            "teacher.cache.rows: distill.temperature: 2: predictions were kept at 1, and what all other ids have at "
            "another temperature is not known; use distill.temperature: 1, or teacher.cache.rows.rest: unknown",
        ),
        (
            [ROWS, TOKENS, "distill.temperature=1", "teacher.cache.sampled=8"],
            "teacher.cache: sampled: what rows hold of a prediction are its most probable ids; use top_k",
        ),
        (
            [ROWS, TOKENS, "distill.temperature=1", "teacher.cache.precision=int8"],
            "teacher.cache: precision: int8: is of filtered states, which rows do not hold; remove it",
        ),
        (
            ["teacher.cache.rows={format: axolotl, rest: outcome}", TOKENS],
            "teacher.cache.rows: rest: outcome: axolotl makes what was kept of a prediction add up to 1, and what the "
            "rest had is lost; use rest: unknown",
        ),
        (
            ["teacher.cache.rows={format: axolotl, compression: a.yaml}", TOKENS],
            "teacher.cache.rows: compression: goes with format: distillkit, not axolotl; remove it",
        ),
        (
            ["teacher.cache.rows={format: distillkit, row_is_of: own, rest: unknown}", TOKENS],
            "teacher.cache.rows: row_is_of: own: distillkit's predictions are of the token behind; remove it",
        ),
        (
            ["task={kind: chat, form: tokens, chat_template: chatml, completions: last}"],
            "task: chat_template: is for conversations, and rows are tokens already (form: tokens); remove it",
        ),
        (
            ["task={kind: chat, form: tokens, completions: last}"],
            "task: completions: is for conversations, and rows are tokens already (form: tokens); remove it",
        ),
    ],
)
def test_what_does_not_go_with_rows(tmp_path, overrides, message):
    assert message in refusal(tmp_path, "chat", *overrides)


def test_a_teacher_that_speaks_from_rows_does_not_train(tmp_path):
    plan = "{max_steps: 1, learning_rate: 1.0, global_batch_size: 1, micro_batch_size: 1}"
    message = "teacher: finetune: what cache.rows holds was said before, and by another model; remove one of the two"
    found = refusal(tmp_path, "chat", ROWS, TOKENS, "distill.temperature=1", f"teacher.finetune={plan}")
    assert message in found
