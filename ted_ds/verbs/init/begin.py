"""Find out, write, and check what was written."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ted_ds.config.load import load_recipe
from ted_ds.config.schema import Recipe
from ted_ds.data.first_rows import describe_bad
from ted_ds.data.row_counts import count_training_rows
from ted_ds.errors import ConfigError, TedError, counted
from ted_ds.models.files import ModelFacts
from ted_ds.planning.plan import Plan, plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.check import check
from ted_ds.verbs.init.course import begin_course, fit_course
from ted_ds.verbs.init.forms import Form
from ted_ds.verbs.init.looking import Given, look_at
from ted_ds.verbs.init.means import Means, find_means
from ted_ds.verbs.init.questions import Size, ask
from ted_ds.verbs.init.size import size_in_recipe
from ted_ds.verbs.init.writing import HELDOUT_ROWS, MOST_HELDOUT, Draft, length_of, write_recipe

HEAL = "student.heal"


@dataclass(frozen=True)
class Asked:
    """The words of the command line."""

    teacher: str | None
    """None, as of the data: is asked for in the terminal."""
    data: str | None
    size: Size | None
    """Blocks, or a share of the teacher's."""
    method: str
    out: Path
    num_ranks: int | None
    gpu_gib: float | None
    """Memory of each rank's GPU, where it is not here."""
    minutes: float | None
    """Of training; None: as many as are usual."""
    kind: str | None = None
    """Of task, of :data:`~ted_ds.verbs.init.kinds.KINDS`; None: whichever the data's columns are of."""


def begin(asked: Asked) -> None:
    """Write a recipe, print what ``check`` says of it, and the command that starts it.

    Raises:
        TedError: Something cannot be found out, or the file is there already; nothing was written.
    """
    if asked.out.exists():
        raise ConfigError(f"--out {asked.out}: is there already; give another name, or remove it")
    size = asked.size
    if asked.teacher is None or asked.data is None:
        given, size = ask(asked.teacher, asked.data, size, asked.kind)
    else:
        given = look_at(asked.teacher, asked.data, asked.kind)
    means = find_means(asked.num_ranks, asked.gpu_gib)
    _write(asked, given, size, means)
    print(f"task        {given.form.task['kind']}: {given.form.reason}")
    print(f"recipe      {asked.out}")
    for split, why_not in given.scored.items():
        print(f"split       {split}: {'scored' if why_not is None else f'not used, as {why_not}'}")
    for bad in given.looked.bad[:1]:
        print(f"skipped     {counted(len(given.looked.bad), 'record')}, such as {describe_bad(bad)}")
    print()
    check(str(asked.out), (), num_ranks=means.num_ranks, tflops=means.tflops, link_gbit=None)
    launcher = f"deepspeed --num_gpus {means.num_ranks} --module ted_ds" if means.num_ranks > 1 else "ted-ds"
    if means.is_cpu and means.num_ranks > 1:
        launcher = f"DS_ACCELERATOR=cpu {launcher}"
    print(f"\nstart it    {launcher} run {asked.out}\nis it sound {launcher} doctor {asked.out}")


def _write(asked: Asked, given: Given, size: Size | None, means: Means) -> None:
    """Write a recipe that passes ``check``, or nothing."""
    beside = asked.out.with_name(f".{asked.out.name}")
    blocks, share = (size, None) if isinstance(size, int) else (None, size)
    length = length_of(given.facts, given.looked, given.form, is_cpu=means.is_cpu)
    draft = Draft(
        given,
        _from_recipe(given.teacher, asked.out),
        _from_recipe(given.data, asked.out),
        size_in_recipe(blocks, share, given.facts),
        asked.method,
        str(asked.out),
        means,
        length,
        begin_course(means, given.looked, given.form, length),
        heals=True,
        teacher_knows=_teacher_knows(given.form, given.facts),
    )
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        draft = _with_some_held_out(draft, beside)
        try:
            found = _planned(draft, beside)
        except TedError as error:
            if HEAL not in str(error):
                raise
            draft = replace(draft, heals=False)
            found = _planned(draft, beside)
        _planned(replace(draft, course=fit_course(draft.course, *found, means, asked.minutes)), beside)
        beside.replace(asked.out)
    except OSError as error:
        raise ConfigError(f"--out {asked.out}: cannot be written: {error}; give another file") from error
    except TedError as error:
        raise ConfigError("\n".join(_as_given(line, beside, given) for line in str(error).splitlines())) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be written, either
            beside.unlink(missing_ok=True)


def _as_given(mistake: str, file: Path, given: Given) -> str:
    """A mistake in the recipe, said of the words that it follows from."""
    said = mistake.removeprefix(f"{file}: ")
    for place, word, path in (("teacher.path", "--teacher", given.teacher), ("data.train[0]", "--data", given.data)):
        if said.startswith((f"{place}: ", f"{place}.path: ")):
            what = said.partition(": ")[2].removeprefix(path).removeprefix(": ")
            return f"{word} {path}: {what}"
    return mistake if said == mistake else f"the recipe that would be written: {said}"


def _with_some_held_out(draft: Draft, file: Path) -> Draft:
    """The same, so that of few rows some are held out by a hash of their texts, as a run counts them."""
    looked = draft.given.looked
    if not looked.are_all or len(looked.rows) > HELDOUT_ROWS:
        return draft
    file.write_text(write_recipe(draft), encoding="utf-8")
    recipe = load_recipe(str(file))
    if recipe.data.heldout_sources is not None:
        return draft
    rows, share = kind_of(recipe.task), recipe.data.heldout_fraction
    while share < MOST_HELDOUT:
        count = count_training_rows(recipe.data.model_copy(update={"heldout_fraction": share}), rows)
        if count is None:
            break
        if count.number == 0:
            raise ConfigError(
                f"--data {draft.given.data}: its rows have too few different texts for some to be held out and scored; "
                "give more, or a folder with the splits train and validation"
            )
        if count.num_heldout:
            break
        share = round(share + 0.01, 3)
    return replace(draft, heldout=share)


def _planned(draft: Draft, file: Path) -> tuple[Recipe, Plan]:
    """A draft as ``check`` sees it."""
    file.write_text(write_recipe(draft), encoding="utf-8")
    return plan_recipe(str(file), (), kind_of, num_ranks=draft.means.num_ranks)


def _from_recipe(path: str, out: Path) -> str:
    """A path of the command line, as the recipe has it: with dots, it is from the recipe's folder."""
    plain = os.path.normpath(path)
    if Path(plain).is_absolute() or not plain.startswith(".."):
        return plain
    own = os.path.relpath(plain, out.parent)
    return own if own.startswith("..") else f"./{own}"


def _teacher_knows(form: Form, facts: ModelFacts) -> bool:
    """Whether its head is one for this task, and for these labels."""
    if not form.has_labels:
        return facts.has_lm_head
    labels = form.task.get("labels")
    return facts.has_classifier and labels is not None and facts.labels is not None and set(labels) == {*facts.labels}
