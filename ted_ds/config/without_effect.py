"""Settings a recipe gives and this run does not use: allowed, as one recipe serves several methods, and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ted_ds.config.distill import OF_BALANCE, OF_RELATIONS, PARAMETERS
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section
from ted_ds.config.tasks import DocumentTask

OF_PREDICTIONS = ("temperature", "divergence", *PARAMETERS)
OF_LAYERS = ("feature_weight", "feature_reduction", "feature_distance", "normalise_features")
UNUSED_BY_METHOD = {
    "sft": ("kl_weight", *OF_PREDICTIONS, *OF_LAYERS, "relation_weight", *OF_RELATIONS, "balance", *OF_BALANCE),
    "kd": OF_LAYERS,
    "lwd": (),
    "ted": (),
}
"""Of ``distill``."""
OF_CORPORA = ("mixture_temperature", "shuffle_mib", "workers")
"""Of ``data``; task data is held in memory, and shuffled whole."""
OF_CLEANING = ("min_characters", "deduplicate")
OF_SOURCES = ("weight", "epochs", "max_tokens")


def settings_without_effect(recipe: Recipe) -> list[str]:
    """A line for each reason why settings that the recipe gives have no effect."""
    return [f"without effect: {', '.join(names)} ({why})" for names, why in _unused(recipe) if names]


def _unused(recipe: Recipe) -> Iterator[tuple[list[str], str]]:
    method, task, data = recipe.distill.method, recipe.task, recipe.data
    by_method = _given(recipe.distill, "distill", UNUSED_BY_METHOD[method])
    needs = recipe.distill.needs
    by_method += _given(recipe, "", ("layer_map",)) if not needs.states else []
    by_method += ["filters"] if not needs.filters and recipe.filters is not None else []
    by_method += _given(task, "task", ("feature_on",)) if not needs.states else []
    by_method += _given(task, "task", ("kl_on",)) if not needs.teacher else []
    yield by_method, f"distill.method: {method}"
    if needs.teacher and not needs.predictions:
        of_predictions = _given(recipe.distill, "distill", OF_PREDICTIONS) + _given(task, "task", ("kl_on",))
        yield of_predictions, "distill.kl_weight: 0"
    by_task = []
    if recipe.filters is not None and needs.filters:
        by_task += _given(recipe.filters, "filters", task.unused_filter_settings)
    if not task.packed:
        by_task += _given(data, "data", OF_CORPORA) + _given(data.cleaning, "data.cleaning", OF_CLEANING)
        for part, sources in data.parts.items():
            for index, source in enumerate(sources):
                by_task += _given(source, f"data.{part}[{index}]", OF_SOURCES)
    yield by_task, f"task.kind: {task.kind}"
    if isinstance(task, DocumentTask) and task.packing.method == "wrap":
        yield _given(task.packing, "task.packing", ("window",)), "task.packing.method: wrap"
    if data.heldout_sources is not None:
        yield _given(data, "data", ("heldout_fraction",)), f"data.{data.heldout_key} is given"
    if data.transfer is None:
        yield _given(data, "data", ("transfer_share",)), "data.transfer is not given"
    cut = recipe.student.from_teacher
    are_solved = needs.filters and recipe.filters is not None and recipe.filters.are_solved
    is_measured = cut is not None and (cut.is_measured or bool(cut.widths))
    if recipe.student.heal is None and not is_measured and not are_solved:
        yield _given(recipe.student, "student", ("calibration",)), "nothing is made from calibration data"
    if recipe.student.freeze_blocks is not None:
        yield _given(recipe.student, "student", ("freeze_embeddings",)), "student.freeze_blocks freezes them, too"
    if not {"wandb", "trackio"} & {*recipe.tracking.backends}:
        yield _given(recipe.tracking, "tracking", ("project",)), "tracking.to names neither wandb nor trackio"
    if recipe.evaluation.every_steps is None and recipe.checkpoint.keep_best:
        yield _given(recipe.checkpoint, "checkpoint", ("keep_best",)), "evaluation.every_steps is not given"


def _given(section: Section, path: str, names: Sequence[str]) -> list[str]:
    """Those of the names that the recipe itself gives, by their path."""
    return [f"{path}.{name}".lstrip(".") for name in names if name in section.model_fields_set]
