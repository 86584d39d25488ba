"""Models with quantised weights: read right, planned right, and refused where they cannot do what is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models import packed
from ted_ds.models.families import family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.packed import Stored, read_quantisation, unpack
from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.memory import frozen_bytes
from ted_ds.planning.plan_in_words import describe
from ted_ds.planning.quantised_teacher import quantised_mistakes
from ted_ds.vetting.weights import count_weights
from tests.quantised import rewrite, to_awq, to_fp8, to_gptq, to_nf4
from tests.refusals import without_overrides
from tests.task_kinds import make_plan
from tests.tiny import recipe_dict, write_corpus, write_model, write_recipe

TRAINING = {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
Make = Callable[[Path], Path]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "plain", "llama", hidden=32)


@pytest.fixture
def recipe(plain: Path, tmp_path: Path) -> Path:
    """A teacher, of which a test makes a quantised one, and a student of its own."""
    for name in ("teacher", "student"):
        shutil.copytree(plain, tmp_path / name)
    write_corpus(tmp_path / "train.jsonl")
    settings = {**recipe_dict(tmp_path), "student": {"path": str(tmp_path / "student")}}
    return write_recipe(tmp_path / "recipe.yaml", settings)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every package were there."""
    monkeypatch.setattr(packed, "_is_installed", lambda _: True)


def refusal(recipe: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(recipe, overrides))
    return [line.removeprefix("recipe: ") for line in without_overrides(str(caught.value)).splitlines()]


# --- what files say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [to_fp8, to_gptq, to_awq, to_nf4])
def test_packed_weights_count_as_what_they_stand_for(plain: Path, tmp_path: Path, make: Make) -> None:
    whole = read_model_facts(plain).parameters
    facts = read_model_facts(make(Path(shutil.copytree(plain, tmp_path / "model"))))
    assert facts.parameters.total == whole.total
    assert facts.parameters.in_matrices_of_blocks == whole.in_matrices_of_blocks
    assert [len(block) for block in facts.parameters.of_blocks] == [len(block) for block in whole.of_blocks]


def test_memory_is_that_of_the_files_where_weights_stay_packed(plain: Path, tmp_path: Path) -> None:
    makers = (to_gptq, to_awq, to_nf4, to_fp8)
    copies = {make: Path(shutil.copytree(plain, tmp_path / make.__name__)) for make in makers}
    for make, folder in copies.items():
        parameters = read_model_facts(make(folder)).parameters
        held = frozen_bytes(parameters, host="replica", precision="fp32", world_size=1)
        in_files = sum(one.numel() * one.element_size() for one in load_file(folder / "model.safetensors").values())
        # fp8 is computed in the model's own precision where there is no GPU for it
        assert held == (parameters.total * 4 if make is to_fp8 else in_files)


@pytest.mark.parametrize(
    ("tensors", "bits", "numbers"),
    [
        ({"m.qweight": Stored((32, 12), "I32"), "m.qzeros": Stored((1, 12), "I32")}, 3, 4096),  # GPTQ, 3 bits
        ({"m.qweight": Stored((128, 4), "I32"), "m.scales": Stored((1, 32), "F16")}, 4, 4096),  # AWQ
        ({"m.weight_packed": Stored((32, 16), "I32"), "m.weight_shape": Stored((2,), "I64")}, 4, 4096),
        ({"m.weight": Stored((32, 128), "I8"), "m.SCB": Stored((32,), "F32")}, 8, 4096),
        (
            {"m.weight": Stored((512, 1), "F32"), "m.weight.absmax": Stored((64,), "F32")},
            4,
            4096,
        ),  # bnb's other storage
        (
            {"m._weight_qdata": Stored((32, 128), "I8"), "m._weight_scale": Stored((32, 1), "F32")},
            None,
            4096,
        ),  # torchao
        ({"m.weight": Stored((32, 128), "F8_E4M3"), "m.weight_scale": Stored((32, 1), "BF16")}, None, 4096),
    ],
)
def test_each_layout_is_unpacked(tensors: dict[str, Stored], bits: int | None, numbers: int) -> None:
    bias = {"m.bias": Stored((32,), "F32"), "n.weight": Stored((7, 3), "F32")}
    shapes, found, outside = unpack({**tensors, **bias}, packed.Quantisation("gptq", bits), family_of("llama"))
    (name, *_) = tensors
    assert found.numbers == numbers
    assert shapes.keys() == {name, "m.bias", "n.weight"}
    assert outside == (name,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),
        ({"quant_method": "awq", "w_bit": 4}, "awq, 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "bitsandbytes_4bit"}, "bitsandbytes, 4 bits"),
        ({"quant_method": "mxfp4"}, "mxfp4, 4 bits"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "torchao, 4 bits"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}},
            "compressed-tensors, 4 bits",
        ),
    ],
)
def test_methods_and_bits_are_read(settings: dict[str, Any], words: str) -> None:
    assert str(read_quantisation({"quantization_config": settings})) == words


@pytest.mark.parametrize("settings", [None, {}])
def test_a_model_without_a_method_is_plain(settings: Any) -> None:
    assert read_quantisation({"quantization_config": settings}) is None


@pytest.mark.parametrize("method", ["exl2", None, "marlin"])
def test_a_method_that_transformers_would_skip_is_refused(recipe: Path, method: str | None) -> None:
    """It loads such weights as if they were plain."""
    to_gptq(recipe.parent / "teacher", quant_method=method)
    with pytest.raises(CheckpointError, match=f"quant_method is '{method}', which transformers does not load; use one"):
        read_model_facts(recipe.parent / "teacher")


def test_every_method_of_transformers_is_known() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    # gguf's weights are no folder of safetensors; gemma's are of a type that has no family here
    assert {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING} == {
        *packed.PACKAGES,
        "gguf",
        "gemma",
    }


def test_weights_in_8_bit_floating_point_are_vetted(plain: Path, tmp_path: Path) -> None:
    folder = to_fp8(Path(shutil.copytree(plain, tmp_path / "model")))
    assert count_weights([folder / "model.safetensors"]).nonfinite == ()
    state = load_file(folder / "model.safetensors")
    name = next(name for name, weight in state.items() if weight.dtype == torch.float8_e4m3fn)
    state[name] = torch.full(state[name].shape, float("nan")).to(torch.float8_e4m3fn)
    save_file(state, folder / "model.safetensors")
    assert count_weights([folder / "model.safetensors"]).nonfinite == (name,)


# --- what they can do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "packages"),
    [(to_gptq, "optimum gptqmodel"), (to_awq, "gptqmodel"), (to_nf4, "bitsandbytes")],
    ids=["gptq", "awq", "bitsandbytes"],
)
def test_a_missing_package_is_named_and_nothing_is_written(
    recipe: Path, make: Make, packages: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packed, "_is_installed", lambda _: False)
    make(recipe.parent / "teacher")
    assert main(["check", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert (
        f"teacher.path: its weights are quantised ({make.__name__[3:].replace('nf4', 'bitsandbytes')}, 4 bits)" in error
    )
    assert f"not installed here: pip install {packages}; or use the model in 16 or 32 bits it was made from" in error
    assert not (recipe.parent / "run").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("make", [to_gptq, to_nf4])
def test_a_quantised_teacher_is_planned_whole_on_each_rank(recipe: Path, make: Make) -> None:
    make(recipe.parent / "teacher")
    loaded = load_recipe(recipe)
    plan = make_plan(loaded, num_ranks=2)
    assert ", 4 blocks of width 32, quantised (" in describe(loaded, plan, num_ranks=2)
    (line,) = [one for one in describe_memory(loaded, plan, num_ranks=2).splitlines() if "teacher, per rank" in one]
    assert line.split("per rank: ")[1].startswith("replica ")
    assert "," not in line.split("replica ")[1]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        (
            f"teacher.finetune={TRAINING}",
            "teacher.finetune: the teacher's weights are quantised (gptq, 4 bits) and can",
        ),
        ("teacher.host=int8", "teacher.host: int8 cannot hold this teacher: its weights are quantised (gptq, 4 bits)"),
        ("teacher.host=zero3", "teacher.host: zero3 cannot hold this teacher: its weights are quantised"),
        ("teacher.host=cpu_offload", "teacher.host: cpu_offload cannot hold this teacher"),
        ("pipeline.stages=2", "pipeline.stages: the teacher's weights are quantised (gptq, 4 bits) and cannot be cut"),
        ("torch_compile=true", "torch_compile: the teacher's weights are quantised (gptq, 4 bits), which was not"),
    ],
)
def test_what_a_quantised_teacher_cannot_do_is_refused(recipe: Path, override: str, phrase: str) -> None:
    to_gptq(recipe.parent / "teacher")
    assert any(line.startswith(phrase) for line in refusal(recipe, override))


@pytest.mark.usefixtures("installed")
def test_a_quantised_teacher_is_not_cached(recipe: Path) -> None:
    facts = read_model_facts(to_gptq(recipe.parent / "teacher"))
    settings = recipe_dict(recipe.parent, kind="sequence_classification")
    settings |= {"teacher": {"path": "teacher", "cache": {"max_gib": 1}}, "student": {"path": "student"}}
    (line,) = quantised_mistakes(Recipe.model_validate(settings), facts, None)
    assert line.startswith(
        "teacher.cache: the teacher's weights are quantised (gptq, 4 bits), which was not tried with"
    )


@pytest.mark.usefixtures("installed")
def test_no_student_is_cut_out_of_a_quantised_teacher(recipe: Path) -> None:
    to_nf4(recipe.parent / "teacher")
    lines = refusal(recipe, "student={from_teacher: {blocks: [0, 3]}}")
    assert lines[0].startswith(
        "student.from_teacher: the teacher's weights are quantised (bitsandbytes, 4 bits), and no student that trains "
        "can be cut out of it; give student.path, or use the model in 16 or 32 bits"
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("make", [to_gptq, to_fp8])
def test_a_quantised_student_is_refused(recipe: Path, make: Make) -> None:
    make(recipe.parent / "student")
    (line,) = refusal(recipe)
    assert line.startswith("student.path: its weights are quantised (")
    assert "and a student's are trained; use the model in 16 or 32 bits it was made from, or dequantise it" in line


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        (
            {"load_in_8bit": True},
            "quantization_config.llm_int8_threshold is 6.0, by which the columns to compute in 16",
        ),
        ({"load_in_8bit": True, "llm_int8_threshold": 3}, "llm_int8_threshold is 3, by which the columns"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"input_activations": {"dynamic": True, "strategy": "tensor"}}},
            },
            "scales the activations of a batch at once (input_activations: dynamic, strategy tensor); use a model that",
        ),
    ],
)
def test_a_method_whose_rows_depend_on_each_other_is_refused(
    recipe: Path, settings: dict[str, Any], phrase: str
) -> None:
    """Seen with bitsandbytes: a row changed by 0.03 once another in its batch had an outlier of 50."""
    rewrite(recipe.parent / "teacher", settings, lambda name, weight: {name: weight.to(torch.int8)})
    (line,) = refusal(recipe)
    assert line.startswith(
        "teacher.path: what is made of a text would depend on the texts beside it: quantization_conf"
    )
    assert phrase in line
    rewrite(recipe.parent / "teacher", {"load_in_8bit": True, "llm_int8_threshold": 0.0}, lambda name, one: {name: one})
    assert make_plan(load_recipe(recipe)).teacher is not None


@pytest.mark.usefixtures("installed")
def test_a_quantised_head_is_refused(recipe: Path) -> None:
    teacher = to_gptq(recipe.parent / "teacher")
    state = load_file(teacher / "model.safetensors")
    state["lm_head.qweight"] = torch.zeros(4, state.pop("lm_head.weight").shape[0], dtype=torch.int32)
    save_file(state, teacher / "model.safetensors")
    assert "teacher.path: quantised beyond its blocks (lm_head.qweight), but the losses" in "\n".join(refusal(recipe))


def test_all_that_is_wrong_with_it_is_said_at_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_is_installed", lambda module: module != "gptqmodel")
    to_gptq(recipe.parent / "teacher")
    lines = refusal(recipe, f"teacher.finetune={json.dumps(TRAINING)}", "teacher.host=zero3")
    assert [line.partition(":")[0] for line in lines] == ["teacher.finetune", "teacher.host", "teacher.path"]
    assert "pip install gptqmodel;" in lines[-1]
