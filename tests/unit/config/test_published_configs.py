"""DeepSpeed files as transformers, accelerate and DeepSpeed publish them: each is taken, or refused for a reason.

Their shapes, written anew: which sections, which keys, where it says ``"auto"``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.deepspeed import (
    complete,
    filled,
    inspect_deepspeed_json,
    read_deepspeed_json,
    schedule_of,
    with_sizes,
)
from ted_ds.config.phase_plan import PhasePlan

PLAN = PhasePlan(max_steps=1000, learning_rate=2e-5, global_batch_size=16, micro_batch_size=8, warmup_steps=50)
HIDDEN = 64
AUTO_BATCH = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
DYNAMIC_SCALE = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2}
FP16 = {"enabled": "auto", **DYNAMIC_SCALE, "min_loss_scale": 1}
ALL_AUTO = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
TWO_AUTO = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}
WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
DECAY = {"type": "WarmupDecayLR", "params": {**WARMUP, "total_num_steps": "auto"}}
ON_CPU = {"device": "cpu", "pin_memory": True}
ZERO_2 = {
    "stage": 2,
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": "auto",
    "contiguous_gradients": True,
}
ZERO_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": "auto",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "transformers, ZeRO-2": {
        "fp16": FP16,
        "bf16": {"enabled": "auto"},
        "optimizer": ALL_AUTO,
        "scheduler": {"type": "WarmupLR", "params": WARMUP},
        "zero_optimization": {**ZERO_2, "reduce_bucket_size": 2e8},
        **AUTO_BATCH,
    },
    "transformers, ZeRO-2 by the old name of bf16": {
        "bfloat16": {"enabled": "auto"},
        "optimizer": ALL_AUTO,
        "scheduler": {"type": "WarmupLR", "params": WARMUP},
        "zero_optimization": {**ZERO_2, "offload_optimizer": ON_CPU},
        **AUTO_BATCH,
    },
    "transformers, ZeRO-3 with everything offloaded": {
        "fp16": FP16,
        "optimizer": ALL_AUTO,
        "scheduler": DECAY,
        "zero_optimization": {
            **ZERO_3,
            "offload_optimizer": ON_CPU,
            "offload_param": {**ON_CPU, "buffer_size": "auto"},
        },
        **AUTO_BATCH,
    },
    "accelerate, ZeRO-1": {
        "fp16": FP16,
        "optimizer": {"type": "AdamW", "params": {**TWO_AUTO["params"], "torch_adam": True, "adam_w_mode": True}},
        "scheduler": DECAY,
        "zero_optimization": {**ZERO_2, "stage": 1},
        **AUTO_BATCH,
        "gradient_accumulation_steps": 1,
    },
    "accelerate, ZeRO-3": {"optimizer": TWO_AUTO, "scheduler": DECAY, "zero_optimization": ZERO_3, **AUTO_BATCH},
    "accelerate, a model alone": {
        "fp16": FP16,
        "bf16": {"enabled": "auto"},
        "zero_optimization": {**ZERO_3, "offload_optimizer": ON_CPU},
        "train_batch_size": 16,
    },
    "DeepSpeed, values that the recipe repeats": {
        "train_batch_size": 16,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 1000, "warmup_num_steps": 50}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 500000000, "overlap_comm": True},
    },
    "DeepSpeed's tuner": {
        "zero_optimization": {**ZERO_3, "stage3_gather_16bit_weights_on_model_save": False, "sub_group_size": 1e12}
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "1-bit Lamb": (
        {"optimizer": {"type": "OneBitLamb", "params": {"freeze_step": 10}}},
        "optimizer.type: 'OneBitLamb'",
    ),
    "tensor parallelism": ({"tensor_parallel": {"autotp_size": 4}}, "tensor_parallel: not supported by ted_ds"),
    "sequence parallelism": (
        {"seq_parallel_communication_data_type": "bf16"},
        "seq_parallel_communication_data_type: not supported by ted_ds",
    ),
    "a bucket of nothing": (
        {"zero_optimization": {**ZERO_3, "reduce_bucket_size": 0}},
        "zero_optimization.reduce_bucket_size: 0: use a whole number above 0",
    ),
    "disk offload, path forgotten": (
        {"zero_optimization": {**ZERO_3, "offload_param": {"device": "nvme", "buffer_size": "auto"}}},
        "zero_optimization.offload_param.nvme_path: ",
    ),
    "ZenFlow": ({"zero_optimization": {**ZERO_2, "zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow: "),
}


def written(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "ds_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_publish_is_filled(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, PUBLISHED[name])
    config = with_sizes(read_deepspeed_json(path), HIDDEN)
    settings: dict[str, Any] = {"plan_path": "distill", "precision": "fp32", "world_size": 2, "source": path}
    result = complete(config, PLAN, **settings)
    assert "auto" not in json.dumps(result)
    assert (result["train_batch_size"], result["gradient_accumulation_steps"]) == (16, 1)
    assert result["optimizer"]["params"]["lr"] == 2e-5
    assert schedule_of(config, PLAN) == ("deepspeed" if "scheduler" in PUBLISHED[name] else "linear")
    if "scheduler" in result:
        own = result["scheduler"]["params"]
        assert (own["warmup_max_lr"], own["warmup_num_steps"], own.get("warmup_min_lr", 0)) == (2e-5, 50, 0)
        assert own.get("total_num_steps", 1000) == 1000


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_for_its_reason_alone(tmp_path: Path, name: str) -> None:
    config, message = REFUSED[name]
    path = written(tmp_path, config)
    (found,) = inspect_deepspeed_json(path)[1]
    assert found.startswith(f"{path}: {message}")


def test_sizes_follow_from_the_students_as_transformers_fills_them(tmp_path: Path) -> None:
    config = read_deepspeed_json(written(tmp_path, {"zero_optimization": ZERO_3}))
    zero = with_sizes(config, 100)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 10_000
    assert zero["stage3_prefetch_bucket_size"] == 9_000
    assert zero["stage3_param_persistence_threshold"] == 1_000
    unknown = with_sizes(config, None)["zero_optimization"]
    assert not {"reduce_bucket_size", "stage3_prefetch_bucket_size"} & unknown.keys()
    assert config["zero_optimization"]["reduce_bucket_size"] == "auto"


def test_values_of_the_file_that_the_recipe_does_not_say_are_named_one_by_one(tmp_path: Path) -> None:
    own = {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7}
    scheduler = {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 500}}
    path = written(tmp_path, {"optimizer": {"type": "AdamW", "params": own}, "scheduler": scheduler})
    config = read_deepspeed_json(path)
    _, found = filled(config, PLAN, plan_path="distill", precision="fp32", world_size=2, source=path)
    places = [message.removeprefix(f"{path}: ").split(":")[0] for message in found]
    assert places == [
        "optimizer.params.lr",
        "optimizer.params.betas",
        "optimizer.params.weight_decay",
        "scheduler.params.warmup_max_lr",
        "scheduler.params.warmup_num_steps",
    ]
    assert all(message.endswith(" write 'auto'") for message in found)
