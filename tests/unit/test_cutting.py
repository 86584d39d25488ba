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
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from tests.tiny import LABELS, write_model

BLOCKS = [0, 2, 3]
DECODERS = ["llama", "mistral", "qwen2", "qwen3", "gpt2"]
ENCODERS = ["bert", "deberta-v2"]
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
    for name, value in of_student.items():
        if name.startswith(f"{path}."):
            number, rest = name.removeprefix(f"{path}.").split(".", 1)
            name = f"{path}.{blocks[int(number)]}.{rest}"
        assert torch.equal(value, of_teacher[name]), name
    assert len([*student.get_submodule(path).children()]) == len(blocks)
    assert student.config.num_hidden_layers == len(blocks)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_causal_lm_is_cut_with_its_head(tmp_path: Path, family: str, tied: bool) -> None:
    teacher = write_model(tmp_path / "teacher", family, tie_word_embeddings=tied)
    student = cut_out(teacher, tmp_path / "student", BLOCKS)
    assert_is_cut(loaded(teacher, AutoModelForCausalLM), loaded(student, AutoModelForCausalLM), BLOCKS)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
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


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
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
    with pytest.raises(CheckpointError, match="no weights of block 9 found; cut from a complete model folder"):
        cut_out(teacher, tmp_path / "student", [0, 9])
