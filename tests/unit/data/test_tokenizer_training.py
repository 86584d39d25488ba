"""Training tokenizers, and reading SentencePiece models that stand alone: the same ids, and every text back."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as schema
from transformers import AutoTokenizer

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.config.schema import TokenizerTraining
from ted_ds.data.reading.listing import list_data
from ted_ds.data.tokenizer_training import Reading, cut_into_sentences, draw_sample, train_tokenizer
from ted_ds.errors import CheckpointError, DataError
from ted_ds.models.loading import load_tokenizer
from ted_ds.models.sentencepiece_model import convert, read_sentencepiece, refuse_other_ids
from ted_ds.models.tokenizer_files import tokenizer_of_files
from ted_ds.output.phase_folder import model_identity
from ted_ds.planning.two_tokenizers import are_two
from ted_ds.verbs.tokenizer import heldout_texts, training_texts
from tests.tiny import ROOT, recipe_dict, write_recipe, write_rows

KINDS = ("unigram", "bpe")
AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "\n\nlines\n\n\nand\ttabs\t\r\n",
    "日本語と🤗 and e\u0301",
    "\x00\x01\x1f\x7f\u200b\ufeff\u2028\U0010ffff",
    "the byte <0x41> and <0xZZ>, a ▁ mark and a ▅ block",
    "<s> and </s>, <unk> and <pad>",
]


def words(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of invented words with repeated parts, line ends and indentation."""
    generator = random.Random(seed)
    parts = ["ka", "lo", "mi", "ne", "tu", "ran", "sel", "dor", "vin", "gash"]
    lexicon = ["".join(generator.choices(parts, k=generator.randint(1, 4))) for _ in range(400)]
    for _ in range(count):
        text = " ".join(generator.choices(lexicon, k=30))
        yield f"{text.capitalize()}.\n\n    {generator.choice(lexicon)}, {generator.randrange(100)}...\n"


def options(**changes) -> TokenizerTraining:
    return TokenizerTraining.model_validate({"vocab_size": 500, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        train_tokenizer(words(300), options(kind=kind), seed=0, folder=folder)
    return folders


@pytest.fixture(scope="module", params=KINDS)
def folder(request, trained) -> Path:
    return trained[request.param]


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# --- what is trained ---------------------------------------------------------------------------------------------


def test_it_is_of_the_size_and_has_its_special_tokens(tokenizer) -> None:
    assert len(tokenizer) == 500
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (0, 1, 2, 3)
    assert tokenizer("kalo").input_ids == ids(tokenizer, "kalo"), "nothing is put around a text"


@pytest.mark.parametrize("text", AWKWARD)
def test_an_awkward_text_comes_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_ids_are_sentencepieces_own(tokenizer, processor) -> None:
    """The mark for a space and the names of special tokens apart: SentencePiece cannot tell those from a space."""
    generator = random.Random(1)
    runs = ("".join(generator.choice(" \nkal.") * generator.randrange(1, 9) for _ in range(12)) for _ in range(500))
    plain = [text for text in AWKWARD if "▁" not in text and "<s>" not in text]
    for text in [*plain, "<0x41>", *words(50, seed=1), *runs]:
        assert ids(tokenizer, text) == processor.encode(text), text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<")))
def test_ids_of_any_text_are_sentencepieces_own(tokenizer, processor, text: str) -> None:
    assert ids(tokenizer, text) == processor.encode(text)


def test_words_lines_and_indentation_are_tokens(trained) -> None:
    pieces = AutoTokenizer.from_pretrained(trained["bpe"]).get_vocab()
    assert {"\n\n", "    "} <= pieces.keys()
    text = next(words(1, seed=5))
    assert len(ids(AutoTokenizer.from_pretrained(trained["bpe"]), text)) < len(text.encode()) / 2


def test_without_byte_fallback_the_unknown_is_unknown(tmp_path) -> None:
    train_tokenizer(words(100), options(byte_fallback=False, vocab_size=200), seed=0, folder=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "ka日本"))[-1] == "<unk>"
    assert tokenizer.decode(ids(tokenizer, "kalo mi")) == "kalo mi"
    assert not [token for token in tokenizer.get_vocab() if token.startswith("<0x")]


def test_character_coverage_leaves_rare_characters_to_bytes(tmp_path) -> None:
    texts = [*words(200), "Ω"]
    for coverage in (1.0, 0.99):
        train_tokenizer(texts, options(character_coverage=coverage), seed=0, folder=tmp_path)
        assert ("Ω" in AutoTokenizer.from_pretrained(tmp_path).get_vocab()) == (coverage == 1.0)


# --- one seed, one result; bounded memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_follows_from_texts_and_seed(tmp_path, kind: str) -> None:
    def trained_with(seed: int) -> bytes:
        train_tokenizer(words(200), options(kind=kind, max_sentences=150), seed=seed, folder=tmp_path)
        return (tmp_path / "tokenizer.model").read_bytes() + (tmp_path / "tokenizer.json").read_bytes()

    assert trained_with(3) == trained_with(3)
    assert trained_with(3) != trained_with(4)


def test_the_sample_is_uniform_and_bounded() -> None:
    counts = [0] * 40
    for seed in range(2000):
        sample = draw_sample(map(str, range(40)), 10, seed)
        assert len(sample) == 10
        for text in sample:
            counts[int(text)] += 1
    # each is drawn with probability 1/4: 500 times, with a standard deviation of 19
    assert min(counts) > 400
    assert max(counts) < 600


MEMORY = """
import random, re, sys
from pathlib import Path
from ted_ds.config.schema import TokenizerTraining
from ted_ds.data.tokenizer_training import train_tokenizer
generator = random.Random(0)
lexicon = ["".join(generator.choices("abcdefgh", k=6)) for _ in range(500)]
def texts(count):
    for _ in range(count):
        yield " ".join(generator.choices(lexicon, k=140))
settings = TokenizerTraining(kind="bpe", vocab_size=400, max_sentences=int(sys.argv[2]))
def peak():  # not ru_maxrss: that begins with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
train_tokenizer(texts(100), settings, seed=0, folder=Path(sys.argv[1]))
before = peak()
reading = train_tokenizer(texts(30000), settings, seed=0, folder=Path(sys.argv[1]))
print(reading.bytes, peak() - before)
"""


@pytest.mark.lengthy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_stream(tmp_path) -> None:
    def read_and_grown(max_sentences: int) -> list[int]:
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(max_sentences)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        return [int(number) for number in done.stdout.split()]

    read, grown = read_and_grown(500)
    assert read > 29e6
    assert grown < 8e6, "a sample of 500 kB, of 29 MB that were read"
    _, grown = read_and_grown(100_000)
    assert grown > 25e6, "the measurement sees what is held"


def test_long_documents_are_cut_not_dropped() -> None:
    texts = ["word " * 3000, "x" * 5000, "日" * 5000, "a▅b", "\n" * 100 + "line\nline", "", "\r\n"]
    for text in texts:
        sentences = list(cut_into_sentences([text], Reading()))
        assert all(len(sentence.encode()) < 4192 for sentence in sentences)
        kept = "".join(sentences)
        assert kept.replace("\n", "") == text.replace("▅", "").strip("\r\n").replace("\n", "")
    assert list(cut_into_sentences(["one\n\ntwo three"], Reading())) == ["one", "\n\ntwo three"]
    assert all(s.startswith(("word", " word")) for s in cut_into_sentences([texts[0].strip()], Reading())), (
        "cut between words"
    )


def test_only_so_many_documents_are_read(tmp_path) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield from words(50)

    reading = train_tokenizer(endless(), options(kind="bpe", max_documents=120), seed=0, folder=tmp_path)
    assert reading.documents == 120


# --- what cannot be trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"vocab_size": 9000}, r"tokenizer.vocab_size: 9000: these texts give at most \d+ tokens; use \d+ or fewer"),
        ({"vocab_size": 262}, r"vocab_size: 262: the characters of these texts alone need \d+; use more than \d+, or"),
    ],
)
def test_a_size_that_does_not_fit_the_texts_is_explained(tmp_path, kind: str, changes, phrase: str) -> None:
    with pytest.raises(DataError, match=phrase):
        train_tokenizer(words(40), options(kind=kind, **changes), seed=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_text_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(["", "\n"], options(), seed=0, folder=tmp_path)


def test_texts_sentencepiece_cannot_use_are_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="SentencePiece cannot train on these texts: "):
        train_tokenizer(["\x00"], options(), seed=0, folder=tmp_path)


def test_what_goes_wrong_in_the_stream_stays_what_it_is(tmp_path) -> None:
    def broken() -> Iterator[str]:
        yield "a text"
        raise DataError("train.jsonl: row 2: no value")

    with pytest.raises(DataError, match=r"^train\.jsonl: row 2: no value$"):
        train_tokenizer(broken(), options(), seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "taken"), [({"vocab_size": 260}, 260), ({"vocab_size": 4, "byte_fallback": False}, 4)]
)
def test_a_vocabulary_without_room_is_refused(changes, taken: int) -> None:
    with pytest.raises(ValueError, match=f"must be above {taken}: 4 special tokens"):
        options(**changes)


# --- the verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    """A recipe whose teacher, student and DeepSpeed JSON are nowhere."""
    write_rows(tmp_path / "train.jsonl", ({"text": text} for text in words(150)))
    recipe = {**recipe_dict(tmp_path), "tokenizer": {"vocab_size": 400, "kind": "bpe"}, "deepspeed": "nowhere.json"}
    return write_recipe(tmp_path / "recipe.yaml", recipe)


@pytest.mark.lengthy
def test_the_verb_trains_without_deepspeed_skips_and_refuses(recipe_file, tmp_path, capsys) -> None:
    output = tmp_path / "run" / "tokenizer"
    broken = tmp_path / "broken" / "deepspeed"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise SystemExit('deepspeed is imported')")
    run = [sys.executable, "-m", "ted_ds", "tokenizer", "train", str(recipe_file), "evaluation.max_examples=20"]
    environment = {**os.environ, "PYTHONPATH": f"{broken.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("vocabulary  400 tokens, bpe", "of 20 documents 20 come back as they were, 20 have the ids that"):
        assert line in done.stdout
    assert sorted(file.name for file in output.iterdir()) == [
        "phase.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["tokenizer"]
    result = json.loads((output / "phase.json").read_text())["result"]
    assert (result["tokens"], result["heldout_documents"]) == (400, 20)
    assert 110 < result["documents"] < 145, "a fifth is held out"

    assert main(["tokenizer", "train", str(recipe_file), "evaluation.max_examples=20"]) == 0
    assert f"tokenizer: complete, skipped; the same as in {output}" in capsys.readouterr().out
    assert main(["tokenizer", "train", str(recipe_file), "tokenizer.vocab_size=401"]) == 2
    assert "tokenizer.vocab_size was 400, now 401" in capsys.readouterr().err


def test_what_is_held_out_is_not_read(recipe_file) -> None:
    recipe = load_recipe(recipe_file)
    train, heldout = (
        set(training_texts(recipe, list_data(recipe.data))),
        set(heldout_texts(recipe, list_data(recipe.data))),
    )
    assert train
    assert heldout
    assert not train & heldout
    assert train | heldout == set(words(150))
    given = load_recipe(recipe_file, [f"data.evaluation=[{{path: {recipe_file.parent / 'train.jsonl'}}}]"])
    assert (
        set(training_texts(given, list_data(given.data)))
        == set(heldout_texts(given, list_data(given.data)))
        == set(words(150))
    )


def test_sources_are_read_in_turn(recipe_file) -> None:
    write_rows(recipe_file.parent / "more.jsonl", [{"text": "first"}, {"text": " "}, {"text": "second"}])
    folder = recipe_file.parent
    recipe = load_recipe(
        recipe_file,
        [
            f"data.train=[{{path: {folder / 'train.jsonl'}}}, {{path: {folder / 'more.jsonl'}}}]",
            "data.heldout_fraction=1e-9",
        ],
    )
    texts, first = list(training_texts(recipe, list_data(recipe.data))), list(words(150))
    assert texts[:4] == [first[0], "first", first[1], "second"], "a blank document is none"
    assert len(texts) == 152


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("tokenizer=null", "no tokenizer section; add one, such as tokenizer: {vocab_size: 32000}"),
        ("tokenizer.vocab_size=100", "tokenizer: vocab_size (100) must be above 260"),
        ("tokenizer.vocab=1", "tokenizer.vocab: unknown key; did you mean 'vocab_size'?"),
        (
            "tokenizer.character_coverage=0.9",
            "tokenizer.character_coverage: 0.9: use a number from 0.98 to 1",
        ),
        ("data.train[0].path=none.jsonl", "none.jsonl: no such data file or folder"),
        ("task.text_column=body", "no column 'body'"),
    ],
)
def test_the_verb_says_what_is_wrong(recipe_file, tmp_path, capsys, override: str, phrase: str) -> None:
    assert main(["tokenizer", "train", str(recipe_file), override]) == 2
    assert phrase in capsys.readouterr().err
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_an_output_that_cannot_be_written_is_refused(recipe_file, capsys) -> None:
    assert main(["tokenizer", "train", str(recipe_file), f"output_dir={recipe_file}/x"]) == 2
    assert f"output_dir: {recipe_file}/x: cannot be written" in capsys.readouterr().err


def test_without_heldout_documents_it_says_so(recipe_file, capsys) -> None:
    assert main(["tokenizer", "train", str(recipe_file), "data.heldout_fraction=1e-9"]) == 0
    assert "held out    no documents; raise data.heldout_fraction" in capsys.readouterr().out


def test_several_ranks_are_refused(recipe_file, capsys, monkeypatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert main(["tokenizer", "train", str(recipe_file)]) == 2
    assert "run this verb without a launcher" in capsys.readouterr().err


# --- a SentencePiece model alone -----------------------------------------------------------------------------------


def write_alone(folder: Path, model: bytes, *, model_type: str = "llama", **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def foreign(tmp_path: Path, kind: str, **changes) -> bytes:
    """A model as others train them: with a space before the first word, and more."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words(200),
        model_prefix=str(tmp_path / "foreign"),
        model_type=kind,
        vocab_size=400,
        minloglevel=2,
        hard_vocab_limit=False,
        **{"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **changes},
    )
    return (tmp_path / "foreign.model").read_bytes()


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "LlamaTokenizer"}], ids=["no config", "llama"])
def test_a_trained_folder_without_tokenizer_json_reads_the_same(tmp_path, folder, tokenizer, config) -> None:
    alone = write_alone(tmp_path / "alone", (folder / "tokenizer.model").read_bytes(), **config)
    loaded = load_tokenizer(alone)
    for text in [*AWKWARD[:6], *words(20, seed=2)]:
        assert ids(loaded, text) == ids(tokenizer, text)
        assert loaded.decode(ids(loaded, text)) == text
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (2, 3, 500)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bpe", {}),
        ("unigram", {}),
        ("bpe", {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}),
        ("bpe", {"user_defined_symbols": ["<code>", "▁▁"], "add_dummy_prefix": False}),
    ],
    ids=["llama", "unigram", "normalising", "symbols"],
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_foreign_model_reads_as_sentencepiece_does(tmp_path, kind: str, changes, model_type: str) -> None:
    model = foreign(tmp_path, kind, **changes)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    loaded = load_tokenizer(write_alone(tmp_path / "alone", model, model_type=model_type))
    for text in ["", " lead", "  two  spaces ", "a\n\nb\t", "x <code> ﬁ ①", "日本", *words(10, seed=3)]:
        assert ids(loaded, text) == processor.encode(text), text
        if processor.unk_id() not in ids(loaded, text):  # SentencePiece writes that as another text
            assert loaded.decode(ids(loaded, text)) == processor.decode(processor.encode(text))
    assert len(loaded) == processor.get_piece_size(), "no token the model has no embedding of"
    assert loaded.eos_token == "</s>"


def test_it_is_saved_as_it_was_loaded(tmp_path) -> None:
    """What is exported loads without ted_ds."""
    alone = write_alone(tmp_path / "alone", foreign(tmp_path, "bpe"), tokenizer_class="LlamaTokenizer")
    loaded = load_tokenizer(alone)
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in [" lead", "  two  spaces ", *words(10, seed=3)]:
        assert ids(again, text) == ids(loaded, text)


def test_added_tokens_and_the_token_before_a_text_are_kept(tmp_path) -> None:
    model = foreign(tmp_path, "bpe")
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    added = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}

    def config(index: int):
        return {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "added_tokens_decoder": {str(index): {"content": "<turn>", **added}},
        }

    loaded = load_tokenizer(write_alone(tmp_path / "alone", model, **config(size)))
    assert loaded.convert_tokens_to_ids("<turn>") == size
    assert loaded("kalo").input_ids[0] == loaded.bos_token_id == 1
    with pytest.raises(CheckpointError, match=f"gives '<turn>' the id {size + 5}, but it would be {size}; number"):
        load_tokenizer(write_alone(tmp_path / "gap", model, **config(size + 5)))


def test_models_alone_are_compared_and_named(tmp_path, trained) -> None:
    alone = write_alone(tmp_path / "alone", (trained["bpe"] / "tokenizer.model").read_bytes())
    other = write_alone(tmp_path / "other", (trained["unigram"] / "tokenizer.model").read_bytes())
    by_files, of_other = tokenizer_of_files(alone), tokenizer_of_files(other)
    assert by_files is not None
    assert of_other is not None
    assert by_files.vocabulary == load_tokenizer(alone).get_vocab()
    assert are_two(by_files, of_other)
    (alone / "model.safetensors").write_bytes(b"weights")
    before = model_identity(alone)["sha256"]
    shutil.copy(other / "tokenizer.model", alone)
    assert model_identity(alone)["sha256"] != before


def test_a_model_that_cannot_be_followed_is_refused(tmp_path) -> None:
    for changes, phrase in (({"model_type": 3}, "words or characters"), ({"suffix": True}, "ends words with a space")):
        model = schema.ModelProto()
        model.ParseFromString(foreign(tmp_path, "bpe"))
        if "suffix" in changes:
            model.trainer_spec.treat_whitespace_as_suffix = True
        else:
            model.trainer_spec.model_type = schema.TrainerSpec.WORD
        alone = write_alone(tmp_path / "alone", model.SerializeToString(), tokenizer_class="LlamaTokenizer")
        with pytest.raises(CheckpointError, match=rf"tokenizer\.model: a SentencePiece model .*{phrase}"):
            load_tokenizer(alone)


def test_other_ids_than_sentencepieces_are_noticed(tmp_path) -> None:
    model = read_sentencepiece(write_alone(tmp_path / "alone", foreign(tmp_path, "bpe")))
    tokenizer = convert(model)
    refuse_other_ids(model, tokenizer)
    tokenizer.normalizer = None
    with pytest.raises(
        CheckpointError, match=r"its conversion reads 'a' as .*, SentencePiece as .*; add the tokenizer"
    ):
        refuse_other_ids(model, tokenizer)


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\x00\x01\x02"])
def test_a_file_of_another_kind_is_no_sentencepiece_model(tmp_path, content: bytes) -> None:
    assert read_sentencepiece(write_alone(tmp_path / "alone", content)) is None
    assert tokenizer_of_files(tmp_path / "alone") is None
