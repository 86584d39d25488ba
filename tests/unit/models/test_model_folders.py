"""What a path that is no usable model folder is instead, and what the message tells to do."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models import loading
from ted_ds.models.families import KNOWN_TYPES
from ted_ds.models.files import read_model_facts
from ted_ds.models.structure.find import find_family
from ted_ds.models.tensor_files import weight_files
from ted_ds.planning.model_lookup import local_model
from tests.tiny import ROOT, write_model

# encoder-decoders, models of text and images or sound, and of images alone
OTHER_TYPES = (
    "blenderbot",
    "marian",
    "llava",
    "qwen2_vl",
    "whisper",
    "gemma3",
    "vit",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama", blocks=2)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a model that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_model_facts(folder)
    return str(caught.value)


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_a_type_that_is_no_stack_of_blocks_that_reads_tokens_is_refused(model_type: str) -> None:
    with pytest.raises(CheckpointError, match=r"an encoder and a decoder|made of several models|no language model"):
        find_family(AutoConfig.for_model(model_type).to_dict())


def test_a_type_that_transformers_does_not_know_is_named_with_those_that_are_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    change(folder, model_type="new")
    assert refusal(folder) == (
        f"{folder / 'config.json'}: model type 'new' has no record here, and no family that can be used was found by "
        f"its structure: transformers {transformers.__version__} has no model of this type. Use a model of another "
        f"type (ted_ds knows {', '.join(KNOWN_TYPES)}, and finds others)"
    )


def test_the_language_model_of_one_that_reads_images_is_written_alone_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"vocab_size": 100, "num_hidden_layers": 2, "hidden_size": 16, "head_dim": 8, "intermediate_size": 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    sight: dict[str, Any] = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16}
    sight |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    tokens = {"image_token_index": 99, "boi_token_index": 98, "eoi_token_index": 97, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=sight, **tokens)
    folder = tmp_path / "google" / "gemma-3-4b-pt"
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    assert refusal(folder) == (
        f"{folder / 'config.json'}: a gemma3 reads more than text; write its language model, a gemma3_text, into a "
        "folder of its own, as docs/students.md shows, and give that"
    )
    section = (ROOT / "docs" / "students.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    facts = read_model_facts(tmp_path / "gemma-3-4b-text")
    assert (facts.model_type, facts.num_blocks) == ("gemma3_text", 2)
    whole = AutoModelForImageTextToText.from_pretrained(folder).eval()
    model, _ = loading.load_model(tmp_path / "gemma-3-4b-text", loading.LoadSettings(torch.float32), head=None)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_a_model_with_code_of_its_own_is_refused_whatever_its_type(folder: Path) -> None:
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_new.NewForCausalLM"})
    message = refusal(folder)
    assert "auto_map names code of its own (modeling_new.NewForCausalLM), which ted_ds never runs" in message
    assert "where it is a plain llama, remove auto_map" in message
    change(folder, model_type="new")
    assert "'new' is not supported (it brings code of its own, modeling_new.NewForCausalLM" in refusal(folder)


def test_a_tokenizer_of_its_own_is_no_models_code(folder: Path) -> None:
    change(folder, auto_map={"AutoTokenizer": ["tokenization_new.NewTokenizer", None]})
    assert read_model_facts(folder).num_blocks == 2


@pytest.mark.parametrize("content", ["{", "[1, 2]", "{}", '{"model_type": 3}', '{"model_type": "llama"}', b"\xff\xfe{"])
def test_a_config_that_is_no_models_is_refused_by_its_name(folder: Path, content: str | bytes) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(folder).startswith(f"{folder / 'config.json'}: not a transformers model config (")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": "two"}, {"vocab_size": None}, {"hidden_size": [16]}])
def test_a_number_of_another_kind_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change(folder, **changes)
    assert "config.json: not a transformers model config (" in refusal(folder)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("model.Q4_K.gguf", "model.Q4_K.gguf: GGUF weights, which ted_ds does not read; give the transformers folder"),
        ("pytorch_model.bin", "pytorch_model.bin: pickled weights, which could run any code and are not loaded; load"),
        ("consolidated.00.pth", "consolidated.00.pth: pickled weights"),
        ("tf_model.h5", "tf_model.h5: TensorFlow weights"),
        ("flax_model.msgpack", "flax_model.msgpack: Flax weights"),
        ("model.onnx", "model.onnx: an ONNX graph"),
    ],
)
def test_weights_in_another_format_are_named(folder: Path, name: str, phrase: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert f"{folder}: no *.safetensors weights here; {phrase}" in refusal(folder)
    (folder / "config.json").unlink()
    assert f"{folder}: no config.json here; {phrase}" in refusal(folder)


def test_a_folder_with_a_config_only_is_told_how_to_come_by_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_text("")
    assert refusal(folder) == (
        f"{folder}: no *.safetensors weights here, only config.json; ted_ds starts from trained weights: copy them "
        "here, or cut the student out of the teacher (student.from_teacher)"
    )


def test_weights_under_another_name_are_not_guessed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q8.safetensors")
    assert "but model-q8.safetensors; if that is the whole model" in refusal(folder)


def shard(folder: Path) -> Path:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, key in enumerate(state)}
    for file in set(names.values()):
        save_file({key: state[key] for key in names if names[key] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return index


def test_shards_without_their_index_are_refused(folder: Path) -> None:
    shard(folder).unlink()
    assert refusal(folder) == (
        f"{folder}: model-00001-of-00002.safetensors is one of several files, but model.safetensors.index.json, which "
        "lists them, is missing; copy it, too"
    )


def test_an_index_of_other_files_is_refused(folder: Path) -> None:
    index = shard(folder)
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**names, "model.extra.weight": "model-00001-of-00002.safetensors"}}))
    assert f"{index}: says that model.extra.weight is in model-00001-of-00002.safetensors, which has no" in refusal(
        folder
    )


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": 3}'])
def test_a_damaged_index_is_refused_by_its_name(folder: Path, content: str) -> None:
    index = shard(folder)
    index.write_text(content)
    assert refusal(folder).startswith(f"{index}: damaged (")


def test_one_whole_file_is_what_counts_beside_an_index_as_for_transformers(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert read_model_facts(folder).num_blocks == 2


@pytest.mark.parametrize("extra", ["self_attn.q_norm.weight", "mlp.up_proj.lora_A.weight"])
def test_weights_of_blocks_that_the_model_has_no_place_for_are_refused(folder: Path, extra: str) -> None:
    """transformers leaves them out without a word."""
    load = functools.partial(loading.load_model, folder, loading.LoadSettings(torch.float32), head=None)
    state = load_file(folder / "model.safetensors")
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4), "other.weight": torch.zeros(2)}
    save_file({**state, **buffers}, folder / "model.safetensors", metadata={"format": "pt"})
    load()  # what older files hold besides
    save_file({**state, f"model.layers.1.{extra}": torch.zeros(8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"the files have 1 weight of no use to a llama \(model.layers.1.{extra}"
    ):
        load()


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_beside_base_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    message = refusal(folder)
    assert (
        "adapter_config.json: an adapter for org/base lies beside the weights of a model, and ted_ds would" in message
    )
    assert "merge_and_unload()" in message
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert "adapter_model.safetensors: an adapter lies beside the weights of a model" in refusal(folder)


LORA = '{"base_model_name_or_path": "org/base", "peft_type": "LORA"}'


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ("{", True, "{folder}/adapter_config.json: no adapter's config ("),
        ("[]", True, "{folder}/adapter_config.json: no adapter's config (TypeError("),
        ('{"peft_type": "LORA"}', True, "{folder}/adapter_config.json: no adapter's config (KeyError('base_model_name"),
        (
            LORA.replace("LORA", "IA3"),
            True,
            "{folder}/adapter_config.json: an adapter of peft_type IA3, and ted_ds merges LORA alone; merge it into "
            "its base by peft (merge_and_unload), save that, and give its folder",
        ),
        (LORA, False, "{folder}: an adapter for org/base without its adapter_model.safetensors; copy it, too"),
        (
            LORA,
            True,
            "{folder}: an adapter for org/base, and that model is not here (neither as a path, nor as base beside the "
            "adapter, nor in the hub's cache); put it there, or fetch it (hf download org/base)",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged(tmp_path: Path, config: str, weights: bool, expected: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    if weights:
        (folder / "adapter_model.safetensors").write_bytes(b"")
    assert refusal(folder).startswith(expected.format(folder=folder))


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_model_folders_names_them(folder: Path) -> None:
    assert (
        refusal(folder.parent)
        == f"{folder.parent}: no config.json here, but in folders of it (model); give one of these"
    )


def test_the_root_of_a_cached_model_names_its_version(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    (root / "snapshots").mkdir(parents=True)
    folder.rename(root / "snapshots" / "0123")
    assert refusal(root).endswith(f"give the folder of one of its versions: {root / 'snapshots' / '0123'}")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("model.gguf", "a file, not a model folder: GGUF weights, which ted_ds does not read; give the transformers"),
        ("pytorch_model.bin", "a file, not a model folder: pickled weights, which could run any code"),
        ("model.safetensors", "a file; give the model folder it is in: "),
        ("config.json", "a file; give the model folder it is in: "),
        ("notes.txt", "a file, not a model folder; give a folder with config.json and *.safetensors"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told_apart(tmp_path: Path, name: str, phrase: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError) as caught:
        local_model(str(tmp_path / name))
    assert f"{tmp_path / name}: {phrase}" in str(caught.value)


def test_a_hub_name_that_is_not_in_the_cache_says_that_the_hub_is_off(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loading.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        loading.fetch("some-org/some-model")
    assert str(caught.value) == (
        "some-org/some-model: neither a local model folder nor a model that is whole in the hub's cache in "
        f"{tmp_path}, and HF_HUB_OFFLINE is set; fetch it (hf download some-org/some-model), or give a local folder"
    )


@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        (errors.GatedRepoError, "accept its terms at https://huggingface.co/org/x and log in on every host"),
        (errors.RepositoryNotFoundError, "a model of the hub, or it is private; correct the name, or log in"),
        (errors.HFValidationError, "a model the hub gives (no); correct the path or name"),
    ],
)
def test_what_the_hub_answers_is_told_with_what_to_do(error: Any, phrase: str) -> None:
    """Answers that need a hub: made here, as there is none."""
    made = error.__new__(error)
    made.args = ("no",)
    assert phrase in loading._why_not_fetched("org/x", made)
