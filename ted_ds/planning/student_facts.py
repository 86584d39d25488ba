"""What the student will be: read from its own files, from its teacher's, or from the config of a random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ted_ds.config.nearest import nearest
from ted_ds.config.schema import Recipe
from ted_ds.data.sources import HUB_NAME
from ted_ds.errors import ConfigError, TedError
from ted_ds.models.adapter_folder import read_adapter
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.models.folder import no_folder
from ted_ds.models.random_facts import UnknownEntries, random_facts
from ted_ds.planning.mistakes import Mistakes


def local_model(path: str) -> Path | None:
    """The folder a model path names; None for a hub name.

    Raises:
        ConfigError: It is neither.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_NAME.match(path):
        raise ConfigError(f"{path}: {no_folder(folder)}")
    return None


def find_student(
    recipe: Recipe, teacher_dir: Path | None, teacher: ModelFacts | None, mistakes: Mistakes
) -> tuple[Path | None, ModelFacts | None]:
    """The folder of its files (the teacher's, where it has none of its own) and its facts; None while unknown."""
    path = recipe.student.path
    if path is not None:
        folder = mistakes.attempt("student.path", lambda: local_model(path))
        return folder, mistakes.attempt("student.path", lambda: read_model_facts(folder)) if folder else None
    if recipe.student.from_config is not None:
        return teacher_dir, mistakes.attempt("", lambda: _random_facts(recipe, teacher_dir))
    if teacher is None:
        return teacher_dir, None
    return teacher_dir, mistakes.attempt("student.from_teacher.blocks", lambda: _cut_facts(recipe, teacher))


def config_folder(recipe: Recipe, teacher: Path | None) -> Path | None:
    """Where the ``config.json`` is that a student of random weights begins with; None while that is not known."""
    from_config = recipe.student.from_config
    assert from_config is not None
    folder = from_config.path or teacher
    adapter = None if folder is None else read_adapter(folder)
    return folder if adapter is None else adapter.base


def _random_facts(recipe: Recipe, teacher_dir: Path | None) -> ModelFacts | None:
    from_config, folder = recipe.student.from_config, config_folder(recipe, teacher_dir)
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


def _cut_facts(recipe: Recipe, teacher: ModelFacts) -> ModelFacts:
    cut = recipe.student.from_teacher
    assert cut is not None
    outside = [block for block in cut.blocks if block >= teacher.num_blocks]
    if outside:
        raise ConfigError(
            f"block {outside[0]} does not exist (the teacher has {teacher.num_blocks} blocks, numbered from 0); "
            f"use 0..{teacher.num_blocks - 1}"
        )
    return replace(teacher, num_blocks=len(cut.blocks), parameters=teacher.parameters.cut(cut.blocks))
