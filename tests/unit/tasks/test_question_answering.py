"""Answers to questions: how they are read, where they stand in the parts of a context, and how they are scored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ted_ds.config.data import Data, Padding, Source
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import QuestionAnswering
from ted_ds.data.first_rows import first_rows
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Batch, evaluation_batches
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import CheckpointError, ConfigError, DataError
from ted_ds.models.families import SPAN_TYPES
from ted_ds.models.predictions import DensePredictions
from ted_ds.tasks.answers import Answers, Found, best_span, best_threshold, joined, marks_of, normalised
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.windows import tokens_of
from tests.refusals import without_overrides
from tests.task_kinds import make_plan, samples_of
from tests.tiny import WORDS, recipe_dict, write_model, write_recipe, write_rows, write_tokenizer

CONTEXT = "In 1889 the Eiffel Tower was built; Gustave Eiffel's company built the tower."


def task(**settings: Any) -> QuestionAnswering:
    return QuestionAnswering(**{"kind": "question_answering", **settings})


def answer(text: str, context: str = CONTEXT, start: int | None = None) -> dict[str, Any]:
    return {"text": text, "answer_start": context.index(text) if start is None else start}


def read(answers: Any, *, question: Any = " Who?", context: Any = CONTEXT, **settings: Any) -> Any:
    row = {"question": question, "context": context, "answers": answers}
    (found,) = kind_of(task(**settings)).read(row, where="a.jsonl: row 7", declared={})
    return found


# --- rows ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_characters_where_it_stands_in_whatever_form_it_comes() -> None:
    both = [answer("Gustave Eiffel"), answer("Eiffel's company")]
    forms = [both, {key: [one[key] for one in both] for key in ("text", "answer_start")}, json.dumps(both)]
    for form in forms:
        found = read(form)
        assert (found.text, found.second, found.label) == ("Who?", CONTEXT, [36, 50])  # it learns from the first
        assert found.answers == ["Gustave Eiffel", "Eiffel's company"]
        assert found.wrong is None
    spaces = read([answer(" Tower ", start=18)])
    assert CONTEXT[slice(*spaces.label)] == "Tower"


def test_nothing_is_no_label_and_empty_lists_are_an_answer_where_there_may_be_none() -> None:
    for nothing in (None, "", math.nan):
        assert (read(nothing).label, read(nothing, no_answer=True).label) == (None, None)
    for empty in ([], {"text": [], "answer_start": []}, "[]"):
        assert (read(empty).label, read(empty).answers) == (None, None)
        assert (read(empty, no_answer=True).label, read(empty, no_answer=True).answers) == ([], [])
    kind = kind_of(task())
    assert [kind.counted(label) for label in ([3, 5], [], None)] == [["answered"], ["without answer"], ["unknown"]]


def test_an_answer_elsewhere_and_empty_texts_are_faults_of_a_question_alone() -> None:
    assert read([answer("Gustave Eiffel"), answer("Paris", start=3)]).wrong == (
        "question ' Who?': answer 'Paris' is not at character 3 of its context, where '1889 ' is; correct answer_start"
    )
    assert "answer 'Who' is not at character -4 of its context, where '' is" in read([answer("Who", start=-4)]).wrong
    assert read([], question=" \n").wrong == "its question is ' \\n'; it must be text that is not empty"
    assert read([], context="").wrong == "its context is ''; it must be text that is not empty"
    assert read([], context="half \ud800").wrong == "its context is 'half \\ud800'; it must be text that is not empty"


@pytest.mark.parametrize(
    "wrong", ["Paris", 7, {"text": ["Paris"]}, [{"text": "Paris"}], [answer("1889", start=0) | {"answer_start": "x"}]]
)
def test_answers_of_another_form_are_refused_with_their_row(wrong: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(wrong)
    assert without_overrides(str(caught.value)) == (
        f"a.jsonl: row 7: question ' Who?': answers are {wrong!r:.200}; they must be {{text: [...], answer_start: "
        "[...]}, or a list of such answers, with a text and a whole number each"
    )


ARTICLES = {
    "version": "v2.0",
    "data": [
        {
            "title": "Tower",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [answer("Gustave Eiffel")], "is_impossible": False},
                        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
                        {"id": "3", "question": "When?", "answers": [answer("1989", start=3)]},
                    ],
                }
            ],
        },
        {"title": "Nothing", "paragraphs": []},
        {
            "title": "Peu",
            "paragraphs": [
                {
                    "context": "Où ? À Évry, l'été.",
                    "qas": [{"id": "4", "question": "Où ?", "answers": [{"text": "Évry", "answer_start": 7}]}],
                }
            ],
        },
    ],
}


def test_squads_own_files_are_read_question_by_question(tmp_path: Path) -> None:
    file = tmp_path / "dev-v2.0.json"
    file.write_text(json.dumps(ARTICLES), encoding="utf-8")
    own = task(rows="articles", no_answer=True, max_length=64, stride=8)
    source = Source(path=str(file), field="data")
    found = first_rows(source, kind_of(own))
    assert str(found) == (
        "1 file; first 3 examples: paragraphs (list); texts of 19 to 77 characters, median 77; labels answered 2, "
        f"without answer 1; 1 cannot be used, such as {file}: row 1: question 'When?': answer '1989' is not at "
        "character 3 of its context, where '1889' is; correct answer_start"
    )
    kind = kind_of(own)
    rows = [example for article in ARTICLES["data"] for example in kind.read(article, where="", declared={})]
    assert [example.text for example in rows] == ["Who?", "Why?", "When?", "Où ?"]
    assert rows[-1].second[slice(*rows[-1].label)] == "Évry"
    with pytest.raises(DataError) as caught:
        kind.read({"paragraphs": [{"context": "a"}]}, where="a.json: element 2", declared={})
    assert without_overrides(str(caught.value)) == (
        "a.json: element 2: no article of SQuAD: paragraphs must be a list of {context, qas: [{question, answers}]} "
        "(KeyError: 'qas'); leave task.rows out where a row has one question"
    )


def test_answers_come_as_the_hubs_datasets_and_csv_files_have_them(tmp_path: Path) -> None:
    rows = [row_of(words(9, start=place), WORDS[place + 1]) for place in range(5)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    answers = json.dumps(rows[0]["answers"]).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'question,context,answers\nba be,{rows[0]["context"]},"{answers}"\n')
    nested = {"asked": {"question": "ba", "right": {"text": ["be"], "answer_start": [3]}}, "context": "ba be"}
    write_rows(tmp_path / "rows.jsonl", [nested])
    paths = {"question_column": "asked.question", "answers_column": "asked.right"}
    for name, own, number in (("parquet", task(), 5), ("csv", task(), 1), ("jsonl", task(**paths), 1)):
        found = first_rows(Source(path=str(tmp_path / f"rows.{name}")), kind_of(own))
        assert found.labels == (("answered", number),), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "no column 'question'; it has version, data (if its rows are the list under 'data', set field: data). Set "
            "task.text_column and task.label_column, or for questions task.question_column, task.context_column and "
            "task.answers_column",
        ),
        (
            {"rows": "articles"},
            "no column 'paragraphs'; it has version, data (if its rows are the list under 'data', set field: data). "
            "Set task.rows; or, of lettered choices, task.text_column and task.label_column",
        ),
    ],
)
def test_a_file_of_another_form_is_told_what_to_set(tmp_path: Path, settings: Any, message: str) -> None:
    file = write_rows(tmp_path / "squad.jsonl", [ARTICLES])
    assert first_rows(Source(path=str(file)), kind_of(task(**settings))).problems == (f"{file}: row 1: {message}",)


def data_of(
    folder: Path, rows: list[Any], own: QuestionAnswering, *, max_heldout: int = 100, **data: Any
) -> LabelledData:
    settings = Data.model_validate({"train": [{"path": str(write_rows(folder / "train.jsonl", rows))}], **data})
    tokenizer = write_tokenizer(folder, encoder=True)
    return LabelledData(settings, kind_of(own), tokenizer, list_data(settings), max_heldout=max_heldout)


def words(number: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + place) % len(WORDS)] for place in range(number))


def row_of(context: str, text: str, question: str = "ba be") -> dict[str, Any]:
    return {"question": question, "context": context, "answers": [answer(text, context)]}


def test_a_bad_question_is_counted_and_the_held_out_ones_are_cut_between_questions(tmp_path: Path) -> None:
    long = words(30, start=20)
    rows = [row_of(words(30, start=place), WORDS[place + 1]) for place in range(4)]
    rows[1]["answers"][0]["answer_start"] = 1
    rows += [row_of(long, WORDS[21], question=words(20)), row_of(words(3), WORDS[1])]
    heldout = write_rows(
        tmp_path / "heldout.jsonl", [row_of(long, WORDS[25]), row_of(long, WORDS[48]), row_of("ba", "ba")]
    )
    data = data_of(
        tmp_path,
        rows,
        task(max_length=24, stride=4),
        max_heldout=2,
        evaluation=[{"path": str(heldout)}],
        bad_records={"max_fraction": 0.5, "max_count": 2},
    )
    assert [record.position for record in data.bad_records] == ["row 2", "row 5"]
    assert data.bad_records[1].fault == (
        "its question leaves 1 of task.max_length 24 tokens to the context, of which task.stride 4 come again in the "
        "next part; raise max_length or lower stride"
    )
    # 30 words in windows of 24 - 5 with 4 in common are 2
    assert [len(sample.input_ids) for sample in data.train] == [24, 20, 24, 20, 24, 20, 8]
    assert all(sample.facts is None for sample in data.train)
    assert [sample.facts.number for sample in data.heldout] == [data.heldout[0].facts.number] * 2 + [
        data.heldout[2].facts.number
    ] * 2
    assert [sample.label for sample in data.heldout] == [[9, 9], [0, 0], [0, 0], [17, 17]]
    assert data.has_token_types
    assert data.describe(1) == "4 training examples in 7 sequences, held by every rank"


def test_all_that_is_asked_about_one_context_is_held_out_together_or_not_at_all(tmp_path: Path) -> None:
    contexts = [words(12, start=place) for place in range(12)]
    rows = [row_of(context, context[:2], question=words(2, start=one)) for context in contexts for one in range(3)]
    data = data_of(tmp_path, rows, task(max_length=24, stride=4), heldout_fraction=0.4)
    heldout = [sample.facts.context for sample in data.heldout]
    assert 0 < len(heldout) < 36
    assert all(heldout.count(context) == 3 for context in set(heldout))


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_tokenizers_own_encoding_and_labels_stand_at_the_answer(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, encoder=True)
    kind = kind_of(task(max_length=16, stride=3))
    context, question = words(22), "za ze"
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=16, stride=3, return_overflowing_tokens=True
    )
    for first in range(21):
        text = " ".join(WORDS[first : first + 2])
        (example,) = kind.read(row_of(context, text, question), where="", declared={})
        samples = samples_of(kind, tokenizer, [example])
        assert [sample.input_ids for sample in samples] == encoded["input_ids"]
        assert [sample.token_types for sample in samples] == encoded["token_type_ids"]
        answered = 0
        for sample in samples:
            assert sample.candidates == (range(1), range(5 - 1, len(sample.input_ids) - 1))
            assert isinstance(sample.label, list)
            start, end = map(int, sample.label)
            if start:  # else a part without it, or with a half of it
                answered += 1
                assert tokenizer.decode(sample.input_ids[start : end + 1]) == text
            else:
                assert text not in tokenizer.decode(sample.input_ids)
        assert answered >= 1
    without = kind.read({"question": question, "context": context, "answers": None}, where="", declared={})
    assert [sample.label for sample in samples_of(kind, tokenizer, without)] == [None] * 3
    unanswerable = kind_of(task(max_length=16, stride=3, no_answer=True))
    nothing = unanswerable.read({"question": question, "context": context, "answers": []}, where="", declared={})
    assert [sample.label for sample in samples_of(unanswerable, tokenizer, nothing)] == [[0, 0]] * 3


def tokenizer_of_bytes() -> PreTrainedTokenizerFast:
    """Each byte is a token, and nothing is put around texts."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["é", "日本", "👍🏽", "à É", "'"])
def test_characters_of_several_tokens_are_labelled_whole(text: str) -> None:
    context = "Ça, l'été à Évry: é 日本 👍🏽 à É."
    kind, tokenizer = kind_of(task(max_length=90, stride=3)), tokenizer_of_bytes()
    (sample,) = samples_of(kind, tokenizer, kind.read(row_of(context, text, "où"), where="", declared={}))
    start, end = sample.label  # type: ignore[misc] - two of them
    assert tokenizer.decode(sample.input_ids[int(start) : int(end) + 1]) == text
    assert sample.candidates == (range(1), range(3, len(sample.input_ids)))  # without marks, none is at the first token


def test_an_answer_is_whole_within_a_window_or_not_there() -> None:
    spans = np.asarray([[4, 6], [6, 9], [10, 12]])
    assert tokens_of([4, 6], spans) == (0, 0)
    assert tokens_of([5, 11], spans) == (0, 2)  # parts of tokens
    assert tokens_of([9, 12], spans) == (2, 2)  # begins at a space
    for outside in ([3, 6], [10, 13], [0, 2], [13, 15], []):
        assert tokens_of(outside, spans) is None


def test_a_slow_tokenizer_and_a_context_of_no_token_are_told(tmp_path: Path) -> None:
    class Slow:
        is_fast, name_or_path = False, "model"

    kind: Any = kind_of(task(max_length=16, stride=3))
    with pytest.raises(CheckpointError, match="model: its tokenizer does not say which characters its tokens are of"):
        kind.encode(Slow(), [])
    tokenizer = tokenizer_of_bytes()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", behavior="removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    (example,) = kind.read({"question": "a", "context": "xx", "answers": None}, where="", declared={})
    assert kind.encode(tokenizer, [example]) == ["of its context the tokenizer makes no token"]
    assert kind.encode(tokenizer, []) == []


def batch_for(folder: Path, side: str = "right", **settings: Any) -> tuple[Any, Any, Batch]:
    """Two windows, one of them without the answer, and an empty row."""
    kind: Any = kind_of(task(max_length=16, stride=3, **settings))
    tokenizer = write_tokenizer(folder, encoder=True)
    examples = kind.read(row_of(words(14), " ".join(WORDS[1:3])), where="", declared={})
    samples = samples_of(kind, tokenizer, examples)
    assert len(samples) == 2
    collate = kind.collator(0, Padding(side=side), with_token_types=True)  # type: ignore[arg-type]
    return kind, tokenizer, collate([*samples, None])


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_and_candidates_move_with_the_padding(tmp_path: Path, side: str) -> None:
    kind, tokenizer, batch = batch_for(tmp_path, side)
    assert kind.collator(0, Padding()).masks == ("candidates",)
    ids = batch.input_ids
    (start, end), (null, also), ignored = batch.labels.tolist()
    assert tokenizer.decode(ids[0, start : end + 1]) == " ".join(WORDS[1:3])
    assert ids[1, null] == tokenizer.cls_token_id
    assert (null, ignored) == (also, [-100, -100])
    assert batch.candidates is not None
    for row in range(2):
        chosen = ids[row][batch.candidates[row]].tolist()
        assert chosen[0] == tokenizer.cls_token_id
        assert tokenizer.decode(chosen[1:]) in words(14)
    assert not batch.candidates[2].any()
    assert kind.show_row(batch, 0, tokenizer).endswith(f"-> {' '.join(WORDS[1:3])!r}")
    assert f"{WORDS[1]}[start] {WORDS[2]}[end]" in kind.show_row(batch, 0, tokenizer)
    assert kind.show_row(batch, 0, tokenizer).count("‹") == 4  # question, its words, and both marks behind texts
    assert kind.show_row(batch, 1, tokenizer).endswith("-> no answer here")


# --- the official scores ---------------------------------------------------------------------------------------------


def test_answers_are_compared_as_squads_scripts_do() -> None:
    assert normalised(" The  Eiffel-Tower,\tan \u00e9t\u00e9's a_theme.\n") == "eiffeltower \u00e9t\u00e9s atheme"
    assert normalised("A an the") == ""
    assert normalised("\u201cTheatre\u201d") == "\u201ctheatre\u201d"  # quotation marks outside of ASCII stay


PREDICTIONS = [
    # prediction, right answers, exact and F1 of SQuAD 1.1, of SQuAD 2.0: by hand, from the definitions
    ("the Eiffel Tower!", ["Eiffel tower"], (1, 1), (1, 1)),
    ("Gustave Eiffel's company", ["Gustave Eiffel", "Eiffels company"], (0, 0.8), (0, 0.8)),  # 2 of 3, all 2
    ("in 1889 in Paris", ["in 1889", "1889 in in"], (0, 6 / 7), (0, 6 / 7)),  # a word twice counts twice
    ("1887", ["1889", "in 1889"], (0, 0), (0, 0)),
    ("", ["1889"], (0, 0), (0, 0)),
    ("the", ["a"], (1, 0), (1, 1)),  # no words at all
    ("", [], (0, 0), (1, 1)),
    ("1889", [], (0, 0), (0, 0)),
    ("", ["the", "1889"], (1, 0), (0, 0)),  # what is left without a word is no answer to 2.0
]


@pytest.mark.parametrize(("given", "right", "of_first", "of_second"), PREDICTIONS)
def test_exact_match_and_f1_are_the_official_ones(given: str, right: list[str], of_first: Any, of_second: Any) -> None:
    assert marks_of(given, right, no_answer=False) == pytest.approx(of_first)
    assert marks_of(given, right, no_answer=True) == pytest.approx(of_second)


def test_the_best_threshold_is_the_official_ones() -> None:
    # by surplus: an answer that is right by half, a question without one, a right answer, one to which nothing is found
    marks, surplus = [1.0, 0.5, 0.0, 0.0], [2.0, -1.0, 0.5, 3.0]
    answered, given = [True, True, False, False], [True, True, True, False]
    # totals: 2 without any answer, then 2.5, 1.5, 2.5, 2.5
    assert best_threshold(marks, surplus, answered=answered, given=given) == (2.5 / 4, -1.0)
    assert best_threshold([0.0], [1.0], answered=[False], given=[True]) == (1.0, 0.0)


def test_the_best_span_ends_behind_its_start_and_is_not_too_long() -> None:
    spans = np.asarray([[place, place + 1] for place in range(6)])
    starts, ends = np.asarray([0.0, 1, 5, 0, 4, 0]), np.asarray([9.0, 2, 0, 3, 0, 8])
    assert best_span(starts, ends, spans, task()) == (13.0, 2, 5)
    assert best_span(starts, ends, spans, task(max_answer_length=3)) == (12.0, 4, 5)
    assert best_span(starts, ends, spans, task(max_answer_length=1)) == (9.0, 0, 0)
    assert best_span(starts, ends, spans, task(n_best=1)) is None  # the likeliest end is before the likeliest start
    assert best_span(starts, ends, np.zeros((6, 2)), task()) is None  # tokens that stand for no text


def test_the_answer_is_the_best_of_all_windows_and_none_that_of_the_surest() -> None:
    windows = [Found(7, ("a",), 3.0, 2.0, "x"), Found(4, (), 1.0, -1.0, "z"), Found(7, ("a",), -1.0, 5.0, "a")]
    assert joined(windows) == joined(windows[::-1]) == [windows[1], Found(7, ("a",), -1.0, 5.0, "a")]
    assert joined([windows[0], windows[2]._replace(score=1.0)]) == [Found(7, ("a",), -1.0, 2.0, "x")]


def test_no_answer_is_given_beyond_the_threshold_and_only_where_that_may_be() -> None:
    one = Found(1, (), 3.0, 2.0, "x")
    terms = kind_of(task()).terms
    assert Answers(terms, task()).choose(one) == "x"
    for threshold, chosen in ((0.0, ""), (0.99, ""), (1.0, "x"), (-5.0, "")):
        assert Answers(terms, task(no_answer=True, null_threshold=threshold)).choose(one) == chosen
    assert Answers(terms, task(no_answer=True)).choose(one._replace(score=-math.inf, answer="")) == ""


def test_predictions_are_called_as_the_data_call_their_questions() -> None:
    kind: Any = kind_of(task(id_column="key"))
    row = {"question": "who?", "context": "ba be", "answers": None}
    assert kind.columns == ["question", "context", "answers", "key"]
    names = [kind.read({**row, "key": key}, where="a", declared={})[0].name for key in ("5f", 7, None, "")]
    assert names == ["5f", "7", None, None]
    asked = [{"question": "who?", "answers": [], "id": "56be"}, {"question": "what?", "answers": []}]
    articles: Any = kind_of(task(rows="articles"))
    (first, second) = articles.read({"paragraphs": [{"context": "ba", "qas": asked}]}, where="a", declared={})
    assert (first.name, second.name) == ("56be", None)
    with pytest.raises(ValidationError, match="rows: articles has no columns with names of your own; remove id_column"):
        task(rows="articles", id_column="id")
    terms = kind_of(task()).terms
    one, other = Found(7, ("a",), 3.0, 2.0, "x", "5f"), Found(7, (), -1.0, 1.0, "a", "5f")
    observed = [([one, Found(9, (), 1.0, -math.inf, "")], 0.0, 1), ([other], 0.0, 1)]
    assert Answers(terms, task()).files(observed) == {"predictions.json": {"5f": "x", "1": ""}}
    with_none = Answers(terms, task(no_answer=True)).files(observed)
    assert with_none == {"predictions.json": {"5f": "x", "1": ""}, "null_odds.json": {"5f": -3.0, "1": 1e9}}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_come_from_logits_whatever_the_padding_and_the_batches(
    tmp_path: Path, side: str, world_size: int
) -> None:
    """Logits are by token: what a start and an end are likely to be, wherever they stand."""
    own = task(max_length=16, stride=3, no_answer=True)
    context = words(22)
    rows = [row_of(context, " ".join(WORDS[place : place + 2])) for place in (0, 10, 19)]
    rows += [
        {"question": "be", "context": context, "answers": []},
        {"question": "be", "context": words(5), "answers": None},
    ]
    heldout = write_rows(tmp_path / "heldout.jsonl", rows)
    data = data_of(tmp_path, rows, own, evaluation=[{"path": str(heldout)}])
    kind: Any = kind_of(own)
    # the ids of words begin at 5: the answer of the second question is what is found for all, at a score of 3 + 4
    table = torch.full((2, 120), -2.0)
    table[0, 5 + 10], table[1, 5 + 11], table[:, 3] = 3.0, 4.0, 1.0
    table[:, 0] = table[:, 4] = 99.0  # padding, and the mark behind texts
    scorer = kind.scorer
    observed = []
    for size in (1, 3):
        observed.append([])
        for rank in range(world_size):
            padding: Any = {"side": side, "multiple_of": 8}
            collate = kind.collator(0, Padding(**padding), with_token_types=True)
            for batch in evaluation_batches(
                data.heldout, collate, micro_batch_size=size, rank=rank, world_size=world_size
            ):
                logits = table[:, batch.input_ids].transpose(0, 1)
                observed[-1].append(scorer.observe(DensePredictions(logits).outputs(batch), batch))
    # what the scripts of SQuAD read: the last question's answers are not known, and it is not scored
    assert scorer.files(observed[0]) == scorer.files(observed[1])
    answers, odds = (scorer.files(observed[0])[name] for name in ("predictions.json", "null_odds.json"))
    assert answers == {str(number): " ".join(WORDS[10:12]) for number in range(4)}
    assert odds == dict.fromkeys(answers, 1 + 1 - 3 - 4)
    first, second = (scorer.score(one) for one in observed)
    assert first == pytest.approx(second)
    # of three windows each, the one in the middle has both words
    assert (first["num_examples"], first["num_windows"]) == (4, 12)
    assert (first["exact_match"], first["f1"]) == (1 / 4, 1 / 4)
    assert (first["has_answer_f1"], first["no_answer_exact_match"]) == (pytest.approx(1 / 3), 0)
    assert first["best_f1"] == first["best_exact_match"] == 1 / 2  # of an answer to the second alone
    expected, count = 0.0, 0
    for sample in data.heldout:
        places = [place for one in sample.candidates for place in one]
        for head, place in enumerate(sample.label or ()):
            logs = torch.log_softmax(table[head, [sample.input_ids[one] for one in places]].double(), -1)
            expected, count = expected - float(logs[places.index(int(place))]), count + 1
    assert first["loss"] == pytest.approx(expected / count, rel=1e-6)


def test_a_guess_is_one_of_the_candidates_or_knows_how_often_nothing_is_there(tmp_path: Path) -> None:
    data = data_of(
        tmp_path,
        [row_of(words(14), WORDS[2])] * 2,
        task(max_length=16, stride=3),
        evaluation=[{"path": str(tmp_path / "train.jsonl")}],
    )
    kind: Any = kind_of(task())
    told = [kind.told(sample) for sample in data.heldout]
    assert told[:2] == [(12, False), (7, True)]
    guess = kind.guess(told, vocab_size=0)
    assert guess.loss == pytest.approx((math.log(12) + math.log(7)) / 2)
    assert guess.prior_loss == pytest.approx(math.log(2) + (math.log(11) + math.log(6)) / 4)


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipe(folder: Path, *overrides: str, **settings: Any) -> Any:
    values = recipe_dict(folder, kind="question_answering")
    values["task"] |= settings
    return load_recipe(str(write_recipe(folder / "recipe.yaml", values)), overrides)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stride": 16},
            "stride: 16 tokens of a part come again in the next, of at most 16 with the question; give less than "
            "max_length",
        ),
        ({"null_threshold": 1.0}, "null_threshold has no effect without no_answer: true; remove it"),
        (
            {"rows": "articles", "context_column": "text"},
            "rows: articles has no columns with names of your own; remove context_column",
        ),
        (
            {"answers_column": "context"},
            "question_column, context_column, answers_column must be three columns, got ['question', 'context', "
            "'context']",
        ),
        ({"headline": "accuracy"}, "headline: 'accuracy': use f1, exact_match or loss"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, **settings)
    assert without_overrides(str(caught.value)) == f"{tmp_path / 'recipe.yaml'}: task: {message}"


def test_there_is_no_cache_of_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, "teacher.cache={max_gib: 1}")
    assert without_overrides(str(caught.value)) == (
        f"{tmp_path / 'recipe.yaml'}: teacher.cache: a cache keeps one prediction for each text, and a "
        "question_answering has two for each token; remove it"
    )


def test_models_without_such_a_head_are_refused_with_those_that_have_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [row_of(words(9), WORDS[2])] * 20)
    write_model(tmp_path / "teacher", "llama")
    with pytest.raises(ConfigError) as caught:
        make_plan(recipe(tmp_path))
    assert (
        "recipe: teacher.path: a llama has no head for question_answering here, as its blocks have other names in "
        f"transformers' model for it; use one of {', '.join(SPAN_TYPES)}"
    ) in without_overrides(str(caught.value)).splitlines()
    write_model(tmp_path / "teacher", "bert")
    with pytest.raises(ConfigError) as caught:
        make_plan(recipe(tmp_path))
    assert "fine-tune it on the task: add teacher.finetune" in without_overrides(str(caught.value))
    three = {"labels": ["a", "b", "c"], "architecture": "SequenceClassification"}
    write_model(tmp_path / "teacher", "bert", **three)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    config["architectures"] = ["BertForQuestionAnswering"]
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        make_plan(recipe(tmp_path))
    assert ("recipe: teacher.path: its head has 3 outputs, one for a question_answering has 2; use another") in str(
        caught.value
    ).splitlines()
