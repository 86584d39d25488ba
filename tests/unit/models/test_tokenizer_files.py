"""Tokenizers by their files: what ``check`` reads is what transformers loads, and what cannot be used is named."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ted_ds.config.tasks import BosSetting, Masking
from ted_ds.data.document_ends import added_around, choose_start, ends_of, own_ends, probes
from ted_ds.data.masking import make_masker
from ted_ds.data.tokenizer_comparison import differences
from ted_ds.data.tokenizers import ends_when_loaded, traits_of
from ted_ds.errors import CheckpointError, ConfigError, TedError
from ted_ds.models.families import FAMILY_OF
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import load_tokenizer
from ted_ds.models.tokenizer_files import CLASS_ROLES, MAY_MAKE_ENDS_ANEW, tokenizer_of_files
from ted_ds.models.tokenizer_traits import TokenizerTraits
from ted_ds.planning.tokenizer_contracts import refuse_ids_outside, refuse_useless_tokenizer
from tests.parity.test_pairs import tokenizer_of
from tests.tiny import VOCAB_SIZE, write_model

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tokenizers") / "llama", "llama", blocks=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tokenizers") / "bert", "bert", blocks=1)


def edit(name: str, **changes: Any) -> Change:
    """Changes to the values of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        file.write_text(json.dumps(content), encoding="utf-8")

    return change


def edit_tokenizer(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    return apply


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def copied(source: Path, place: Path, change: Change) -> Path:
    folder = Path(shutil.copytree(source, place))
    change(folder)
    return folder


def read(folder: Path) -> TokenizerTraits:
    traits = tokenizer_of_files(folder)
    assert traits is not None
    return traits


def template(content: dict[str, Any]) -> None:
    """[EOS] before each text, by an id of its own choosing."""
    content["post_processor"] = json.loads(
        processors.TemplateProcessing(single="[EOS] $A", special_tokens=[("[EOS]", 500)]).__getstate__()
    )


PADDING = {
    "strategy": "BatchLongest",
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<filler>",
}
ADDED = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
CASES: dict[str, Change] = {
    "as saved": lambda folder: None,
    "a pad token of the config": edit("tokenizer_config.json", pad_token="<pad>"),
    "bos and mask of the config": edit("tokenizer_config.json", bos_token="<s>", mask_token="<mask>"),
    "a role as a dict": edit("tokenizer_config.json", pad_token={"__type": "AddedToken", "content": "<pad>", **ADDED}),
    "more special tokens": edit("tokenizer_config.json", additional_special_tokens=["<turn>", "<call>"]),
    "extra special tokens": edit("tokenizer_config.json", extra_special_tokens=["<turn>", "[PAD]"]),
    "tokens of the model": edit("tokenizer_config.json", image_token="<image>"),
    "declared tokens": edit(
        "tokenizer_config.json",
        added_tokens_decoder={
            "100": {"content": "<turn>", **ADDED, "special": True},
            "0": {"content": "[PAD]", **ADDED},
        },
    ),
    "a special tokens map": edit("special_tokens_map.json", bos_token="<s>", eos_token={"content": "</s>", **ADDED}),
    "an added tokens file": edit("added_tokens.json", **{"<turn>": 100, "<call>": 101}),
    "padding of the tokenizer": both(
        edit_tokenizer(lambda content: content.update(padding=PADDING)),
        edit("tokenizer_config.json", pad_token=None),
    ),
    "an unknown class": edit("tokenizer_config.json", tokenizer_class="HomeMade"),
    "llama's class": edit("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
    "a class of the model's config": both(
        edit("tokenizer_config.json", tokenizer_class=None), edit("config.json", tokenizer_class="LlamaTokenizer")
    ),
    "gpt-neox's class": edit("tokenizer_config.json", tokenizer_class="GPTNeoXTokenizerFast", pad_token=None),
    "gemma's class": edit("tokenizer_config.json", tokenizer_class="GemmaTokenizer", eos_token=None),
    "gpt2 without a class": both(
        edit("tokenizer_config.json", tokenizer_class=None), edit("config.json", model_type="gpt2")
    ),
    "qwen2 with another class": edit("config.json", model_type="qwen2"),
    "no bos by the config's word": edit("tokenizer_config.json", tokenizer_class="LlamaTokenizer", unk_token="[UNK]"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_files_give_the_ids_that_the_loaded_tokenizer_gives(llama: Path, tmp_path: Path, case: str) -> None:
    folder = copied(llama, tmp_path / "model", CASES[case])
    by_files, loaded = read(folder), load_tokenizer(folder)
    assert by_files.vocabulary == loaded.get_vocab()
    roles = {role: token for role, token in traits_of(loaded).roles.items() if role != "pad_token"}
    assert {role: token for role, token in by_files.roles.items() if role != "pad_token"} == roles
    pad = by_files.roles.get("pad_token", by_files.roles["eos_token"])  # loading pads with the end token else
    assert loaded.pad_token == pad


@pytest.mark.parametrize("name", CLASS_ROLES)
def test_the_defaults_of_the_classes_are_those_of_transformers(name: str) -> None:
    signatures = [inspect.signature(one).parameters for one in getattr(transformers, name).__mro__[:2]]
    parameters = next(one for one in signatures if "unk_token" in one)  # its own, or those of what it is made from
    theirs = {key: one.default for key, one in parameters.items() if key.endswith("_token")}
    assert {key: value for key, value in theirs.items() if isinstance(value, str)} == CLASS_ROLES[name]


def test_the_classes_of_the_types_are_those_of_transformers() -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    for model_type, family in FAMILY_OF.items():
        name = str(TOKENIZER_MAPPING_NAMES.get(model_type)).removesuffix("Fast")
        assert family.tokenizer_class == (name if name in CLASS_ROLES else None)


@pytest.mark.parametrize("class_in_files", [True, False], ids=["a class", "no class"])
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet", "albert"])
def test_tokenizers_of_encoders_read_by_their_files_as_they_are_loaded(
    tmp_path: Path, kind: str, class_in_files: bool
) -> None:
    tokenizer_of(kind).save_pretrained(tmp_path)
    edit("config.json", model_type=kind)(tmp_path)
    if not class_in_files:
        edit("tokenizer_config.json", tokenizer_class=None)(tmp_path)
    by_files, loaded = read(tmp_path), load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer_of(kind))
    assert by_files.unknown_class is None
    assert by_files.backend is not None
    assert by_files.vocabulary == loaded.get_vocab()
    assert by_files.roles == traits_of(loaded).roles
    for text in (("ba be bi",), ("ba be bi", "bo, bu")):
        assert by_files.backend.encode(*text).ids == loaded(*text)["input_ids"]
    assert make_masker(by_files, Masking(whole_words=True)).mask_id == loaded.mask_token_id


# --- ids without an embedding -----------------------------------------------------------------------------------------

OUTSIDE = {
    "a pad token of the config": "'<pad>' (pad_token in tokenizer_config.json) the id 100",
    "bos and mask of the config": "'<mask>' (mask_token in tokenizer_config.json) the id 101",
    "more special tokens": "'<call>' (additional_special_tokens in tokenizer_config.json) the id 101",
    "tokens of the model": "'<image>' (image_token in tokenizer_config.json) the id 100",
    "declared tokens": "'<turn>' (added_tokens_decoder in tokenizer_config.json) the id 100",
    "a special tokens map": "'</s>' (eos_token in special_tokens_map.json) the id 101",
    "an added tokens file": "'<call>' (added_tokens.json) the id 101",
    "padding of the tokenizer": "'<filler>' (pad_token in tokenizer.json) the id 100",
    "llama's class": "'<s>' (bos_token in transformers' default) the id 100",
    "gpt2 without a class": "'<|endoftext|>' (bos_token in transformers' default) the id 100",
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_an_id_beyond_the_embeddings_is_named_with_the_file_that_gives_it(
    llama: Path, tmp_path: Path, case: str
) -> None:
    folder = copied(llama, tmp_path / "model", CASES[case])
    facts = read_model_facts(llama)
    with pytest.raises(CheckpointError) as caught:
        refuse_ids_outside(read(folder), facts)
    message = str(caught.value)
    assert message.startswith(f"its tokenizer gives {OUTSIDE[case]}, but the model has embeddings for 0..99 (100 rows")
    assert "or resize its embeddings" in message
    with pytest.raises(
        CheckpointError, match=r"but the model has embeddings for 0\.\.99 "
    ):  # and again as it is loaded
        refuse_ids_outside(traits_of(load_tokenizer(folder)), facts)


def test_a_token_with_an_embedding_is_named_in_its_place_also_the_very_first(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "model", CASES["a special tokens map"])
    assert read(folder).vocabulary["[PAD]"] == 0
    with pytest.raises(CheckpointError, match=r"; name a token that has an embedding, such as '\[PAD\]', or resize"):
        refuse_ids_outside(read(folder), read_model_facts(llama))


def test_an_id_that_only_the_template_gives_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "model", edit_tokenizer(template))
    assert max(read(folder).vocabulary.values()) < VOCAB_SIZE
    with pytest.raises(
        CheckpointError, match=r"gives '\[EOS\]' \(the post-processor in tokenizer\.json\) the id 500, but"
    ):
        refuse_ids_outside(read(folder), read_model_facts(llama))


def test_the_ids_of_older_templates_are_seen(bert: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 700], "cls": ["[CLS]", 3]}

    folder = copied(bert, tmp_path / "model", edit_tokenizer(change))
    assert read(folder).template_ids == {"[SEP]": 700, "[CLS]": 3}


# --- tokenizers that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path, family: str) -> None:
    # transformers would make an empty tokenizer for gpt2 and bert, and read every text as nothing or [UNK]
    folder = write_model(tmp_path / "model", family, blocks=1)
    (folder / "tokenizer.json").unlink()
    for look in (tokenizer_of_files, load_tokenizer):
        with pytest.raises(
            CheckpointError, match=r"model: holds no tokenizer \(none of tokenizer\.json, tokenizer\.mod"
        ):
            look(folder)
    (folder / "vocab.json").write_text("{}", encoding="utf-8")  # without the merges.txt that belongs to it
    with pytest.raises(CheckpointError, match=r"vocab\.json with merges\.txt"):
        tokenizer_of_files(folder)


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json: damaged \(.*; copy it again"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: damaged \(.*; copy it again"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: holds a list, not an object; copy it again"),
        ("added_tokens.json", "[1]", r"added_tokens\.json: holds a list, not an object; copy it again"),
        ("special_tokens_map.json", "nothing", r"special_tokens_map\.json: damaged \(.*; copy it again"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(
    llama: Path, tmp_path: Path, name: str, content: str, phrase: str
) -> None:
    folder = copied(llama, tmp_path / "model", lambda folder: (folder / name).write_text(content, encoding="utf-8"))
    with pytest.raises(CheckpointError, match=phrase):
        tokenizer_of_files(folder)
    with pytest.raises(CheckpointError, match=f"{folder}: no tokenizer can be loaded from this folder: "):
        load_tokenizer(folder)


def test_a_tekken_vocabulary_says_what_it_needs(llama: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        (folder / "tekken.json").write_text(json.dumps({"config": {"pattern": "."}, "vocab": []}), encoding="utf-8")

    folder = copied(llama, tmp_path / "model", change)
    assert tokenizer_of_files(folder) is None
    with pytest.raises(CheckpointError, match=r"no tokenizer can be loaded from this folder: .*mistral-common"):
        load_tokenizer(folder)


def test_code_of_a_tokenizers_folder_is_neither_run_nor_asked_about(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]}, tokenizer_class="Own")
    with pytest.raises(CheckpointError, match=r"no tokenizer can be loaded from this folder: .*custom code"):
        load_tokenizer(copied(llama, tmp_path / "model", change))
    assert "y/N" not in capsys.readouterr().out


def nothing_left(content: dict[str, Any]) -> None:
    content["normalizer"] = json.loads(normalizers.Replace("", "").__getstate__()) | {"pattern": {"Regex": "."}}


def no_words(content: dict[str, Any]) -> None:
    content["model"]["vocab"] = {"[UNK]": 2}
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Removed", "invert": False}


def no_unknown(content: dict[str, Any]) -> None:
    content["model"] |= {"vocab": {"ba": 0}, "unk_token": "<missing>"}
    content["normalizer"] = json.loads(normalizers.Prepend("!").__getstate__())
    content["pre_tokenizer"] = None


@pytest.mark.parametrize("change", [nothing_left, no_words, no_unknown])
def test_a_tokenizer_that_gives_no_tokens_is_refused(
    llama: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = copied(llama, tmp_path / "model", edit_tokenizer(change))
    phrase = "the tokenizer gives no tokens for any text, not even for those of its own vocabulary.*; use the tokenizer"
    with pytest.raises(CheckpointError, match=phrase):
        refuse_useless_tokenizer(read(folder))
    with pytest.raises(CheckpointError, match=f"{folder}: {phrase}"):
        ends_when_loaded(load_tokenizer(folder), None)


def test_a_tokenizer_without_padding_and_end_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "model", edit("tokenizer_config.json", pad_token=None, eos_token=None))
    without = "tokenizer has neither a padding nor an end token; add one to it"
    with pytest.raises(ConfigError, match=f"^its {without}$"):  # behind the key whose folder it is
        refuse_useless_tokenizer(read(folder))
    with pytest.raises(ConfigError, match=f"^{folder}: the {without}$"):
        load_tokenizer(folder)


# --- before and behind a text -----------------------------------------------------------------------------------------


def around(single: str, *tokens: str) -> Change:
    """A tokenizer that puts tokens of its vocabulary around each text."""

    def change(content: dict[str, Any]) -> None:
        pairs = [(token, content["model"]["vocab"][token]) for token in tokens]
        step = processors.TemplateProcessing(single=single, special_tokens=pairs)
        content["post_processor"] = json.loads(step.__getstate__())

    return edit_tokenizer(change)


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        (lambda folder: None, ((), ())),
        (around("[CLS] $A", "[CLS]"), ((3,), ())),
        (around("[CLS] $A [EOS]", "[CLS]", "[EOS]"), ((3,), (1,))),
        (around("$A [EOS]", "[EOS]"), ((), (1,))),
        (around("[CLS] [SEP] $A", "[CLS]", "[SEP]"), ((3, 4), ())),
    ],
)
def test_what_encode_puts_around_a_text_is_seen_by_the_files_and_when_loaded(
    llama: Path, tmp_path: Path, change: Change, ends: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    folder = copied(llama, tmp_path / "model", change)
    assert own_ends(read(folder)) == ends
    assert own_ends(traits_of(load_tokenizer(folder))) == ends


@pytest.mark.parametrize(
    "name", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "GemmaTokenizer"]
)
def test_a_class_that_would_not_keep_to_the_files_is_not_taken_at_their_word(
    llama: Path, tmp_path: Path, name: str
) -> None:
    change = both(around("[CLS] $A", "[CLS]"), edit("tokenizer_config.json", tokenizer_class=name))
    folder = copied(llama, tmp_path / "model", change)
    by_files, loaded = read(folder), load_tokenizer(folder)
    assert loaded("").input_ids == ([] if name == "GPTNeoXTokenizer" else [3])
    assert by_files.unknown_class == (name if name in MAY_MAKE_ENDS_ANEW else None)


def fixed_length(length: int, truncated: int) -> Change:
    """A tokenizer that by its file fills each text up with padding, and cuts it."""
    cut = {"direction": "Right", "max_length": truncated, "strategy": "LongestFirst", "stride": 0}
    padding = {**PADDING, "strategy": {"Fixed": length}, "pad_token": "[PAD]"}
    return edit_tokenizer(lambda content: content.update(padding=padding, truncation=cut))


ENDS: dict[str, tuple[Change, BosSetting | None, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "a labelled task": (around("[CLS] $A [SEP]", "[CLS]", "[SEP]"), None, ((3,), (4,))),
    "a corpus": (around("[CLS] $A [SEP]", "[CLS]", "[SEP]"), "auto", ((3,), (1,))),
    "never": (around("[CLS] $A", "[CLS]"), "never", ((), (1,))),
    "always": (edit("tokenizer_config.json", bos_token="[SEP]"), "always", ((4,), (1,))),
    "no end token": (edit("tokenizer_config.json", eos_token=None), "auto", ((), (0,))),
    "texts of a fixed length": (both(around("[CLS] $A", "[CLS]"), fixed_length(16, 8)), None, ((3,), ())),
    "documents of a fixed length": (
        both(around("[CLS] $A [SEP]", "[CLS]", "[SEP]"), fixed_length(8, 4)),
        "auto",
        ((3,), (1,)),
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_check_and_the_run_say_the_same_of_what_stands_around_a_text(llama: Path, tmp_path: Path, case: str) -> None:
    change, bos, ends = ENDS[case]
    folder = copied(llama, tmp_path / "model", change)
    by_files = ends_of(read(folder), bos)
    assert (by_files.start, by_files.end) == ends
    assert ends_when_loaded(load_tokenizer(folder), bos) == by_files


def test_a_tokenizer_of_transformers_in_python_says_what_it_puts_around_a_text() -> None:
    loaded = transformers.ByT5Tokenizer()
    assert traits_of(loaded).backend is None
    assert ends_when_loaded(loaded, None) == (
        (),
        (1,),
        "before each text nothing (as the tokenizer's own encode does), behind it '</s>' (1)",
    )
    assert ends_when_loaded(loaded, "never")[:2] == ((), (1,))
    with pytest.raises(ConfigError, match=r"task\.bos: always, but the teacher's tokenizer has no BOS token"):
        ends_when_loaded(loaded, "always")


def test_texts_are_tried_until_one_gives_tokens() -> None:
    known = {"ba": [5], "be": [6]}
    added = added_around(
        lambda text, special: [1, *known.get(text, [])] if special else known.get(text, []), iter(["x", "be", "ba"])
    )
    assert added == ((1,), ())
    assert "ba" in [*probes({"[PAD]": 0, "ba": 5}, {"[PAD]"}, {0: "no", 5: "ba"}.__getitem__)]


@pytest.mark.parametrize(
    ("setting", "added", "bos", "start"),
    [
        ("auto", (), 7, ()),
        ("auto", (7,), 7, (7,)),
        ("auto", (3, 4), None, (3, 4)),
        ("always", (), 7, (7,)),
        ("always", (3, 4), 7, (3, 4)),
        ("never", (7,), 7, ()),
    ],
)
def test_the_setting_decides_what_documents_start_with(
    setting: Any, added: tuple[int, ...], bos: int | None, start: tuple[int, ...]
) -> None:
    assert choose_start(setting, added=added, bos=bos) == start


def test_a_bos_that_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.bos: always, but the teacher's tokenizer has no BOS token; use auto"):
        choose_start("always", added=(), bos=None)


# --- two tokenizers of one vocabulary ---------------------------------------------------------------------------------


def lower(content: dict[str, Any]) -> None:
    content["normalizer"] = json.loads(normalizers.Lowercase().__getstate__())


def by_bytes(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = json.loads(pre_tokenizers.ByteLevel().__getstate__())


def stripped(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["lstrip"] = True


def more_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")


def unlisted(content: dict[str, Any]) -> None:
    del content["added_tokens"][4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            edit("tokenizer_config.json", eos_token="[SEP]"),
            "eos_token is '[EOS]' to the teacher and '[SEP]' to the student",
        ),
        (
            edit("tokenizer_config.json", bos_token="[CLS]"),
            "bos_token is none to the teacher and '[CLS]' to the student",
        ),
        (edit("tokenizer_config.json", padding_side="left"), "padding_side is 'right' to the teacher and 'left' to"),
        (edit("tokenizer_config.json", model_max_length=512), "to the teacher and 512 to the student"),
        (edit("tokenizer_config.json", chat_template="{{ messages }}"), "only the student has a chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), "only the student has a chat template"),
        (more_templates, "only the student has a chat template"),
        (
            edit("tokenizer_config.json", clean_up_tokenization_spaces=True),
            "clean_up_tokenization_spaces is False to the teacher and True to the student",
        ),
        (edit_tokenizer(lower), "the normaliser differs: none for the teacher, Lowercase for the student"),
        (edit_tokenizer(by_bytes), "the pre-tokeniser differs: Whitespace for the teacher, ByteLevel for the student"),
        (
            around("[CLS] $A", "[CLS]"),
            "the post-processor (what is put around a text) is a TemplateProcessing of other",
        ),
        (edit_tokenizer(stripped), "'[PAD]' is found in another way (lstrip: False, True)"),
        (
            both(edit_tokenizer(unlisted), edit("tokenizer_config.json", sep_token=None)),
            "'[SEP]' is found whole in any text by the teacher's alone",
        ),
        (
            edit_tokenizer(lambda c: c["model"].update(unk_token="[SEP]")),
            "unk_token is '[UNK]' to the teacher and '[SEP]'",
        ),
    ],
)
def test_every_difference_between_two_tokenizers_of_one_vocabulary_is_named(
    llama: Path, tmp_path: Path, change: Change, words: str
) -> None:
    student = copied(llama, tmp_path / "student", change)
    assert [*differences(read(llama), read(llama))] == []
    assert read(student).vocabulary == read(llama).vocabulary
    found = [*differences(read(llama), read(student))]
    assert any(words in line for line in found), found
    loaded = [*differences(traits_of(load_tokenizer(llama)), traits_of(load_tokenizer(student)))]
    assert loaded


def test_settings_by_which_a_class_makes_its_steps_anew_are_named(bert: Path, tmp_path: Path) -> None:
    one, other = (
        copied(
            bert,
            tmp_path / str(lower),
            edit("tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=lower),
        )
        for lower in (True, False)
    )
    assert [*differences(read(one), read(other))] == ["do_lower_case is True to the teacher and False to the student"]
    loaded = [*differences(traits_of(load_tokenizer(one)), traits_of(load_tokenizer(other)))]
    assert loaded == ["the normaliser is a BertNormalizer of other settings"]


def test_other_merges_are_named(tmp_path: Path, llama: Path) -> None:
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[EOS]", "b", "a", "ba", "ab"])}
    folders = []
    for name, merges in (("teacher", [("b", "a"), ("a", "b")]), ("student", [("a", "b"), ("b", "a")])):
        folder = Path(shutil.copytree(llama, tmp_path / name))
        Tokenizer(models.BPE(vocabulary, merges)).save(str(folder / "tokenizer.json"))
        edit("tokenizer_config.json", **dict.fromkeys(("unk_token", "cls_token", "sep_token")))(folder)
        folders.append(folder)
    teacher, student = map(read, folders)
    assert teacher.vocabulary == student.vocabulary
    assert own_ends(teacher) == ((), ())
    assert [*differences(teacher, student)] == ["the merges differ (2 and 2)"]
    assert teacher.encode("bab", False) != student.encode("bab", False)


def test_a_tokenizer_error_is_one_of_ours(llama: Path) -> None:
    with pytest.raises(TedError):
        tokenizer_of_files(llama.parent)
