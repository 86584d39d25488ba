"""Whether ``distill.kernels: triton`` can be had, and has something to compute."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from ted_ds.config.environment import is_true
from ted_ds.config.schema import Recipe

PLACE = "distill.kernels"
INTERPRET = "TRITON_INTERPRET"
"""With it Triton computes by numpy, step by step: for tests."""


def kernel_mistakes(recipe: Recipe) -> Iterator[str]:
    """What keeps the kernels from computing the losses of a recipe, in lines of it."""
    distill = recipe.distill
    if distill.kernels != "triton":
        return
    if not recipe.task.has_lm_head:
        yield (f"{PLACE}: triton computes with the logits of a vocabulary, and {recipe.task.kind} has none; remove it")
        return
    if distill.needs.predictions and distill.divergence_is_of_a_package:
        yield (
            f"{PLACE}: triton has no kernel for distill.divergence: {distill.divergence}, which is of a package; "
            "remove one of the two"
        )
    if distill.needs.predictions and recipe.teacher.cache is not None:
        yield (
            f"{PLACE}: triton compares with all logits of a teacher, and teacher.cache keeps some of them; remove one "
            "of the two"
        )
    if importlib.util.find_spec("triton") is None:
        yield (
            f"{PLACE}: triton needs the package triton, which is not installed here (torch for CUDA brings it): pip "
            "install 'ted_ds[triton]'; or use torch"
        )
    elif os.environ.get("DS_ACCELERATOR") == "cpu" and not is_true(os.environ, INTERPRET):
        yield f"{PLACE}: triton needs a GPU, but $DS_ACCELERATOR is cpu; use torch"
