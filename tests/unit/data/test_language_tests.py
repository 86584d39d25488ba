"""Every token of a text is scored once, with as much before it as the window allows; of a last word, all its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted_ds.config.load import load_recipe
from ted_ds.data.language_tests import last_word, num_words, strided, without_wikitext_spaces
from ted_ds.errors import ConfigError, DataError
from ted_ds.planning.plan import plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.language_tests import open_test
from tests.refusals import without_overrides
from tests.tiny import write_rows, write_run, write_tokenizer


@given(count=st.integers(2, 40), num_given=st.integers(1, 3), window=st.integers(2, 12), data=st.data())
def test_each_token_is_scored_once_after_as_much_as_was_promised(
    count: int, num_given: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    num_given = min(num_given, count)
    scored: list[int] = []
    for number, sample in enumerate(strided(range(count), num_given=num_given, window=window, stride=stride)):
        ids = sample.input_ids
        assert ids == [*range(ids[0], ids[-1] + 1)]
        assert 0 < sample.num_scored < len(ids) <= window
        scored += ids[len(ids) - sample.num_scored :]
        if number:
            assert len(ids) - sample.num_scored >= window - stride
    assert scored == [*range(num_given, count)]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("text", "kept", "scored"),
    [
        ("to be or not", "to be or not", " not"),
        ("to be\n", "to be", " be"),
        ("a  long one", "ong one", " one"),  # of eight tokens in all, with the one that starts it
    ],
)
def test_all_tokens_of_the_last_word_are_scored(text: str, kept: str, scored: str) -> None:
    sample = last_word(text, letters, start=[7], window=8 if "long" in text else 99)
    assert sample is not None
    ids = [7, *letters(text.strip())]
    assert sample.input_ids == (ids[-8:] if "long" in text else [7, *letters(kept)])
    assert sample.input_ids[-sample.num_scored :] == letters(scored)


@pytest.mark.parametrize("text", ["", "  ", "word", " word\n", "ab " + "x" * 20])
def test_a_text_without_anything_before_its_last_word_is_none(text: str) -> None:
    assert last_word(text, letters, start=[], window=12) is None


def test_a_tokenizer_that_joins_the_word_with_what_is_before_it_has_the_joint_scored() -> None:
    whole = {"to be": [1, 5], "to": [2]}
    sample = last_word("to be", whole.__getitem__, start=[0], window=9)
    assert sample is not None
    assert (sample.input_ids, sample.num_scored) == ([0, 1, 5], 2)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a 10 @-@ year @-@ old of 1 @,@ 000 and 2 @.@ 5 %", "a 10-year-old of 1,000 and 2.5%"),
        ('He said : " I \'m here " ; ( so he did ) .', 'He said: "I\'m here"; (so he did).'),
        ("it 's the players ' own , was n't it ?", "it's the players' own, wasn't it?"),
        (" = Title = \n\n Text .\n", " = Title = \n\n Text.\n"),
        ("nothing to undo", "nothing to undo"),
    ],
)
def test_wikitext_is_read_as_it_was_written(written: str, read: str) -> None:
    assert without_wikitext_spaces(written) == read


# --- in a recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def opened(recipe_file: Path, override: str) -> Any:
    recipe = load_recipe(recipe_file, [override])
    ((_, name, test),) = recipe.evaluation.tests
    return open_test(recipe, name, test, write_tokenizer(recipe_file.parent / "tokenizer"), (1,))


def test_words_are_counted_as_they_stand_and_each_text_is_read_alone(recipe_file: Path) -> None:
    path = write_rows(recipe_file.parent / "t.jsonl", [{"text": "ba be . ba"}, {"text": " "}, {"text": "be"}])
    test = opened(recipe_file, f"evaluation.perplexity={{t: {{sources: [{{path: {path}}}], window: 4, stride: 2}}}}")
    assert sum(sample.num_scored for sample in test.samples) == 4 + 1
    assert {sample.input_ids[0] for sample in test.samples[:1]} == {1}
    scores = test.scorer.score([[(4, 8.0, 0.0)], [(1, 2.0, 0.0)]])
    assert scores["num_words"] == num_words("ba be . ba") + 1 == 5
    assert (scores["token_perplexity"], scores["num_tokens"]) == (pytest.approx(2.718281828**2), 5)


def test_a_last_word_counts_once_whatever_its_tokens(recipe_file: Path) -> None:
    path = write_rows(recipe_file.parent / "t.jsonl", [{"text": "ba be"}, {"text": "bi bo ba"}, {"text": "ba"}])
    test = opened(recipe_file, f"evaluation.last_word={{t: {{sources: [{{path: {path}}}]}}}}")
    assert len(test.samples) == 2
    scores = test.scorer.score([[(1, 1.0, 1.0), (3, 3.0, 0.0)]])
    assert scores == {"accuracy": 0.5, "perplexity": pytest.approx(2.718281828**2), "num_examples": 2}


@pytest.mark.parametrize("begins", [True, False])
def test_a_chat_is_tested_on_plain_texts_begun_as_its_tokenizer_does(tmp_path: Path, begins: bool) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"text": "ba be bi"}])
    recipe_file = write_run(tmp_path / "run", kind="chat")
    recipe = load_recipe(recipe_file, [f"evaluation.perplexity={{t: {{sources: [{{path: {path}}}]}}}}"])
    ((place, name, test),) = recipe.evaluation.tests
    _, plan = plan_recipe(str(recipe_file), [f"evaluation.{place}={{sources: [{{path: {path}}}]}}"], kind_of)
    shown = str(plan.data[f"evaluation.{place}.sources[0]"])
    assert shown == "1 file; first 1 row: text (text); texts of 8 to 8 characters, median 8"
    tokenizer = write_tokenizer(tmp_path / "tokenizer", encoder=begins)
    (sample,) = open_test(recipe, name, test, tokenizer, None).samples
    texts = tokenizer("ba be bi")["input_ids"]
    assert sample.input_ids == (texts[:-1] if begins else texts)
    assert sample.num_scored == (3 if begins else 2)


def test_a_test_without_a_text_is_refused(recipe_file: Path) -> None:
    path = write_rows(recipe_file.parent / "t.jsonl", [{"text": "ba"}])
    with pytest.raises(DataError) as caught:
        opened(recipe_file, f"evaluation.last_word={{t: {{sources: [{{path: {path}}}]}}}}")
    assert without_overrides(str(caught.value)) == f"{path}: no text to score as t; each needs two words or more"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluation.perplexity={a b: {sources: [{path: x}]}}"],
            "evaluation: perplexity.a b: 'a b': use letters, digits, '_', '.' and '-'; metrics are called by it",
        ),
        (
            ["evaluation.perplexity={t: {sources: [{path: x}]}}", "evaluation.last_word={t: {sources: [{path: x}]}}"],
            "evaluation: perplexity and last_word: both have a test 't'; give each a name of its own",
        ),
        (
            ["evaluation.perplexity={t: {sources: [{path: x}], stride: 16}}"],
            "evaluation.perplexity.t.stride: 16 must be below the window (16), for something to go before",
        ),
        (
            ["evaluation.last_word={test: {sources: [{path: x}]}}", "data.test=[{path: x}]"],
            "evaluation.last_word.test: metrics called test/... are those of data.test; use another name",
        ),
        (
            ["evaluation.last_word={t: {sources: [{path: /none.jsonl}], window: 999}}"],
            "teacher.path: evaluation.last_word.t.window is 999, but this model allows at most 64 tokens; lower it",
        ),
        (
            ["evaluation.lm_eval=[a, a]"],
            "evaluation: lm_eval: ['a', 'a'] has a task twice; name each once",
        ),
        (
            ["evaluation.lm_eval=[lambada_openai]"],
            "evaluation.lm_eval: the package lm-eval, which runs these tasks, is not installed here: pip install "
            "'ted_ds[lm_eval]'; or remove them",
        ),
        (["evaluation.lm_eval=[/none.yaml]"], "evaluation.lm_eval: /none.yaml: no such task file"),
        (
            ["evaluation.last_word={t: {sources: [{path: /none.jsonl}]}}"],
            "evaluation.last_word.t.sources[0].path: /none.jsonl: no such data file or folder",
        ),
    ],
)
def test_tests_that_cannot_be_are_refused(recipe_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(recipe_file), overrides, kind_of)
    assert f"{recipe_file}: {message}" in without_overrides(str(caught.value)).splitlines()


def test_only_what_predicts_the_next_token_is_tested_so(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, ["evaluation.last_word={t: {sources: [{path: x}]}}"])
    assert without_overrides(str(caught.value)) == (
        f"{recipe}: evaluation.last_word.t: a sequence_classification does not predict the next token of a text; "
        "remove it"
    )
