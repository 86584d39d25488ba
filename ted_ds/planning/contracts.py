"""What teacher, student and task must agree on for their numbers to be comparable: tokens, vocabulary, labels, head.

Read from the models' files alone, without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ted_ds.config.schema import Recipe
from ted_ds.data.chat_template import find_template, vet_template
from ted_ds.data.document_ends import ends_of
from ted_ds.data.masking import make_masker
from ted_ds.errors import CheckpointError, ConfigError, TedError, counted
from ted_ds.models.files import ModelFacts
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.tokenizer_files import tokenizer_of_files
from ted_ds.models.tokenizer_traits import TokenizerTraits
from ted_ds.planning.tokenizer_contracts import (
    compare_readings,
    doubtful_ids,
    refuse_ids_outside,
    refuse_padding_outside,
    refuse_token_types_outside,
    refuse_useless_tokenizer,
    undivided_pairs,
)
from ted_ds.planning.two_tokenizers import are_two, in_words, refuse_two_tokenizers, why_one


@dataclass(frozen=True)
class Side:
    """One of the two models, as far as it is known."""

    name: str
    folder: Path
    facts: ModelFacts
    trained_first: bool
    """Whether the run fine-tunes it on the task before anything is compared with it, or it begins random."""
    key: str = "path"
    """Of its section of the recipe, where that says which it is."""
    by_config: bool = False
    """Whether there is nothing of it but a ``config.json``."""

    @property
    def place(self) -> str:
        """Where the recipe says which it is, in full."""
        return f"{self.name}.{self.key}"

    @functools.cached_property
    def tokenizer(self) -> TokenizerTraits | None:
        """Its folder's tokenizer; None where only transformers can read it, or where there is none yet.

        Raises:
            CheckpointError: A file of it is damaged.
        """
        return None if self.by_config else tokenizer_of_files(self.folder)


def broken_contracts(recipe: Recipe, teacher: Side | None, student: Side | None) -> Mapping[str, list[str]]:
    """Every contract that the two models break, by its name: what is wrong, in lines of the recipe.

    A side is None while it is not known. A student cut from the teacher has the teacher's folder.
    """
    broken: dict[str, list[str]] = {}

    def attempt(contract: str, side: Side, check: Callable[[], object]) -> bool:
        try:
            check()
        except TedError as error:
            where = "" if contract in ("bos", "template") else f"{side.place}: "
            lines = [f"{where}{line}" for line in str(error).splitlines()]
            broken.setdefault(contract, []).extend(lines)
            return False
        return True

    two = has_own_tokenizer(recipe, teacher, student)
    is_asked = recipe.task.pooled or not two  # else nothing is read for the teacher
    own = [side for side in _own_files(teacher, student) if is_asked or side is student]
    readable: list[Side] = []
    for side in own:
        attempt("labels", side, lambda side=side: _check_labels(recipe, side))
        attempt("head", side, lambda side=side: _check_lm_head(recipe, side, teacher))
        attempt("vocabulary", side, lambda side=side: refuse_padding_outside(side.facts))
        if attempt("vocabulary", side, lambda side=side: _read_tokenizer(side)):
            readable.append(side)
            attempt("vocabulary", side, lambda side=side: _check_vocabulary(side))
    for side in own if recipe.task.takes_pairs and (two or teacher in readable) else ():
        attempt("vocabulary", side, lambda side=side: _check_token_types(side if two else teacher, side))
    if teacher is not None and is_asked:
        attempt("head", teacher, lambda: _check_head(recipe, teacher))
    reader = student if two else teacher
    if reader is not None and reader in readable:
        if recipe.task.packed and "vocabulary" not in broken:
            attempt("bos", reader, lambda: document_ends(recipe, reader))
            attempt("vocabulary", reader, lambda: _check_masks(recipe, reader))
        if recipe.task.has_template:
            attempt("template", reader, lambda: _look_at_template(recipe, reader))
    if teacher in readable and student in readable:
        attempt("tokenizers", student, lambda: _check_same(recipe, teacher, student))
    return broken


def has_own_tokenizer(recipe: Recipe, teacher: Side | None, student: Side | None) -> bool:
    """Whether a student reads by a tokenizer of its own, as far as it is known: its ids mean other tokens."""
    if teacher is None or student is None or why_one(recipe) is not None:
        return False
    try:
        return are_two(teacher.tokenizer, student.tokenizer)
    except TedError:  # a broken contract
        return False


def tokenizers_in_words(recipe: Recipe, teacher: Side | None, student: Side | None) -> Iterator[str]:
    """What two tokenizers come to; nothing where one is used."""
    if has_own_tokenizer(recipe, teacher, student):
        pair = [one.tokenizer for one in (teacher, student) if one is not None and one.tokenizer is not None]
        yield from in_words(recipe, *pair)


def broken_by_loaded(
    loaded: TokenizerTraits, teacher: Side | None, student: Side | None, *, of_student: TokenizerTraits | None = None
) -> list[str]:
    """What the tokenizer that is used, the teacher's as transformers loaded it, asks of models that have not got it.

    Its files are not all it is made of (:mod:`ted_ds.models.tokenizer_files`). Lines of the recipe. ``of_student`` is
    the loaded one of a student that reads by its own.
    """
    lines: list[str] = []
    for side in (teacher, student):
        if side is not None and (side.name == "teacher" or teacher is None or _differ(teacher, side)):
            is_own = side.name == "teacher" or of_student is not None
            used = of_student if side.name == "student" and of_student is not None else loaded
            try:
                refuse_ids_outside(used, side.facts, whose="its" if is_own else "the teacher's")
            except TedError as error:
                lines.append(f"{side.place}: {error}")
    return lines


def _own_files(teacher: Side | None, student: Side | None) -> list[Side]:
    """The sides that have files of their own; a student cut from the teacher has the teacher's."""
    own = [side for side in (teacher,) if side is not None]
    if student is not None and (teacher is None or _differ(teacher, student)):
        own.append(student)
    return own


def _differ(teacher: Side, student: Side) -> bool:
    is_other = student.folder != teacher.folder or student.key == "from_config"
    return is_other or (teacher.trained_first and not student.trained_first)


def _check_head(recipe: Recipe, teacher: Side) -> None:
    facts = teacher.facts
    if recipe.task.has_lm_head or teacher.trained_first:
        return
    remedy = "its predictions would be random; fine-tune it on the task: add teacher.finetune"
    if facts.architectures and not any(recipe.task.architecture in name for name in facts.architectures):
        raise ConfigError(f"a {facts.architectures[0]} has no head for {recipe.task.kind} and {remedy}")
    if not facts.has_classifier:
        names = facts.family.span_head if recipe.task.predicts_spans else "classifier or score"
        raise ConfigError(f"its weights hold no head for {recipe.task.kind} ({names}), so {remedy}")
    other = _head_for_other_labels(recipe, teacher)
    if other is not None and recipe.preflight == "refuse":
        raise ConfigError(f"{other}, so {remedy}, or use the weights that belong to this file")


def _head_for_other_labels(recipe: Recipe, side: Side) -> str | None:
    """Why a head in the weights cannot be used: it is for other labels than its own config names."""
    rows, facts = side.facts.classifier_rows, side.facts
    if recipe.task.has_lm_head or rows in (None, facts.num_labels) or facts.num_labels is None:
        return None
    return (
        f"{side.folder / CONFIG_FILE} names {counted(facts.num_labels, 'label')} in id2label, but the head in the "
        "weights has "
        f"{counted(rows or 0, 'row')}"
    )


def _check_lm_head(recipe: Recipe, side: Side, teacher: Side | None) -> None:
    if not recipe.task.has_lm_head or side.facts.has_lm_head:
        return
    if not recipe.task.new_lm_head:
        raise CheckpointError(
            "its weights hold no LM head, and its config.json does not tie one to the embeddings; give the causal LM, "
            "not its bare body"
        )
    if side.trained_first:
        return
    what = f"its weights hold no head for {recipe.task.kind} ({side.facts.family.before_lm_head[0]} and what follows)"
    if side is teacher:
        raise ConfigError(f"{what} and its predictions would be random; fine-tune it on the task: add teacher.finetune")
    filters = recipe.filters
    if filters is not None and recipe.distill.needs.filters and filters.lm_head == "frozen":
        raise ConfigError(
            f"{what}, by which filters.lm_head: frozen would read its filters; add student.finetune, or use "
            "filters.lm_head: new"
        )


def _check_labels(recipe: Recipe, side: Side) -> None:
    task, facts = recipe.task, side.facts
    if task.has_lm_head or side.trained_first:
        return
    if facts.architectures and not any(task.architecture in name for name in facts.architectures):
        return  # a bare body: its head, and the labels of it, are made new
    if facts.num_labels not in (None, task.num_outputs):
        if not task.output_names:
            raise ConfigError(
                f"its head has {counted(facts.num_labels, 'output')}, one for a {task.kind} has {task.num_outputs}; "
                "use another"
            )
        what = "labels" if task.label_names else "outputs"
        raise ConfigError(
            f"it has {facts.num_labels} {what}, task.{task.outputs_key} has {task.num_outputs}; give as many"
        )
    if task.label_names and facts.labels is not None and list(facts.labels) != task.label_names:
        raise ConfigError(
            f"its labels are {list(facts.labels)}, task.{task.outputs_key} are {task.label_names}; predictions are "
            f"compared by id: give task.{task.outputs_key} in the model's order"
        )


def _read_tokenizer(side: Side) -> None:
    _ = side.tokenizer  # kept once it could be read


def _check_vocabulary(side: Side) -> None:
    if side.tokenizer is not None:
        refuse_ids_outside(side.tokenizer, side.facts, whose="its" if side.key == "path" else "the teacher's")
        refuse_useless_tokenizer(side.tokenizer)


def _check_masks(recipe: Recipe, reader: Side) -> None:
    masking, tokenizer = recipe.task.masked, reader.tokenizer
    if masking is not None and tokenizer is not None and tokenizer.unknown_class is None:
        make_masker(tokenizer, masking)


def _check_token_types(reader: Side | None, side: Side) -> None:
    """Pairs are read by the teacher's tokenizer, or by a student's own."""
    if reader is not None and reader.tokenizer is not None:
        whose = "its" if reader is side and side.name == "student" else "the teacher's"
        refuse_token_types_outside(reader.tokenizer, side.facts, whose=whose)


def _check_same(recipe: Recipe, teacher: Side, student: Side) -> None:
    """A student that reads the teacher's ids has them as its own, or within its embeddings at least."""
    if teacher.tokenizer is not None and student.tokenizer is not None:
        refuse_two_tokenizers(recipe, teacher.tokenizer, student.tokenizer)
    elif teacher.tokenizer is not None:
        refuse_ids_outside(teacher.tokenizer, student.facts, whose="the teacher's")


def _look_at_template(recipe: Recipe, reader: Side) -> tuple[str | None, list[str]]:
    """How conversations are written, in words, and what is doubtful in it; nothing where there are none.

    Raises:
        ConfigError: There is no template, or it does not fit the tokenizer.
    """
    if not recipe.task.has_template or reader.tokenizer is None:
        return None, []
    template = find_template(recipe.task.template_file, reader.tokenizer.settings.get("chat_template"))
    return template.in_words, vet_template(template, reader.tokenizer)


def text_ends(recipe: Recipe, teacher: Side | None, student: Side | None) -> str | None:
    """What is put around each text by whose tokenizer reads it, in words; None where that is not known yet.

    Raises:
        TedError: See :func:`document_ends`.
    """
    if teacher is None:
        return None
    if student is None or not has_own_tokenizer(recipe, teacher, student):
        return document_ends(recipe, teacher)
    of_student = document_ends(recipe, student)
    if not recipe.task.pooled or of_student is None:
        return of_student
    return f"to the student {of_student}; to the teacher {document_ends(recipe, teacher)}"


def document_ends(recipe: Recipe, reader: Side) -> str | None:
    """What is put around each text, in words; None where only the loaded tokenizer knows.

    Raises:
        TedError: The recipe asks for what the tokenizer has not, or a file of it is damaged.
    """
    if recipe.task.reads_tokens:
        return "tokens as they are"
    if recipe.task.has_template:
        return _look_at_template(recipe, reader)[0]
    tokenizer = reader.tokenizer
    if tokenizer is None or tokenizer.backend is None:
        return None
    if tokenizer.unknown_class is not None:
        return f"what is put around each is known once the {reader.name}'s {tokenizer.unknown_class} is loaded"
    task = recipe.task
    ends = ends_of(tokenizer, task.document_start, own_end=task.own_document_ends, pairs=task.takes_pairs)
    return ends.in_words


def doubts(recipe: Recipe, teacher: Side | None, student: Side | None) -> Mapping[str, list[str]]:
    """What is no mistake in models that keep their contracts and should be known: lines of the recipe, by contract."""
    found: dict[str, list[str]] = {}
    used = teacher.tokenizer if teacher is not None else None
    two = has_own_tokenizer(recipe, teacher, student)

    def doubt(contract: str, side: Side, *lines: str) -> None:
        if lines:
            found.setdefault(contract, []).extend(f"{side.place}: {line}" for line in lines)

    reader = student if two else teacher
    if reader is not None:
        doubt("template", reader, *_look_at_template(recipe, reader)[1])
    for side in (teacher, student if two else None):
        if side is not None and side.tokenizer is not None and recipe.task.takes_pairs:
            doubt("tokenizers", side, *undivided_pairs(side.tokenizer, side.facts))
    for side in _own_files(teacher, student):
        if side.name == "student" and used is not None and side.tokenizer is not None and not two:
            doubt("tokenizers", side, *compare_readings(used, side.tokenizer))
        other = _head_for_other_labels(recipe, side)
        if other is not None:
            doubt("head", side, f"{other}: a new one starts random")
        if recipe.task.has_lm_head and not two:
            doubt("vocabulary", side, *doubtful_ids(side.facts, used))
        elif recipe.task.has_lm_head and side is student:  # the teacher reads nothing
            doubt("vocabulary", side, *doubtful_ids(side.facts, side.tokenizer, is_own=True))
        if side.tokenizer is not None:
            longest = side.tokenizer.settings.get("model_max_length")
            if longest is not None and longest < recipe.task.sequence_length:
                doubt(
                    "tokenizers",
                    side,
                    f"its tokenizer is made for texts of at most {longest} tokens (model_max_length), the task has up "
                    f"to {recipe.task.sequence_length}",
                )
    return found
