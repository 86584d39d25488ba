"""Which task data are of, by the columns of their rows and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ted_ds.data.conversations import FORMS
from ted_ds.errors import ConfigError
from ted_ds.verbs.init.kinds import (
    ANSWERS,
    CAUSAL_LM,
    CHAT,
    KINDS,
    MASKED_LM,
    OF_DOCUMENTS,
    OF_LABELS,
    TARGETS,
    WORDS,
)
from ted_ds.verbs.init.labels import LABEL_COLUMNS, Labels, Unusable, label_names, labels_of
from ted_ds.verbs.init.rows import Rows

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
LENGTH_OF_CORPORA, LENGTH_OF_PARTS = 1024, 384
CAUSAL, MASKED, TWO_STACKS = "CausalLM", "MaskedLM", "Seq2SeqLM"
NAMES_OF_MODELS = {CAUSAL: "a causal LM", MASKED: "a masked LM", TWO_STACKS: "an encoder-decoder"}
KIND_OF_DOCUMENTS = {CAUSAL: CAUSAL_LM, MASKED: MASKED_LM}
BY_HAND = (
    "write the recipe by hand (ted-ds check gpt2_openwebtext --show prints one that ships, ted-ds schema all keys)"
)


@dataclass(frozen=True)
class Form:
    """What was found."""

    task: Mapping[str, Any]
    """The recipe's section, but for lengths."""
    reason: str
    """By what, in words."""
    has_labels: bool
    """Whether a head is learned, so that the teacher has to know the task."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why the values of the section are what they are, by their keys."""
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

    @property
    def columns(self) -> list[str]:
        """The columns that the section names."""
        found = (self.task.get(key) for key in self.task if key.endswith(("_column", "_columns")))
        return [name for value in found for name in ([value] if isinstance(value, str) else value or [])]


class NoForm(ConfigError):
    """Data are of no form that is known by its columns."""


def form_of(
    rows: Sequence[Mapping[str, Any]],
    language_model: str,
    declared: Mapping[str, Sequence[str]],
    kind: str | None = None,
) -> Form:
    """Which task rows are of.

    Args:
        rows: As many as are looked at.
        language_model: What the teacher is as a language model, as transformers names it behind ``AutoModelFor``.
        declared: Names that the data declare for the ids in a column.
        kind: The task that is asked for, of :data:`~ted_ds.verbs.init.kinds.KINDS`; None: whichever is found.

    Raises:
        NoForm: No task is known by these columns.
        ConfigError: One is, and cannot be learned from these rows or by this teacher; or what was asked for cannot be.
    """
    known = Rows(rows, declared, language_model)
    if kind is not None:
        return _asked_for(known, kind)
    refused: list[Unusable] = []
    for find in (_chat, _words, _answers, _targets, _labelled):
        try:
            found = find(known, None)
        except Unusable as error:
            refused.append(error)
            continue
        if found is not None:
            return found
    if refused:  # what is more than texts is not thrown away in silence
        raise ConfigError(f"{refused[0]}; {_ways_out(known, refused[0])}")
    if _has_documents(known):
        if language_model == TWO_STACKS:
            raise ConfigError(
                "documents, but the teacher is an encoder-decoder, which learns to write one text of another; call the "
                "columns source and target, or give another teacher"
            )
        found = _documents(known, KIND_OF_DOCUMENTS[language_model])
        if found is not None:
            return found
    lists = [name for name in known.columns if known.holds_lists(name)]
    hint = f" ({', '.join(lists)}: lists, where a text would stand)" if lists else ""
    raise NoForm(
        f"columns {', '.join(known.columns) or 'none'}{hint}: no task is known by these; call the columns text and "
        f"label, say which task it is (--task: {', '.join(KINDS)}), or {BY_HAND}"
    )


def _asked_for(rows: Rows, kind: str) -> Form:
    """The task that is asked for."""
    of_kind: dict[str, Callable[[Rows, Any], Form | None]] = {
        CHAT: _chat,
        WORDS: _words,
        ANSWERS: _answers,
        TARGETS: _targets,
    }
    of_kind |= dict.fromkeys(OF_LABELS, _labelled) | dict.fromkeys(OF_DOCUMENTS, _documents)
    try:
        found = of_kind[kind](rows, kind)
    except Unusable as error:
        what_to_do = "" if error.what_to_do is None else f"; {error.what_to_do}"
        raise ConfigError(f"--task {kind}: {error}{what_to_do}") from error
    if found is None:
        raise ConfigError(f"--task {kind}: columns {', '.join(rows.columns) or 'none'}: {NEEDED[kind]}")
    return found


LABELLED = f"a text is needed (in text, or two such as premise and hypothesis), and a column {', '.join(LABEL_COLUMNS)}"
NEEDED = {
    CHAT: "conversations are needed: " + ", or ".join(" and ".join(needed) for needed, _ in FORMS.values()),
    WORDS: f"lists of words are needed, in {' or '.join(WORD_COLUMNS)}, and their labels in {', '.join(TAG_COLUMNS)}",
    ANSWERS: f"{', '.join(ANSWER_COLUMNS)} are needed",
    TARGETS: "two texts are needed: " + ", or ".join(" and ".join(pair) for pair in TARGET_PAIRS),
    **dict.fromkeys(OF_LABELS, LABELLED),
    **dict.fromkeys(OF_DOCUMENTS, "which of them is the text? Call it text"),
}
"""Columns of a kind of task, in words."""


def _ways_out(rows: Rows, error: Unusable) -> str:
    """What to do where a task cannot be learned that these columns are of."""
    kind = KIND_OF_DOCUMENTS.get(rows.language_model)
    ways = [] if error.what_to_do is None else [error.what_to_do]
    if kind is not None and _has_documents(rows):
        ways.append(f"--task {kind} to train on the texts alone")
    return ", or ".join(ways) or f"choose another teacher, or another task (--task: {', '.join(KINDS)})"


def _refuse_teacher(rows: Rows, wanted: str, what: str) -> None:
    if rows.language_model != wanted:
        raise Unusable(
            f"{what}, but the teacher is {NAMES_OF_MODELS[rows.language_model]} and not {NAMES_OF_MODELS[wanted]}",
            f"give a teacher that is {NAMES_OF_MODELS[wanted]}",
        )


def _chat(rows: Rows, kind: str | None) -> Form | None:
    form = next((name for name, (needed, _) in FORMS.items() if set(needed) <= set(rows.columns)), None)
    if form is None:
        otherwise = next((needed for needed, _ in FORMS.values() if all(map(rows.named, needed))), None)
        if otherwise is None or (kind is None and otherwise != ("messages",)):
            return None
        raise Unusable(f"conversations, whose columns have to be called {' and '.join(otherwise)}", "rename them")
    what = f"conversations in the form {form!r}"
    _refuse_teacher(rows, CAUSAL, f"{what}, which a causal LM learns")
    return Form({"kind": CHAT}, what, has_labels=False)


def _words(rows: Rows, _kind: str | None) -> Form | None:
    words = rows.first(WORD_COLUMNS)
    tags = rows.first([name for name in TAG_COLUMNS if words is None or name != words.lower()])
    if words is None or tags is None or not all(isinstance(row.get(words), list) for row in rows.rows):
        return None
    what = f"a list of words in {words!r} and their labels in {tags!r}"
    found = label_names(rows, tags, in_lists=True)
    section = {"kind": WORDS, "words_column": words, "label_column": tags, "labels": found.names}
    reasons = {"words_column": "lists of words", "label_column": "a label of each", "labels": found.reason}
    return Form(section, what, has_labels=True, reasons=reasons)


def _answers(rows: Rows, _kind: str | None) -> Form | None:
    columns = [one for name in ANSWER_COLUMNS if (one := rows.named(name)) is not None]
    if len(columns) < len(ANSWER_COLUMNS):
        return None
    answers = columns[-1]
    empty = any(not (row.get(answers) or {}) or not _answer_texts(row[answers]) for row in rows.rows)
    keys = ("question_column", "context_column", "answers_column")
    own = {key: one for key, one, usual in zip(keys, columns, ANSWER_COLUMNS, strict=True) if one != usual}
    section = {"kind": ANSWERS, **own, **({"no_answer": True} if empty else {})}
    reasons = {**dict.fromkeys(own, "called so in the data"), "no_answer": "some questions have none"}
    what = f"columns {', '.join(columns[:2])} and {answers}"
    return Form(section, what, has_labels=True, reasons=reasons, usual_length=LENGTH_OF_PARTS, is_of_parts=True)


def _answer_texts(answers: Any) -> Any:
    return answers.get("text") if isinstance(answers, Mapping) else answers


def _targets(rows: Rows, _kind: str | None) -> Form | None:
    found = ([rows.named(name) for name in pair] for pair in TARGET_PAIRS)
    pair = next((pair for pair in found if all(one is not None and rows.is_text(one) for one in pair)), None)
    if pair is None:
        return None
    what = f"texts in {pair[0]!r} and what is written of them in {pair[1]!r}"
    _refuse_teacher(rows, TWO_STACKS, f"{what}, which an encoder-decoder learns")
    section = {"kind": TARGETS, "source_column": pair[0], "target_column": pair[1]}
    reasons = {"source_column": "what is read", "target_column": "what is written of it"}
    return Form(section, what, has_labels=False, reasons=reasons, length_key=None)


def _labelled(rows: Rows, kind: str | None) -> Form | None:
    label = rows.first(LABEL_COLUMNS)
    texts = [] if label is None else _text_columns(rows, [name for name in rows.columns if name != label])
    if label is None:
        return None
    if not texts:
        held = next((name for name in rows.columns if name != label and rows.holds_lists(name)), None)
        if held is not None and rows.first(TEXT_COLUMNS) == held:
            raise Unusable(f"a label in {label!r}, but {held!r} holds lists and no texts", "join what is in each list")
        return None
    where = f"{' and '.join(map(repr, texts))} and a label in {label!r}"
    found = labels_of(rows, label, kind)
    return _of_labels(rows, texts, where, found)


def _of_labels(rows: Rows, texts: Sequence[str], where: str, found: Labels) -> Form:
    is_pair = len(texts) > 1
    one = "the only column of texts" if len([*filter(rows.is_text, rows.columns)]) == 1 else "the texts, by its name"
    section = {"kind": found.kind, "text_column": list(texts) if is_pair else texts[0], **found.section}
    reasons = {"text_column": "two texts, by their names" if is_pair else one, **found.reasons}
    return Form(section, f"{where}{found.what}", has_labels=True, reasons=reasons)


def _text_columns(rows: Rows, columns: Sequence[str]) -> Sequence[str]:
    """The one that holds a text, or the two of a pair, by their names, or as no other does; else none."""
    texts = rows.among([name for name in columns if rows.is_text(name)])
    for pair in TEXT_PAIRS:
        found = [one for name in pair if (one := texts.named(name)) is not None]
        if len(found) == len(pair):
            return found
    one = texts.first(TEXT_COLUMNS)
    return [one] if one is not None else texts.columns if len(texts.columns) == 1 else []


def _has_documents(rows: Rows) -> bool:
    return len(_text_columns(rows, _unlabelled(rows))) == 1


def _unlabelled(rows: Rows) -> list[str]:
    """Columns, but for those of labels."""
    return [name for name in rows.columns if name.strip().lower() not in LABEL_COLUMNS]


def _documents(rows: Rows, kind: str) -> Form | None:
    wanted = {CAUSAL_LM: CAUSAL, MASKED_LM: MASKED}[kind]
    if rows.language_model != wanted:
        instead = KIND_OF_DOCUMENTS.get(rows.language_model)
        raise Unusable(
            f"the teacher is {NAMES_OF_MODELS[rows.language_model]} and not {NAMES_OF_MODELS[wanted]}",
            "give another teacher" if instead is None else f"use {instead}, or another teacher",
        )
    texts = rows.among(filter(rows.is_text, _unlabelled(rows)))
    text = texts.first(TEXT_COLUMNS) or (texts.columns[0] if len(texts.columns) == 1 else None)
    if text is None:
        return None
    return Form(
        {"kind": kind, "text_column": text},
        f"documents in {text!r}",
        has_labels=False,
        reasons={"text_column": "the only column of texts" if len(texts.columns) == 1 else "the texts, by its name"},
        length_key="sequence_length",
        usual_length=LENGTH_OF_CORPORA,
    )
