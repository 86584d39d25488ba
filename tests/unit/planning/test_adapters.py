"""What a recipe's adapters come to, and what they cannot be put beside."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.adapters import teaches_itself
from ted_ds.planning.plan_in_words import describe
from tests.refusals import without_overrides
from tests.task_kinds import make_plan

LORA = "student.lora={rank: 4, targets: [q_proj, mlp.down_proj]}"


@pytest.fixture(autouse=True)
def _peft_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as plans look: what it does is not asked here."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: "there" if name == "peft" else find(name, *rest)
    )


def refusal(run: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(run / "recipe.yaml", overrides), source="tiny.yaml")
    return without_overrides(str(caught.value)).removeprefix("tiny.yaml: ")


def described(run: Path, *overrides: str) -> str:
    recipe = load_recipe(run / "recipe.yaml", overrides)
    return describe(recipe, make_plan(recipe), num_ranks=1)


def test_what_trains_is_said(lm_run: Path) -> None:
    # two blocks; q_proj is 16 x 16, down_proj 16 x 32
    count = 2 * 4 * (16 + 16 + 16 + 32)
    text = described(lm_run, LORA)
    assert f"trains    {count:,} parameters of the student, beside 8,400 that stay as they are (" in text
    assert "%): adapters of rank 4 on q_proj, mlp.down_proj\n" in text
    own = ("student.from_teacher=null", f"student.path={lm_run / 'teacher'}")
    assert "; the teacher is the same model with its adapters off, held once\n" in described(lm_run, LORA, *own)
    assert "on all linear maps of its blocks" in described(lm_run, "student.lora={rank: 4}")


def test_a_head_of_labels_trains_too(classification_run: Path) -> None:
    assert "adapters of rank 4 on query, and its head\n" in described(
        classification_run, "student.lora={rank: 4, targets: [query]}"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([], True),
        (["teacher.host=replica"], True),
        (["teacher.host=int8"], False),
        (["distill.method=sft"], False),
        (["student.lora=null"], False),
        (["student.finetune={max_steps: 1, learning_rate: 1, global_batch_size: 4, micro_batch_size: 2}"], False),
        (["teacher.finetune={max_steps: 1, learning_rate: 1, global_batch_size: 4, micro_batch_size: 2}"], False),
        (["student.path=elsewhere"], False),
    ],
)
def test_when_the_base_is_the_teacher(lm_run: Path, change: list[str], expected: bool) -> None:
    own = ["student.from_teacher=null", f"student.path={lm_run / 'teacher' / '..' / 'teacher'}", LORA]
    assert teaches_itself(load_recipe(lm_run / "recipe.yaml", [*own, *change])) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["student.lora={rank: 4, targets: [q_prj]}"],
            "student.lora.targets[0]: q_prj: no linear map in a block of this llama is called so; did you mean "
            "'q_proj'?",
        ),
        (
            ["student.lora={rank: 4, targets: [xyz]}"],
            "student.lora.targets[0]: xyz: no linear map in a block of this llama is called so; there are "
            "mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, "
            "self_attn.v_proj",
        ),
        (["student.lora={rank: 4, targets: [q_proj, q_proj]}"], "targets must be distinct, got ['q_proj', 'q_proj']"),
        (
            ["student.lora={rank: 4, export: adapter}"],
            "student: lora.export: adapter: its base would be a model that this run alone has; give path (and no "
            "finetune), or use merged",
        ),
        (
            ["student.lora={rank: 4}", "student.freeze_embeddings=true"],
            "student: freeze_embeddings: with lora all but adapters and head is left as it is; remove it",
        ),
        (
            ["student={lora: {rank: 4}, from_config: {}}", "student.from_teacher=null"],
            "student: lora: random weights that stay as they are teach nothing; remove it, or give path or "
            "from_teacher",
        ),
        (
            ["student.lora={rank: 4}", "pipeline.stages=2"],
            "student.lora: adapters are not cut into the stages of a pipeline; use pipeline.stages: 1 (ZeRO 0-3)",
        ),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(lm_run: Path, overrides: list[str], expected: str) -> None:
    assert refusal(lm_run, *overrides).endswith(expected)


def test_without_peft_it_says_how_to_come_by_it(lm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, *rest: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert refusal(lm_run, LORA) == (
        "student.lora: needs peft, which is not installed here: pip install 'ted_ds[lora]'; or remove it"
    )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes((lm_run / "teacher" / "model.safetensors").read_bytes())
    config = {"peft_type": "LORA", "base_model_name_or_path": str(lm_run / "teacher")}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert refusal(lm_run, f"teacher.path={adapter}") == (
        f"teacher.path: {adapter} is an adapter, which peft merges into its base; it is not installed here: pip "
        "install 'ted_ds[lora]'"
    )
