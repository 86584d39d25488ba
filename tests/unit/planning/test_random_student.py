"""A student of random weights is planned from a config alone, with what is wrong in its changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.plan import Plan
from ted_ds.planning.plan_in_words import describe
from tests.refusals import without_overrides
from tests.task_kinds import make_plan
from tests.tiny import write_model

RANDOM = "student.from_teacher=null"


def plan(run: Path, from_config: str, *overrides: str) -> Plan:
    overrides = (RANDOM, f"student.from_config={from_config}", *overrides)
    return make_plan(load_recipe(run / "recipe.yaml", overrides), source="tiny.yaml")


def refusal(run: Path, from_config: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(run, from_config)
    return without_overrides(str(caught.value))


def num_parameters(model: object) -> int:
    return sum(one.numel() for one in model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", ["{}", "{num_hidden_layers: 3, hidden_size: 8, head_dim: 4, vocab_size: 120}"])
def test_its_parameters_are_those_transformers_builds(lm_run: Path, changes: str) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", [RANDOM, f"student.from_config={{changes: {changes}}}"])
    assert recipe.student.from_config is not None
    config = AutoConfig.from_pretrained(lm_run / "teacher", **recipe.student.from_config.changes)
    result = make_plan(recipe)
    assert result.student is not None
    assert result.student.parameters.total == num_parameters(AutoModelForCausalLM.from_config(config))
    assert (result.student.num_blocks, result.student.hidden_size) == (config.num_hidden_layers, config.hidden_size)
    assert result.phases[0] == "random_student"
    size = f"{result.student.parameters.total:,}"
    shape = f"{config.num_hidden_layers} blocks of width {config.hidden_size}"
    assert f"student   llama, {shape}, random, {size} parameters" in describe(recipe, result, num_ranks=1)


def test_a_classifier_has_a_head_of_the_tasks_outputs(classification_run: Path) -> None:
    result = plan(classification_run, "{changes: {num_hidden_layers: 1}}", "teacher.finetune=null")
    config = AutoConfig.from_pretrained(classification_run / "teacher", num_hidden_layers=1)
    assert result.student is not None
    assert result.student.parameters.total == num_parameters(AutoModelForSequenceClassification.from_config(config))


def test_a_config_of_another_type_comes_from_its_own_folder(lm_run: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", "gpt2", blocks=3)
    (other / "model.safetensors").unlink()  # its config is all that is read
    result = plan(lm_run, f"{{path: {other}, changes: {{num_hidden_layers: 2}}}}")  # by the name that all types know
    assert result.student is not None
    assert (result.student.model_type, result.student.num_blocks) == ("gpt2", 2)


def test_lists_of_blocks_are_made_anew_for_another_depth(lm_run: Path, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    other = write_model(tmp_path / "other", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    result = plan(lm_run, f"{{path: {other}, changes: {{num_hidden_layers: 6}}}}", "layer_map.num_pairs=3")
    assert result.student is not None
    assert result.student.num_blocks == 6


@pytest.mark.parametrize(
    ("from_config", "expected"),
    [
        (
            "{changes: {num_hiden_layers: 3}}",
            "student.from_config.changes.num_hiden_layers: a llama's config has no such entry; did you mean "
            "'num_hidden_layers'?",
        ),
        ("{changes: {xyz: 3}}", "student.from_config.changes.xyz: a llama's config has no such entry"),
        ("{path: /nowhere}", "student.from_config.path: /nowhere: no such model folder"),
        (
            "{changes: {vocab_size: 50}}",
            "student.from_config: the teacher's tokenizer gives 'zu' the id 99, but the model has embeddings for 0..49 "
            "(50 rows; 50 ids are outside); use the tokenizer it was trained with, or resize its embeddings",
        ),
        (
            "{changes: {max_position_embeddings: 8}}",
            "student.from_config: task.sequence_length is 16, but this model allows at most 8 tokens; lower "
            "task.sequence_length",
        ),
    ],
)
def test_what_is_wrong_with_the_changes_is_said(lm_run: Path, from_config: str, expected: str) -> None:
    assert refusal(lm_run, from_config) == f"tiny.yaml: {expected}"


def test_values_that_do_not_go_together_are_refused_in_transformers_words(lm_run: Path) -> None:
    message = refusal(lm_run, "{changes: {num_attention_heads: 3}}")
    assert message.startswith(
        f"tiny.yaml: student.from_config: {lm_run / 'teacher'}: transformers can build no model of its config.json "
        "with num_attention_heads: 3 ("
    )
    assert "The hidden size (16) is not a multiple of the number of attention heads (3)" in message
    assert message.endswith("; use values that go together")


@pytest.mark.lengthy
def test_check_says_its_size_without_torch(lm_run: Path) -> None:
    """Another process builds it."""
    code = (
        "import sys; from ted_ds.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    words = ["check", str(lm_run / "recipe.yaml"), RANDOM, "student.from_config={changes: {num_hidden_layers: 1}}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((lm_run / "teacher" / "config.json").read_text()) | {"num_hidden_layers": 1}
    size = num_parameters(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)))
    assert f"student   llama, 1 block of width 16, random, {size:,} parameters" in done.stdout
