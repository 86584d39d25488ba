"""What teacher, student and task must agree on for their numbers to be comparable: tokens, vocabulary, labels, head.

Read from the models' files alone, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import CausalLm, LabelledTask
from ted_ds.data.tokenizers import describe_difference, read_vocabulary
from ted_ds.errors import CheckpointError, ConfigError, TedError
from ted_ds.models.files import ModelFacts


@dataclass(frozen=True)
class Side:
    """One of the two models, as far as it is known."""

    name: str
    folder: Path
    facts: ModelFacts
    trained_first: bool
    """Whether the run fine-tunes it on the task before anything is compared with it."""


def broken_contracts(recipe: Recipe, teacher: Side | None, student: Side | None) -> Mapping[str, list[str]]:
    """Every contract that the two models break, by its name: what is wrong, in lines of the recipe.

    A side is None while it is not known. A student cut from the teacher has the teacher's folder.
    """
    broken: dict[str, list[str]] = {}
    vocabularies: dict[str, dict[str, int]] = {}

    def attempt(contract: str, side: Side, check: Callable[[], None]) -> None:
        try:
            check()
        except TedError as error:
            lines = [f"{side.name}.path: {line}" for line in str(error).splitlines()]
            broken.setdefault(contract, []).extend(lines)

    own = [side for side in (teacher,) if side is not None]
    if student is not None and (teacher is None or _differ(teacher, student)):
        own.append(student)
    for side in own:
        attempt("labels", side, lambda side=side: _check_labels(recipe, side))
        attempt("vocabulary", side, lambda side=side: _check_vocabulary(side, vocabularies))
    if teacher is not None:
        attempt("head", teacher, lambda: _check_head(recipe, teacher))
    if student is not None and vocabularies.keys() == {"teacher", "student"}:
        attempt("tokenizers", student, lambda: refuse_different_tokenizers(**vocabularies))
    return broken


def _differ(teacher: Side, student: Side) -> bool:
    return student.folder != teacher.folder or (teacher.trained_first and not student.trained_first)


def _check_head(recipe: Recipe, teacher: Side) -> None:
    architectures = teacher.facts.architectures
    if isinstance(recipe.task, CausalLm) or teacher.trained_first or not architectures:
        return
    if not any("SequenceClassification" in name for name in architectures):
        raise ConfigError(
            f"a {architectures[0]} has no head for {recipe.task.kind} and its predictions would be random; "
            "fine-tune it on the task: add teacher.finetune"
        )


def _check_labels(recipe: Recipe, side: Side) -> None:
    task, facts = recipe.task, side.facts
    if isinstance(task, CausalLm) or side.trained_first:
        return
    if facts.architectures and not any("SequenceClassification" in name for name in facts.architectures):
        return  # a bare body: its head, and the labels of it, are made new
    if not isinstance(task, LabelledTask):
        if facts.num_labels not in (None, task.num_outputs):
            raise ConfigError(
                f"it has {facts.num_labels} outputs, task.target_columns has {task.num_outputs}; give as many"
            )
        return
    if facts.num_labels not in (None, len(task.labels)):
        raise ConfigError(f"it has {facts.num_labels} labels, task.labels has {len(task.labels)}; give as many")
    if facts.labels is not None and list(facts.labels) != task.labels:
        raise ConfigError(
            f"its labels are {list(facts.labels)}, task.labels are {task.labels}; predictions are compared by "
            "id: give task.labels in the model's order"
        )


def _check_vocabulary(side: Side, vocabularies: dict[str, dict[str, int]]) -> None:
    vocabulary = read_vocabulary(side.folder)
    if vocabulary is None:
        return
    vocabularies[side.name] = vocabulary
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= side.facts.vocab_size:
        raise CheckpointError(
            f"its tokenizer gives {token!r} the id {largest}, but the model has embeddings for 0.."
            f"{side.facts.vocab_size - 1}; use the tokenizer it was trained with, or resize its embeddings"
        )


def refuse_different_tokenizers(teacher: dict[str, int], student: dict[str, int]) -> None:
    """Compare two vocabularies.

    Raises:
        CheckpointError: They differ.
    """
    difference = describe_difference(teacher, student)
    if difference is not None:
        raise CheckpointError(
            f"teacher and student have different tokenizers ({difference}); use a student with the teacher's tokenizer"
        )
