"""Sections of a DeepSpeed JSON: the tables against DeepSpeed's own, and what is refused, said, or allowed."""

from __future__ import annotations

import importlib.util
import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
from pydantic import BaseModel

from ted_ds.config.deepspeed import inspect_deepspeed_json, remarks
from ted_ds.config.deepspeed_keys import COUNT, NUMBER, REMOVED, STAGE_3_KEYS, SWITCH, TYPES
from ted_ds.config.deepspeed_sections import MONITORS, MUST_BE, UNTESTED

OPTIMIZER = {"type": "AdamW", "params": {"lr": "auto"}}
CLASSES: dict[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "tensorboard": TensorBoardConfig,
    "csv_monitor": CSVConfig,
    "wandb": WandbConfig,
    "comet": CometConfig,
    "comms_logger": CommsLoggerConfig,
}


def problems(tmp_path: Path, config: dict[str, Any]) -> list[str]:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"optimizer": OPTIMIZER, **config}), encoding="utf-8")
    return [one.removeprefix(f"{path}: ") for one in inspect_deepspeed_json(path)[1]]


# --- the tables against DeepSpeed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", CLASSES)
def test_the_keys_of_a_section_are_deepspeeds(section: str) -> None:
    fields = CLASSES[section].model_fields
    assert set(TYPES[section]) == {field.alias or name for name, field in fields.items()} | {
        place.rpartition(".")[2] for place in REMOVED if place.startswith(f"{section}.") and place in TYPES[section]
    }


@pytest.mark.parametrize("section", CLASSES)
def test_the_types_of_keys_are_deepspeeds(section: str) -> None:
    for name, field in CLASSES[section].model_fields.items():
        annotation = field.annotation
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        kind = TYPES[section][field.alias or name]
        assert (annotation is bool) == (kind == SWITCH), name
        assert (annotation is float) <= (kind == NUMBER), name
        assert (kind == COUNT) <= (annotation is int or name == "stage"), name


def test_the_keys_with_two_names_are_deepspeeds() -> None:
    aliases = {field.alias: name for name, field in DeepSpeedZeroConfig.model_fields.items() if field.alias}
    assert aliases == {key: key.removeprefix("stage3_") for key in STAGE_3_KEYS}


def test_what_deepspeed_no_longer_has_is_told_in_its_own_words() -> None:
    own = dict(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    own |= {f"zero_optimization.{key}": text for key, text in deepspeed_config._REMOVED_ZERO_CONFIG_KEYS.items()}
    assert set(REMOVED) == set(own)
    assert all(own[key].startswith(words) for key, words in REMOVED.items())


def test_values_that_must_be_are_of_known_keys_and_deepspeeds_defaults_are_among_them() -> None:
    for place, (allowed, _) in MUST_BE.items():
        section, _, key = place.rpartition(".")
        if section in ("autotuning", "compile", "data_efficiency"):  # of these the one switch is known
            continue
        assert key in TYPES[section], place
        if section in CLASSES:
            by_key = {field.alias or name: field for name, field in CLASSES[section].model_fields.items()}
            assert by_key[key].default in (*allowed, None), place


def test_untested_values_are_other_than_deepspeeds_defaults() -> None:
    for place, tested in UNTESTED.items():
        section, _, key = place.rpartition(".")
        field = {field.alias or name: field for name, field in CLASSES[section].model_fields.items()}[key]
        if field.default_factory is None:
            assert field.default in (tested if isinstance(tested, tuple) else (tested,)), place


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"overlap_com": True}}, "overlap_com: unknown key; did you mean 'overlap_comm'?"),
        ({"zero_optimization": {"qqqq": True}}, "qqqq: unknown key of zero_optimization; remove it"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm: 'yes': use true or false"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size: 0: use a whole number above 0"),
        ({"zero_optimization": {"sub_group_size": "1e9"}}, "sub_group_size: '1e9': use a whole number, 0 or more"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: True: use 0, 1, 2 or 3"),
        ({"gradient_clipping": True}, "gradient_clipping: True: use a number"),
        ({"wall_clock_breakdown": "false"}, "wall_clock_breakdown: 'false': use true or false"),
        (
            {"log_level": "shout"},
            "log_level: 'shout': is not one of the valid logging levels; use debug, info, warning",
        ),
        ({"bf16": {"enable": True}}, "bf16.enable: unknown key; did you mean 'enabled'?"),
        ({"fp16": {"opt_level": "O2"}}, "fp16.opt_level: unknown key of fp16; remove it"),
        ({"timers": {"throughput": {"enabled": 1}}}, "timers.throughput.enabled: 1: use true or false"),
        ({"amp": {"enabled": True}}, "amp: DeepSpeed no longer has it: 'NVIDIA Apex AMP integration has been removed'"),
        ({"elasticity": {"enabled": False}}, "elasticity: DeepSpeed no longer has it: 'Elastic training"),
        ({"zero_optimization": {"stage": 3, "zeropp_loco_param": {}}}, "zeropp_loco_param: DeepSpeed no longer has it"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine: not supported by ted_ds; remove it"),
        (
            {"torch_autocast": {"enabled": True}},
            "torch_autocast.enabled: True: contradicts the recipe's precision: only",
        ),
        ({"communication_data_type": "fp16"}, "communication_data_type: 'fp16': it sends or keeps rounded numbers"),
        ({"prescale_gradients": True}, "prescale_gradients: True: ted_ds divides each loss once by its global count"),
        ({"gradient_predivide_factor": 4}, "gradient_predivide_factor: 4: ted_ds divides each loss once"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype: 'bf16': a step's gradient is su"),
        ({"data_types": {"param_dtype": "bf16"}}, "data_types.param_dtype: 'bf16': only precision in the recipe"),
        ({"bf16": {"bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states: True: it sends or keeps rounded nu"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights: True: it sends"),
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}},
            "zero_hpz_partition_size: 2: weights would",
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, 'write "offload_optimizer": {"device": "cpu"}'),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zenflow: {'topk_ratio': 0.1}: it takes"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile: True: not supported by ted_ds; the recipe has tor"),
        ({"activation_checkpointing": {"partition_activations": True}}, "the recipe has activation_checkpointing"),
        ({"wandb": {"enabled": True}}, "wandb.enabled: True: the recipe's tracking section decides what goes to W&B"),
        ({"comet": {"api_key": "x"}}, "comet.api_key: secrets do not belong into files; set $COMET_API_KEY"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            'offload_param.nvme_path: "nvme_path" in DeepSpeed Config cannot be None if remote device is nvme',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "disk"}}},
            "zero_optimization.offload_optimizer.device: 'disk': use none, cpu or nvme",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: 'cpu' is for ZeRO stage 3 alone, and this is 2; remove it",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: 'cpu' is for ZeRO stage 3 alone, and this is 0; remove it",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer: 'cpu' is for ZeRO stages 1 to 3; set zero_optimization.stage",
        ),
        (
            {"zero_optimization": {"max_live_parameters": 1, "stage3_max_live_parameters": 2}},
            "zero_optimization.max_live_parameters: unknown key; did you mean 'stage3_max_live_parameters'?",
        ),
    ],
)
def test_what_breaks_a_promise_or_cannot_be_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (found,) = problems(tmp_path, config)
    assert message in found


@pytest.mark.parametrize("section", MONITORS)
def test_a_monitor_that_is_not_installed_is_refused_in_deepspeeds_words(tmp_path: Path, section: str) -> None:
    module, package = MONITORS[section]
    found = problems(tmp_path, {section: {"enabled": True}})
    if importlib.util.find_spec(module) is None:
        wish = f"If you want to use {section} logging, please `pip install {package}`"
        assert found == [f"{section}.enabled: True: {wish}; or switch it off"]
    else:
        assert found == []
    assert problems(tmp_path, {section: {"enabled": False}}) == []


def test_a_monitor_that_is_installed_may_be_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = MONITORS["comet"]
    (tmp_path / "packages" / module).mkdir(parents=True)
    (tmp_path / "packages" / module / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert problems(tmp_path, {"comet": {"enabled": True}}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"torch_autocast": {"enabled": False}, "communication_data_type": None, "gradient_predivide_factor": 1.0},
        {"autotuning": {"enabled": False}, "data_efficiency": {"enabled": False}},
        {"zero_optimization": {"stage": 3, "sub_group_size": 1e9, "elastic_checkpoint": False}},
        {"zero_optimization": {"stage": 3, "param_persistence_threshold": 10, "offload_param": None}},
        {"flops_profiler": {"enabled": True, "module_depth": -1, "output_file": None}, "steps_per_print": 2000},
        {"csv_monitor": {"enabled": True, "output_path": "somewhere"}, "scheduler": None, "bf16": None},
        {"activation_checkpointing": {"partition_activations": False, "number_checkpoints": None}},
    ],
)
def test_what_changes_nothing_is_accepted(tmp_path: Path, config: dict[str, Any]) -> None:
    assert problems(tmp_path, config) == []


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("steps_per_print", (0, -1, 2.5, "inf", -float("inf"), True)),
        ("fp16.loss_scale", (-5, "dynamic", True, float("inf"))),
        ("fp16.initial_scale_power", (-3, 500, 1.5)),
        ("fp16.loss_scale_window", (0, -1)),
        ("fp16.hysteresis", (0,)),
        ("fp16.min_loss_scale", (0, -1)),
        ("zero_optimization.allgather_bucket_size", (0,)),
        ("aio.queue_depth", (0, "8")),
        ("zero_optimization.offload_optimizer.ratio", (1.5, -0.1)),
        ("comet.samples_log_interval", (0,)),
        ("flops_profiler.top_modules", (0,)),
    ],
)
def test_a_number_out_of_its_range_is_refused(tmp_path: Path, place: str, values: tuple[Any, ...]) -> None:
    for value in values:
        config = value
        for key in reversed(place.split(".")):
            config = {key: config}
        (found,) = problems(tmp_path, config)
        assert found.startswith(f"{place}: {value!r}: use a "), found


def test_an_infinite_interval_of_printing_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"steps_per_print": Infinity}', encoding="utf-8")
    config, found = inspect_deepspeed_json(path)
    assert found == []
    assert config is not None
    assert "steps_per_print" not in config


SECTIONS = sorted({*TYPES, "optimizer", "scheduler", "zero_optimization.leaf_module"} - {""})


@pytest.mark.parametrize("place", SECTIONS)
@pytest.mark.parametrize("value", ["auto", 3, [], "none"])
def test_a_section_that_is_no_object_is_refused_once(tmp_path: Path, place: str, value: Any) -> None:
    config = value
    for key in reversed(place.split(".")):
        config = {key: config}
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    left, (found,) = inspect_deepspeed_json(path)
    assert found == f'{path}: {place}: {value!r}: this section is a JSON object; "auto" is for values in it'
    assert left is not None
    assert "auto" not in left.values()


@pytest.mark.parametrize("stage", [9, "auto", "two", True])
def test_offloading_is_not_judged_by_a_stage_that_is_wrong(tmp_path: Path, stage: Any) -> None:
    offload = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    found = problems(tmp_path, {"zero_optimization": {"stage": stage, **offload}})
    assert [one.partition(":")[0] for one in found] == ["zero_optimization.stage"] * (stage != "auto")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"aio": {"thread_count": 1}}, "aio.thread_count: unknown key: DeepSpeed's old name; write intra_op_paralleli"),
        (
            {"zero_optimization": {"aio": {"block_size": 1}}},
            "zero_optimization.aio: unknown key: it belongs to the top",
        ),
        ({"bf16": {"gradient_clipping": 1}}, "bf16.gradient_clipping: unknown key: it belongs to the top level"),
        ({"overlap_comm": True}, "overlap_comm: unknown key: it belongs into zero_optimization"),
        ({"zero_optimization": {"loss_scale": 0}}, "zero_optimization.loss_scale: unknown key: it belongs into fp16"),
        ({"_comment": "x"}, "_comment: unknown key: JSON has no comments; remove it"),
        ({"zero_optimization": {"//stage": 1}}, "zero_optimization.//stage: unknown key: JSON has no comments; remove"),
        ({"": 1}, '"": unknown key: it is empty; remove it'),
        ({"fp16": {"": 1}}, 'fp16."": unknown key: it is empty; remove it'),
        ({"optimizer": {"type": "sgd"}}, "optimizer.type: 'sgd': sgd is not a supported DeepSpeed Optimizer; did you "),
        ({"scheduler": {"type": "warmuplr"}}, "lr, or ted_ds does not support it; did you mean 'WarmupLR'?"),
        ({"scheduler": {"type": "ONECYCLE"}}, "did you mean 'OneCycle'?"),
    ],
)
def test_a_key_or_name_that_is_nearly_right_is_told_what_it_may_be(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (found,) = problems(tmp_path, config)
    assert message in found


def test_a_section_in_the_wrong_place_is_looked_into(tmp_path: Path) -> None:
    found = problems(tmp_path, {"zero_optimization": {"stage": 3, "aio": {"thread_count": 1, "queue_depth": 8}}})
    assert found == [
        "zero_optimization.aio: unknown key: it belongs to the top level",
        "aio.thread_count: unknown key: DeepSpeed's old name; write intra_op_parallelism",
    ]


@pytest.mark.parametrize("depth", [300, 900, 5000])
def test_a_deep_json_is_one_message(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"bf16": ' * depth + "1" + "}" * depth, encoding="utf-8")
    (found,) = inspect_deepspeed_json(path)[1]
    assert "more than 50 objects or lists within each other" in found


@pytest.mark.parametrize("key", ["cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"])
def test_a_key_with_a_new_name_is_not_told_to_go(tmp_path: Path, key: str) -> None:
    (found,) = problems(tmp_path, {"zero_optimization": {"stage": 2, key: True}})
    assert "its old name; write" in found
    assert "remove it" not in found


@pytest.mark.parametrize(("section", "key"), [("flops_profiler", "output_file"), ("csv_monitor", "output_path")])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, section: str, key: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    below = tmp_path / "file" / "deep" / "place"
    config = {section: {"enabled": True, key: str(below)}}
    assert problems(tmp_path, config) == [
        f"{section}.{key}: {below}: {tmp_path}/file is a file, and must be a folder; give another place"
    ]
    config[section][key] = str(tmp_path / "file" if key == "output_path" else tmp_path)
    (found,) = problems(tmp_path, config)
    assert ": is a " in found
    assert ", and must be a " in found
    for quiet in ({"enabled": False, key: str(below)}, {"enabled": True, key: str(tmp_path / "new" / "one")}):
        assert problems(tmp_path, {section: quiet}) == []


def test_a_disk_to_swap_to_is_looked_at_where_it_is_and_told_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    config = {
        "optimizer": OPTIMIZER,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": str(tmp_path / "file")}},
    }
    (found,) = problems(tmp_path, config)
    assert found.startswith(f"zero_optimization.offload_param.nvme_path: {tmp_path}/file: is a file, and must be a fo")
    config["zero_optimization"]["offload_param"]["nvme_path"] = "/local_nvme_of_nodes"
    assert problems(tmp_path, config) == []
    assert any(
        "offload_param.nvme_path: /local_nvme_of_nodes is not on this machine" in one
        for one in remarks(config, {}, Path("zero.json"))
    )


# --- keys given twice, comments, encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ('{"bf16": {}, "zero_optimization": {"stage": 1}, "bf16": {}}', ["bf16"]),
        ('{"zero_optimization": {"stage": 1, "stage": 3}}', ["zero_optimization.stage"]),
        (
            '{"optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": "auto", "lr": "auto", "eps": "auto"}}}',
            ["optimizer.params.lr", "optimizer.params.eps"],
        ),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "device": "none"}}}',
            ["zero_optimization.offload_param.device"],
        ),
    ],
)
def test_a_key_that_is_given_twice_is_refused_at_any_depth(tmp_path: Path, content: str, places: list[str]) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content, encoding="utf-8")
    assert inspect_deepspeed_json(path)[1] == [
        f"{path}: {place}: given twice; JSON takes the last one without a word: keep one" for place in places
    ]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"steps_per_print": 0, "steps_per_print": "x"}', "steps_per_print"),
        (
            '{"zero_optimization": {"stage": 9, "stage": 7, "offload_param": {"device": "cpu"}}}',
            "zero_optimization.stage",
        ),
        ('{"optimizer": {"type": "Q", "type": "R"}}', "optimizer.type"),
        ('{"scheduler": {"type": "Q"}, "scheduler": {"type": "R", "x": 1}}', "scheduler"),
    ],
)
def test_what_is_given_twice_is_not_judged_further(tmp_path: Path, content: str, place: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content, encoding="utf-8")
    config, (message,) = inspect_deepspeed_json(path)
    assert message.startswith(f"{path}: {place}: given twice")
    assert config is not None
    assert "type" in config["optimizer"]
    assert "type" in config.get("scheduler", {"type": ""})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"bf16": {"enabled": true,}}', "column 27: a comma with nothing behind it; remove it"),
        ('{"comms_logger": {"prof_ops": ["a",]}}', "a comma with nothing behind it; remove it"),
        ("{'bf16': {}}", "line 1, column 2: a single quote; JSON has double ones"),
        ("{\"log_level\": 'info'}", "line 1, column 15: a single quote; JSON has double ones"),
        ('{"bf16": {"enabled": True}}', "line 1, column 22: True is Python; write true"),
        ('{"scheduler": None}', "None is Python; write null"),
        ('{"bf16": {"enabled": true}', "the file ends too early; close every { [ and quote"),
        ('{"bf16": {}}}', "line 1, column 13: more text behind the end of the object; remove it"),
        ("{bf16: 1}", "line 1, column 2: a key in double quotes must stand here, not 'bf16: 1}'"),
        ('{"a" 1}', "Expecting ':' delimiter, not '1}'"),
        ("  ", "the file is empty; {} is the least"),
        ("[" * 200_000, "more than 50 objects or lists within each other"),
    ],
)
def test_what_is_no_json_is_told_in_words_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content, encoding="utf-8")
    config, (found,) = inspect_deepspeed_json(path)
    assert config is None
    assert found.startswith(f"{path}: not readable as JSON: ")
    assert message in found


def test_a_folder_is_no_deepspeed_json(tmp_path: Path) -> None:
    assert inspect_deepspeed_json(tmp_path) == (None, [f"{tmp_path}: is a folder; give the file"])


@pytest.mark.parametrize("comment", ["// ZeRO", "# ZeRO", "/* ZeRO */"])
def test_comments_are_no_json(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(f'{{\n  {comment}\n  "zero_optimization": {{"stage": 1}}\n}}', encoding="utf-8")
    config, (message,) = inspect_deepspeed_json(path)
    assert config is None
    assert message.startswith(f"{path}: not readable as JSON: line 2, column 3: ")
    assert message.endswith("JSON has no comments, which DeepSpeed's own reader would pass over: remove them")


def test_a_file_of_another_encoding_is_refused_and_a_mark_of_utf_8_is_not(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"log_level": "\u00e9"}', encoding="utf-16")
    assert "not UTF-8 text" in inspect_deepspeed_json(path)[1][0]
    path.write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8-sig")
    assert inspect_deepspeed_json(path)[1] == []


# --- what is said -----------------------------------------------------------------------------------------------------


def test_one_mistake_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(
        json.dumps(
            {
                "gradient_cliping": 1,
                "optimizer": {"type": "AdamWW"},
                "scheduler": {"type": "Cosine"},
                "zero_optimization": {"stage": 9, "overlap_com": True},
                "bf16": {"enabled": 1},
            }
        )
    )
    config, found = inspect_deepspeed_json(path)
    assert len(found) == 6
    assert config == {
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 1},
        "bf16": {},
    }


def test_what_no_test_compares_is_said(tmp_path: Path) -> None:
    config = {
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
        "zero_optimization": {
            "stage": 3,
            "reduce_scatter": True,
            "round_robin_gradients": True,
            "memory_efficient_linear": "auto",
            "offload_optimizer": {"device": "cpu", "ratio": 0.5},
        },
    }
    (line,) = remarks(config, {}, Path("zero.json"))
    assert line.startswith(
        "zero.json: zero_optimization.offload_optimizer.ratio, zero_optimization.round_robin_gradients: no test "
    )
