"""The distilled student as a plain transformers folder: no filters, no wrappers; ted_ds is not needed to load it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ted_ds.errors import CheckpointError


def export_student(student: Path, folder: Path, *, causal_lm: bool) -> None:
    """Copy the student's files to ``folder`` and make sure that they load as they will at the user's.

    Raises:
        CheckpointError: The copy does not load completely.
    """
    shutil.copytree(student, folder, dirs_exist_ok=True)
    auto: Any = AutoModelForCausalLM if causal_lm else AutoModelForSequenceClassification
    try:
        _, report = auto.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{student}: its copy does not load ({error}); distil it again") from error
    problems = [f"{kind}: {sorted(report[kind])[:3]}" for kind in ("missing_keys", "unexpected_keys") if report[kind]]
    if problems:
        raise CheckpointError(f"{student}: does not export cleanly ({'; '.join(problems)}); distil it again")
