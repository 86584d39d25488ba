"""What a recipe need not say: values that follow from its others are put where it says nothing, before it is validated.

A default that is one value for every recipe stands in the schema. Those here depend on the task, on Stage II or on the
number of ranks, so that each part of a run sees one recipe in which they are as if written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

from ted_ds.config.shipped import AUTO
from ted_ds.config.tasks import Task, TaskSection

SECTION_OF_KIND: Mapping[str, type[TaskSection]] = {
    kind: section for section in get_args(Task) for kind in get_args(section.model_fields["kind"].annotation)
}
RUNS = "runs"
"""The folder in which a run's folder is called by its name."""
GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZES = 32, (4, 2, 1)
FILTER_RATE, TEACHER_RATE = 1e-3, 3e-5
"""Learning rates: of filters, which are new and small; of a teacher that is fine-tuned, in the middle of what BERT's
authors tried (2e-5 to 5e-5; Devlin et al. 2019, arXiv:1810.04805, appendix A.3, as are the epochs)."""
EPOCHS_OF_FINETUNING, EPOCHS = 3, 1
FILTER_SHARE = 10
"""Filters that are trained on a corpus take a step for each so many of Stage II."""
RIDGE_KEY = "filters.initialisation"
STEPS, MICRO = ("max_steps", "epochs"), ("micro_batch_size", "micro_batch_tokens")
FILTER_PLANS = ("teacher", "student", "both")

Reasons = dict[str, str]
"""Why a value is what it is, by its place in the recipe."""


def fill_name(values: dict[str, Any], file: Path) -> Reasons:
    """Put the name of a recipe and the folder of its run, which others may refer to as ``${name}``."""
    filler = _Filler(values)
    filler.put("", "name", re.sub(r"[^\w.-]", "_", file.stem), "the name of the file")
    filler.put("", "output_dir", f"{RUNS}/${{name}}", f"in {RUNS}, by name")
    return filler.reasons


def fill_defaults(values: Any, *, num_ranks: int, can_solve: bool) -> Reasons:
    """Put what follows from the rest into the raw values of a recipe, wherever there is nothing, or null.

    What is there is left as it is, right or wrong.

    Args:
        values: The recipe's.
        num_ranks: Ranks that batches are divided over.
        can_solve: Whether the models' families can have filters that are solved.

    Returns:
        Why, by the place of each value; nothing for sections, which have no reason of their own.
    """
    if not isinstance(values, dict):
        return {}
    filler = _Filler(values, num_ranks=num_ranks)
    filler.put("", "deepspeed", str(AUTO), "one of those that ship")
    filler.put("", "distill", {}, "")
    filler.fill_distill()
    filler.fill_finetuning()
    filler.fill_filters(can_solve=can_solve)
    return filler.reasons


class _Filler:
    """Puts values where there are none, and notes why."""

    def __init__(self, values: dict[str, Any], *, num_ranks: int = 1) -> None:
        self._values = values
        self.reasons: Reasons = {}
        kind = self._section("task").get("kind")
        self._task = SECTION_OF_KIND.get(kind, TaskSection) if isinstance(kind, str) else TaskSection
        stages = self._section("pipeline").get("stages")
        self._num_replicas = max(num_ranks // stages, 1) if _is_count(stages) else num_ranks

    def put(self, path: str, key: str, value: Any, why: str) -> None:
        """Give a key of the section at a path a value, unless it has one."""
        section = self._section(path) if path else self._values
        if section.get(key) is None:
            section[key] = value
            self.reasons[f"{path}.{key}".lstrip(".")] = why

    def fill_distill(self) -> None:
        """Stage II: what the plans of other phases follow."""
        distill = self._values["distill"]
        if not isinstance(distill, dict):
            return
        if not self._task.packed:
            self._put_one("distill", STEPS, "epochs", EPOCHS, "one pass over the training rows")
        self.put("distill", "learning_rate", self._task.learning_rate, "usual for a student of this task")
        self.put("distill", "global_batch_size", GLOBAL_BATCH_SIZE, "usual")
        self._put_micro_batch("distill")

    def fill_finetuning(self) -> None:
        """Stage 0."""
        for side in ("teacher", "student"):
            path = f"{side}.finetune"
            if not self._is_section(path):
                continue
            if not self._task.packed:
                self._put_one(path, STEPS, "epochs", EPOCHS_OF_FINETUNING, "usual for fine-tuning")
            if side == "teacher":
                self.put(path, "learning_rate", TEACHER_RATE, "usual for fine-tuning")
            self._follow_distill(path, "learning_rate", "global_batch_size")
            self._put_micro_batch(path)

    def fill_filters(self, *, can_solve: bool) -> None:
        """Stage I, where the method has it or the recipe a section for it."""
        distill = self._section("distill")
        if distill.get("method", "ted") == "ted":
            self.put("", "filters", {}, "")
        filters = self._values.get("filters")
        if not isinstance(filters, dict):
            return
        if all(filters.get(name) is None for name in FILTER_PLANS):
            # a map is solved in the width of the teacher's states, for the head that the model has
            usual = {"kind": "linear", "lm_head": "frozen", "dim": None}
            if can_solve and self._task.why_no_ridge is None and _agrees(filters, usual):
                self.put("filters", "initialisation", "ridge", "solved in closed form")
            for side in ("teacher", "student"):
                self.put("filters", side, {}, "")
        for name in FILTER_PLANS:
            if self._is_section(f"filters.{name}"):
                self._fill_filter_plan(f"filters.{name}", are_solved=filters.get("initialisation") == "ridge")

    def _fill_filter_plan(self, path: str, *, are_solved: bool) -> None:
        steps = self._section("distill").get("max_steps")
        if are_solved:
            self._put_one(path, STEPS, "max_steps", 0, "as they are solved")
        elif not self._task.packed:
            self._put_one(path, STEPS, "epochs", EPOCHS, "one pass over the training rows")
        elif _is_count(steps):
            why = f"one for each {FILTER_SHARE} of distill.max_steps"
            self._put_one(path, STEPS, "max_steps", -(-steps // FILTER_SHARE), why)
        self.put(path, "learning_rate", FILTER_RATE, "usual for filters")
        self._follow_distill(path, "global_batch_size")
        self._put_micro_batch(path)

    def _follow_distill(self, path: str, *keys: str) -> None:
        for key in keys:
            value = self._section("distill").get(key)
            if value is not None:
                self.put(path, key, value, f"as distill.{key}")

    def _put_micro_batch(self, path: str) -> None:
        """What Stage II has, if it divides the batch; else the largest that does."""
        size = self._section(path).get("global_batch_size")
        for key in MICRO if path != "distill" else ():
            own = self._section("distill").get(key)
            if own is not None and (key != "micro_batch_size" or self._divides(own, size)):
                self._put_one(path, MICRO, key, own, f"as distill.{key}")
        fits = [micro for micro in MICRO_BATCH_SIZES if self._divides(micro, size)]
        largest, *_ = [*fits, MICRO_BATCH_SIZES[-1]]
        why = f"at most {MICRO_BATCH_SIZES[0]}, dividing the global batch over the ranks"
        self._put_one(path, MICRO, "micro_batch_size", largest, why)

    def _divides(self, micro: Any, size: Any) -> bool:
        """Whether the ranks can share a batch in microbatches of a size."""
        return _is_count(micro) and _is_count(size) and size % (micro * self._num_replicas) == 0

    def _put_one(self, path: str, keys: tuple[str, ...], key: str, value: Any, why: str) -> None:
        """Give one of the keys a value, unless any of them has one."""
        section = self._section(path)
        if all(section.get(one) is None for one in keys):
            self.put(path, key, value, why)

    def _is_section(self, path: str) -> bool:
        found: Any = self._values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return isinstance(found, dict)

    def _section(self, path: str) -> dict[str, Any]:
        """What stands at a path; something empty where that is no section."""
        found: Any = self._values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _agrees(section: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a section says nothing else than what is wanted."""
    return all(section.get(key) in (None, value) for key, value in wanted.items())
