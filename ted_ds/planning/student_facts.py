"""What the student will be: read from its own files, from its teacher's, or from the config of a random one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.nearest import nearest
from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError, TedError
from ted_ds.models.adapter_folder import read_adapter
from ted_ds.models.files import ModelFacts
from ted_ds.models.folder import no_folder
from ted_ds.models.random_facts import UnknownEntries, random_facts
from ted_ds.planning.cut_facts import cut_facts, place_of_blocks
from ted_ds.planning.mistakes import Mistakes
from ted_ds.planning.model_lookup import KnownModel
from ted_ds.planning.width_facts import narrow_facts


def find_student(
    recipe: Recipe, teacher: KnownModel, look_up: Callable[[str], KnownModel], mistakes: Mistakes
) -> KnownModel:
    """What is known of the student; one without files of its own has the teacher's.

    Args:
        recipe: The recipe.
        teacher: What is known of the teacher.
        look_up: Finds a model by its path.
        mistakes: Takes what is wrong.
    """
    path = recipe.student.path
    if path is not None:
        return mistakes.attempt("student.path", lambda: look_up(path)) or KnownModel()
    facts = None
    if recipe.student.from_config is not None:
        facts = mistakes.attempt("", lambda: _random_facts(recipe, teacher.place))
    elif teacher.facts is not None:
        whole = teacher.facts
        cut = recipe.student.from_teacher
        assert cut is not None
        facts = mistakes.attempt(place_of_blocks(cut, whole), lambda: cut_facts(cut, whole))
        if facts is not None and cut.widths:
            facts = mistakes.attempt("", lambda: _narrow_facts(cut, whole, teacher.place))
    return replace(teacher, facts=facts, doubt=None)


def config_folder(recipe: Recipe, teacher: Path | None) -> Path | None:
    """Where the ``config.json`` is that a student of random weights begins with; None while that is not known."""
    from_config = recipe.student.from_config
    assert from_config is not None
    folder = from_config.path or teacher
    adapter = None if folder is None else read_adapter(folder)
    return folder if adapter is None else adapter.base


def begun_with(recipe: Recipe, side: str, facts: ModelFacts) -> str:
    """What a model is, in words for behind its shape, where its files do not hold it as it is."""
    section = recipe.teacher if side == "teacher" else recipe.student
    adapter = None if section.path is None else read_adapter(Path(section.path))
    if adapter is not None:
        return f", an adapter merged into {adapter.base}"
    is_random = side == "student" and recipe.student.from_config is not None
    return f", random, {facts.parameters.total:,} parameters" if is_random else ""


def _narrow_facts(cut: CutFromTeacher, whole: ModelFacts, folder: Path | None) -> ModelFacts:
    assert folder is not None  # its facts are from there
    return cut_facts(cut, narrow_facts(cut.widths, whole, folder))


def _random_facts(recipe: Recipe, teacher: Path | None) -> ModelFacts | None:
    from_config, folder = recipe.student.from_config, config_folder(recipe, teacher)
    assert from_config is not None
    if folder is None:
        return None
    if from_config.path is not None and not folder.is_dir():
        raise ConfigError(f"student.from_config.path: {folder}: {no_folder(folder)}")
    where = "student.from_config"
    try:
        return random_facts(
            folder,
            from_config.changes,
            architecture=recipe.task.architecture,
            num_labels=None if recipe.task.has_lm_head else recipe.task.num_outputs,
        )
    except UnknownEntries as error:
        lines = []
        for key in error.unknown:
            meant = nearest(key, error.known)
            hint = f"; did you mean {meant}?" if meant else ""
            lines.append(f"{where}.changes.{key}: a {error.model_type}'s config has no such entry{hint}")
        raise ConfigError("\n".join(lines)) from error
    except TedError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error
