"""Files of a model folder that say a thing twice, hold other kinds of values, or are only pointers to a content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import CheckpointError
from ted_ds.models.files import read_model_facts
from ted_ds.models.tokenizer_files import tokenizer_of_files
from tests.tiny import write_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama", blocks=1)


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def refusal(folder: Path) -> str:
    def read() -> None:
        read_model_facts(folder)
        tokenizer_of_files(folder)

    with pytest.raises(CheckpointError) as caught:
        read()
    (line,) = str(caught.value).splitlines()
    return line


def twice(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def settings(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "addition", "key"),
    [
        ("config.json", '"hidden_size": 16, "hidden_size": 32', "hidden_size"),
        ("config.json", '"rope_scaling": {"factor": 2.0, "rope_type": "linear", "factor": 4.0}', "factor"),
        ("generation_config.json", '"top_k": 1, "top_k": 2', "top_k"),
        ("tokenizer_config.json", '"sep_token": "[SEP]", "sep_token": "[EOS]"', "sep_token"),
        ("tokenizer.json", '"normalizer": null, "normalizer": null', "normalizer"),
    ],
)
def test_a_key_that_is_given_twice_is_named(folder: Path, name: str, addition: str, key: str) -> None:
    kept = {k: v for k, v in json.loads((folder / name).read_text()).items() if f'"{k}"' not in addition}
    (folder / name).write_text(f"{json.dumps(kept)[:-1]}, {addition}}}", encoding="utf-8")
    assert refusal(folder) == (
        f"{folder / name}: '{key}' is given twice, and JSON takes the last without a word; keep the one that is right"
    )


def test_a_token_with_two_ids_and_an_id_of_two_tokens_are_named(folder: Path, llama: Path) -> None:
    file = folder / "tokenizer.json"
    twice(file, '"[EOS]": 1', '"[EOS]": 1, "[EOS]": 77')
    assert refusal(folder).startswith(f"{file}: '[EOS]' is given twice")
    shutil.copyfile(llama / "tokenizer.json", file)
    twice(file, '"[EOS]": 1', '"[EOS]": 1, "other": 1')
    assert refusal(folder).startswith(f"{file}: gives '[EOS]' and 'other' the same id, 1; use the file that")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"<x>": None, "<y>": 101}, "gives '<x>' the id None, no whole number"),
        ({"<x>": "100"}, "gives '<x>' the id '100', no whole number"),
        ({"<x>": 100, "<y>": 100}, "gives '<x>' and '<y>' the same id, 100"),
    ],
)
def test_added_tokens_without_an_id_of_their_own_are_named(folder: Path, content: dict[str, Any], words: str) -> None:
    settings(folder, added_tokens_decoder=None)
    (folder / "added_tokens.json").write_text(json.dumps(content), encoding="utf-8")
    assert refusal(folder).startswith(f"{folder / 'added_tokens.json'}: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_max_length": "512"}, "model_max_length is '512', and has to be a number, without quotes"),
        ({"model_max_length": True}, "model_max_length is True, and has to be a number"),
        ({"model_max_length": [64]}, "model_max_length is [64], and has to be a number"),
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "added_tokens_decoder has 'x' for an id"),
        ({"added_tokens_decoder": {"-1": {"content": "<x>"}}}, "added_tokens_decoder has '-1' for an id"),
        ({"added_tokens_decoder": {"7": 3}}, "added_tokens_decoder.7 is 3, no token"),
        ({"additional_special_tokens": "abc"}, "additional_special_tokens is 'abc', and has to be a list of tokens"),
        ({"extra_special_tokens": ["<a>", 3]}, "extra_special_tokens is ['<a>', 3], and has to be a list of tokens"),
        ({"pad_token": 0}, "pad_token is 0, no token"),
    ],
)
def test_a_value_of_another_kind_in_a_tokenizers_settings_is_named(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    settings(folder, **changes)
    assert refusal(folder).startswith(f"{folder / 'tokenizer_config.json'}: {words}")


def test_special_tokens_of_their_own_file_are_looked_at_too(folder: Path) -> None:
    settings(folder, added_tokens_decoder=None)
    file = folder / "special_tokens_map.json"
    file.write_text(json.dumps({"additional_special_tokens": "<ab>"}), encoding="utf-8")
    assert refusal(folder).startswith(f"{file}: additional_special_tokens is '<ab>', and has to be a list of tokens")


def test_a_longest_text_beyond_all_numbers_is_as_good_as_none(folder: Path) -> None:
    settings(folder, model_max_length=1e30, additional_special_tokens=[], eos_token={"content": "[EOS]"})
    assert tokenizer_of_files(folder) is not None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_no_file(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER, encoding="utf-8")
    assert refusal(folder) == (
        f"{folder / name}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
    )


def test_a_sentencepiece_model_that_is_a_pointer_is_no_model(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_text(POINTER, encoding="utf-8")
    assert refusal(folder).startswith(f"{folder / 'tokenizer.model'}: a Git LFS pointer")


def test_an_adapters_config_that_does_not_say_of_which_kind_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}), encoding="utf-8")
    said = "no adapter's config (KeyError('peft_type')); copy it again"
    assert refusal(folder) == f"{folder / 'adapter_config.json'}: {said}"


def test_an_adapter_with_a_config_and_no_weights_is_not_said_to_lie_beside_any(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.safetensors").write_text("{}", encoding="utf-8")
    line = refusal(folder)
    assert line.startswith(f"{folder / 'adapter_model.safetensors'}: an adapter")
    assert "and no *.safetensors weights of a model lie beside it; merge it into its base first" in line
