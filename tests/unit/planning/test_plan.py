"""The plan: every mistake that shows without weights, and the run laid out."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.models.families import FAMILY_OF
from ted_ds.planning.plan import Plan
from ted_ds.planning.plan_in_words import describe
from tests.task_kinds import make_plan, plan_recipe
from tests.tiny import CAUSAL_LM_TYPES, LABELS, ROOT, TYPES_WITH_LABELS, WORDS, write_model, write_tokenizer

TRAINING = "{max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"


def plan(run: Path, *overrides: str, ranks: int = 1) -> Plan:
    return make_plan(load_recipe(run / "recipe.yaml", overrides), num_ranks=ranks, source="tiny.yaml")


def refusal(run: Path, *overrides: str, ranks: int = 1) -> str:
    """The message, of which each line must name the recipe first; without that name."""
    with pytest.raises(ConfigError) as caught:
        plan(run, *overrides, ranks=ranks)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("tiny.yaml: ") for line in lines), lines
    return "\n".join(line.removeprefix("tiny.yaml: ") for line in lines)


@pytest.fixture
def teacher(lm_run: Path, tmp_path: Path) -> Path:
    """A copy of the teacher that a test may damage."""
    return Path(shutil.copytree(lm_run / "teacher", tmp_path / "copy"))


# --- a good recipe ----------------------------------------------------------------------------------------------------


def test_a_cut_student_is_planned_from_the_teachers_files(lm_run: Path) -> None:
    result = plan(lm_run)
    assert result.teacher is not None
    assert result.student is not None
    assert (result.teacher.model_type, result.teacher.num_blocks, result.teacher.hidden_size) == ("llama", 4, 16)
    assert (result.student.num_blocks, result.student.hidden_size) == (2, 16)
    assert result.layer_pairs == ((1, 2), (2, 4))
    assert result.filter_dim == 16


def test_the_filters_width_can_be_chosen(lm_run: Path) -> None:
    assert plan(lm_run, "filters.dim=8").filter_dim == 8


@pytest.mark.parametrize(
    ("overrides", "phases"),
    [
        ((), "cut_student filters_teacher filters_student distill evaluate export"),
        (("distill.method=lwd",), "cut_student distill evaluate export"),
        (("distill.method=kd",), "cut_student distill evaluate export"),
        (("distill.method=sft",), "cut_student distill evaluate export"),
        (
            (f"teacher.finetune={TRAINING}", f"student.finetune={TRAINING}"),
            "finetune_teacher cut_student finetune_student filters_teacher filters_student distill evaluate export",
        ),
        (
            (f"student.finetune={TRAINING}", "distill.method=kd"),
            "cut_student finetune_student distill evaluate export",
        ),
    ],
)
def test_phases_follow_from_the_method_and_the_origins(lm_run: Path, overrides: tuple[str, ...], phases: str) -> None:
    assert plan(lm_run, *overrides).phases == tuple(phases.split())


def test_a_pretrained_student_is_not_cut(lm_run: Path, teacher: Path) -> None:
    result = plan(lm_run, "student.from_teacher=null", f"student.path={teacher}")
    assert result.phases == ("filters_teacher", "filters_student", "distill", "evaluate", "export")


def test_blocks_may_be_repeated_and_in_any_order_where_that_is_said(lm_run: Path) -> None:
    deeper = plan(lm_run, "student.from_teacher.blocks=[0,0,1,1,2,2]", "layer_map.num_pairs=3")
    assert deeper.student is not None
    assert deeper.student.num_blocks == 6
    assert deeper.layer_pairs == ((2, 1), (4, 2), (6, 4))
    other = plan(lm_run, "student.from_teacher={blocks: [3, 0], any_order: true}")
    assert other.student is not None
    assert other.student.num_blocks == 2


@pytest.mark.parametrize(("method", "pairs", "dim"), [("ted", 2, 8), ("lwd", 2, 16), ("kd", 0, 0), ("sft", 0, 0)])
def test_only_methods_that_match_layers_have_pairs(lm_run: Path, method: str, pairs: int, dim: int) -> None:
    result = plan(lm_run, f"distill.method={method}", "filters.dim=8")
    assert len(result.layer_pairs) == pairs
    assert result.filter_dim == dim


def test_hub_names_leave_the_facts_open(lm_run: Path) -> None:
    result = plan(lm_run, "teacher.path=org/teacher", "student.from_teacher=null", "student.path=org/student")
    assert result.teacher is None
    assert result.student is None
    assert result.layer_pairs == ()
    assert result.phases[-1] == "export"


def test_the_description_tells_models_layers_phases_and_batches(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml")
    text = describe(recipe, make_plan(recipe, num_ranks=2), num_ranks=2)
    assert "tiny: causal_lm by ted, 2 ranks, fp32" in text
    assert "teacher   llama, 4 blocks of width 16" in text
    assert "student<-teacher 1<-2 2<-4, matched in 16 dimensions" in text
    assert "cut_student > filters_teacher > filters_student > distill > evaluate > export" in text
    assert "2 steps x 4 sequences = 2 ranks x 1 microbatch x 2; at most 128 tokens" in text


def test_the_description_tells_a_token_budget(classification_run: Path) -> None:
    by_tokens = ["distill.micro_batch_size=null", "distill.micro_batch_tokens=2048"]
    recipe = load_recipe(classification_run / "recipe.yaml", by_tokens)
    text = describe(recipe, make_plan(recipe, num_ranks=2), num_ranks=2)
    assert "2 steps x 4 sequences = 2 ranks x microbatches of at most 2,048 padded tokens; at most 128 tokens" in text


def test_the_description_tells_where_checkpoints_are_kept_too(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", ["checkpoint.upload={to: 'file:///mnt/kept'}"])
    text = describe(recipe, make_plan(recipe, num_ranks=2), num_ranks=2)
    assert "\nupload    checkpoints and complete phases also to file:///mnt/kept, read back; a run whose folder" in text
    recipe = load_recipe(lm_run / "recipe.yaml", ["checkpoint.upload={to: 'gs://bucket/kept'}"])
    with pytest.raises(ConfigError, match=r"checkpoint\.upload\.to: gs://bucket/kept: gs:// needs the package gcsfs"):
        make_plan(recipe, num_ranks=2)


# --- model files ------------------------------------------------------------------------------------------------------


def test_a_missing_model_folder_is_refused(lm_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refusal(lm_run, f"teacher.path={path}") == f"teacher.path: {path}: no such model folder"


@pytest.mark.parametrize("path", ["./none", "../none"])
def test_a_path_that_starts_with_a_dot_is_never_taken_for_a_hub_name(lm_run: Path, path: str) -> None:
    assert refusal(lm_run, f"teacher.path={path}") == f"teacher.path: {path}: no such model folder"


def test_a_folder_without_a_config_is_refused(lm_run: Path, teacher: Path) -> None:
    (teacher / "config.json").unlink()
    assert f"teacher.path: {teacher}: no config.json here" in refusal(lm_run, f"teacher.path={teacher}")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "llama"}'])
def test_a_config_that_is_no_models_is_refused(lm_run: Path, teacher: Path, content: str) -> None:
    (teacher / "config.json").write_text(content, encoding="utf-8")
    assert "config.json: not a transformers model config" in refusal(lm_run, f"teacher.path={teacher}")


def test_missing_weights_are_refused(lm_run: Path, teacher: Path) -> None:
    (teacher / "model.safetensors").unlink()
    assert f"{teacher}: no *.safetensors weights here" in refusal(lm_run, f"teacher.path={teacher}")


@pytest.mark.parametrize(
    ("kept_bytes", "phrase"),
    [
        (-1, "copy it again"),
        (200, "damaged or not a safetensors file"),
        (4, "damaged or not a safetensors file"),
        (0, "damaged or not a safetensors file"),
    ],
)
def test_a_truncated_weight_file_is_refused(lm_run: Path, teacher: Path, kept_bytes: int, phrase: str) -> None:
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept_bytes])
    message = refusal(lm_run, f"teacher.path={teacher}")
    assert f"teacher.path: {weights}: " in message
    assert phrase in message


def test_a_weight_file_with_a_damaged_header_is_refused(lm_run: Path, teacher: Path) -> None:
    weights = teacher / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8] = ord("x")
    weights.write_bytes(content)
    assert f"teacher.path: {weights}: damaged or not a safetensors file" in refusal(lm_run, f"teacher.path={teacher}")


def sharded(teacher: Path) -> Path:
    state = load_file(teacher / "model.safetensors")
    (teacher / "model.safetensors").unlink()
    weight_map = {name: f"model-{index % 2 + 1:05d}-of-00002.safetensors" for index, name in enumerate(state)}
    for file in sorted(set(weight_map.values())):
        save_file({name: state[name] for name in state if weight_map[name] == file}, teacher / file)
    index_file = teacher / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return index_file


def test_sharded_weights_are_accepted_when_whole(lm_run: Path, teacher: Path) -> None:
    sharded(teacher)
    assert plan(lm_run, f"teacher.path={teacher}").teacher is not None


def test_a_shard_that_the_index_names_must_be_there(lm_run: Path, teacher: Path) -> None:
    sharded(teacher)
    shard = teacher / "model-00002-of-00002.safetensors"
    shard.unlink()
    assert f"{shard}: missing, but model.safetensors.index.json names it" in refusal(lm_run, f"teacher.path={teacher}")


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_index_is_refused_by_its_name(lm_run: Path, teacher: Path, content: str) -> None:
    index_file = sharded(teacher)
    index_file.write_text(content, encoding="utf-8")
    assert str(index_file) in refusal(lm_run, f"teacher.path={teacher}")


# --- teacher, student and task fit together ---------------------------------------------------------------------------


def test_a_model_type_without_a_family_is_refused(
    lm_run: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    (teacher / "config.json").write_text(json.dumps({**config, "model_type": "blenderbot"}), encoding="utf-8")
    message = refusal(lm_run, f"teacher.path={teacher}")
    assert (
        f"teacher.path: {teacher / 'config.json'}: model type 'blenderbot' has no record here, and no family" in message
    )
    assert "its structure: it has an encoder and a decoder" in message


USES = {
    "cut": ((), "student.from_teacher: the teacher is a llama, which cannot be cut by blocks here, as {}; give stu"),
    "zero3": (
        (f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}",),
        "deepspeed: the teacher is a llama, which cannot be sharded by ZeRO-3 here, as {}; use a DeepSpeed JSON of",
    ),
    "pipeline": (
        ("pipeline.stages=2", "student.from_teacher.blocks=[0,1,3]"),
        "pipeline.stages: the teacher is a llama, which cannot be cut into stages of a pipeline here, as {}; use pi",
    ),
    "isolated documents": (
        (),
        "task.packing.isolate_documents: the teacher is a llama, which cannot keep documents in one sequence apart "
        "here, as {}; set it to false",
    ),
    "padding on the left": (
        ("data.padding.side=left",),
        "data.padding.side: the teacher is a llama, which is not padded on the left here, as {}; use right",
    ),
    "activation checkpointing": (
        ("activation_checkpointing=true",),
        "activation_checkpointing: the teacher is a llama, which cannot compute its activations again here, as {}; set",
    ),
    "torch_compile": (
        ("torch_compile=true",),
        "torch_compile: the teacher is a llama, which is not compiled here, as {}; remove it",
    ),
    "int8": (
        ("teacher.host=int8",),
        "teacher.host: the teacher is a llama, which is not held in 8 bits here, as {}; use replica or zero3",
    ),
    "adapters": (
        ("student.lora={rank: 2}",),
        "student.lora: the teacher is a llama, which takes no adapters here, as {}; remove it, and train all weights",
    ),
    "CausalLM": ((), "task.kind: the teacher is a llama, which is not used for causal_lm here, as {}; use a model of"),
}


@pytest.mark.parametrize("use", USES)
def test_a_use_that_a_family_is_refused_for_is_named_with_the_reason(
    lm_run: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    overrides, message = USES[use]
    record = replace(FAMILY_OF["llama"], refused={use: "it differs by 2.8"})
    families: Any = FAMILY_OF
    monkeypatch.setitem(families._own, "llama", record)
    found = refusal(lm_run, *overrides, ranks=2 if use == "pipeline" else 1)
    assert message.format("it differs by 2.8") in found
    assert found.count("it differs by 2.8") == 1
    monkeypatch.setitem(families._own, "llama", replace(record, refused={"drop": "it differs"}))
    if use in ("cut", "isolated documents", "CausalLM"):
        plan(lm_run, *overrides)


def test_an_encoder_is_refused_as_causal_lm(lm_run: Path, classification_run: Path) -> None:
    message = refusal(lm_run, f"teacher.path={classification_run / 'teacher'}")
    assert "teacher.path: a bert is no causal LM; use one of llama, mistral, qwen2, qwen3, gpt2" in message


def test_different_tokenizers_are_refused_with_the_first_ids_that_differ(lm_run: Path, teacher: Path) -> None:
    words = list(WORDS)
    words[0], words[1] = words[1], words[0]
    write_tokenizer(teacher, words)
    message = refusal(lm_run, "student.from_teacher=null", f"student.path={teacher}")
    assert "student.path: teacher and student have different tokenizers (2 ids differ: " in message
    assert "id 5 is 'ba' to the teacher and 'be' to the student; id 6 is 'be' to the teacher" in message


def test_a_damaged_tokenizer_is_refused_by_its_name(lm_run: Path, teacher: Path) -> None:
    (teacher / "tokenizer.json").write_text("{", encoding="utf-8")
    message = refusal(lm_run, "student.from_teacher=null", f"student.path={teacher}")
    assert str(teacher) in message


@pytest.mark.parametrize("method", ["sft", "kd", "lwd", "ted"])
def test_vocabulary_sizes_may_differ_where_the_tokenizers_are_the_same(
    lm_run: Path, tmp_path: Path, method: str
) -> None:
    student = write_model(tmp_path / "student", "llama", vocab=128)
    overrides = ("student.from_teacher=null", f"student.path={student}", f"distill.method={method}")
    result = plan(lm_run, *overrides)
    assert result.teacher is not None
    assert result.student is not None
    assert (result.teacher.vocab_size, result.student.vocab_size) == (100, 128)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(lm_run: Path, tmp_path: Path) -> None:
    student = write_model(tmp_path / "student", "llama", vocab=99)
    message = refusal(lm_run, "student.from_teacher=null", f"student.path={student}")
    assert message.startswith(
        "student.path: its tokenizer gives 'zu' the id 99, but the model has embeddings for 0..98"
    )


def test_a_sequence_longer_than_the_model_allows_is_refused_once(lm_run: Path) -> None:
    message = refusal(lm_run, "task.sequence_length=65")
    assert "teacher.path: task.sequence_length is 65, but this model allows at most 64 tokens" in message
    assert "student.path" not in message, "the recipe cuts its student and has no student.path"


@pytest.mark.parametrize(
    ("length", "multiple_of", "padded"), [(64, 1, None), (64, 8, None), (57, 8, None), (50, 48, 96), (64, 10, 70)]
)
def test_padding_may_not_go_beyond_what_the_model_allows(
    lm_run: Path, length: int, multiple_of: int, padded: int | None
) -> None:
    overrides = (f"task.sequence_length={length}", f"data.padding.multiple_of={multiple_of}")
    if padded is None:
        assert plan(lm_run, *overrides).teacher is not None
        return
    assert refusal(lm_run, *overrides) == (
        f"teacher.path: task.sequence_length is {length}, padded to {padded}, but this model allows at most 64 tokens; "
        "lower task.sequence_length"
    )


def test_padding_beyond_what_a_classifier_allows_is_refused(classification_run: Path) -> None:
    message = refusal(classification_run, "task.max_length=60", "data.padding.multiple_of=50")
    assert "teacher.path: task.max_length is 60, padded to 100, but this model allows at most 64 tokens" in message


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_padding_on_the_left_is_refused_for_an_encoder(
    classification_run: Path, tmp_path: Path, model_type: str
) -> None:
    encoder = write_model(tmp_path / "encoder", model_type, labels=LABELS)
    overrides = ("student.from_teacher=null", f"student.path={encoder}", "data.padding.side=left")
    assert refusal(classification_run, *overrides).splitlines() == [
        "teacher.path: data.padding.side is left, but a bert reads its first token; use right",
        f"student.path: data.padding.side is left, but a {model_type} reads its first token; use right",
    ]


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
def test_a_model_without_that_attention_is_refused(classification_run: Path, tmp_path: Path, attention: str) -> None:
    encoder = write_model(tmp_path / "encoder", "deberta-v2", labels=LABELS)
    overrides = (f"teacher.path={encoder}", "precision=bf16", "deepspeed=ds_configs/deepspeed/zero1.json")
    message = f"teacher.path: a deberta-v2 has no {attention} attention; use attention: auto"
    assert refusal(classification_run, *overrides, f"attention={attention}") == message
    assert plan(classification_run, *overrides, "attention=eager").teacher is not None


def test_flash_attention_in_fp32_is_refused(lm_run: Path) -> None:
    with pytest.raises(ConfigError, match="attention: flash needs precision bf16 or fp16; use sdpa with fp32"):
        plan(lm_run, "attention=flash", "precision=fp32")


def test_packed_attention_is_refused_where_it_would_do_nothing_or_drop_something(
    lm_run: Path, classification_run: Path, tmp_path: Path
) -> None:
    nothing = "attention: packed is for sequences of several isolated documents, and there are none; use sdpa"
    for run, override in ((classification_run, ()), (lm_run, ("task.packing.isolate_documents=false",))):
        with pytest.raises(ConfigError, match=nothing):
            plan(run, "attention=packed", *override)
    assert plan(lm_run, "attention=packed", "torch_compile=true").student is not None
    teacher = write_model(tmp_path / "teacher", "gpt2", blocks=4, attn_pdrop=0.1)
    overrides = ("attention=packed", f"teacher.path={teacher}")
    assert refusal(lm_run, *overrides) == (
        "attention: packed drops no weights of attention, but the student trains with attn_pdrop 0.1; set "
        "student.dropout.attention to 0, or use sdpa"
    )
    plan(lm_run, *overrides, "student.dropout.attention=0")


def test_compiled_blocks_under_zero3_are_refused(lm_run: Path) -> None:
    zero3 = ROOT / "ds_configs" / "deepspeed" / "zero3.json"
    message = refusal(lm_run, "torch_compile=true", f"deepspeed={zero3}")
    assert message.startswith(f"torch_compile: {zero3} shards weights (ZeRO-3)")
    assert message.endswith("use ZeRO stage 0, 1 or 2, or remove it")
    plan(lm_run, "torch_compile=true", "activation_checkpointing=true")


def test_routers_with_a_loss_of_all_blocks_are_refused_on_a_pipeline(lm_run: Path, tmp_path: Path) -> None:
    moe = write_model(tmp_path / "moe", "mixtral", output_router_logits=True)
    plain = write_model(tmp_path / "plain", "mixtral")
    message = (
        "its config.json has output_router_logits: true: its routers have an auxiliary loss of all blocks together, "
        "and no stage of a pipeline has them all; set it to false, or use pipeline.stages: 1"
    )
    piped = ("pipeline.stages=2", f"teacher.path={moe}")
    assert refusal(lm_run, *piped, ranks=2) == f"teacher.path: {message}"  # the student is cut out of it
    as_student = ("student.from_teacher=null", f"student.path={moe}")
    assert refusal(lm_run, "pipeline.stages=2", *as_student, ranks=2) == f"student.path: {message}"
    frozen = ("student.from_teacher=null", f"student.path={plain}")
    assert plan(lm_run, *piped, *frozen, ranks=2).stages
    assert refusal(lm_run, *piped, *frozen, f"teacher.finetune={TRAINING}", ranks=2) == f"teacher.path: {message}"
    assert plan(lm_run, f"teacher.path={moe}").student is not None


def test_a_dense_student_of_a_mixture_of_experts_and_what_of_it_a_token_uses(lm_run: Path, tmp_path: Path) -> None:
    moe = write_model(tmp_path / "moe", "mixtral")
    dense = write_model(tmp_path / "dense", "mistral", blocks=2, hidden=8)
    changes = ("student.from_teacher=null", f"student.path={dense}", f"teacher.path={moe}")
    found = plan(lm_run, *changes)
    assert found.layer_pairs == ((1, 2), (2, 4))
    lines = describe(load_recipe(lm_run / "recipe.yaml", changes), found, num_ranks=1).splitlines()
    assert "teacher   mixtral, 4 blocks of width 16 with 3 experts, of which a token goes through 2" in lines
    assert "student   mistral, 2 blocks of width 8" in lines


@pytest.mark.parametrize("model_type", CAUSAL_LM_TYPES)
def test_padding_on_the_left_suits_every_decoder(
    lm_run: Path, classification_run: Path, tmp_path: Path, model_type: str
) -> None:
    overrides = (f"teacher.path={tmp_path / model_type}", "data.padding.side=left", "data.padding.multiple_of=8")
    write_model(tmp_path / model_type, model_type)
    assert plan(lm_run, *overrides).teacher is not None
    if model_type in TYPES_WITH_LABELS:
        write_model(tmp_path / model_type, model_type, labels=LABELS)
        assert plan(classification_run, *overrides).teacher is not None


def test_a_text_longer_than_the_model_allows_is_refused(classification_run: Path) -> None:
    message = refusal(classification_run, "task.max_length=100")
    assert "task.max_length is 100, but this model allows at most 64 tokens; lower task.max_length" in message


def test_a_teacher_without_a_classification_head_must_be_finetuned(classification_run: Path, tmp_path: Path) -> None:
    body = write_model(tmp_path / "body", "bert")
    message = refusal(classification_run, f"teacher.path={body}")
    assert "teacher.path: a BertModel has no head for sequence_classification and its predictions" in message
    assert "add teacher.finetune" in message
    assert plan(classification_run, f"teacher.path={body}", f"teacher.finetune={TRAINING}").teacher is not None


def test_a_teacher_with_labels_in_another_order_is_refused(classification_run: Path) -> None:
    message = refusal(classification_run, "task.labels=[positive,negative]")
    assert (
        "teacher.path: its labels are ['negative', 'positive'], task.labels are ['positive', 'negative']; "
        "predictions are compared by id: give task.labels in the model's order"
    ) in message


def test_a_teacher_with_another_number_of_unnamed_labels_is_refused(classification_run: Path, tmp_path: Path) -> None:
    three = write_model(tmp_path / "three", "bert", labels=["LABEL_0", "LABEL_1", "LABEL_2"])
    message = refusal(classification_run, f"teacher.path={three}")
    assert message.startswith("teacher.path: ")
    assert "labels" in message


def test_a_student_with_labels_in_another_order_is_refused_unless_finetuned(
    classification_run: Path, tmp_path: Path
) -> None:
    student = write_model(tmp_path / "student", "bert", labels=["positive", "negative"])
    overrides = ("student.from_teacher=null", f"student.path={student}")
    assert "student.path: its labels are ['positive', 'negative']" in refusal(classification_run, *overrides)
    assert plan(classification_run, *overrides, f"student.finetune={TRAINING}").student is not None


def test_a_layer_that_does_not_exist_is_refused(lm_run: Path) -> None:
    message = refusal(lm_run, "layer_map.kind=explicit", "layer_map.pairs=[[1,2],[2,5]]")
    assert message == (
        "layer_map.pairs[1]: teacher block 5 does not exist (the model has 4 blocks); use 1..4, or 0 for the embeddings"
    )


def test_a_strategy_that_does_not_fit_the_depths_is_refused(lm_run: Path) -> None:
    message = refusal(lm_run, "layer_map.num_pairs=3")
    assert message.startswith("layer_map: uniform with 3 pairs does not fit 2 student and 4 teacher blocks")


def test_a_block_to_cut_that_does_not_exist_is_refused(lm_run: Path) -> None:
    assert refusal(lm_run, "student.from_teacher.blocks=[0,4]") == (
        "student.from_teacher.blocks: block 4 does not exist (the teacher has 4 blocks, numbered from 0); use 0..3"
    )


# --- data, ranks, output ----------------------------------------------------------------------------------------------


def test_missing_data_files_are_refused(lm_run: Path) -> None:
    message = refusal(lm_run, "data.train[0].path=/none.jsonl", "data.evaluation=[{path: /held.csv}]")
    assert message.splitlines() == [
        "data.train[0].path: /none.jsonl: no such data file or folder",
        "data.evaluation[0].path: /held.csv: no such data file or folder",
    ]


def test_a_missing_deepspeed_config_is_refused(lm_run: Path) -> None:
    assert refusal(lm_run, "deepspeed=/none.json").startswith("deepspeed: /none.json: no such DeepSpeed config")


@pytest.mark.parametrize("inside", ["", "run", "a/../b"])
def test_an_output_dir_in_a_model_folder_is_refused(lm_run: Path, inside: str) -> None:
    folder = Path(load_recipe(lm_run / "recipe.yaml").teacher.path)
    output = f"{folder}/{inside}".rstrip("/")
    assert refusal(lm_run, f"output_dir={output}") == (
        f"output_dir: {Path(output)} is in the model folder {folder}, which a run would write into; give another folder"
    )


def test_an_output_dir_in_a_model_folder_is_refused_through_a_link(lm_run: Path, tmp_path: Path) -> None:
    folder = Path(load_recipe(lm_run / "recipe.yaml").teacher.path)
    (tmp_path / "link").symlink_to(folder)
    assert "is in the model folder" in refusal(lm_run, f"output_dir={tmp_path}/link/run")


def test_an_output_dir_beside_a_model_folder_of_a_like_name_is_accepted(lm_run: Path) -> None:
    folder = Path(load_recipe(lm_run / "recipe.yaml").teacher.path)
    assert plan(lm_run, f"output_dir={folder}-run")


def test_an_output_dir_that_is_a_file_is_refused(lm_run: Path) -> None:
    file = lm_run / "train.jsonl"
    assert refusal(lm_run, f"output_dir={file}") == f"output_dir: {file} is a file; give a folder"


def test_batches_of_every_trained_phase_must_divide_over_the_ranks(lm_run: Path) -> None:
    lines = refusal(lm_run, ranks=3).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "filters.teacher.global_batch_size",
        "filters.student.global_batch_size",
        "distill.global_batch_size",
    ]


def test_all_mistakes_are_reported_at_once(lm_run: Path) -> None:
    message = refusal(
        lm_run,
        "data.train[0].path=/none.jsonl",
        "student.from_teacher.blocks=[7]",
        "task.sequence_length=100",
        "deepspeed=/none.json",
        "output_dir=" + str(lm_run / "train.jsonl"),
    )
    places = [line.partition(":")[0] for line in message.splitlines()]
    assert places == ["deepspeed", "data.train[0].path", "student.from_teacher.blocks", "output_dir", "teacher.path"]


def test_mistakes_of_recipe_and_files_are_reported_at_once(lm_run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(
            str(lm_run / "recipe.yaml"),
            [
                "distill.kl_wieght=2",
                "distill.max_steps=many",
                "data.train[0].path=/none.jsonl",
                "student.from_teacher.blocks=[7]",
                "task.sequence_length=100",
                "deepspeed=/none.json",
            ],
        )
    prefix = f"{lm_run / 'recipe.yaml'}: "
    lines = str(caught.value).splitlines()
    assert all(line.startswith(prefix) for line in lines)
    assert [line.removeprefix(prefix).partition(":")[0] for line in lines] == [
        "distill.max_steps",
        "distill.kl_wieght",
        "deepspeed",
        "data.train[0].path",
        "student.from_teacher.blocks",
        "teacher.path",
    ]


@pytest.mark.parametrize(
    ("unknown", "place"),
    [("task.kind=poetry", "task.kind"), ("task=null", "task"), ("data.glue=rt", "data.glue")],
)
def test_what_does_not_depend_on_the_task_is_looked_at_without_one(lm_run: Path, unknown: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(
            str(lm_run / "recipe.yaml"),
            [
                unknown,
                "distill.kl_wieght=2",
                "distill.max_steps=9",
                "distill.micro_batch_size=3",
                "data.train[0].path=/none.jsonl",
                "data.train[1].path=x",
                "seed",
                "student.from_teacher.blocks=[0,7,8]",
                "layer_map={kind: explicit, pairs: [[1, 2], [4, 1], [2, 5]]}",
                "deepspeed=/none.json",
                "tracking.project=${nowhere}",
            ],
        )
    lines = [line.removeprefix(f"{lm_run / 'recipe.yaml'}: ") for line in str(caught.value).splitlines()]
    assert sorted(line.rpartition(" (given as ")[0] or line for line in lines if not line.startswith(place)) == [
        "command line: 'data.train[1].path=x': data.train has 1 entry, numbered from 0; write the whole list to add "
        "one",
        "command line: 'seed': an override has the form a.b=value or a.b[0].c=value",
        "data.train[0].path: /none.jsonl: no such data file or folder",
        "deepspeed: /none.json: no such DeepSpeed config; give a file, or one that ships: zero0, zero1, zero2, zero3",
        "distill.kl_wieght: unknown key; did you mean 'kl_weight'?",
        "distill: global_batch_size (4) must be a multiple of micro_batch_size (3)",
        "layer_map.pairs[1]: student block 4 does not exist (the model has 3 blocks); use 1..3, or 0 for the "
        "embeddings",
        "layer_map.pairs[2]: teacher block 5 does not exist (the model has 4 blocks); use 1..4, or 0 for the "
        "embeddings",
        "student.from_teacher.blocks: block 7 does not exist (the teacher has 4 blocks, numbered from 0); use 0..3",
        "student.from_teacher.blocks: block 8 does not exist (the teacher has 4 blocks, numbered from 0); use 0..3",
        "tracking.project: ${nowhere}: the recipe has no such key",
    ]
    assert len([line for line in lines if line.startswith(place)]) == 1


def test_layers_of_a_model_that_is_known_are_looked_at_beside_one_that_is_not(lm_run: Path) -> None:
    outside = "layer_map={kind: explicit, pairs: [[3, 9]]}"
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(lm_run / "recipe.yaml"), ["teacher.path=/none", outside])
    assert "layer_map.pairs[0]: student block 3 does not exist (the model has 2 blocks)" in str(caught.value)
    assert "teacher block" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(lm_run / "recipe.yaml"), ["student={path: /none}", outside])
    assert "layer_map.pairs[0]: teacher block 9 does not exist (the model has 4 blocks)" in str(caught.value)
    assert "student block" not in str(caught.value)


def test_a_row_that_a_run_would_refuse_is_refused_with_the_other_mistakes(
    classification_run: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "ba", "label": "joyful"}\n{"text": "be", "label": "dull"}\n', encoding="utf-8")
    message = refusal(classification_run, f"data.train[0].path={rows}", "deepspeed=/none.json")
    assert f"data.train[0]: {rows}: row 1: label 'joyful' is unknown" in message
    assert "deepspeed: /none.json" in message
    other = refusal(classification_run, f"data.evaluation=[{{path: {rows}}}]", "task.text_column=sentence")
    assert "data.evaluation[0]: " in other
    assert "no column 'sentence'; it has text, label" in other
    assert "data.train[0]: " in other


def test_the_plan_shows_what_the_data_hold(classification_run: Path) -> None:
    recipe = load_recipe(classification_run / "recipe.yaml")
    text = describe(recipe, make_plan(recipe), num_ranks=1)
    assert "data.train[0] 1 file; first " in text
    assert "text (text), label (" in text


def test_several_mistakes_of_one_model_are_reported_at_once(lm_run: Path, classification_run: Path) -> None:
    message = refusal(
        lm_run,
        f"teacher.path={classification_run / 'teacher'}",
        "task.sequence_length=100",
        "data.padding.side=left",
    )
    assert "teacher.path: a bert is no causal LM" in message
    assert "teacher.path: task.sequence_length is 100" in message
    assert "teacher.path: data.padding.side is left" in message


# --- without torch ----------------------------------------------------------------------------------------------------


def test_planning_imports_no_torch() -> None:
    code = "import ted_ds.planning.plan, ted_ds.cli, ted_ds.config.load, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("run_name", ["lm_run", "classification_run"])
def test_check_takes_less_than_two_seconds_and_no_torch(run_name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(run_name)
    code = (
        "import sys; from ted_ds.cli import main; "
        f"code = main(['check', {str(run / 'recipe.yaml')!r}, '--ranks', '2']); "
        "assert not {'torch', 'transformers', 'deepspeed', 'datasets'} & sys.modules.keys(); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor, as this machine may be at other work; on an idle one as much passes on the clock
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert "phases    cut_student > filters_teacher" in done.stdout


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "settings", "unknown"),
    [
        ("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}, "spiral"),
        ("rope_scaling", {"type": "su", "factor": 4.0}, "su"),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}, "other": {"rope_type": "odd"}}, "odd"),
    ],
)
def test_a_rule_for_positions_that_nobody_knows_is_refused(
    lm_run: Path, teacher: Path, key: str, settings: dict[str, object], unknown: str
) -> None:
    file = teacher / "config.json"
    config = json.loads(file.read_text()) | {"rope_parameters": None}
    file.write_text(json.dumps({**config, key: settings}))
    assert refusal(lm_run, f"teacher.path={teacher}") == (
        f"teacher.path: its config.json has rope_type '{unknown}', a rule for positions that is not known here; known "
        "are default, linear, proportional, yarn, llama3, dynamic, longrope"
    )


@pytest.mark.parametrize("rule", ["longrope", "dynamic", "yarn", None])
def test_known_rules_for_positions_are_let_in_up_to_the_longest_sequence(
    lm_run: Path, teacher: Path, rule: str | None
) -> None:
    file = teacher / "config.json"
    settings = rule and {"rope_type": rule, "factor": 4.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": settings}))
    assert plan(lm_run, f"teacher.path={teacher}", "task.sequence_length=64").teacher is not None
    assert "allows at most 64 tokens" in refusal(lm_run, f"teacher.path={teacher}", "task.sequence_length=65")


def test_the_rules_for_positions_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from ted_ds.models.rope_rules import KNOWN_RULES

    assert {*KNOWN_RULES} == {"default", *ROPE_INIT_FUNCTIONS}


# --- the DeepSpeed JSON beside the recipe -----------------------------------------------------------------------------


def test_mistakes_of_the_json_hide_none_of_the_recipe_beside_it_and_are_told_once(lm_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"gradient_cliping": 1, "bf16": {"enabled": True}, "optimizer": {"type": "Adm"}}))
    message = refusal(lm_run, f"deepspeed={path}", "distill.global_batch_size=6", "teacher.path=no/model/here", ranks=2)
    for told in (
        f"deepspeed: {path}: gradient_cliping: unknown key; did you mean 'gradient_clipping'?",
        f"deepspeed: {path}: optimizer.type: 'Adm': Adm is not a supported DeepSpeed Optimizer",
        f"{path}: bf16.enabled: True contradicts the recipe, whose precision is fp32; set precision: bf16, or write",
        "distill.global_batch_size: 6 does not divide into microbatches of 2 on 2 ranks",
        "teacher.path: no/model/here: no such model folder",
    ):
        assert message.count(told) == 1, message  # though three phases train


def test_what_is_right_and_worth_saying_is_in_the_description(lm_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    scheduler = {"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}}
    zero = {"stage": 1, "round_robin_gradients": True}
    path.write_text(json.dumps({"scheduler": scheduler, "zero_optimization": zero}))
    overrides = (f"deepspeed={path}", "distill.method=kd")
    recipe = load_recipe(lm_run / "recipe.yaml", overrides)
    notes = [line for line in describe(recipe, plan(lm_run, *overrides), num_ranks=1).splitlines() if "note  " in line]
    assert notes == [
        "note      without effect: filters (distill.method: kd)",
        f"note      schedule by WarmupLR of {path}: distill",
        f"note      optimizer: torch's AdamW with the recipe's values; {path} says no more",
        f"note      {path}: zero_optimization.round_robin_gradients: no test compares steps with this set over ranks "
        "and ZeRO stages; without it they are known to be the same",
    ]


def test_labelled_sets_without_any_label_to_be_scored_by_are_refused(classification_run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in ("a", "b")]
    for path in paths:
        path.write_text('{"text": "w1", "label": null}\n{"text": "w2", "label": -100}\n')
    train, evaluation = (
        f"data.{part}=[{{path: {path}}}]" for part, path in zip(("train", "evaluation"), paths, strict=True)
    )
    message = "no row has a label to be scored by; give data."
    assert f"data.train: {message}validation rows with labels" in refusal(classification_run, train)
    assert f"data.evaluation: {message}evaluation rows with labels" in refusal(classification_run, evaluation)
    for part in ("validation", "test"):
        given = f"data.{part}=[{{path: {paths[1]}}}]"
        assert f"data.{part}: {message}{part} rows with labels" in refusal(classification_run, given)
    with paths[1].open("a") as file:
        file.write('{"text": "w3", "label": 0}\n')
    assert plan(classification_run, train, evaluation).data["data.evaluation[0]"].num_unlabelled == 2
