"""What goes with a model's weights: tokenizer files, licences, cards, and ids that agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ted_ds.config.schema import Recipe, TokenizerTraining
from ted_ds.data.tokenizer_training import train_tokenizer
from ted_ds.models.companions import (
    TOKENIZER_FILES,
    Origins,
    accompany,
    copy_papers,
    copy_tokenizer,
    hub_name,
    licences_in,
)
from ted_ds.models.file_kinds import LICENCE_STEMS, LICENCE_WORDS, OTHER_PATTERNS
from ted_ds.models.loading import FETCHED, load_tokenizer
from ted_ds.models.local_paths import local_values, without_local_paths
from ted_ds.output.export import export_student
from tests.tiny import recipe_dict, texts, write_model

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    content |= values
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "left out"}))


def ids(file: Path) -> list[Any]:
    content = json.loads(file.read_text())
    return [content.get(key) for key in IDS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama", blocks=1)


@pytest.fixture
def pair(llama: Path, tmp_path: Path) -> Origins:
    """Two copies of a model, as teacher and student; the teacher ends texts with [SEP], which is 4."""
    folders = []
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        for file in llama.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        folders.append(tmp_path / name)
    change(folders[0] / "tokenizer_config.json", eos_token="[SEP]")
    for name in ("config.json", "generation_config.json"):
        change(folders[0] / name, eos_token_id=4)
    return Origins(*folders)


def saved(origins: Origins, folder: Path) -> Path:
    """The student's weights and configs, as a phase leaves them, and what goes with them."""
    folder.mkdir()
    assert origins.student is not None
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).write_bytes((origins.student / name).read_bytes())
    accompany(folder, origins)
    return folder


# --- ids --------------------------------------------------------------------------------------------------------------


def test_what_texts_begin_and_end_with_is_said_in_any_case_and_other_roles_where_they_were(
    pair: Origins, tmp_path: Path
) -> None:
    assert pair.student is not None
    before = json.loads((pair.student / "config.json").read_text())
    change(pair.student / "config.json", **dict.fromkeys(IDS, "left out"))
    folder = saved(pair, tmp_path / "out")
    assert ids(folder / "config.json") == [1, 4, 0]
    assert json.loads((folder / "config.json").read_text()).keys() <= {*before, *IDS}


def test_a_student_takes_over_the_teachers_way_to_end(pair: Origins, tmp_path: Path) -> None:
    change(pair.student / "generation_config.json", temperature=0.1)  # type: ignore[operator]
    folder = saved(pair, tmp_path / "out")
    assert ids(folder / "config.json") == ids(folder / "generation_config.json") == [1, 4, 0]
    assert (folder / "generation_config.json").read_bytes() == (pair.teacher / "generation_config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 4


def test_without_a_way_of_its_own_the_students_is_left_out(pair: Origins, tmp_path: Path) -> None:
    change(pair.student / "generation_config.json", temperature=0.1, eos_token_id=[1, 2])  # type: ignore[operator]
    (pair.teacher / "generation_config.json").unlink()
    folder = saved(pair, tmp_path / "out")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert "temperature" not in generation
    assert ids(folder / "generation_config.json") == [1, 4, 0]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([1, 4], [1, 4]),  # more than one way to end is the teacher's business
        (7, [4, 7]),  # but the tokenizer's end is one of them: the student learns to say it
        ([7, 8], [4, 7, 8]),
        ("left out", 4),
        (None, 4),
    ],
)
def test_a_teachers_configs_agree_with_its_tokenizer(
    pair: Origins, tmp_path: Path, said: Any, expected: int | list[int]
) -> None:
    for name in ("config.json", "generation_config.json"):
        change(pair.teacher / name, eos_token_id=said)
    folder = saved(pair, tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == expected


def test_a_students_padding_is_not_kept_beside_a_teachers_tokenizer(pair: Origins, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        change(pair.student / name, pad_token_id=9)  # type: ignore[operator]
        change(pair.teacher / name, pad_token_id="left out")
    assert ids(saved(pair, tmp_path / "out") / "config.json") == [1, 4, 0]


def test_an_end_token_that_also_pads_is_not_written_as_padding(pair: Origins, tmp_path: Path) -> None:
    """Whoever loads it would never train its embedding."""
    change(pair.teacher / "tokenizer_config.json", pad_token="[SEP]")
    change(pair.teacher / "config.json", pad_token_id="left out")
    folder = saved(pair, tmp_path / "out")
    assert ids(folder / "config.json") == [1, 4, None]


def test_a_classifier_keeps_the_padding_it_finds_the_last_token_by(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "gpt2", blocks=1, labels=["a", "b"])
    change(teacher / "tokenizer_config.json", pad_token="left out")
    change(teacher / "config.json", pad_token_id="left out")
    (tmp_path / "out").mkdir()
    config = json.loads((teacher / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}))  # as a run sets it
    accompany(tmp_path / "out", Origins(teacher, None))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 1


# --- tokenizer files --------------------------------------------------------------------------------------------------


def test_tokenizer_files_come_along_byte_for_byte_whatever_was_there(pair: Origins, tmp_path: Path) -> None:
    files = ["special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model.v3"]
    files += ["chat_template.jinja", "additional_chat_templates/rag.jinja"]
    (pair.teacher / "additional_chat_templates").mkdir()
    for name in files:
        (pair.teacher / name).write_text(f'{{"{name}": 0}}')
        (pair.teacher / name).chmod(0o444)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_bytes((pair.teacher / "config.json").read_bytes())
    used = load_tokenizer(pair.student)  # type: ignore[arg-type]
    used(["ba be bi", "bo"], truncation=True, max_length=2, padding=True)
    used.save_pretrained(folder)
    (folder / "vocab.txt").write_text("of an older version")
    copy_tokenizer(pair.teacher, folder)
    accompany(folder, pair)
    for name in [*files, "tokenizer.json", "tokenizer_config.json"]:
        assert (folder / name).read_bytes() == (pair.teacher / name).read_bytes(), name
    assert not (folder / "vocab.txt").exists()


def test_a_student_with_a_tokenizer_of_its_own_keeps_that_and_its_way_to_end(pair: Origins, tmp_path: Path) -> None:
    assert pair.student is not None
    own = replace(pair, student_has_tokenizer=True)
    change(pair.student / "generation_config.json", temperature=0.1)  # type: ignore[operator]
    folder = saved(own, tmp_path / "out")
    assert ids(folder / "config.json") == ids(folder / "generation_config.json") == [1, 1, 0]
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (pair.student / name).read_bytes()
    accompany(folder, own, "teacher")  # a teacher that was fine-tuned beside it
    assert (folder / "tokenizer_config.json").read_bytes() == (pair.teacher / "tokenizer_config.json").read_bytes()
    assert ids(folder / "config.json") == [1, 4, 0]


def test_a_lone_sentencepiece_model_comes_with_the_ids_that_were_used(llama: Path, tmp_path: Path) -> None:
    teacher, folder = tmp_path / "teacher", tmp_path / "out"
    for made in (teacher, folder):
        made.mkdir()
        (made / "config.json").write_bytes((llama / "config.json").read_bytes())
    train_tokenizer(texts(200), TokenizerTraining(vocab_size=320), seed=0, folder=teacher)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (teacher / name).unlink()
    used = load_tokenizer(teacher)
    used("ba be bi bo bu", truncation=True, max_length=2)
    accompany(folder, Origins(teacher, None))
    assert (folder / "tokenizer.model").read_bytes() == (teacher / "tokenizer.model").read_bytes()
    written = json.loads((folder / "tokenizer.json").read_text())
    assert (written["truncation"], written["padding"]) == (None, None)
    assert str(tmp_path) not in (folder / "tokenizer_config.json").read_text()
    assert "is_local" not in (folder / "tokenizer_config.json").read_text()
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("ba be  bi\nbo")["input_ids"] == load_tokenizer(teacher)("ba be  bi\nbo")["input_ids"]


def test_a_trained_tokenizer_has_no_trace_of_where_it_was_made(tmp_path: Path) -> None:
    train_tokenizer(texts(200), TokenizerTraining(vocab_size=320), seed=0, folder=tmp_path)
    settings = (tmp_path / "tokenizer_config.json").read_text()
    assert str(tmp_path) not in settings
    assert "local" not in settings
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast)


# --- licences and cards -----------------------------------------------------------------------------------------------


def test_licences_and_cards_of_both_models_are_kept_under_clear_names(pair: Origins, tmp_path: Path) -> None:
    assert pair.student is not None
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md", "README.md"):
        (pair.teacher / name).write_text(f"{name} of the teacher")
    for name in ("LICENSE", "LICENCE.md", "README.md"):
        (pair.student / name).write_text(f"{name} of the student")
    (pair.student / "NOTICE").write_text("NOTICE of the teacher")
    (pair.student / "license_check.py").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    copy_papers(pair, out)
    assert {file.name: file.read_text() for file in out.iterdir()} == {
        "LICENSE": "LICENSE of the teacher",
        "LICENSE.student": "LICENSE of the student",
        "LICENCE.md": "LICENCE.md of the student",
        "NOTICE": "NOTICE of the teacher",
        "USE_POLICY.md": "USE_POLICY.md of the teacher",
        "README.teacher.md": "README.md of the teacher",
        "README.student.md": "README.md of the student",
    }


def test_whatever_an_export_takes_along_is_fetched_from_the_hub_and_nothing_like_it(tmp_path: Path) -> None:
    papers = [word.upper() for word in (*LICENCE_STEMS, *LICENCE_WORDS)]
    papers += [
        "LLAMA_LICENSE",
        "Gemma_Terms.md",
        "LICENSES/Apache-2.0.txt",
        "original/NOTICE",
        "License.txt",
        "patents",
        "Third_Party-notices.html",
        "CITATION.cff",
        "ReadMe.rst",
        "MODEL_CARD.md",
    ]
    of_tokenizer = [*TOKENIZER_FILES, "tokenizer.model.v3", "qwen.tiktoken", "chat_template.jinja"]
    others = ["license_check.py", "AUTHORS.sh", "terms.bin", "training.md", "pytorch_model.bin"]
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in ("additional_chat_templates", "LICENSES", "original"):
        (source / folder).mkdir(parents=True)
    out.mkdir()
    for name in (*papers, *of_tokenizer, *others, "additional_chat_templates/tools.jinja"):
        (source / name).write_text(name)
    copy_papers(Origins(source, None), out)
    copy_tokenizer(source, out)
    copied = {file.read_text() for file in out.rglob("*") if file.is_file()}
    assert copied == {*papers, *of_tokenizer, "additional_chat_templates/tools.jinja"}
    offered = [*copied, *others, "third_party/lib.so", "consolidated.00.safetensors", "Notices/a.json"]
    assert {*filter_repo_objects(offered, allow_patterns=FETCHED, ignore_patterns=[*OTHER_PATTERNS])} == copied


def test_a_student_that_is_the_teachers_folder_brings_nothing_twice(pair: Origins, tmp_path: Path) -> None:
    (pair.teacher / "README.md").write_text("the teacher's")
    out = tmp_path / "out"
    out.mkdir()
    copy_papers(Origins(pair.teacher, pair.teacher / ".." / "teacher"), out)
    assert [file.name for file in out.iterdir()] == ["README.teacher.md"]


def test_an_exports_card_names_hub_models_and_both_origins(pair: Origins, llama: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "hub" / "models--some-org--big-model" / "snapshots" / "0123abc"
    teacher.parent.mkdir(parents=True)
    pair.teacher.rename(teacher)
    out = tmp_path / "out"
    out.mkdir()
    recipe = Recipe.model_validate({**recipe_dict(tmp_path, method="kd"), "student": {"path": str(pair.student)}})
    assert pair.student is not None
    export_student(pair.student, out, recipe=recipe, origins=Origins(teacher, pair.student), blocks=None)
    card = (out / "README.md").read_text()
    assert "base_model:\n- some-org/big-model\n" in card
    assert "- Teacher: `some-org/big-model`." in card
    assert "- The student began as `student`." in card
    assert "No licence file came with them" in card
    assert str(tmp_path) not in card


def test_what_holds_on_one_machine_only_leaves_a_config() -> None:
    local = {"_name_or_path": "x", "base_model_name_or_path": "org/x", "cache": "/home/me/x", "home": "~/x"}
    assert without_local_paths({"hidden_act": "silu", "vocab_size": 3, **local}) == {
        "hidden_act": "silu",
        "vocab_size": 3,
    }


def test_what_holds_on_one_machine_only_leaves_a_config_however_deep_it_is() -> None:
    kept = {"window": 4, "pieces": [1, "b"], "kind": "a/b", "deep": {"deeper": {"n": 1}}, "url": "https://x/y"}
    local = {
        "deep": {"deeper": {"n": 1, "path": "/home/me/x"}, "name_or_path": "x"},
        "pieces": [1, "C:\\Users\\me", "b", "../me"],
        "share": "\\\\host\\share\\x",
        "drive": "D:/models/x",
        "file": "file:///home/me",
    }
    assert without_local_paths({**kept, **local}) == kept
    assert [*local_values({**kept, **local})] == [
        "pieces.1",
        "pieces.3",
        "deep.deeper.path",
        "share",
        "drive",
        "file",
    ]


def test_what_a_teachers_tokenizer_says_of_a_machine_is_kept_and_told(pair: Origins, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**recipe_dict(tmp_path, method="kd"), "student": {"path": str(pair.student)}})
    assert pair.student is not None
    for folder in (pair.teacher, pair.student):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name, changes in {"clean": {}, "local": {"is_local": True, "name_or_path": "/home/me/x"}}.items():
        change(pair.teacher / "tokenizer_config.json", **changes)
        (tmp_path / name).mkdir()
        said = export_student(pair.student, tmp_path / name, recipe=recipe, origins=pair, blocks=None)
        card = (tmp_path / name / "README.md").read_text()
        assert (tmp_path / name / "tokenizer_config.json").read_bytes() == (
            pair.teacher / "tokenizer_config.json"
        ).read_bytes()
        if not changes:
            assert said == []
            assert "of the machine" not in card
            continue
        (line,) = said
        assert line.startswith(
            "tokenizer_config.json holds what is of the machine it was written on (is_local, name_or"
        )
        assert f"- {line}." in card


def test_licences_are_found_wherever_their_name_says_so_and_in_folders_of_them(pair: Origins, tmp_path: Path) -> None:
    names = ("MIT-LICENSE.txt", "LLAMA_LICENSE", "Gemma_Terms.md", "EULA.txt", "LICENSES/Apache-2.0.txt")
    names += ("original/USE_POLICY.md", "original/license.pdf")
    for name in (*names, "original/params.json", "license.py", "determs.txt", "original/LICENSE.bin"):
        file = pair.teacher / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    out = tmp_path / "out"
    out.mkdir()
    copy_papers(pair, out)
    assert sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()) == sorted(names)
    assert licences_in(out) == sorted(names)


def test_only_folders_of_the_hubs_cache_have_a_hub_name(tmp_path: Path) -> None:
    assert hub_name(tmp_path / "models--org--name" / "snapshots" / "abc") == "org/name"
    assert hub_name(tmp_path / "models--org--name") is None
    assert hub_name(Path("snapshots")) is None
