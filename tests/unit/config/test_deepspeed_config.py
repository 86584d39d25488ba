"""The DeepSpeed JSON: what is refused, and what the recipe fills in."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.deepspeed import complete, filled, read_deepspeed_json, remarks, schedule_of
from ted_ds.config.deepspeed_keys import TYPES, zero_stage
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.errors import ConfigError
from tests.tiny import ROOT

PLAN = PhasePlan(
    max_steps=100,
    learning_rate=5e-5,
    global_batch_size=32,
    micro_batch_size=4,
    warmup_steps=10,
    gradient_clipping=0.5,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    eps=1e-6,
)
OPTIMIZER = {"type": "AdamW", "params": {"lr": "auto"}}
SCHEDULER = {
    "type": "WarmupDecayLR",
    "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"},
}
SHIPPED = sorted((ROOT / "ds_configs" / "deepspeed").glob("*.json"))


def completed(
    config: dict[str, Any], *, plan: PhasePlan = PLAN, precision: str = "fp32", ranks: int = 2
) -> dict[str, Any]:
    return complete(config, plan, plan_path="distill", precision=precision, world_size=ranks, source=Path("zero.json"))


def refusal(config: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        completed(config, **options)
    return str(caught.value)


def written(folder: Path, content: Any) -> Path:
    path = folder / "zero.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def reading_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_deepspeed_json(path)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.json'}: no such DeepSpeed config" in reading_refusal(tmp_path / "no.json")


@pytest.mark.parametrize("content", ["{", "", '{"a": 1,}'])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    assert reading_refusal(path).startswith(f"{path}: not readable as JSON: ")


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ["optimizer"])
    assert reading_refusal(path) == f"{path}: a DeepSpeed config is a JSON object, this is list"


def test_a_misspelt_key_that_deepspeed_would_swallow_is_refused_with_the_right_one(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "gradient_cliping": 1.0})
    assert reading_refusal(path) == f"{path}: gradient_cliping: unknown key; did you mean 'gradient_clipping'?"


def test_a_key_like_no_other_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "qqqq": 1})
    assert f"{path}: qqqq: unknown key (DeepSpeed would ignore it silently); remove it" in reading_refusal(path)


def test_without_an_optimizer_it_is_adamw(tmp_path: Path) -> None:
    config = read_deepspeed_json(written(tmp_path, {"zero_optimization": {"stage": 1}}))
    assert completed(config)["optimizer"] == {
        "type": "AdamW",
        "params": {"torch_adam": True, "lr": 5e-5, "betas": [0.9, 0.95], "eps": 1e-6},
    }


@pytest.mark.parametrize("optimizer", [{"params": {}}, {}])
def test_an_optimizer_has_a_type(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    path = written(tmp_path, {"optimizer": optimizer})
    assert reading_refusal(path) == f'{path}: optimizer.type: required, e.g. "AdamW"; or remove the section'


def test_summed_gradients_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "gradient_allreduce_op": "sum"})
    message = reading_refusal(path)
    assert f"{path}: gradient_allreduce_op: 'sum': ted_ds divides each loss once by its global count" in message


def test_averaged_gradients_are_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "gradient_allreduce_op": "mean"})
    assert read_deepspeed_json(path)["gradient_allreduce_op"] == "mean"


def test_summed_gradients_are_refused_in_any_spelling(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "gradient_allreduce_op": "SUM"})
    assert f"{path}: gradient_allreduce_op: 'SUM'" in reading_refusal(path)


@pytest.mark.parametrize("stage", [4, -1, "2"])
def test_a_stage_that_does_not_exist_is_refused(tmp_path: Path, stage: Any) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "zero_optimization": {"stage": stage}})
    assert f"{path}: zero_optimization.stage: {stage!r}: use 0, 1, 2 or 3" in reading_refusal(path)


@pytest.mark.parametrize("section", ["zero_optimization", "bf16"])
def test_a_section_that_is_no_object_is_refused(tmp_path: Path, section: str) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, "zero_optimization": {"stage": 1}, section: True})
    with pytest.raises(ConfigError, match=section):
        completed(read_deepspeed_json(path), precision="bf16")


@pytest.mark.parametrize("key", ["pipeline", "tensor_parallel", "data_efficiency", "autotuning"])
def test_a_section_that_would_change_the_run_behind_our_back_is_refused(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {"optimizer": OPTIMIZER, key: {}})
    assert reading_refusal(path) == f"{path}: {key}: not supported by ted_ds; remove it"


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "AdamW", "parms": {}}, "optimizer.parms: unknown key; use type and params"),
        ({"type": 5}, "optimizer.type: 5: must be a name"),
        ({"type": "AdamW", "params": []}, "optimizer.params: []: must be a JSON object"),
    ],
)
def test_a_malformed_optimizer_is_refused(tmp_path: Path, optimizer: Any, message: str) -> None:
    path = written(tmp_path, {"optimizer": optimizer})
    assert reading_refusal(path) == f"{path}: {message}"


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, {"gradient_cliping": 1, "gradient_allreduce_op": "sum", "zero_optimization": {"stage": 7}})
    assert len(reading_refusal(path).splitlines()) == 3


# --- the known keys ---------------------------------------------------------------------------------------------------


def test_every_known_key_stands_in_deepspeeds_source() -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    files = (file for file in package.rglob("*.py") if "tests" not in file.relative_to(package).parts)
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    unread = {key for key in TYPES[""] if f'"{key}"' not in source and f"'{key}'" not in source}
    assert not unread


def test_no_known_key_was_removed_from_deepspeed() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS

    assert _REMOVED_TOP_LEVEL_CONFIG_KEYS
    assert not TYPES[""].keys() & _REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()


# --- completing -------------------------------------------------------------------------------------------------------


def test_every_auto_the_recipe_owns_is_filled() -> None:
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
        },
        "scheduler": SCHEDULER,
        "zero_optimization": {"stage": 2},
    }
    plan = PLAN.model_copy(update={"schedule": "deepspeed"})
    result = completed(config, plan=plan, precision="bf16")
    assert result["train_batch_size"] == 32
    assert result["train_micro_batch_size_per_gpu"] == 4
    assert result["gradient_accumulation_steps"] == 4
    assert result["gradient_clipping"] == 0.5
    assert result["bf16"] == {"enabled": True}
    assert result["fp16"] == {"enabled": False}
    assert result["optimizer"]["params"] == {
        "lr": 5e-5,
        "betas": [0.9, 0.95],
        "eps": 1e-6,
        "weight_decay": 0.1,
        "torch_adam": True,
    }
    assert result["scheduler"]["params"] == {"warmup_max_lr": 5e-5, "warmup_num_steps": 10, "total_num_steps": 100}
    assert "auto" not in json.dumps(result)


def test_the_json_that_was_read_is_left_as_it_was() -> None:
    config = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    completed(config)
    assert config == {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}


def test_batch_clipping_and_precision_are_set_where_the_json_is_silent() -> None:
    result = completed({"optimizer": OPTIMIZER, "zero_optimization": {"stage": 1}}, precision="bf16")
    assert result["train_batch_size"] == 32
    assert result["train_micro_batch_size_per_gpu"] == 4
    assert result["gradient_accumulation_steps"] == 4
    assert result["gradient_clipping"] == 0.5
    assert result["bf16"] == {"enabled": True}


def test_clipping_that_is_switched_off_reaches_deepspeed_as_0() -> None:
    plan = PLAN.model_copy(update={"gradient_clipping": 0.0})
    assert completed({"optimizer": OPTIMIZER}, plan=plan)["gradient_clipping"] == 0.0


@pytest.mark.parametrize("optimizer", [{"type": "AdamW", "params": {}}, {"type": "AdamW"}])
def test_optimizer_values_are_set_where_the_json_is_silent(optimizer: dict[str, Any]) -> None:
    params = completed({"optimizer": optimizer}).get("optimizer", {}).get("params", {})
    assert params.get("lr") == 5e-5
    assert params.get("betas") == [0.9, 0.95]
    assert params.get("eps") == 1e-6


@pytest.mark.parametrize(
    ("change", "path", "given", "wanted"),
    [
        ({"train_batch_size": 16}, "train_batch_size", "16", "32"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "8", "4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", "1", "4"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "1.0", "0.5"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr", "0.001", "5e-05"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.8, 0.9]}}},
            "optimizer.params.betas",
            "[0.8, 0.9]",
            "[0.9, 0.95]",
        ),
    ],
)
def test_a_value_that_contradicts_the_recipe_is_refused(
    change: dict[str, Any], path: str, given: str, wanted: str
) -> None:
    message = refusal({"optimizer": OPTIMIZER, **change})
    assert message == f"zero.json: {path}: {given} contradicts the recipe, which says {wanted}; write 'auto'"


@pytest.mark.parametrize(("precision", "enabled"), [("fp32", True), ("bf16", True), ("fp16", False)])
def test_a_precision_that_contradicts_the_recipe_is_told_by_its_key(precision: str, enabled: bool) -> None:
    message = refusal(
        {"optimizer": OPTIMIZER, "fp16": {"enabled": enabled}, "zero_optimization": {"stage": 1}}, precision=precision
    )
    wish = "set precision: fp16, or " if enabled else ""
    assert message == (
        f"zero.json: fp16.enabled: {enabled} contradicts the recipe, whose precision is {precision}; {wish}write 'auto'"
    )


@pytest.mark.parametrize(
    ("change", "path", "given", "key", "default"),
    [
        ({"gradient_clipping": 2.5}, "gradient_clipping", "2.5", "gradient_clipping", None),
        (
            {"optimizer": {"type": "AdamW", "params": {"eps": 1e-4}}},
            "optimizer.params.eps",
            "0.0001",
            "eps",
            None,
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}},
            "scheduler.params.warmup_num_steps",
            "100",
            "warmup_steps",
            "0",
        ),
    ],
)
def test_a_value_beside_a_default_of_the_recipe_is_told_with_the_recipes_key(
    change: dict[str, Any], path: str, given: str, key: str, default: str | None
) -> None:
    plan = PhasePlan(max_steps=4, learning_rate=1e-3, global_batch_size=4, micro_batch_size=2)
    _, messages = filled(
        {"optimizer": OPTIMIZER, **change},
        plan,
        plan_path="distill",
        precision="fp32",
        world_size=1,
        source=Path("zero.json"),
    )
    default = default or repr(getattr(plan, key))
    assert messages == [
        f"zero.json: {path}: {given}, but distill.{key} is {default} (its default): set distill.{key}: {given}, "
        "or write 'auto'"
    ]


def test_the_old_name_of_bf16_cannot_contradict_the_recipe(tmp_path: Path) -> None:
    """DeepSpeed 0.19 still reads ``bfloat16`` where ``bf16`` is not given."""
    config = read_deepspeed_json(written(tmp_path, {"optimizer": OPTIMIZER, "bfloat16": {"enabled": True}}))
    assert refusal(config).startswith("zero.json: bf16.enabled: True contradicts the recipe, whose precision is fp32;")
    both = written(tmp_path, {"optimizer": OPTIMIZER, "bf16": {"enabled": "auto"}, "bfloat16": {"enabled": True}})
    assert reading_refusal(both).startswith(f"{both}: bfloat16: unknown key")


def test_values_that_say_the_same_as_the_recipe_are_accepted() -> None:
    result = completed({"optimizer": {"type": "AdamW", "params": {"lr": 5e-5}}, "gradient_clipping": 0.5})
    assert result["optimizer"]["params"]["lr"] == 5e-5


def test_an_auto_that_nobody_fills_is_refused() -> None:
    message = refusal({"optimizer": OPTIMIZER, "zero_optimization": {"stage": "auto"}, "log_level": "auto"})
    assert message == (
        "zero.json: zero_optimization.stage: 'auto' is not a value the recipe fills in; write a value\n"
        "zero.json: log_level: 'auto' is not a value the recipe fills in; write a value"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_0_in_half_precision_is_refused(precision: str) -> None:
    message = refusal({"optimizer": OPTIMIZER}, precision=precision)
    assert f"zero.json: zero_optimization.stage: 0 with precision {precision}" in message
    assert "use stage 1" in message


def test_stage_0_in_full_precision_is_accepted() -> None:
    assert zero_stage(completed({"optimizer": OPTIMIZER})) == 0


@pytest.mark.parametrize(("ranks", "multiple"), [(3, 12), (16, 64)])
def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(ranks: int, multiple: int) -> None:
    message = refusal({"optimizer": OPTIMIZER}, ranks=ranks)
    assert message == (
        f"distill.global_batch_size: 32 does not divide into microbatches of 4 on {ranks} ranks; "
        f"use a multiple of {multiple}"
    )


@pytest.mark.parametrize(("micro_batch_size", "ranks"), [(3, 1), (5, 4), (64, 2)])
def test_a_batch_of_no_whole_number_of_microbatches_is_left_to_the_plan_to_say(
    micro_batch_size: int, ranks: int
) -> None:
    plan = PLAN.model_copy(update={"micro_batch_size": micro_batch_size})
    (said,) = plan.broken_rules()
    assert said == f"global_batch_size (32) must be a multiple of micro_batch_size ({micro_batch_size})"
    completed({"optimizer": OPTIMIZER}, plan=plan, ranks=ranks)


BY_TOKENS = PLAN.model_copy(update={"micro_batch_size": None, "micro_batch_tokens": 1024})


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 32), (4, 8)])
def test_a_token_budget_gives_deepspeed_values_that_fit_together(ranks: int, accumulation: int) -> None:
    result = completed({"optimizer": OPTIMIZER}, plan=BY_TOKENS, ranks=ranks)
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [result[name] for name in names] == [32, 1, accumulation]


def test_under_a_token_budget_too_the_batch_divides_over_the_ranks() -> None:
    message = refusal({"optimizer": OPTIMIZER}, plan=BY_TOKENS, ranks=3)
    assert message == "distill.global_batch_size: 32 does not divide over 3 ranks; use a multiple of 3"


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_scheduler_block_beside_another_schedule_of_the_recipe_is_refused(schedule: str) -> None:
    plan = PLAN.model_copy(update={"schedule": schedule})
    assert refusal({"optimizer": OPTIMIZER, "scheduler": SCHEDULER}, plan=plan) == (
        f"distill.schedule: {schedule!r}: zero.json has a scheduler block (WarmupDecayLR), which says something else; "
        "remove one of the two"
    )


def test_a_scheduler_block_is_followed_where_the_recipe_says_nothing() -> None:
    config = {"optimizer": OPTIMIZER, "scheduler": SCHEDULER}
    assert schedule_of(config, PLAN) == "deepspeed"
    assert schedule_of({"optimizer": OPTIMIZER}, PLAN) == "linear"
    assert "schedule by WarmupDecayLR of zero.json: distill" in remarks(config, {"distill": PLAN}, Path("zero.json"))


def test_the_schedule_deepspeed_needs_a_scheduler_block() -> None:
    message = refusal({"optimizer": OPTIMIZER}, plan=PLAN.model_copy(update={"schedule": "deepspeed"}))
    assert message == (
        "distill.schedule: 'deepspeed': zero.json has no scheduler block; use linear, cosine or another, or add one"
    )


def test_all_contradictions_are_reported_at_once() -> None:
    message = refusal({"optimizer": OPTIMIZER, "gradient_clipping": 2, "fp16": {"enabled": True}}, ranks=3)
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_config_that_ships_completes(path: Path, ranks: int) -> None:
    config = read_deepspeed_json(path)
    for precision in ("fp32",) if zero_stage(config) == 0 else ("fp32", "bf16", "fp16"):
        result = completed(config, precision=precision, ranks=ranks)
        assert "auto" not in json.dumps(result)
        assert result["train_batch_size"] == ranks * 4 * result["gradient_accumulation_steps"]
