"""One of several answers: rows of questions, a sequence for each choice, and which of them is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from ted_ds.config.tasks import MultipleChoice
from ted_ds.data.samples import Example, Label, Sample
from ted_ds.errors import counted
from ted_ds.tasks.base import HeadKind, outputs_by_name, pooling_of
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.label_values import label_id, list_of
from ted_ds.tasks.observations import Observation, joined, sklearn_metrics
from ted_ds.tasks.outcomes import ONE, Outcomes
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.layers import Filters
    from ted_ds.data.loader import Batch
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms


@dataclass(frozen=True)
class Question(Example):
    """A text with its choices."""

    choices: Sequence[str] = ()
    num_wanted: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return (self.text, *self.choices)

    def fault(self, columns: Sequence[str]) -> str | None:
        """What is wrong with it; None if nothing is."""
        if len(self.choices) != self.num_wanted:
            return f"it has {counted(len(self.choices), 'choice')}, where each needs {self.num_wanted}"
        empty = [letter for letter, choice in zip(ascii_uppercase, self.choices, strict=False) if not choice.strip()]
        if empty:
            return f"choice {empty[0]} has nothing in it; give each choice a text"
        return super().fault(columns)


class MultipleChoiceKind(HeadKind[Any]):
    """See :class:`ted_ds.config.tasks.MultipleChoice`."""

    collated_as = "class"
    one_class = True
    task: MultipleChoice

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def text_columns(self) -> list[str]:
        """That of the question; those of choices are looked at with them."""
        return [self.task.text_column]

    @property
    def columns(self) -> list[str]:
        """All that a question is read of."""
        stem = [] if self.task.stem_column is None else [self.task.stem_column]
        choices = [self.task.list_column] if self.task.list_column is not None else self.task.choice_columns or []
        return [*self.text_columns, *stem, *choices, self.task.label_column]

    @property
    def num_texts(self) -> int:
        """See :class:`ted_ds.data.samples.Rows`: none where it may be a list of messages."""
        return 0 if self.task.rows == "lettered" else 1

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> list[Question]:
        """The question, its choices, and which is right."""
        task, wanted = self.task, self.task.rows_per_example
        if task.rows == "lettered":
            text, choices = lettered(_last_message(row[task.text_column]), wanted)
        else:
            text = row[task.text_column]
            given = [row[name] for name in task.choice_columns or ()]
            if task.list_column is not None:
                value = row[task.list_column]
                found = list_of(value) if isinstance(value, str) else value
                given = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []
            choices = ["" if one is None else str(one) for one in given]
        stem = "" if task.stem_column is None else str(row[task.stem_column] or "")
        label = self._right(row[task.label_column], choices, where, declared.get(task.label_column, ()))
        return [Question(text, label, None, [f"{stem} {one}" if stem and one else one for one in choices], wanted)]

    def read_label(
        self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]] = {}
    ) -> int | None:
        """The number of the right choice."""
        return self.read(row, where=where, declared=declared)[0].label  # type: ignore[return-value]

    def _right(self, value: Any, choices: Sequence[str], where: str, declared: Sequence[str]) -> int | None:
        names = self.task.data_labels or list(ascii_uppercase[: self.task.rows_per_example])
        if isinstance(value, str) and value not in names and choices.count(value) == 1:
            return choices.index(value)
        return label_id(value, names, where, declared)

    def counted(self, label: Label | None) -> list[str]:
        """The letter of the right choice."""
        return [ascii_uppercase[label] if isinstance(label, int) else "none"]

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> list[list[Sample]]:
        """A sequence for each choice: the text and it, by the tokenizer's own pair encoding."""
        samples: list[list[Sample]] = []
        for example in examples:
            assert isinstance(example, Question)
            texts = [example.text] * len(example.choices)
            settings = {"truncation": True, "max_length": self.task.max_length}
            encoded = tokenizer(texts, list(example.choices), **settings)
            types = encoded.get("token_type_ids") or [None] * len(texts)
            rows = [Sample(ids, token_types=own) for ids, own in zip(encoded["input_ids"], types, strict=True)]
            longest = max(rows, key=lambda one: len(one.input_ids))
            samples.append([replace(longest, label=example.label, choices=tuple(rows))])
        return samples

    def _collator_settings(self) -> dict[str, Any]:
        return {"rows_per_sample": self.task.rows_per_example}

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text and one of its choices, and whether that is the right one."""
        question, choice = divmod(row, self.task.rows_per_example)
        text = shown_tokens(batch, row, tokenizer, batch.kept_tokens[row].tolist())
        label = batch.labels[question]
        right = "right" if int(label) == choice else "wrong"
        return f"{text}  -> {ascii_uppercase[choice]}, {right if self.terms.kept(label) else 'ignored'}"

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def head_config(self) -> dict[str, Any]:
        """One output: how well a choice fits."""
        return outputs_by_name(self.task.output_names)

    def probes(
        self,
        bank: FilterBank,
        filters: Filters,
        *,
        dim: int,
        model_path: Path,  # noqa: ARG002 - as others do
        tapped: TappedModel,
        dtype: torch.dtype,  # noqa: ARG002 - as others do
    ) -> FilterProbes:
        """A classifier each, of one output, of which those of a text's choices stand side by side."""
        from ted_ds.models.choices import choice_probes

        return choice_probes(bank, dim=dim, num_choices=self.task.rows_per_example, pooling=pooling_of(filters, tapped))

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the choices."""
        from ted_ds.numerics.task_terms import MULTIPLE_CHOICE

        return MULTIPLE_CHOICE

    @property
    def scorer(self) -> ChoiceScores:
        """By accuracy."""
        return ChoiceScores(self.terms)

    def guess(self, labels: Sequence[int], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the choices."""
        return one_of(self.task.rows_per_example)


def _last_message(value: Any) -> str:
    """The text, or that of the last message by the user; nothing where there is none."""
    if isinstance(value, str):
        return value
    messages = [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
    by_user = [one.get("content") for one in messages if one.get("role") == "user"]
    return by_user[-1] if by_user and isinstance(by_user[-1], str) else ""


def lettered(text: str, num_choices: int) -> tuple[str, list[str]]:
    """A question and its choices, each behind its letter, as in ``A: yes; B: no`` or ``(A) yes (B) no``.

    Letters are looked for from the end, where the choices are: a question may have some of its own. What stands between
    a choice and the next letter, such as a semicolon, is no part of it.

    Returns:
        The question, and its choices; none where not all letters are there.
    """
    found: list[str] = []
    end = len(text)
    for letter in reversed(ascii_uppercase[:num_choices]):
        marks = [*re.finditer(rf"(?:^|(?<=[\s;,.?!]))\(?{letter}[:.)]\s", text[:end])]
        if not marks:
            return text, []
        found.append(text[marks[-1].end() : end].strip().rstrip(";,").rstrip())
        end = marks[-1].start()
    return text[:end].strip(), found[::-1]


class ChoiceScores:
    """Accuracy; the loss is cross-entropy over the choices of a question."""

    headline = "accuracy"
    higher_is_better = True

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """The chosen and the right ones."""
        labels = batch.labels
        kept = self._terms.kept(labels)
        loss = float(self._terms.loss_sum(outputs, labels))
        return outputs[kept].argmax(-1).tolist(), labels[kept].tolist(), loss

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        predictions, labels, loss = joined(observations)
        return {
            "accuracy": float(sklearn_metrics().accuracy_score(labels, predictions)),
            "loss": loss / len(labels),
            "num_examples": len(labels),
        }

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:
        """What was chosen for each question."""
        predictions, labels, _ = joined(observations)
        columns = {"prediction": predictions, "label": labels, "right": (predictions == labels).astype(int)}
        metrics = {"accuracy": ["ratio", "right", ONE]}
        return Outcomes({name: column.tolist() for name, column in columns.items()}, metrics)
