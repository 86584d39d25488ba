"""The distilled student as a plain transformers folder, or its adapter as peft's: ted_ds is not needed to load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError, counted
from ted_ds.models.companions import CARD, Origins, accompany, copy_papers, copy_tokenizer
from ted_ds.models.files import GENERATION_CONFIG_FILE, read_model_facts
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE, INDEX_FILE
from ted_ds.models.loading import auto_class
from ted_ds.models.local_paths import local_values_of
from ted_ds.models.tensor_files import weight_files
from ted_ds.models.tokenizer_files import CHAT_TEMPLATE_FILE
from ted_ds.models.tokenizer_settings import TOKENIZER_CONFIG_FILE
from ted_ds.output.card import Blocks, Card, Scores


def export_student(
    student: Path,
    folder: Path,
    *,
    recipe: Recipe,
    origins: Origins,
    blocks: Blocks | None,
    scores: Scores | None = None,
) -> list[str]:
    """Copy the student to ``folder`` with what goes with it, and make sure that it loads as it will at the user's.

    Args:
        student: Where it is.
        folder: Where it goes.
        recipe: The run's.
        origins: Whose tokenizer and papers go with it.
        blocks: Those of the teacher that it was cut out as; None where it was not.
        scores: What was measured of it and others; None where nothing was.

    Returns:
        What is no mistake, and should be known before the copy is passed on.

    Raises:
        CheckpointError: The copy does not load completely.
    """
    index = student / INDEX_FILE
    configs = [student / CONFIG_FILE, student / GENERATION_CONFIG_FILE, index]
    for file in [*weight_files(student), *(one for one in configs if one.is_file())]:
        shutil.copyfile(file, folder / file.name)
    accompany(folder, origins)
    if recipe.task.template_file is not None:
        shutil.copyfile(recipe.task.template_file, folder / CHAT_TEMPLATE_FILE)
    facts = read_model_facts(folder)
    what = (
        f"A {facts.model_type} of {counted(facts.num_blocks, 'block')} and {facts.parameters.total:,} parameters, "
        "distilled with "
        f"ted_ds (method {recipe.distill.method}, task {recipe.task.kind})."
    )
    card, traces = Card(recipe, origins, folder, blocks, scores or {}), _traces(folder, origins)
    (folder / CARD).write_text(card.text(what, traces), encoding="utf-8")
    try:
        _, report = auto_class(recipe.task.architecture).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{student}: its copy does not load ({error}); distil it again") from error
    problems = [f"{kind}: {sorted(report[kind])[:3]}" for kind in ("missing_keys", "unexpected_keys") if report[kind]]
    if problems:
        raise CheckpointError(f"{student}: does not export cleanly ({'; '.join(problems)}); distil it again")
    return [*traces, *card.doubts]


def export_adapter(
    adapter: Path,
    folder: Path,
    *,
    recipe: Recipe,
    origins: Origins,
    blocks: Blocks | None,
    scores: Scores | None = None,
) -> list[str]:
    """Copy a student's adapter to ``folder``, as peft loads it beside its base, with tokenizer, licences and a card.

    ``blocks`` and ``scores`` are as for :func:`export_student`.

    Returns:
        What is no mistake, and should be known before the copy is passed on.
    """
    for file in sorted(adapter.iterdir()):
        shutil.copyfile(file, folder / file.name)
    copy_tokenizer(origins.reader_of("student"), folder)
    copy_papers(origins, folder)
    if recipe.task.template_file is not None:
        shutil.copyfile(recipe.task.template_file, folder / CHAT_TEMPLATE_FILE)
    config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    base, rank = config["base_model_name_or_path"], config["r"]
    what = (
        f"An adapter (LoRA, rank {rank}) for `{base}`, distilled with ted_ds (method {recipe.distill.method}, task "
        f"{recipe.task.kind}): `peft.PeftModel.from_pretrained(BASE, FOLDER)`."
    )
    card, traces = Card(recipe, origins, folder, blocks, scores or {}, is_adapter=True), _traces(folder, origins)
    (folder / CARD).write_text(card.text(what, traces), encoding="utf-8")
    return [*traces, *card.doubts]


def _reader_in_words(origins: Origins) -> str:
    """Whose tokenizer the student has."""
    return "student" if origins.student_has_tokenizer else "teacher"


def _traces(folder: Path, origins: Origins) -> list[str]:
    file = folder / TOKENIZER_CONFIG_FILE
    found = local_values_of(file)
    if not found:
        return []
    return [
        f"{file.name} holds what is of the machine it was written on ({', '.join(found)}): the "
        f"{_reader_in_words(origins)}'s file is copied as it is; remove these from it where the model is passed on"
    ]
