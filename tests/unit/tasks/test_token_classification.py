"""A label for each word: how it is read, where it stands among tokens, and how entities are scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ted_ds.config.data import Data, Source
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import TokenClassification
from ted_ds.data.first_rows import first_rows
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.errors import ConfigError, DataError
from ted_ds.models.families import family_of
from ted_ds.models.loading import auto_class
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.token_classification import Words, first_tokens
from ted_ds.tasks.word_scores import entities
from ted_ds.verbs.tokenizer import train_from_recipe
from tests.refusals import without_overrides
from tests.task_kinds import labelled, samples_of
from tests.tiny import SPECIAL_TOKENS, WORD_LABELS, model_config, recipe_dict, write_recipe, write_rows, write_tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LISTS = TokenClassification(kind="token_classification", labels=LABELS)
CONLL = TokenClassification(kind="token_classification", labels=LABELS, rows="conll")


def label_of(value: Any, *, words: int = 3, declared: Any = None, task: Any = LISTS) -> Any:
    row = {"tokens": ["w"] * words, "ner_tags": value}
    (read,) = kind_of(task).read(
        row, where="a.jsonl: row 7", declared={} if declared is None else {"ner_tags": declared}
    )
    return read.label


# --- rows with lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["B-PER", "I-PER", "O"], [1, 2, 0]),
        ([3, 4, 0], [3, 4, 0]),
        (["B-LOC", None, -100], [3, -100, -100]),
        ('["O", "O", "B-LOC"]', [0, 0, 3]),  # as a CSV file or a JSON text has it
        (None, None),
        ([-100, None, -100], None),
        ("", None),
    ],
)
def test_a_word_has_the_label_that_its_row_gives_by_name_or_id(value: Any, expected: Any) -> None:
    assert label_of(value) == expected


def test_ids_are_the_names_that_the_data_declare() -> None:
    assert label_of([0, 1, 2], declared=["B-LOC", "I-LOC", "O"]) == [3, 4, 0]
    named = LISTS.model_copy(update={"data_labels": ["0", "person", "in person", "place", "in place"]})
    assert label_of(["person", "0", "place"], task=named) == [1, 0, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["O", "O"], "a.jsonl: row 7: 3 words and 2 labels; give a label for each word"),
        ([0, 0, 0, 0], "a.jsonl: row 7: 3 words and 4 labels; give a label for each word"),
        ("O", "a.jsonl: row 7: label 'O': token_classification needs a list in column 'ner_tags'"),
        (["O", "O", "B-ORG"], f"a.jsonl: row 7: label 'B-ORG' is unknown; use one of {LABELS} or its id 0..4"),
        ([0, 0, 5], f"a.jsonl: row 7: label 5 is unknown; use one of {LABELS} or its id 0..4"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_their_row(value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        label_of(value)
    assert without_overrides(str(caught.value)) == message


# --- lines of words ---------------------------------------------------------------------------------------------------

SENTENCES = """-DOCSTART- -X- -X- O

EU NNP B-NP B-PER
rejects VBZ B-VP O

Peter\tNNP\tB-NP\tB-PER
Black\u00a0wood NNP I-NP I-PER\r
. . O O
"""


def conll(block: str) -> Any:
    return kind_of(CONLL).read({"text": block}, where="a.conll: row 2", declared={})


def test_a_line_has_its_word_first_and_its_label_last() -> None:
    (read,) = conll("EU NNP B-NP B-PER\n  rejects\tVBZ   B-VP O \r\n\u2028 . 0")
    assert read == Words("EU rejects \u2028", [1, 0, 0], words=["EU", "rejects", "\u2028"])
    assert conll("EU\nrejects")[0] == Words("EU rejects", None, words=["EU", "rejects"])
    assert conll("-DOCSTART- -X- O O") == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "EU B-PER\nrejects\n. O",
            "a.conll: row 2: 'rejects' stands alone on its line, where others have a label behind the word; give each "
            "word one, with white space between",
        ),
        (
            " \t",
            "a.conll: row 2: a blank line, where a word and its label are wanted; sentences with blank lines between "
            "are read with documents: block",
        ),
        ("EU NNP", f"a.conll: row 2: label 'NNP' is unknown; use one of {LABELS} or its id 0..4"),
    ],
)
def test_lines_that_do_not_fit_are_refused_with_their_place(block: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        conll(block)
    assert without_overrides(str(caught.value)) == message


# --- from files to samples --------------------------------------------------------------------------------------------


def write_lists(folder: Path, where: str) -> Path:
    rows = [{"tokens": ["ba", "be", "bi"], "ner_tags": [1, 2, 0]}, {"tokens": ["bo"], "ner_tags": [3]}] * 10
    if where == "jsonl":
        return write_rows(folder / "rows.jsonl", rows)
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=LABELS))})
    Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def open_data(source: Source, task: Any, folder: Path, **settings: Any) -> LabelledData:
    data = Data(train=[source], evaluation=[source], **settings)
    tokenizer = write_tokenizer(folder / "tokenizer", encoder=True)
    return kind_of(task).open_data(data, tokenizer, list_data(data), max_heldout=100)  # type: ignore[return-value]


@pytest.mark.parametrize("where", ["jsonl", "parquet"])
def test_columns_of_lists_become_samples(tmp_path: Path, where: str) -> None:
    source = Source(path=str(write_lists(tmp_path, where)))
    data = open_data(source, LISTS, tmp_path)
    assert [sample.label for sample in data.train[:2]] == [[-100, 1, 2, 0, -100], [-100, 3, -100]]
    assert data.describe(1) == "20 training examples, held by every rank"
    shown = str(first_rows(source, kind_of(LISTS)))
    assert "tokens (list), ner_tags (list); texts of 2 to 8 characters" in shown
    assert "labels B-PER 10, I-PER 10, O 10, B-LOC 10" in shown


def test_sentences_of_lines_become_samples(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(SENTENCES.replace("EU", "ba").replace("rejects", "be"), encoding="utf-8")
    source = Source(path=str(tmp_path / "a.conll"), format="text", documents="block")
    data = open_data(source, CONLL, tmp_path)
    assert [sample.label for sample in data.train] == [[-100, 1, 0, -100], [-100, 1, 2, -100, 0, -100]]
    assert str(first_rows(source, kind_of(CONLL))).startswith("1 file; first 2 rows: text (text)")
    by_line = source.model_copy(update={"documents": "line"})
    assert "are read with documents: block" in first_rows(by_line, kind_of(CONLL)).problems[0]


@pytest.mark.parametrize("tokens", ["ba be", [1, 2], ["ba", None]])
def test_words_that_are_no_list_of_texts_are_bad_records(tmp_path: Path, tokens: Any) -> None:
    good = {"tokens": ["ba"], "ner_tags": [0]}
    path = write_rows(tmp_path / "a.jsonl", [good, {"tokens": tokens, "ner_tags": [0, 0]}])
    data = open_data(Source(path=str(path)), LISTS, tmp_path, bad_records={"max_fraction": 0.5})
    assert len(data.train) == 1
    (first, _) = data.bad_records
    assert first.fault == f"column 'tokens' holds {tokens!r}; it must be a list of words, each as text"


def test_a_missing_column_names_the_keys_of_words(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"words": ["ba"], "ner_tags": [0]}])
    (problem,) = first_rows(Source(path=str(path)), kind_of(LISTS)).problems
    assert problem == (
        f"{path}: row 1: no column 'tokens'; it has words, ner_tags. Set task.words_column or task.label_column"
    )


def test_labels_that_are_cut_off_are_counted_and_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"tokens": ["ba", "be", "bi", "bo"], "ner_tags": [0, 1, -100, 2]}] * 3)
    data = open_data(Source(path=str(path)), LISTS.model_copy(update={"max_length": 4}), tmp_path)
    assert [sample.label for sample in data.train] == [[-100, 0, 1, -100]] * 3
    assert data.describe(1) == (
        "3 training examples, held by every rank; 3 labels of words that were cut off, or that are nothing to "
        "the tokenizer"
    )


def test_a_sentence_whose_labels_are_all_cut_off_has_none(tmp_path: Path) -> None:
    rows = [{"tokens": ["ba", "be", "bi"], "ner_tags": given} for given in ([None, None, 1], [2, None, 1])]
    source = Source(path=str(write_rows(tmp_path / "a.jsonl", rows)))
    data = open_data(source, LISTS.model_copy(update={"max_length": 4}), tmp_path)
    assert [sample.label for sample in data.train] == [None, [-100, 2, -100, -100]]
    assert data.describe(1).startswith("2 training examples, 1 of them without a label, held by every rank; 2 labels")


# --- words and tokens -------------------------------------------------------------------------------------------------

PIECES = ["re", "##ject", "##s", "EU", "un", "##a", "##ff", ".", "a"]
SENTENCE = ["EU", "rejects", "unaff", ".", "zzz", "a"]


def wordpiece() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def bytes_of_words(*, trim: bool) -> PreTrainedTokenizerFast:
    """As GPT-2's: a token has the space before its word in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *alphabet, "Ġr", "Ġre", "je"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "r"), ("Ġr", "e"), ("j", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def labels_on(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> tuple[list[str], list[int]]:
    task = LISTS.model_copy(update={"labels": [str(index) for index in range(len(words))], "max_length": 99})
    (sample,) = samples_of(kind_of(task), tokenizer, [Words(" ".join(words), [*range(len(words))], words=words)])
    return tokenizer.convert_ids_to_tokens(sample.input_ids), sample.label


def test_a_label_stands_on_the_first_token_of_its_word_as_transformers_has_it() -> None:
    tokenizer = wordpiece()
    tokens, label = labels_on(tokenizer, SENTENCE)
    encoded = tokenizer(SENTENCE, is_split_into_words=True)
    assert tokens == tokenizer.convert_ids_to_tokens(encoded["input_ids"])  # type: ignore[arg-type]
    seen: set[int | None] = {None}
    expected = []
    for word in encoded.word_ids():
        expected.append(-100 if word in seen or word is None else word)
        seen.add(word)
    assert label == expected == [-100, 0, 1, -100, -100, 2, -100, -100, 3, 4, 5, -100]


@pytest.mark.parametrize("trim", [True, False])
def test_tokens_that_hold_the_space_before_a_word_are_the_words(trim: bool) -> None:
    tokens, label = labels_on(bytes_of_words(trim=trim), ["re", "reje", "x", "re"])
    assert tokens == ["r", "e", "Ġre", "je", "Ġ", "x", "Ġre"]
    assert label == [0, -100, 1, -100, -100, 2, 3]


def test_a_token_may_begin_several_words_and_has_the_first_ones_label() -> None:
    assert first_tokens(["ab", "c", "de"], [(0, 0), (0, 4), (3, 4), (5, 6), (6, 7), (7, 7)]) == [
        None,
        0,
        None,
        2,
        None,
        None,
    ]
    assert first_tokens(["", "x"], [(0, 1), (1, 2)]) == [None, 1]


ON_ALL = LISTS.model_copy(update={"label_on": "all"})


def test_all_tokens_of_a_word_may_have_its_label_and_the_first_is_known() -> None:
    numbered = ON_ALL.model_copy(update={"labels": [str(index) for index in range(len(SENTENCE))], "max_length": 9})
    tokenizer = wordpiece()
    encoded = tokenizer(SENTENCE, is_split_into_words=True, truncation=True, max_length=9)
    given = [0, -100, 2, 3, 4, 5]
    (sample,) = samples_of(kind_of(numbered), tokenizer, [Words(" ".join(SENTENCE), given, words=SENTENCE)])
    assert sample.input_ids == encoded["input_ids"]
    assert sample.label == [-100 if word is None else given[word] for word in encoded.word_ids()]
    assert sample.label == [-100, 0, -100, -100, -100, 2, 2, 2, -100]
    assert (sample.facts, sample.num_cut) == ([1, 2, 5], 3)  # words, not tokens, are counted
    (byte_by_byte,) = samples_of(
        kind_of(ON_ALL), bytes_of_words(trim=True), [Words("re é x", [1, 3, 0], words=["re", "é", "x"])]
    )
    assert byte_by_byte.label == [1, 1, -100, 3, 3, -100, 0]  # é is two tokens, and spaces are of no word
    (nothing,) = samples_of(kind_of(ON_ALL), tokenizer, [Words("EU", None, words=["EU"])])
    assert (nothing.label, nothing.facts) == (None, None)


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_are_scored_by_their_first_tokens_and_all_labels_have_a_loss(side: Any) -> None:
    sentences = [(["EU", "rejects", "unaff"], [1, 0, 3]), (["rejects", "a"], [3, -100]), (["a"], None)]
    rows = [Words(" ".join(words), label, words=words) for words, label in sentences]
    generator = torch.Generator().manual_seed(0)
    scores, logits = {}, torch.randn(4, 9, 5, generator=generator)
    for task in (LISTS, ON_ALL):
        kind = kind_of(task)
        samples = samples_of(kind, wordpiece(), rows)
        batch = Collator(0, kind.collated_as, side=side)([*samples, None])
        observed = [kind.scorer.observe(logits[:, : batch.labels.shape[1]], batch)]
        scores[task.label_on] = kind.scorer.score(observed)
        kept = batch.labels != -100
        loss = torch.nn.functional.cross_entropy(logits[:, : batch.labels.shape[1]][kept], batch.labels[kept])
        assert scores[task.label_on]["loss"] == pytest.approx(loss.item())
        assert int(kept.sum()) == (4 if task is LISTS else 10)
    first, every = scores[None], scores["all"]
    assert first.keys() == every.keys()
    assert {name for name in first if first[name] != every[name]} == {"loss"}
    assert every["num_words"] == 4


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_stand_beside_their_tokens_in_a_batch(side: Any) -> None:
    kind = kind_of(LISTS)
    rows = [Words("ba be", [1, 2], words=["ba", "be"]), Words("bo", None, words=["bo"]), Words("bi", [0], words=["bi"])]
    samples = samples_of(kind, bytes_of_words(trim=True), rows)
    collate = Collator(0, kind.collated_as, side=side, multiple_of=8)
    batch = collate([*samples, None])
    for row, sample in enumerate(samples):
        own = batch.labels[row][batch.kept_tokens[row]].tolist()
        assert own == (sample.label or [-100] * len(sample.input_ids))
    assert (batch.labels[~batch.kept_tokens] == -100).all()
    # of the beginning of a text, the beginning of its labels
    short = collate([type(samples[0])(samples[0].input_ids[:2], samples[0].label)])
    assert short.labels[short.kept_tokens].tolist() == samples[0].label[:2]


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),  # what seqeval 1.2.2 gives (get_entities, its default mode)
    [
        (["I-PER", "I-PER", "O", "I-LOC"], {("PER", 0, 1), ("LOC", 3, 3)}),
        (["B-PER", "I-LOC", "I-PER"], {("PER", 0, 0), ("LOC", 1, 1), ("PER", 2, 2)}),
        (["B-PER", "B-PER", "I-PER", "O"], {("PER", 0, 0), ("PER", 1, 2)}),
        (
            ["O", "E-PER", "S-LOC", "I-LOC", "E-LOC", "I-LOC"],
            {("PER", 1, 1), ("LOC", 2, 2), ("LOC", 3, 4), ("LOC", 5, 5)},
        ),
        (["B-A-B", "I-A-B", "I-A"], {("A-B", 0, 1), ("A", 2, 2)}),
        (["B", "I", "O", "I"], {("_", 0, 1), ("_", 3, 3)}),
        ([], set()),
        (["O", "O"], set()),
    ],
)
def test_entities_are_those_of_seqeval(labels: list[str], expected: set[Any]) -> None:
    assert entities(labels) == expected


GIVEN = [["B-PER", "I-PER", "O", "B-LOC"], ["I-LOC", "I-LOC", "O"], ["O", "O"], ["B-PER", "I-LOC", "I-LOC"]]
PREDICTED = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "I-LOC", "O"], ["I-PER", "O"], ["B-PER", "B-LOC", "I-LOC"]]


def tensors(sentences: list[list[str]]) -> torch.Tensor:
    """Ids with a token without a label behind each word."""
    ids = torch.full((len(sentences) + 1, 8), -100)
    for row, sentence in enumerate(sentences):
        ids[row, : 2 * len(sentence) : 2] = torch.tensor([LABELS.index(label) for label in sentence])
    return ids


def test_the_score_is_that_of_seqeval_over_all_batches() -> None:
    scorer, labels = kind_of(LISTS).scorer, tensors(GIVEN)
    logits = torch.nn.functional.one_hot(tensors(PREDICTED).clamp(min=0), len(LABELS)).float() * 4
    logits[labels == -100] = 99.0
    scores = scorer.score([scorer.observe(logits[i : i + 2], labelled(labels[i : i + 2])) for i in range(0, 5, 2)])
    # precision_score, recall_score and f1_score of seqeval 1.2.2 are 0.8 each
    assert (scorer.headline, scorer.higher_is_better) == ("f1", True)
    assert {name: scores[name] for name in ("f1", "precision", "recall")} == pytest.approx(
        {"f1": 0.8, "precision": 0.8, "recall": 0.8}
    )
    assert (scores["num_examples"], scores["num_words"]) == (4, 12)
    assert scores["accuracy"] == pytest.approx(8 / 12)
    kept = labels != -100
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits[kept], labels[kept]).item())


def test_nothing_found_is_a_score_of_0() -> None:
    scorer, labels = kind_of(LISTS).scorer, tensors([["O", "O"]])
    scores = scorer.score([scorer.observe(torch.eye(5)[labels.clamp(min=0)], labelled(labels))])
    assert (scores["f1"], scores["precision"], scores["recall"], scores["accuracy"]) == (0, 0, 0, 1)


def test_parts_of_speech_mark_no_entities_and_have_accuracy() -> None:
    task = TokenClassification(kind="token_classification", labels=["NOUN", "VERB", "O"])
    scorer, labels = kind_of(task).scorer, torch.tensor([[0, 1, 2, -100]])
    assert scorer.headline == "accuracy"
    scores = scorer.score([scorer.observe(torch.eye(3)[torch.tensor([[0, 1, 1, 1]])], labelled(labels))])
    assert scores.keys() == {"accuracy", "loss", "num_examples", "num_words"}
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_the_guess_knows_how_frequent_labels_of_words_are() -> None:
    guess = kind_of(LISTS).guess([[0, 0, -100, 1], [-100, 0]], vocab_size=100)
    assert guess.loss == pytest.approx(math.log(5))
    assert guess.prior_loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


# --- in a recipe and a doctor's eyes ----------------------------------------------------------------------------------


def test_a_batch_is_shown_with_the_labels_of_its_words() -> None:
    tokenizer = wordpiece()
    kind = kind_of(LISTS)
    samples = samples_of(kind, tokenizer, [Words("EU rejects a", [1, 0, -100], words=["EU", "rejects", "a"])])
    batch = Collator(0, kind.collated_as, multiple_of=8)(samples)
    shown = kind.show_row(batch, 0, tokenizer)
    assert shown == "‹[CLS]› EU[B-PER] re[O]‹ ##ject›‹ ##s›‹ a›‹ [SEP]›[pad x1]"


def test_probes_have_the_weights_that_are_planned() -> None:
    bank = FilterBank([1, 2], 4, 6)
    kind: Any = kind_of(LISTS)
    probes = kind.probes(bank, None, dim=6, model_path=Path(), tapped=TappedModel, dtype=torch.float32)
    assert [[p.numel() for p in head.parameters()] for head in probes.heads] == [LISTS.probe_sizes(6)] * 2
    assert probes.predict(1, torch.zeros(3, 7, 4), {}).logits.shape == (3, 7, 5)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "llama", "gpt2"])
def test_a_models_predictions_are_those_of_transformers_for_each_token(family: str) -> None:
    torch.manual_seed(0)
    config = model_config(family, blocks=2, num_labels=len(LABELS))
    model = auto_class(LISTS.architecture).from_config(config).eval()
    rows = [Sample([5, 6, 7, 8, 9], [0, 1, -100, 2, 3]), Sample([10, 11], [4, 0])]
    batch = Collator(0, "token_classes")([*rows, None])
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]
        logits, states = TappedModel(model, family_of(family), [1, 2], pooled=False)(batch.inputs)
    assert logits.shape == (3, 5, len(LABELS))
    assert [state.shape for state in states] == [(3, 5, 16)] * 2
    for row, own in enumerate(expected):
        torch.testing.assert_close(logits[row][batch.kept_tokens[row]], own, rtol=1e-4, atol=1e-5)


def recipe(folder: Path, *overrides: str, **task: Any) -> Any:
    written = recipe_dict(folder, kind="token_classification")
    path = write_recipe(folder / "recipe.yaml", {**written, "task": {**written["task"], **task}})
    return load_recipe(path, overrides)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    assert recipe(tmp_path).task.labels == [*WORD_LABELS]
    with pytest.raises(ConfigError, match="task: rows: conll has no columns with names; remove words_column and label"):
        recipe(tmp_path, rows="conll", words_column="tokens", label_column="tags")
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, "teacher.cache={max_gib: 1}")
    assert without_overrides(str(caught.value)) == (
        f"{tmp_path / 'recipe.yaml'}: teacher.cache: a cache keeps one prediction for each text, and a "
        "token_classification has one for each word; remove it"
    )
    recipe(tmp_path)
    with pytest.raises(ConfigError) as caught:
        train_from_recipe(str(tmp_path / "recipe.yaml"), ["tokenizer={vocab_size: 300}"])
    assert without_overrides(str(caught.value)) == (
        "tokenizer: the rows of a token_classification are no texts to train one on; use a recipe of documents "
        "(task.kind: causal_lm)"
    )
