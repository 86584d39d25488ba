"""Find out, write, and check what was written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import ConfigError, TedError
from ted_ds.models.files import ModelFacts
from ted_ds.planning.plan import plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.check import check
from ted_ds.verbs.init.forms import Form, form_of
from ted_ds.verbs.init.looking import look_at_data, look_at_teacher
from ted_ds.verbs.init.writing import Wish, write_recipe

HEAL = "student.heal"
TFLOPS = 400.0


@dataclass(frozen=True)
class Asked:
    """The words of the command line."""

    teacher: str
    data: str
    blocks: int | None
    size: float | None
    """Share of the teacher's blocks."""
    method: str
    out: Path
    num_ranks: int


def begin(asked: Asked) -> None:
    """Write a recipe, print what ``check`` says of it, and the command that starts it.

    Raises:
        TedError: Something cannot be found out, or the file is there already; nothing was written.
    """
    if asked.out.exists():
        raise ConfigError(f"--out {asked.out}: is there already; give another name, or remove it")
    facts, looked = look_at_teacher(asked.teacher), look_at_data(asked.data)
    form = form_of(looked.rows, facts.family.language_model, looked.declared)
    wish = Wish(
        _from_recipe(asked.teacher, asked.out),
        _from_recipe(asked.data, asked.out),
        _blocks(asked, facts),
        asked.method,
        str(asked.out),
        asked.num_ranks,
    )
    knows = _teacher_knows(form, facts)
    beside = asked.out.with_name(f".{asked.out.name}")
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        for heals in (True, False):
            beside.write_text(
                write_recipe(wish, facts, looked, form, heals=heals, teacher_knows=knows), encoding="utf-8"
            )
            try:
                plan_recipe(str(beside), (), kind_of, num_ranks=asked.num_ranks)
                break
            except TedError as error:
                if not heals or HEAL not in str(error):
                    raise
        beside.replace(asked.out)
    except TedError as error:
        kept = str(error).replace(str(beside), "the recipe that would be written")
        raise ConfigError(f"{kept}. Write one by hand: docs/recipes.md") from error
    finally:
        beside.unlink(missing_ok=True)
    print(f"task        {form.task['kind']}: {form.reason}")
    print(f"recipe      {asked.out}\n")
    check(str(asked.out), (), num_ranks=asked.num_ranks, tflops=TFLOPS, link_gbit=None)
    launcher = f"deepspeed --num_gpus {asked.num_ranks} --module ted_ds" if asked.num_ranks > 1 else "ted-ds"
    print(f"\nstart it    {launcher} run {asked.out}\nis it sound {launcher} doctor {asked.out}")


def _blocks(asked: Asked, facts: ModelFacts) -> int | str:
    """Of the student: their number, or their share of the teacher's."""
    whole = facts.num_blocks
    if asked.blocks is not None:
        if not 1 <= asked.blocks < whole:
            raise ConfigError(f"--blocks {asked.blocks}: the teacher has {whole} blocks; use 1 to {whole - 1}")
        return asked.blocks
    return "half" if asked.size is None else f"{100 * asked.size:g}%"


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
