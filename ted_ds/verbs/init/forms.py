"""Which task data are of, by the columns of their rows and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.data.conversations import FORMS
from ted_ds.errors import ConfigError

LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "stars", "rating", "score")
"""What is called so holds what is to be predicted, the first that there is."""
WORD_COLUMNS, TAG_COLUMNS = ("tokens", "words"), ("ner_tags", "tags", "pos_tags", "labels")
ANSWER_COLUMNS = ("question", "context", "answers")
TARGET_PAIRS = (
    ("source", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("text", "summary"),
    ("input", "output"),
)
TEXT_COLUMNS = ("text", "content", "document", "body", "sentence", "review", "headline", "comment")
"""Of several columns with text, the first so called is what is read."""
TEXT_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("first", "second"),
)
MOST_LABELS = 200
"""Different values of a column: more are no names of labels."""
LENGTH_OF_CORPORA, LENGTH_OF_PARTS = 1024, 384
CAUSAL, MASKED, TWO_STACKS = "CausalLM", "MaskedLM", "Seq2SeqLM"


@dataclass(frozen=True)
class Form:
    """What was found."""

    task: Mapping[str, Any]
    """The recipe's section, but for lengths."""
    reason: str
    """By what, in words."""
    has_labels: bool
    """Whether a head is learned, so that the teacher has to know the task."""
    length_key: str | None = "max_length"
    """Where the section says how long a text is; None where it has nothing to say."""
    usual_length: int | None = None
    """What that is, where it does not follow from the texts."""
    is_of_parts: bool = False
    """Whether long texts are read in parts, with a stride."""

    @property
    def is_corpus(self) -> bool:
        """Whether it is of documents that are packed into sequences."""
        return self.length_key == "sequence_length"


class NoForm(ConfigError):
    """Data are of no form that is known by its columns."""


def form_of(rows: Sequence[Mapping[str, Any]], language_model: str, declared: Mapping[str, Sequence[str]]) -> Form:
    """Which task rows are of.

    Args:
        rows: As many as are looked at.
        language_model: What the teacher is as a language model, as transformers names it behind ``AutoModelFor``.
        declared: Names that the data declare for the ids in a column.

    Raises:
        NoForm: No task is known by these columns.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for find in (_chat, _words, _answers, _targets, _labelled, _documents):
        found = find(rows, columns, language_model, declared)
        if found is not None:
            return found
    raise NoForm(
        f"columns {', '.join(columns) or 'none'}: no task is known by these; write the recipe's task section by hand "
        "(docs/tasks.md has one for each), or call the columns text and label"
    )


Rows = Sequence[Mapping[str, Any]]
Declared = Mapping[str, Sequence[str]]


def _chat(_rows: Rows, columns: Sequence[str], language_model: str, _declared: Declared) -> Form | None:
    form = next((name for name, (needed, _) in FORMS.items() if set(needed) <= set(columns)), None)
    if form is None or language_model != CAUSAL:
        return None
    what = f"conversations in the form {form!r}"
    return Form({"kind": "chat"}, what, has_labels=False)


def _words(rows: Rows, columns: Sequence[str], _language_model: str, declared: Declared) -> Form | None:
    words = _first(WORD_COLUMNS, columns)
    tags = _first([name for name in TAG_COLUMNS if name != words], columns)
    if words is None or tags is None or not all(isinstance(row.get(words), list) for row in rows):
        return None
    labels = _names(_values(one for row in rows for one in (row.get(tags) or [])), declared.get(tags))
    if labels is None:
        return None
    section = {"kind": "token_classification", "words_column": words, "label_column": tags, "labels": labels}
    return Form(section, f"a list of words in {words!r} and their labels in {tags!r}", has_labels=True)


def _answers(rows: Rows, columns: Sequence[str], _language_model: str, _declared: Declared) -> Form | None:
    if not set(ANSWER_COLUMNS) <= set(columns):
        return None
    empty = any(not (row.get("answers") or {}) or not _answer_texts(row) for row in rows)
    section = {"kind": "question_answering", **({"no_answer": True} if empty else {})}
    what = "columns question, context and answers"
    return Form(section, what, has_labels=True, usual_length=LENGTH_OF_PARTS, is_of_parts=True)


def _answer_texts(row: Mapping[str, Any]) -> Any:
    answers = row["answers"]
    return answers.get("text") if isinstance(answers, Mapping) else answers


def _targets(_rows: Rows, columns: Sequence[str], language_model: str, _declared: Declared) -> Form | None:
    pair = next((pair for pair in TARGET_PAIRS if set(pair) <= set(columns)), None)
    if pair is None or language_model != TWO_STACKS:
        return None
    section = {"kind": "seq2seq", "source_column": pair[0], "target_column": pair[1]}
    what = f"texts in {pair[0]!r} and what is written of them in {pair[1]!r}"
    return Form(section, what, has_labels=False, length_key=None)


def _labelled(rows: Rows, columns: Sequence[str], _language_model: str, declared: Declared) -> Form | None:
    label = _first(LABEL_COLUMNS, columns)
    texts = _text_columns(rows, [name for name in columns if name != label])
    if label is None or not texts:
        return None
    text: dict[str, Any] = {"text_column": texts[0] if len(texts) == 1 else list(texts)}
    what = f"{' and '.join(map(repr, texts))} and a label in {label!r}"
    values = _values(row.get(label) for row in rows)
    if values and all(isinstance(one, float) for one in values):
        return Form({"kind": "regression", **text, "target_columns": [label]}, f"{what}, a number", has_labels=True)
    if any(isinstance(row.get(label), list) for row in rows):
        names = _names(_values(one for row in rows for one in (row.get(label) or [])), declared.get(label))
        kind = "multi_label_classification"
    else:
        names, kind = _names(values, declared.get(label)), "sequence_classification"
    if names is None:
        return None
    section = {"kind": kind, **text, "label_column": label, "labels": names}
    return Form(section, what, has_labels=True)


def _text_columns(rows: Rows, columns: Sequence[str]) -> Sequence[str]:
    """The one that holds a text, or the two of a pair, by their names, or as no other does; else none."""
    texts = [name for name in columns if _is_text(rows, name)]
    pair = next((pair for pair in TEXT_PAIRS if set(pair) <= set(texts)), None)
    one = _first(TEXT_COLUMNS, texts)
    return pair or ([one] if one is not None else texts if len(texts) == 1 else [])


def _documents(rows: Rows, columns: Sequence[str], language_model: str, _declared: Declared) -> Form | None:
    found = _text_columns(rows, columns)
    if len(found) != 1 or language_model not in (CAUSAL, MASKED):
        return None
    (text,) = found
    is_causal = language_model == CAUSAL
    return Form(
        {"kind": "causal_lm" if is_causal else "masked_lm", "text_column": text},
        f"documents in {text!r}",
        has_labels=False,
        length_key="sequence_length",
        usual_length=LENGTH_OF_CORPORA,
    )


def _first(names: Sequence[str], of: Sequence[str]) -> str | None:
    return next((name for name in names if name in of), None)


def _is_text(rows: Rows, column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(one, str) for one in values)


def _values(found: Iterator[Any]) -> list[Any]:
    """What stands there, each once; lists and nothing aside."""
    return list(dict.fromkeys(one for one in found if isinstance(one, str | int | float)))


def _names(values: Sequence[Any], declared: Sequence[str] | None) -> list[str] | None:
    """Names of labels; None where there are none, or too many."""
    if declared:
        return list(declared)
    if not 1 < len(values) <= MOST_LABELS:
        return None
    order: Callable[[Any], Any] = str if any(isinstance(one, str) for one in values) else lambda one: one
    return [str(one) for one in sorted(values, key=order) if str(one) != "-100"]
