"""A student cut out of a teacher: exactly the teacher's blocks, and a folder transformers loads completely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from ted_ds.errors import CheckpointError
from ted_ds.models.companions import Origins
from ted_ds.models.cut_config import config_of_blocks, refuse_other_blocks
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.parts import blocks_of
from tests.tiny import CAUSAL_LM_TYPES as DECODERS
from tests.tiny import DECODERS_WITH_LABELS, ENCODERS, LABELS, write_model

BLOCKS = [0, 2, 3]
IDS = torch.tensor([[3, 10, 20, 30, 4], [3, 50, 60, 4, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def cut_out(teacher: Path, student: Path, blocks: list[int]) -> Path:
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    cut(teacher, student, blocks=blocks, family=family_of(config["model_type"]), origins=Origins(teacher, None))
    return student


def loaded(folder: Path, auto: Any) -> PreTrainedModel:
    """The model, of which no weight may be missing or left over."""
    model, report = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def assert_is_cut(teacher: PreTrainedModel, student: PreTrainedModel, blocks: list[int]) -> None:
    """The student's blocks are the teacher's of these numbers, and all else is the teacher's."""
    family = family_of(teacher.config.model_type)
    is_body = teacher.base_model is teacher
    path = family.blocks_path.split(".", 1)[1] if is_body else family.blocks_path
    of_teacher, of_student = teacher.state_dict(), student.state_dict()
    num_layers = len(blocks)
    if family.num_shared_key is not None:  # fewer passes through the same weights
        blocks = [*range(len([*teacher.get_submodule(path).children()]))]
    for name, value in of_student.items():
        if name.startswith(f"{path}."):
            number, rest = name.removeprefix(f"{path}.").split(".", 1)
            name = f"{path}.{blocks[int(number)]}.{rest}"
        assert torch.equal(value, of_teacher[name]), name
    assert len([*student.get_submodule(path).children()]) == len(blocks)
    assert student.config.num_hidden_layers == num_layers


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_causal_lm_is_cut_with_its_head(tmp_path: Path, family: str, tied: bool) -> None:
    teacher = write_model(tmp_path / "teacher", family, tie_word_embeddings=tied)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert_is_cut(loaded(teacher, AutoModelForCausalLM), loaded(student, AutoModelForCausalLM), BLOCKS)


@pytest.mark.parametrize("family", [*DECODERS_WITH_LABELS, *ENCODERS])
def test_a_classifier_is_cut_with_its_head_and_labels(tmp_path: Path, family: str) -> None:
    teacher = write_model(tmp_path / "teacher", family, labels=LABELS)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    auto = AutoModelForSequenceClassification
    assert_is_cut(loaded(teacher, auto), loaded(student, auto), BLOCKS)
    assert loaded(student, auto).config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("family", ENCODERS)
def test_a_bare_body_is_cut(tmp_path: Path, family: str) -> None:
    teacher = write_model(tmp_path / "teacher", family)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert_is_cut(loaded(teacher, AutoModel), loaded(student, AutoModel), BLOCKS)


@pytest.mark.parametrize("family", DECODERS)
def test_a_bare_decoder_body_is_cut(tmp_path: Path, family: str) -> None:
    write_model(tmp_path / "lm", family)
    AutoModel.from_pretrained(tmp_path / "lm").save_pretrained(tmp_path / "teacher")
    student = cut_out(tmp_path / "teacher", tmp_path / "student", BLOCKS)
    assert_is_cut(loaded(tmp_path / "teacher", AutoModel), loaded(student, AutoModel), BLOCKS)


@pytest.mark.parametrize("family", [*DECODERS_WITH_LABELS, *ENCODERS])
def test_the_first_blocks_alone_compute_the_teachers_own_states(tmp_path: Path, family: str) -> None:
    teacher = write_model(tmp_path / "teacher", family, labels=LABELS)
    student = cut_out(teacher, tmp_path / "student", [0, 1])
    with torch.no_grad():
        of_teacher, of_student = (
            loaded(folder, AutoModelForSequenceClassification)(IDS, attention_mask=MASK, output_hidden_states=True)
            for folder in (teacher, student)
        )
    for layer in (0, 1):  # the student's last one may be behind its final norm
        kept = MASK.bool()
        assert torch.equal(of_student.hidden_states[layer][kept], of_teacher.hidden_states[layer][kept])


def test_all_blocks_give_the_teacher_itself(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "llama")
    student = cut_out(teacher, tmp_path / "student", [0, 1, 2, 3])
    assert load_file(student / "model.safetensors").keys() == load_file(teacher / "model.safetensors").keys()
    with torch.no_grad():
        logits = [loaded(folder, AutoModelForCausalLM)(IDS).logits for folder in (teacher, student)]
    assert torch.equal(*logits)


def test_attention_kinds_go_with_their_blocks(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    teacher = write_model(tmp_path / "teacher", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    config = loaded(student, AutoModelForCausalLM).config
    assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert config.sliding_window == 8


def test_the_config_changes_in_depth_alone(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "gpt2")
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    before, after = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (teacher, student))
    assert after == {**before, "n_layer": 3}


def test_the_tokenizer_comes_along_and_no_other_weights(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "llama")
    others = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "trainer_state.json")
    for name in (*others, "README.md", "LICENSE.txt", "USE_POLICY.md", "chat_template.jinja"):
        (teacher / name).write_text("{}", encoding="utf-8")
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert sorted(path.name for path in student.iterdir()) == [
        "LICENSE.txt",
        "README.teacher.md",
        "USE_POLICY.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (teacher, student)]
    assert vocabularies[0] == vocabularies[1]


def shard(teacher: Path) -> None:
    AutoModelForCausalLM.from_pretrained(teacher).save_pretrained(teacher, max_shard_size="8KB")
    assert (teacher / "model.safetensors.index.json").is_file()
    (teacher / "model.safetensors").unlink(missing_ok=True)


def test_a_teacher_in_several_files_is_cut_into_one(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "llama")
    shard(teacher)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert [path.name for path in student.glob("*.safetensors*")] == ["model.safetensors"]
    assert_is_cut(loaded(teacher, AutoModelForCausalLM), loaded(student, AutoModelForCausalLM), BLOCKS)


def test_weights_that_the_index_does_not_name_are_left_out(tmp_path: Path) -> None:
    """Mistral's folders hold the same weights once more, in its own names, as consolidated.safetensors."""
    teacher = write_model(tmp_path / "teacher", "mistral")
    shard(teacher)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, teacher / "consolidated.safetensors")
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert "layers.0.attention.wq.weight" not in load_file(student / "model.safetensors")


def test_a_block_that_the_files_lack_is_refused(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "llama")
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    (teacher / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no weights of block 9 found; cut from a complete model folder"):
        cut_out(teacher, tmp_path / "student", [0, 9])


def test_a_block_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "llama")
    with pytest.raises(CheckpointError, match=r"teacher: block 9 does not exist \(the model has 4 blocks\); use 0..3$"):
        cut_out(teacher, tmp_path / "student", [0, 9])


# --- blocks that differ by their number -------------------------------------------------------------------------------

BY_NUMBER: list[tuple[str, dict[str, Any], list[int]]] = [
    # the last two slide, which transformers works out of a number in the config
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}, [0, 2]),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}, [1, 3]),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 9}, [1, 2]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, [1, 3]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, [0, 3]),
    ("deberta-v2", {"conv_kernel_size": 3}, [0, 2, 3]),
    ("deberta-v2", {"conv_kernel_size": 3}, [1, 3]),
    ("mistral", {"sliding_window": 3}, [2]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, [0, 0, 3, 3, 3]),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}, [3, 0, 0]),
    # every second block sees all, or forgets positions, or has no experts
    ("gemma2", {"sliding_window": 2}, [1, 2]),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 2, "sliding_window": 2}, [1, 2]),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 2}, [1, 2]),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}, [1, 3]),
    ("qwen3_moe", {"mlp_only_layers": [0, 3]}, [1, 3]),
    ("opt", {"do_layer_norm_before": False}, [0, 3]),
    # global and local attention by turns, which transformers works out of a number
    ("modernbert", {"global_attn_every_n_layers": 2, "local_attention": 2}, [0, 1, 3]),
    ("modernbert", {"global_attn_every_n_layers": 3, "local_attention": 2}, [0, 3]),
]


def outputs_of_blocks(model: PreTrainedModel, given: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """What some blocks put out, as the model runs them, where they are given another state than they would have."""
    found: dict[int, torch.Tensor] = {}
    blocks = blocks_of(model, family_of(model.config.model_type))
    for number, state in given.items():
        blocks[number].register_forward_pre_hook(lambda _, rest, state=state: (state, *rest[1:]))

        def keep(_module: Any, _inputs: Any, output: Any, number: int = number) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        blocks[number].register_forward_hook(keep)
    with torch.no_grad():
        model(IDS, attention_mask=MASK)
    return found


@pytest.mark.parametrize(("family", "changes", "blocks"), BY_NUMBER)
def test_each_block_does_in_the_student_what_it_did_in_the_teacher(
    tmp_path: Path, family: str, changes: dict[str, Any], blocks: list[int]
) -> None:
    teacher = write_model(tmp_path / "teacher", family, labels=LABELS, attn_implementation="eager", **changes)
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    config.pop("layer_types", None)  # as older transformers wrote it
    (teacher / "config.json").write_text(json.dumps(config), encoding="utf-8")
    student = cut_out(teacher, tmp_path / "student", blocks)
    planned = read_model_facts(teacher).parameters.cut(blocks)
    assert planned.total == read_model_facts(student).parameters.total
    states = {block: torch.randn(*IDS.shape, 16, generator=torch.Generator().manual_seed(block)) for block in blocks}
    auto = AutoModelForSequenceClassification
    expected = outputs_of_blocks(loaded(teacher, auto), states)
    found = outputs_of_blocks(loaded(student, auto), {new: states[old] for new, old in enumerate(blocks)})
    for new, old in enumerate(blocks):
        torch.testing.assert_close(found[new][MASK.bool()], expected[old][MASK.bool()], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer_types", [{}, {"layer_types": None}])
def test_a_window_from_some_block_on_is_written_for_those_who_read_the_number(
    tmp_path: Path, layer_types: dict[str, None]
) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    teacher = write_model(tmp_path / "teacher", "qwen2", **changes)
    file = teacher / "config.json"
    of_teacher = {key: value for key, value in json.loads(file.read_text()).items() if key != "layer_types"}
    file.write_text(json.dumps(of_teacher | layer_types), encoding="utf-8")
    student = cut_out(teacher, tmp_path / "student", [0, 1, 3])
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    assert config["max_window_layers"] == 2
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(("blocks", "kernel"), [([0, 2], 3), ([1, 2], 0)])
def test_a_convolution_goes_with_the_first_block(tmp_path: Path, blocks: list[int], kernel: int) -> None:
    teacher = write_model(tmp_path / "teacher", "deberta-v2", labels=LABELS, conv_kernel_size=3)
    student = loaded(cut_out(teacher, tmp_path / "student", blocks), AutoModelForSequenceClassification)
    assert student.config.conv_kernel_size == kernel
    assert (student.deberta.encoder.conv is None) == (kernel == 0)


@pytest.mark.parametrize("blocks", [[0, 0, 1], [1, 0]])
def test_a_convolution_is_behind_the_first_block_alone(tmp_path: Path, blocks: list[int]) -> None:
    teacher = write_model(tmp_path / "teacher", "deberta-v2", labels=LABELS, conv_kernel_size=3)
    with pytest.raises(CheckpointError) as caught:
        cut_out(teacher, tmp_path / "student", blocks)
    assert str(caught.value) == (
        f"{teacher}: block 0 of this deberta-v2 has a part behind it (conv_kernel_size: 3) that only the first block "
        "of a model can have; use it once, and first"
    )


@pytest.mark.parametrize("blocks", [[0, 0, 1, 1], [2, 0]])
def test_blocks_are_repeated_and_put_in_another_order(tmp_path: Path, blocks: list[int]) -> None:
    """Each a copy of its own, which trains by itself."""
    teacher = write_model(tmp_path / "teacher", "llama")
    student = loaded(cut_out(teacher, tmp_path / "student", blocks), AutoModelForCausalLM)
    assert_is_cut(loaded(teacher, AutoModelForCausalLM), student, blocks)
    weights = [parameter.data_ptr() for parameter in student.model.layers.parameters()]
    assert len({*weights}) == len(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_are_scaled_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    teacher = write_model(tmp_path / "teacher", "gpt2", scale_attn_by_inverse_layer_idx=True)
    weights = {name: weight.to(dtype) for name, weight in load_file(teacher / "model.safetensors").items()}
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    cut_weights = load_file(cut_out(teacher, tmp_path / "student", [2]) / "model.safetensors")
    name = "transformer.h.{}.attn.c_attn.weight"
    before, after = weights[name.format(2)], cut_weights[name.format(0)]
    torch.testing.assert_close(after[:, :16], (before[:, :16].double() / 3).to(dtype), rtol=0, atol=0)
    assert torch.equal(after[:, 16:], before[:, 16:])


@pytest.mark.parametrize(
    ("config", "blocks", "expected"),
    [
        ({"model_type": "qwen2_moe", "mlp_only_layers": [1, 3]}, [0, 1, 3], {"mlp_only_layers": [1, 2]}),
        ({"model_type": "qwen2_moe", "mlp_only_layers": []}, [1], {"mlp_only_layers": []}),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 0]}, [1, 2], {"no_rope_layers": [0, 1]}),
        ({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 1]}, [0, 3], {"no_rope_layers": [0, 1]}),
        ({"model_type": "llama4_text", "moe_layers": [0, 1, 2, 3]}, [1, 3], {"moe_layers": [0, 1]}),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": 2}, [1, 2, 3], {"first_k_dense_replace": 1}),
    ],
)
def test_lists_of_blocks_are_brought_over_whatever_the_model_type(
    config: dict[str, Any], blocks: list[int], expected: dict[str, Any]
) -> None:
    cut_config = config_of_blocks({"num_hidden_layers": 4, **config}, blocks, family_of("llama"))
    assert {key: cut_config[key] for key in expected} == expected
    assert cut_config["num_hidden_layers"] == len(blocks)


def test_a_block_cannot_stand_in_the_place_of_a_shorter_first_one(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "modernbert", labels=LABELS)
    phrase = "block 1 of this modernbert would not be itself as block 0 of a student: attn_norm would be a Identity"
    with pytest.raises(CheckpointError, match=phrase):
        cut_out(teacher, tmp_path / "student", [1, 2])


def test_layers_of_shared_blocks_keep_theirs(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "albert", labels=LABELS, num_hidden_groups=2)
    student = loaded(cut_out(teacher, tmp_path / "student", [0, 3]), AutoModelForSequenceClassification)
    whole = loaded(teacher, AutoModelForSequenceClassification)
    with torch.no_grad():
        taken = [model(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states for model in (whole, student)]
        assert torch.equal(taken[0][1], taken[1][1])
        block = whole.albert.encoder.albert_layer_groups[1]
        again = block(taken[1][1], MASK.bool()[:, None, None].expand(-1, -1, IDS.shape[1], -1))
    torch.testing.assert_close(taken[1][2][MASK.bool()], again[MASK.bool()], rtol=1e-6, atol=1e-6)
    phrase = "block 1 of this albert would not be itself as block 1 of a student: it would be a pass through weights 1"
    with pytest.raises(CheckpointError, match=f"{phrase}, not 0"):
        cut_out(teacher, tmp_path / "other", [0, 1])


def test_what_cannot_be_brought_over_is_refused(tmp_path: Path) -> None:
    """Every second block of a Qwen2-MoE is sparse: no config says so of blocks 1 and 2 alone."""
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 2, "vocab_size": 9}
    config = {"model_type": "qwen2_moe", "num_hidden_layers": 4, "decoder_sparse_step": 2, **shape}
    refuse, family = refuse_other_blocks, family_of("llama")
    refuse(config, config_of_blocks(config, [0, 1], family), [0, 1], family, where=tmp_path)
    with pytest.raises(CheckpointError, match="block 1 of this qwen2_moe would not be itself as block 0 of a student:"):
        refuse(config, config_of_blocks(config, [1, 2], family), [1, 2], family, where=tmp_path)
