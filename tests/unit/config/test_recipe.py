"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from ted_ds.config.load import load_recipe
from ted_ds.config.places import TASK_KINDS
from ted_ds.config.tasks import DocumentTask, Regression
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.config.yaml_file import without_duplicates
from ted_ds.errors import ConfigError
from tests.refusals import without_overrides
from tests.task_kinds import MASKED_ON_ALL, SCORERS, TASK_TERMS
from tests.tiny import recipe_dict, task_dict, write_recipe

LABELLED_KINDS = (
    "sequence_classification",
    "soft_label_classification",
    "multi_label_classification",
    "token_classification",
)
KINDS = (
    *LABELLED_KINDS,
    "regression",
    "multiple_choice",
    "question_answering",
    "causal_lm",
    "masked_lm",
    "chat",
    "seq2seq",
)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return recipe_dict(tmp_path)


@pytest.fixture
def path(tmp_path: Path, recipe: dict[str, Any]) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return without_overrides(str(caught.value))


def test_a_minimal_recipe_is_read_with_its_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.distill.temperature == 2.0
    assert recipe.layer_map.kind == "uniform"
    assert recipe.distill.betas == (0.9, 0.999)
    assert recipe.data.train[0].format == "auto"


# --- keys and types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("distil=1", "distil", "distill"),
        ("distill.kl_wieght=1", "distill.kl_wieght", "kl_weight"),
        ("filters.teacher.max_step=1", "filters.teacher.max_step", "max_steps"),
        ("data.train[0].pth=x", "data.train[0].pth", "path"),
        ("task.sequence_lenght=8", "task.sequence_lenght", "sequence_length"),
        ("student.from_teacher.block=[0]", "student.from_teacher.block", "blocks"),
        ("data.pading={}", "data.pading", "padding"),
        ("data.length_groupin={}", "data.length_groupin", "length_grouping"),
        ("data.length_grouping.window=2", "data.length_grouping.window", "window_steps"),
        ("distill.micro_batch_token=64", "distill.micro_batch_token", "micro_batch_tokens"),
        ("data.padding.sides=left", "data.padding.sides", "side"),
        ("data.padding.multiple=8", "data.padding.multiple", "multiple_of"),
        ("task.packing.isolate_document=false", "task.packing.isolate_document", "isolate_documents"),
        ("max_consecutive_skip=1", "max_consecutive_skip", "max_consecutive_skips"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    path: Path, override: str, where: str, nearest: str
) -> None:
    assert f"{path}: {where}: unknown key; did you mean {nearest!r}?" in refusal(path, override)


def test_an_unknown_key_near_nothing_lists_the_known_ones(path: Path) -> None:
    known = "compare_with_teacher, log_every_seconds, log_every_steps, peak_tflops, project, to, wandb"
    assert f"{path}: tracking.qqqq: unknown key; known here: {known}" in refusal(path, "tracking.qqqq=1")


def test_a_key_of_the_other_task_kind_is_refused_and_not_suggested(path: Path) -> None:
    message = refusal(path, "task.labels=[a,b]")
    assert f"{path}: task.labels: unknown key" in message
    assert "did you mean 'labels'" not in message


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("distill.max_steps=many", "distill.max_steps: 'many': use a whole number above 0"),
        ("distill.max_steps=0", "distill.max_steps: 0: use a whole number above 0"),
        ("distill.learning_rate=-1", "distill.learning_rate: -1: use a number above 0"),
        ("distill.learning_rate=.nan", "distill.learning_rate: nan: use a number above 0"),
        ("distill.betas=[0.9,1.5]", "distill.betas[1]: 1.5: use a number from 0 to below 1"),
        ("distill.method=tad", "distill.method: 'tad': use sft, kd, lwd or ted"),
        ("data.train=[]", "data.train: []: use a list of 1 or more, each a section of keys and values"),
        ("data.train[0].weight=0", "data.train[0].weight: 0: must be a number above 0, size, or [[step"),
        ("data.train[0].weight=half", "data.train[0].weight: 'half': must be a number above 0, size, or [[step"),
        ("data.train[0].weight=[[5, 1], [5, 2]]", "data.train[0].weight: [[5, 1], [5, 2]]: must be a number above 0"),
        ("data.train[0].weight=[[0, -1]]", "data.train[0].weight: [[0, -1]]: must be a number above 0"),
        ("data.train[0].weight=[[0, 1], [2]]", "data.train[0].weight: [[0, 1], [2]]: must be a number above 0"),
        ("data.train[0].weight=[[0, .inf]]", "data.train[0].weight: [[0, inf]]: must be a number above 0"),
        ("data.train[0].weight=[[0, 0], [9, 1]]", "data: train: at step 0 every source has weight 0"),
        ("name=a b", "name: 'a b': use a text of letters, digits, '_', '.' and '-'"),
        ("data.padding.side=both", "data.padding.side: 'both': use right or left"),
        ("data.padding.multiple_of=0", "data.padding.multiple_of: 0: use a whole number above 0"),
        ("task.packing.isolate_documents=2", "task.packing.isolate_documents: 2: use true or false"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps: 0: use a whole number above 0, or null"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last: 0: use a whole number above 0"),
        (
            "checkpoint.keep_every_steps=10",
            "checkpoint: keep_every_steps (10) must be a multiple of every_steps (None)",
        ),
        ("stop_after_minutes=0", "stop_after_minutes: 0: use a number above 0, or null"),
        ("max_consecutive_skips=-1", "max_consecutive_skips: -1: use a whole number, 0 or more"),
        ("preflight=ignore", "preflight: 'ignore': use refuse or warn"),
        (
            "task.kind=span_qa",
            "task.kind: 'span_qa': use one of causal_lm, chat, masked_lm, multi_label_classification, multiple_choice",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_the_value_and_the_rule(path: Path, override: str, phrase: str) -> None:
    assert f"{path}: {phrase}" in refusal(path, override)


def at(override: str) -> str:
    return override.partition("=")[0]


@pytest.mark.parametrize("switch", ["true", "false", "yes", "no", "on"])
@pytest.mark.parametrize(
    "key",
    ["distill.max_steps", "distill.kl_weight", "seed", "checkpoint.every_minutes", "task.packing.window"],
)
def test_a_switch_is_no_number(path: Path, key: str, switch: str) -> None:
    given = switch in ("true", "yes", "on")
    assert refusal(path, f"{key}={switch}").startswith(f"{path}: {key}: {given}: use a ")


def test_a_switch_in_a_list_of_numbers_is_refused_in_its_place(path: Path) -> None:
    assert refusal(path, "student.from_teacher.blocks=[0, true]") == (
        f"{path}: student.from_teacher.blocks[1]: True: use a whole number, 0 or more"
    )
    assert refusal(path, "distill.betas=[false, 0.9]") == (
        f"{path}: distill.betas[0]: False: use a number from 0 to below 1"
    )


@pytest.mark.parametrize("override", ["distill.max_steps='10'", "distill.max_steps=1e1", "distill.max_steps=10.0"])
def test_a_whole_number_may_be_written_in_other_ways(path: Path, override: str) -> None:
    """Environment variables are text, and 1e1 is a fraction to YAML."""
    assert load_recipe(path, [override]).distill.max_steps == 10


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("distill.max_steps=2.5", "2.5: use a whole number above 0"),
        ("data.apart.mine=[7]", "7: use a section of keys and values"),
        ("data.apart.mine=7", "7: use a list, each a section of keys and values"),
        ("distill.warmup_steps=null", "null: use a whole number, 0 or more"),
        ("distill.learning_rate=abc", "'abc': use a number above 0"),
        ("distill.betas=0.9", "0.9: use a list of 2 values, each a number from 0 to below 1"),
        ("distill.betas=[0.9]", "[0.9]: use a list of 2 values, each a number from 0 to below 1"),
        ("distill.betas=[1, 2, 3]", "[1, 2, 3]: use a list of 2 values, each a number from 0 to below 1"),
        ("name=5", "5: use a text of letters, digits, '_', '.' and '-'; put it into quotes"),
        ("task.text_column=5", "5: use a text; put it into quotes"),
        ("teacher.path=null", "null: use a text that is not empty"),
        ("output_dir=5", "5: use the path of a file or folder"),
        ("activation_checkpointing=perhaps", "'perhaps': use true or false"),
        ("data=5", "5: use a section of keys and values"),
        ("filters=5", "5: use a section of keys and values, or null"),
        ("evaluation=null", "null: use a section of keys and values"),
        ("data.train=x", "'x': use a list of 1 or more, each a section of keys and values"),
        ("student.from_teacher.blocks=0", "0: use a list of 1 or more, each a whole number, 0 or more"),
        (
            "layer_map={kind: explicit, pairs: x}",
            "use a list, each a list of 2 values, each a whole number, 0 or more or a "
            "text of the form encoder.3 or decoder.3",
        ),
        ("data.bad_records.max_fraction=2", "2: use a number from 0 to 1"),
        ("data.heldout_fraction=1", "1: use a number above 0 and below 1"),
        ("task=5", "5: use a section of keys and values"),
        ("task={}", "kind: this key is required; use one of causal_lm"),
        ("task.kind=[1]", "[1]: use one of causal_lm"),
    ],
)
def test_every_kind_of_value_has_its_rule_in_words(path: Path, override: str, rule: str) -> None:
    message = refusal(path, override)
    assert message.startswith(f"{path}: {at(override)}")
    assert rule in message
    assert not any(word in message for word in ("Input", "valid", "instance", "<class", "validation"))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("distill.steps=3", "did you mean 'balance_every_steps' or 'max_steps' or 'warmup_steps'?"),
        ("distill.batch_size=3", "did you mean 'global_batch_size' or 'micro_batch_size'?"),
        ("distill.lr=1e-3", "did you mean 'learning_rate'?"),
        ("distill.tempo=3", "known here: balance, balance_average, balance_every_steps, balance_max_factor, betas"),
        ("betas=1", "it belongs to teacher.finetune, student.finetune, filters.teacher, filters.student"),
        (
            "data.path=x",
            "it belongs to data.train, data.validation, data.evaluation, data.apart, data.test or data.transfer",
        ),
    ],
)
def test_a_hint_leads_to_the_key_that_was_meant_or_there_is_none(path: Path, override: str, hint: str) -> None:
    message = refusal(path, override)
    assert message.startswith(f"{path}: {at(override)}: unknown key; {hint}")
    assert "did you mean 'eps'" not in message


def test_a_missing_key_is_named(tmp_path: Path, recipe: dict[str, Any]) -> None:
    del recipe["teacher"]["path"]
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert refusal(path) == f"{path}: teacher.path: this key is required"


def test_all_mistakes_are_reported_at_once(path: Path) -> None:
    message = refusal(path, "seed=-1", "distil=1", "distill.max_steps=x", "teacher.path=''")
    assert len(message.splitlines()) == 4
    assert all(line.startswith(f"{path}: ") for line in message.splitlines())
    assert all(where in message for where in ("seed: -1", "distil: ", "distill.max_steps: 'x'", "teacher.path: ''"))


# --- overrides and interpolation --------------------------------------------------------------------------------------


def test_overrides_change_dotted_keys_and_list_items(path: Path) -> None:
    recipe = load_recipe(
        path, ["data.train[0].path=other.jsonl", "distill.max_steps=7", "layer_map.num_pairs=1", "filters.dim=null"]
    )
    assert recipe.data.train[0].path == "other.jsonl"
    assert recipe.distill.max_steps == 7
    assert recipe.layer_map.num_pairs == 1
    assert recipe.filters is not None
    assert recipe.filters.dim is None


def test_the_last_of_two_overrides_of_a_key_counts(path: Path) -> None:
    assert load_recipe(path, ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_equals_signs(path: Path) -> None:
    assert load_recipe(path, ["teacher.path=a=b"]).teacher.path == "a=b"


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("distill.max_steps", "an override has the form a.b=value or a.b[0].c=value"),
        ("=3", "an override has the form a.b=value or a.b[0].c=value"),
        ("data.train[5].path=x", "data.train has 1 entry, numbered from 0"),
        ("data.train.x.path=y", "Index 'x' (str) is not an int"),
        ("name=[1,", "not readable as a YAML value"),
        ("distill..max_steps=1", "an override has the form a.b=value or a.b[0].c=value"),
        ("data.train[0=1", "an override has the form a.b=value or a.b[0].c=value"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(path: Path, override: str, phrase: str) -> None:
    message = refusal(path, override)
    assert message.startswith(f"command line: {override!r}: ")
    assert phrase in message


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path, recipe: dict[str, Any]) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    text = path.read_text(encoding="utf-8").replace("learning_rate: 0.001", "learning_rate: 1e-4")
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path).distill.learning_rate == 1e-4
    assert load_recipe(path, ["distill.learning_rate=3e-5"]).distill.learning_rate == 3e-5


def test_interpolation_takes_another_value_also_in_an_override(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["output_dir"] = "runs/${name}-${seed}"
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert load_recipe(path, ["seed=5"]).output_dir == Path("runs/tiny-5")
    assert load_recipe(path, ["output_dir=out/${name}"]).output_dir == Path("out/tiny")


def test_interpolation_of_a_key_that_is_not_there_is_refused(path: Path) -> None:
    assert refusal(path, "output_dir=${nmae}").startswith(f"{path}: output_dir: ${{nmae}}: the recipe has no such key")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: no such recipe file")


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ("name: a\nname: b", ["line 2: name: given twice, first in line 1"]),
        (
            "name: a\ndistill: {seed: 1, max_steps: 2, max_steps: 3}",
            ["line 2: distill.max_steps: given twice, first in line 2"],
        ),
        (
            "data:\n  train:\n  - path: x\n    path: y\ndata: 3",
            ["line 5: data: given twice, first in line 1", "line 4: data.train[0].path: given twice, first in line 3"],
        ),
    ],
)
def test_a_key_that_is_given_twice_is_refused_at_any_depth_and_hides_nothing(
    tmp_path: Path, content: str, places: list[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{content}\nsede: 1\n", encoding="utf-8")
    found = refusal(path).splitlines()
    for place in places:
        assert any(f"{path}: {place}; keep one" in line for line in found), found
    assert any("sede: unknown key" in line for line in found)


def test_of_a_key_that_is_given_twice_the_first_counts_and_numbers_stay_what_they_are() -> None:
    text, repeated = without_duplicates("a: &x {b: 1e-3, c: '2', b: 4}\nd: *x\na: 5\ne: [~, yes, 0o7]\n")
    assert sorted(repeated) == [
        "line 1: a.b: given twice, first in line 1; keep one",
        "line 3: a: given twice, first in line 1; keep one",
    ]
    once = OmegaConf.create("a: &x {b: 1e-3, c: '2'}\nd: *x\ne: [~, yes, 0o7]\n")
    assert OmegaConf.create(text) == once
    assert OmegaConf.select(once, "a.b") == 0.001


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: is a folder; give the file"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train[1].path=x", "data.train has 1 entry, numbered from 0; write the whole list to add one"),
        ("data.train[7]={path: x}", "data.train has 1 entry, numbered from 0; write the whole list to add one"),
        ("distill={a: 1, a: 2}", "distill.a: given twice; keep one"),
        ("data.train=[{path: x, path: y}]", "data.train[0].path: given twice; keep one"),
    ],
)
def test_an_override_that_has_no_place_or_two_values_is_refused(path: Path, override: str, message: str) -> None:
    assert refusal(path, override) == f"command line: {override!r}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: a\n\tseed: 1", "line 2, column 1: a tab; indent with spaces"),
        ("name: a: b", "line 1, column 8: a second ': ' in one line; put the value into quotes, or begin a new line"),
        ("---\nname: a\n---\nname: b", "line 3, column 1: a second document begins (---); a recipe is one"),
        ("name: [a", "line 2, column 1: did not find expected ',' or ']'"),
        ("name: ${a", "no viable alternative at input '${a'"),
    ],
)
def test_yaml_that_is_wrong_is_refused_in_words_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{content}\n", encoding="utf-8")
    assert refusal(path).startswith(f"{path}: not readable as YAML: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: ${name}", "name: its ${...} leads back to itself"),
        ("name: ${seed}\nseed: ${name}", "name: its ${...} leads back to itself"),
        (
            "name: ${oc.env:TED_DS_NO_SUCH}",
            "name: ${oc.env:TED_DS_NO_SUCH}: $TED_DS_NO_SUCH is not set; set it, or write "
            "${oc.env:TED_DS_NO_SUCH,default}",
        ),
        ("distill:\n  max_steps: ${distil.x}", "distill.max_steps: ${distil.x}: the recipe has no such key"),
    ],
)
def test_what_cannot_be_resolved_is_named_with_its_key(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    first, *others = refusal(path).splitlines()
    assert first == f"{path}: {message}"
    assert {line.partition(": ")[2].partition(": ")[2] for line in others} == {"this key is required"}


def test_a_key_that_is_no_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("1: a", encoding="utf-8")
    assert f"{path}: the recipe: 1: a key is a name; put it into quotes, or remove it" in refusal(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: \u00e9t\u00e9", encoding=encoding)
    assert "not UTF-8 text" in refusal(path)
    assert refusal(path).endswith("; save it as UTF-8")


@pytest.mark.parametrize("content", ["name: [", "!!python/object:os.system {}", "name: &x 1\nseed: *y"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    assert refusal(path).startswith(f"{path}: not readable as YAML: ")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe\x80")
    assert refusal(path).startswith(f"{path}: not readable as YAML: ")


@pytest.mark.parametrize("content", ["- a\n- b\n", "42\n"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    assert f"{path}: a recipe is a mapping of keys to values" in refusal(path)


def test_an_empty_recipe_lists_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("", encoding="utf-8")
    message = refusal(path)
    for key in ("task", "data", "teacher", "student"):
        assert f"{path}: {key}: this key is required" in message


def test_a_recipe_is_frozen(path: Path) -> None:
    recipe = load_recipe(path)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        recipe.distill.max_steps = 1


# --- rules between keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "phrase"),
    [
        (["distill.warmup_steps=2"], "distill: warmup_steps (2) must be smaller than max_steps (2)"),
        (
            ["export=best"],
            "export: best needs evaluation.every_steps: only what is scored during training can be the best",
        ),
        (
            ["export=best", "evaluation.every_steps=1", "checkpoint.keep_best=false"],
            "export: best is taken from the checkpoint that checkpoint.keep_best keeps; set it to true",
        ),
        (["distill.power=2"], "distill: power goes with schedule: polynomial, not linear; remove it"),
        (
            ["distill.end_learning_rate=0"],
            "distill: end_learning_rate goes with schedule: polynomial, not linear; remove",
        ),
        (
            ["distill.num_cycles=2"],
            "distill: num_cycles goes with schedule: cosine_with_restarts, not linear; remove it",
        ),
        (["distill.schedule=polynomial"], "distill: schedule: polynomial needs a power; with 1 it is linear"),
        (
            ["distill.schedule=cosine_with_restarts"],
            "distill: schedule: cosine_with_restarts needs num_cycles; with 1 it is cosine",
        ),
        (
            ["distill.schedule=cosine_with_restarts", "distill.num_cycles=3"],
            "distill: num_cycles (3) must not be above the steps after warm-up, 2 of max_steps",
        ),
        (
            ["distill.schedule=polynomial", "distill.power=1", "distill.end_learning_rate=0.01"],
            "distill: end_learning_rate (0.01) must be below learning_rate (0.001)",
        ),
        (
            ["filters.student.global_batch_size=5"],
            "filters.student: global_batch_size (5) must be a multiple of micro_batch_size (2)",
        ),
        (
            ["distill.micro_batch_tokens=64"],
            "distill: give exactly one of micro_batch_size (examples) and micro_batch_tokens (padded tokens)",
        ),
        (
            ["distill.micro_batch_size=null", "distill.micro_batch_tokens=64"],
            "distill.micro_batch_tokens: 64: the packed sequences of a causal_lm all have one length; use "
            "micro_batch_size",
        ),
        (
            ["data.length_grouping.window_steps=2"],
            "data.length_grouping.window_steps: 2: the packed sequences of a causal_lm all have one length; remove it",
        ),
        (["student.path=x"], "student: give exactly one of path, from_teacher and from_config"),
        (["student.from_teacher=null"], "student: give exactly one of path, from_teacher and from_config"),
        (["student.from_config={}"], "student: give exactly one of path, from_teacher and from_config"),
        (
            ["student={from_config: {changes: {model_type: gpt2}}}", "student.from_teacher=null"],
            "student.from_config: changes.model_type: the type is that of the config; give path, the folder of a "
            "config of that type",
        ),
        (
            ["student.from_teacher.blocks=[3,0]"],
            "blocks must be in ascending order (one may come more than once), got [3, 0]; where this order is meant, "
            "set any_order: true",
        ),
        (["layer_map.pairs=[[1,1]]"], "layer_map: pairs goes with kind: explicit, and only with it"),
        (["layer_map.kind=explicit"], "layer_map: pairs goes with kind: explicit, and only with it"),
        (["layer_map.kind=last", "layer_map.num_pairs=1"], "layer_map: num_pairs goes with kind: uniform, not last"),
        (
            ["filters.student=null"],
            "filters: give both (teacher and student learn in one pass), or teacher and student (a phase each); "
            "given: teacher",
        ),
        (
            ["distill.max_steps=null"],
            "distill.max_steps: this key is required: a causal_lm packs documents as they come, and how many steps a "
            "pass over them takes is known once all are read; give how many you want",
        ),
        (
            ["filters.both={max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"],
            "given: teacher and student and both",
        ),
        (
            ["filters.kind=mlp", "filters.initialisation=identity"],
            "filters: initialisation: identity goes with kind: linear",
        ),
        (
            ["filters.kind=mlp", "filters.initialisation=ridge"],
            "filters: initialisation: ridge solves a linear map; kind: mlp has none, use linear",
        ),
        (
            ["filters.lm_head=new", "filters.initialisation=ridge"],
            "filters: lm_head: new: initialisation: ridge solves filters for the head that the model has, and a new "
            "one reads nothing yet; use frozen",
        ),
        (
            ["filters.ridge={student: itself}"],
            "filters: ridge goes with initialisation: ridge, not normal; remove it",
        ),
        (
            ["filters.student.max_steps=0"],
            "filters: student.max_steps: 0: no filter would be learned; use 1 or more, or initialisation: ridge, which "
            "solves them first",
        ),
        (
            ["filters.initialisation=ridge", "filters.ridge.strengths=[0.1, 0]"],
            "filters.ridge.strengths[1]: 0: use a number above 0",
        ),
        (
            ["filters.initialisation=ridge", "filters.ridge.strengths=[]"],
            "filters.ridge.strengths",
        ),
    ],
)
def test_a_rule_between_keys_is_enforced(path: Path, overrides: list[str], phrase: str) -> None:
    assert phrase in refusal(path, *overrides)


@pytest.mark.parametrize("kind", LABELLED_KINDS)
def test_labels_must_be_distinct(tmp_path: Path, kind: str) -> None:
    path = write_task(tmp_path, {**task_dict(kind), "labels": ["a", "a"]})
    assert refusal(path) == f"{path}: task: labels must be distinct, got ['a', 'a']"


@pytest.mark.parametrize("multiple_of", [1, 12])
def test_a_token_budget_holds_the_longest_text(tmp_path: Path, multiple_of: int) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification"))
    overrides = [f"data.padding.multiple_of={multiple_of}", "data.length_grouping.window_steps=4"]
    overrides += ["filters.student.micro_batch_size=null"]
    longest, padded = (16, "") if multiple_of == 1 else (24, ", padded to 24")
    assert refusal(path, *overrides, f"filters.student.micro_batch_tokens={longest - 1}") == (
        f"{path}: filters.student.micro_batch_tokens: {longest - 1}: a text of task.max_length (16{padded}) would not "
        f"fit; use {longest} or more"
    )
    recipe = load_recipe(path, [*overrides, f"filters.student.micro_batch_tokens={longest}"])
    assert recipe.phase_plans()["filters.student"].micro_batch_tokens == longest


def test_kd_needs_a_weight_of_its_predictions(path: Path) -> None:
    assert refusal(path, "distill.method=kd", "distill.kl_weight=0") == (
        f"{path}: distill.method: kd needs a kl_weight above 0; without a teacher it is sft"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill.method=sft", "distill.task_weight=0"],
            "distill.task_weight: 0: method: sft trains on the task alone; use a weight above 0",
        ),
        (
            ["distill.feature_weight=0"],
            "distill.feature_weight: 0: method: ted matches layers; use a weight above 0, or method: kd",
        ),
        (
            ["distill.method=lwd", "distill.task_weight=0", "distill.kl_weight=0", "distill.feature_weight=0"],
            "distill.feature_weight: 0: method: lwd matches layers; use a weight above 0, or method: kd",
        ),
    ],
)
def test_a_method_without_its_term_is_refused(path: Path, overrides: list[str], message: str) -> None:
    assert refusal(path, *overrides) == f"{path}: {message}"


def test_the_other_terms_may_be_left_out(path: Path) -> None:
    assert load_recipe(path, ["distill.task_weight=0", "distill.kl_weight=0"]).distill.feature_weight == 1
    assert load_recipe(path, ["distill.method=kd", "distill.task_weight=0"]).distill.kl_weight == 1


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], None),
        (["distill.temperature=3", "distill.kl_weight=0.5"], None),
        (
            ["distill.method=sft", "distill.temperature=3", "layer_map.kind=last"],
            "without effect: distill.temperature, layer_map, filters (distill.method: sft)",
        ),
        (["distill.method=lwd"], "without effect: filters (distill.method: lwd)"),
        (["filters=null", "distill.method=kd"], None),
        (
            ["filters=null", "distill.method=kd", "distill.normalise_features=true"],
            "without effect: distill.normalise_features (distill.method: kd)",
        ),
        (["filters.pooling=mean"], "without effect: filters.pooling (task.kind: causal_lm)"),
        (["task.packing.window=8"], "without effect: task.packing.window (task.packing.method: wrap)"),
        (["task.packing={method: best_fit, window: 8}"], None),
        (["data.evaluation=[{path: x}]"], "without effect: data.heldout_fraction (data.evaluation is given)"),
        (["data.validation=[{path: x}]"], "without effect: data.heldout_fraction (data.validation is given)"),
        (["checkpoint.keep_best=true"], "without effect: checkpoint.keep_best (evaluation.every_steps is not given)"),
        (["checkpoint.keep_best=true", "evaluation.every_steps=1"], None),
    ],
)
def test_settings_without_effect_are_named(path: Path, overrides: list[str], line: str | None) -> None:
    assert settings_without_effect(load_recipe(path, overrides)) == ([line] if line else [])


def test_settings_of_corpora_are_without_effect_on_task_data(tmp_path: Path) -> None:
    path = write_task(tmp_path, task_dict("sequence_classification"))
    given = ["data.shuffle_mib=4", "data.cleaning.deduplicate=true", "data.train[0].epochs=2", "filters.lm_head=new"]
    assert settings_without_effect(load_recipe(path, given)) == [
        "without effect: filters.lm_head, data.shuffle_mib, data.workers, data.cleaning.deduplicate, "
        "data.train[0].epochs (task.kind: sequence_classification)"
    ]


# --- kinds of tasks ---------------------------------------------------------------------------------------------------


def write_task(folder: Path, task: dict[str, Any]) -> Path:
    return write_recipe(folder / "recipe.yaml", {**recipe_dict(folder), "task": task})


def test_the_kinds_of_tasks_are_those_that_have_terms_and_scores() -> None:
    assert {*TASK_TERMS} - {MASKED_ON_ALL} == {*SCORERS} == TASK_KINDS == {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_read(tmp_path: Path, kind: str) -> None:
    task = load_recipe(write_task(tmp_path, task_dict(kind))).task
    assert task.kind == kind
    assert task.sequence_length == 16
    without_text = ("token_classification", "multiple_choice", "question_answering", "chat")
    of_kind = dict.fromkeys(without_text) | {"seq2seq": "source"}
    assert task.document_column == of_kind.get(kind, "text")
    if isinstance(task, DocumentTask):
        assert task.packing.isolate_documents == (kind == "causal_lm")
    if task.has_lm_head:
        return
    assert task.num_outputs == {"regression": 1, "token_classification": 3, "multiple_choice": 1}.get(kind, 2)


def test_padding_is_on_the_right_to_the_longest_unless_said_otherwise(path: Path) -> None:
    padding = load_recipe(path).data.padding
    assert (padding.side, padding.multiple_of) == ("right", 1)
    padding = load_recipe(path, ["data.padding={side: left, multiple_of: 8}"]).data.padding
    assert (padding.side, padding.multiple_of) == ("left", 8)


def test_regression_has_an_output_for_each_target_column(tmp_path: Path) -> None:
    task = load_recipe(write_task(tmp_path, {"kind": "regression", "target_columns": ["joy", "anger"]})).task
    assert isinstance(task, Regression)
    assert task.num_outputs == 2
    task = load_recipe(write_task(tmp_path, {"kind": "regression"})).task
    assert isinstance(task, Regression)
    assert task.target_columns == ["label"]


def test_regression_refuses_a_temperature_also_the_default_one(tmp_path: Path) -> None:
    path = write_task(tmp_path, task_dict("regression"))
    for value in (1.0, 2.0, 4.0):
        assert refusal(path, f"distill.temperature={value}") == (
            f"{path}: distill.temperature: regression outputs are compared as numbers; remove it"
        )
    for kind in KINDS:
        if kind != "regression":
            assert (
                load_recipe(write_task(tmp_path, task_dict(kind)), ["distill.temperature=4"]).distill.temperature == 4
            )


@pytest.mark.parametrize("kind", LABELLED_KINDS)
def test_labelled_tasks_need_two_labels_at_least(tmp_path: Path, kind: str) -> None:
    task = task_dict(kind)
    path = write_task(tmp_path, {**task, "labels": ["a"]})
    assert refusal(path) == f"{path}: task.labels: ['a']: use a list of 2 or more, each a text"
    del task["labels"]
    path = write_task(tmp_path, task)
    assert refusal(path) == f"{path}: task.labels: this key is required"


def test_regression_needs_a_target_column(tmp_path: Path) -> None:
    path = write_task(tmp_path, {"kind": "regression", "target_columns": []})
    assert refusal(path).startswith(f"{path}: task.target_columns: []: use a list of 1 or more, each a text")


@pytest.mark.parametrize(
    ("kind", "key", "nearest"),
    [
        ("regression", "target_column", "target_columns"),
        ("soft_label_classification", "lables", "labels"),
        ("multi_label_classification", "label_colum", "label_column"),
        ("causal_lm", "pack", "packing"),
    ],
)
def test_an_unknown_key_of_a_task_is_refused_with_the_nearest_of_its_own_kind(
    tmp_path: Path, kind: str, key: str, nearest: str
) -> None:
    path = write_task(tmp_path, {**task_dict(kind), key: 1})
    assert f"{path}: task.{key}: unknown key; did you mean {nearest!r}?" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("regression", "labels"),
        ("regression", "label_column"),
        ("sequence_classification", "target_columns"),
        ("multi_label_classification", "packing"),
        ("causal_lm", "max_length"),
    ],
)
def test_a_key_of_another_kind_of_task_is_refused(tmp_path: Path, kind: str, key: str) -> None:
    path = write_task(tmp_path, {**task_dict(kind), key: ["a", "b"]})
    message = refusal(path)
    assert message.startswith(f"{path}: task.{key}: unknown key; ")
    assert f"did you mean {key!r}" not in message


@pytest.mark.parametrize("method", ["sft", "kd", "lwd"])
def test_only_ted_needs_filters(path: Path, method: str) -> None:
    recipe = load_recipe(path, ["filters=null", f"distill.method={method}"])
    assert list(recipe.phase_plans()) == ["distill"]


def test_phase_plans_name_what_the_method_trains(path: Path) -> None:
    plan = "{max_steps: 1, learning_rate: 1e-3, global_batch_size: 2, micro_batch_size: 2}"
    overrides = [f"teacher.finetune={plan}", f"student.finetune={plan}"]
    stage_0 = ["teacher.finetune", "student.finetune"]
    assert list(load_recipe(path, overrides).phase_plans()) == [
        *stage_0,
        "filters.teacher",
        "filters.student",
        "distill",
    ]
    assert list(load_recipe(path, [*overrides, "distill.method=kd"]).phase_plans()) == [*stage_0, "distill"]
