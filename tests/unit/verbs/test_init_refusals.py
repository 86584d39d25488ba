"""``ted-ds init`` on data and words that it cannot use: it says why, and writes no other task in silence."""

from __future__ import annotations

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.data.cleaning import is_heldout
from ted_ds.errors import ConfigError
from ted_ds.verbs.init import looking
from ted_ds.verbs.init.forms import NoForm, form_of
from ted_ds.verbs.init.kinds import KINDS
from tests.refusals import without_overrides
from tests.tiny import write_chats, write_model, write_rows, write_tokenizer

ALONE = "--task masked_lm to train on the texts alone"


def labelled(values, text="text", label="label"):
    return [{text: f"the cat {row}", label: value} for row, value in enumerate(values)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    return write_model(folder, "bert", blocks=4, architecture="MaskedLM", max_position_embeddings=512)


@pytest.fixture
def init(bert, tmp_path, capsys):
    """Its exit code, what it wrote as values, and what it said of an error."""

    def begin(data, *words, out=None, teacher=bert):
        out = out or tmp_path / "written" / "r.yaml"
        code = main(["init", "--teacher", str(teacher), "--data", str(data), "--out", str(out), *words])
        said = capsys.readouterr()
        begin.out = said.out
        return code, yaml.safe_load(out.read_text(encoding="utf-8")) if code == 0 else None, said.err

    return begin


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            [f"label {row % 300}" for row in range(900)],
            r"^300 different values in 'label', too many for labels \(200\)",
        ),
        ([f"my answer {row}" for row in range(60)], "^nearly every row has a value of its own in 'label'"),
        (["good"] * 40, "^every label in 'label' is 'good', of which nothing can be learned"),
        ([None] * 40, "^a column 'label' for labels, but no row has one"),
    ],
)
def test_labels_that_cannot_be_used_are_not_left_out_in_silence(values, says):
    with pytest.raises(ConfigError, match=says) as refused:
        form_of(labelled(values), "MaskedLM", {})
    assert without_overrides(str(refused.value)).endswith(ALONE)
    assert form_of(labelled(values), "MaskedLM", {}, "masked_lm").task == {"kind": "masked_lm", "text_column": "text"}


def test_many_labels_are_taken_by_the_users_word():
    found = form_of(labelled([f"l{row % 300}" for row in range(900)]), "MaskedLM", {}, "sequence_classification")
    assert len(found.task["labels"]) == 300
    assert found.reasons["labels"] == "the 300 that stand there"


@pytest.mark.parametrize(("text", "label"), [("Review", "Sentiment"), ("TEXT", "Label"), ("text", " label")])
def test_names_of_columns_are_known_in_any_case(text, label):
    task = form_of(labelled(["a", "b"] * 9, text, label), "MaskedLM", {}).task
    assert (task["text_column"], task["label_column"], task["labels"]) == (text, label, ["a", "b"])


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["10", "2", "1"] * 9, "sequence_classification", ["1", "2", "10"]),  # as CSV has them: not 1, 10, 2
        ([3, 1, 2] * 9, "sequence_classification", ["1", "2", "3"]),
        (["0.5", "1", "2.25"] * 9, "regression", None),
        ([0.5, 1, 2] * 9, "regression", None),
        (['["a"]', '["b", "a"]'] * 9, "multi_label_classification", ["a", "b"]),
    ],
)
def test_what_is_predicted_follows_from_the_values(values, kind, names):
    task = form_of(labelled(values), "MaskedLM", {}).task
    assert (task["kind"], task.get("labels")) == (kind, names)


# --- the kind that is asked for ---------------------------------------------------------------------------------------

CHATS = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
PAIRS = [{"source": "ab", "target": "a"}, {"source": "cd", "target": "c"}]


@pytest.mark.parametrize(
    ("rows", "model", "kind", "says"),
    [
        (
            labelled("ab"),
            "MaskedLM",
            "causal_lm",
            "the teacher is a masked LM and not a causal LM; use masked_lm, or an",
        ),
        (
            labelled("ab"),
            "Seq2SeqLM",
            "masked_lm",
            "the teacher is an encoder-decoder and not a masked LM; give another",
        ),
        (labelled("ab"), "MaskedLM", "regression", "column 'label' holds 'a', which is no number; give numbers"),
        (
            labelled("ab"),
            "MaskedLM",
            "multi_label_classification",
            "column 'label' holds one label in a row, such as 'a'",
        ),
        (
            labelled([["a"], ["b"]]),
            "MaskedLM",
            "sequence_classification",
            "column 'label' holds a list in a row, such as",
        ),
        (
            labelled("ab"),
            "CausalLM",
            "chat",
            "columns text, label: conversations are needed: messages, or conversations",
        ),
        (
            labelled("ab"),
            "MaskedLM",
            "question_answering",
            "columns text, label: question, context, answers are needed",
        ),
        (
            labelled("ab"),
            "MaskedLM",
            "token_classification",
            "columns text, label: lists of words are needed, in tokens",
        ),
        (labelled("ab"), "Seq2SeqLM", "seq2seq", "columns text, label: two texts are needed: source and target, or"),
        (PAIRS, "CausalLM", "seq2seq", "learns, but the teacher is a causal LM and not an encoder-decoder; give a"),
        (
            CHATS,
            "MaskedLM",
            "chat",
            "learns, but the teacher is a masked LM and not a causal LM; give a teacher that is",
        ),
        (
            [{"Messages": []}],
            "CausalLM",
            "chat",
            "conversations, whose columns have to be called messages; rename them",
        ),
    ],
)
def test_a_kind_that_data_or_teacher_cannot_be_of_is_refused(rows, model, kind, says):
    with pytest.raises(ConfigError) as refused:
        form_of(rows, model, {}, kind)
    assert without_overrides(str(refused.value)).startswith(f"--task {kind}: ")
    assert says in without_overrides(str(refused.value))


def test_every_kind_can_be_asked_for_and_is_named_where_none_is_found():
    with pytest.raises(NoForm) as refused:
        form_of([{"left": "a", "other": "b", "right": ["b"]}], "MaskedLM", {})
    assert all(kind in without_overrides(str(refused.value)) for kind in KINDS)
    assert "(right: lists, where a text would stand)" in without_overrides(str(refused.value))
    assert "ted-ds check gpt2_openwebtext --show" in without_overrides(str(refused.value))
    answers = {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}}
    words = {"tokens": ["a"], "tags": ["X"]}
    of_kind = {
        "chat": (CHATS, "CausalLM"),
        "token_classification": ([words, {**words, "tags": ["Y"]}], "MaskedLM"),
        "question_answering": ([answers], "MaskedLM"),
        "seq2seq": (PAIRS, "Seq2SeqLM"),
        "sequence_classification": (labelled([1, 2]), "MaskedLM"),
        "multi_label_classification": (labelled([["a"], ["b"]]), "MaskedLM"),
        "regression": (labelled([1, 2]), "MaskedLM"),
        "causal_lm": (labelled([1, 2]), "CausalLM"),
        "masked_lm": (labelled([1, 2]), "MaskedLM"),
    }
    assert {kind: form_of(rows, model, {}, kind).task["kind"] for kind, (rows, model) in of_kind.items()} == {
        kind: kind for kind in KINDS
    }


@pytest.mark.parametrize(
    ("rows", "model", "says"),
    [
        (
            CHATS,
            "MaskedLM",
            "which a causal LM learns, but the teacher is a masked LM and not a causal LM; give a teacher",
        ),
        ([{"document": "ab", "summary": "a"}], "MaskedLM", f"give a teacher that is an encoder-decoder, or {ALONE}"),
        ([{"text": ["a", "b"], "label": 1}], "MaskedLM", "'text' holds lists and no texts; join what is in each list"),
        ([{"text": "a"}], "Seq2SeqLM", "call the columns source and target, or give another teacher"),
    ],
)
def test_data_of_another_teacher_say_so(rows, model, says):
    with pytest.raises(ConfigError) as refused:
        form_of(rows, model, {})
    assert says in without_overrides(str(refused.value))


def test_the_word_reaches_the_recipe(init, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", labelled(["good", "bad"] * 20))
    _, values, _ = init(data, "--task", "masked_lm")
    assert values["task"]["kind"] == "masked_lm"
    with pytest.raises(SystemExit):
        main(["init", "--task", "nothing"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["text;label", '"text";"label"', "text\tlabel", "text|label"])
def test_values_that_are_separated_otherwise_are_read_so(init, tmp_path, header):
    between = next(one for one in ";\t|" if one in header)
    lines = [header, *(f"the cat, the dog {row}{between}{'ab'[row % 2]}" for row in range(40))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    code, values, error = init(tmp_path / "a.csv")
    assert code == 0, error
    assert values["data"]["train"] == [{"path": str(tmp_path / "a.csv"), "delimiter": between}]
    assert (values["task"]["text_column"], values["task"]["labels"]) == ("text", ["a", "b"])


def test_a_name_that_looks_like_several_is_refused(init, tmp_path):
    (tmp_path / "a.csv").write_text("text;or not,label\n" + "the cat,a\nthe dog,b\n" * 20)
    code, _, error = init(tmp_path / "a.csv")
    assert code == 2
    assert "a column is called 'text;or not', which looks like several; save it with commas between values" in error


@pytest.mark.parametrize("rows", [1, 40])
def test_a_record_that_is_broken_is_named(init, tmp_path, rows):
    data = write_rows(tmp_path / "a.jsonl", labelled(["a", "b"] * rows))
    with data.open("a") as file:
        file.write('{"text": "the cat", "lab\n')
    code, _, error = init(data)
    assert code == 2
    assert f"--data {data}: row {2 * rows + 1}: not JSON in UTF-8" in error
    assert f"1 of {2 * rows + 1} records cannot be used" in error


def test_of_many_records_a_broken_one_is_said(init, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", labelled(["a", "b"] * 600))
    with data.open("a") as file:
        file.write("[]\n")
    assert init(data)[0] == 0
    assert f"skipped     1 record, such as {data}: row 1201: a JSON list; each line must be an object" in init.out


def test_rows_that_are_lists_say_so(init, tmp_path):
    code, _, error = init(write_rows(tmp_path / "a.jsonl", [["the cat", 1], ["the dog", 0]]))
    assert (code, "row 1: a JSON list; each line must be an object" in error) == (2, True)


@pytest.mark.parametrize("place", ["/proc/y.yaml", "{data}/x.yaml"])
def test_what_cannot_be_written_is_said(init, tmp_path, place):
    data = write_rows(tmp_path / "a.jsonl", labelled(["a", "b"] * 20))
    out = tmp_path / place.format(data=data)
    code, _, error = init(data, out=out)
    assert code == 2
    assert error.startswith(f"ted-ds init: error:\n--out {out}: cannot be written: ")
    assert "; give another file" in error


def test_mistakes_are_said_of_the_words_they_follow_from(init, tmp_path, bert):
    folder = write_model(tmp_path / "plain", "bert", blocks=4, architecture="MaskedLM")
    for file in folder.glob("*token*"):
        file.unlink()
    data = write_rows(tmp_path / "a.jsonl", labelled(["a", "b"] * 20))
    error = init(data, teacher=folder)[2]
    assert f"ted-ds init: error:\n--teacher {folder}: holds no tokenizer" in error
    assert "by hand" not in error
    write_tokenizer(folder, encoder=True, masks=True)
    assert init(data, teacher=folder, out=tmp_path / "r.yaml")[0] == 0
    error = init(data, teacher="org/name")[2]
    assert "hf download org/name --local-dir name" in error
    error = init("org/name")[2]
    assert "hf download org/name --repo-type dataset --local-dir name" in error
    assert "no causal LM" in init(write_chats(tmp_path / "c.jsonl"))[2].replace("and not a", "no")


# --- what is scored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 4, 8])
def test_of_few_rows_some_are_held_out(init, tmp_path, number):
    raised = 0
    for first in range(4):
        rows = [{"text": f"the cat {first} {row}", "label": row % 2} for row in range(number)]
        code, values, error = init(write_rows(tmp_path / "a.jsonl", rows), out=tmp_path / f"{first}.yaml")
        assert code == 0, error
        share = values["data"]["heldout_fraction"]
        assert 0 < sum(is_heldout(row["text"], share) for row in rows) < number
        raised += share > 0.2
        is_said = "more than usual, as else none of so few rows" in (tmp_path / f"{first}.yaml").read_text("utf-8")
        assert is_said == (share > 0.2)
    assert raised or number > 4


def test_rows_of_one_text_cannot_be_held_out(init, tmp_path):
    code, _, error = init(write_rows(tmp_path / "a.jsonl", [{"text": "the cat", "label": row % 2} for row in range(9)]))
    assert (code, "too few different texts for some to be held out" in error) == (2, True)


def test_splits_of_a_folder_are_used_where_they_can_be(init, tmp_path):
    folder = tmp_path / "data"
    write_rows(folder / "train.jsonl", labelled(["a", "b"] * 20))
    write_rows(folder / "validation.jsonl", labelled(["b", "a"] * 5))
    write_rows(folder / "test.jsonl", labelled(["b", "a"] * 3))
    code, values, error = init(folder, out=tmp_path / "r.yaml")
    assert code == 0, error
    assert values["data"] == {
        "train": [{"path": str(folder)}],
        "validation": [{"path": str(folder), "split": "validation"}],
        "test": [{"path": str(folder), "split": "test"}],
    }
    write_rows(folder / "test.jsonl", labelled([None] * 6))
    write_rows(folder / "validation.jsonl", [{"text": "the cat"}])
    code, values, error = init(folder, out=tmp_path / "s.yaml")
    assert code == 0, error
    assert [*values["data"]] == ["train", "heldout_fraction"]
    text = (tmp_path / "s.yaml").read_text(encoding="utf-8")
    assert "# its split test is not used: its rows have no labels" in text
    assert "# its split validation is not used: it has no column label" in text
    assert "split       test: not used, as its rows have no labels" in init.out


def test_a_folder_without_anything_to_learn_from_is_refused(init, tmp_path):
    write_rows(tmp_path / "data" / "test.jsonl", labelled(["a", "b"] * 20))
    assert "no split 'train' to learn from; it has test" in init(tmp_path / "data")[2]


def test_splits_that_were_saved_by_datasets_are_known(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(labelled(["a", "b"] * 5))
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "saved"))
    assert [*looking._look_at_data(str(tmp_path / "saved")).splits] == ["train", "validation"]
