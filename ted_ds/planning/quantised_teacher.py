"""What models can be whose weights are quantised in their files: frozen teachers, each whole on every rank.

Only what was seen to work is allowed: ``tests/integration/test_quantised_teachers.py`` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.models.packed import Quantisation

DEQUANTISE = (
    "use the model in 16 or 32 bits it was made from, or dequantise it (transformers: model.dequantize(), then "
    "save_pretrained)"
)


def quantised_mistakes(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None) -> Iterator[str]:
    """What a recipe asks of quantised models that they cannot do, in lines of the recipe."""
    own_student = student if recipe.student.path is not None else None
    if own_student is not None and own_student.quantisation is not None:
        yield (
            f"student.path: its weights are quantised ({own_student.quantisation}), and a student's are trained; "
            f"{DEQUANTISE}"
        )
    if teacher is not None and teacher.quantisation is not None:
        yield from _teacher_mistakes(recipe, teacher.quantisation)


def _teacher_mistakes(recipe: Recipe, quantisation: Quantisation) -> Iterator[str]:
    if recipe.teacher.finetune is not None:
        yield (
            f"teacher.finetune: the teacher's weights are quantised ({quantisation}) and cannot be trained; remove "
            f"teacher.finetune, or {DEQUANTISE}"
        )
    if recipe.student.from_teacher is not None:
        yield (
            f"student.from_teacher: the teacher's weights are quantised ({quantisation}), and no student that trains "
            f"can be cut out of it; give student.path, or {DEQUANTISE}"
        )
    if recipe.teacher.host not in ("auto", "replica"):
        yield (
            f"teacher.host: {recipe.teacher.host} cannot hold this teacher: its weights are quantised ({quantisation}) "
            "and stay whole on each rank; use replica"
        )
    if recipe.teacher.precision is not None:
        yield f"teacher.precision: auto: the teacher's weights are quantised ({quantisation}) already; remove it"
    if recipe.pipeline.stages > 1:
        yield (
            f"pipeline.stages: the teacher's weights are quantised ({quantisation}) and cannot be cut into stages; use "
            "pipeline.stages: 1"
        )
    untried = {"torch_compile": recipe.torch_compile, "teacher.cache": recipe.teacher.cache is not None}
    for setting in (name for name, is_set in untried.items() if is_set):
        yield f"{setting}: the teacher's weights are quantised ({quantisation}), which was not tried with it; remove it"
    if quantisation.outside_blocks:
        yield (
            f"teacher.path: quantised beyond its blocks ({', '.join(quantisation.outside_blocks[:3])}), but the losses "
            "over the vocabulary need embeddings and head in 16 or 32 bits; use a model whose blocks alone are "
            "quantised"
        )
    if quantisation.of_the_batch is not None:
        yield (f"teacher.path: what is made of a text would depend on the texts beside it: {quantisation.of_the_batch}")
    missing = quantisation.missing_packages()
    if missing:
        yield (
            f"teacher.path: its weights are quantised ({quantisation}), and transformers loads them with "
            f"{' and '.join(missing)}, not installed here: pip install {' '.join(missing)}; or {DEQUANTISE}"
        )
