"""What the results of phases depend on, in the parts that several of them have.

These go into a phase's manifest: a run that is started again goes on where they are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ted_ds.assembly.own import NOTHING_OWN, Own
from ted_ds.config.data import by_older_name
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.reading.listing import DataListing, list_source
from ted_ds.output.phase_folder import MANIFEST
from ted_ds.output.run_folders import RunFolders
from ted_ds.planning.phase import DISTILL, Phase, training_of
from ted_ds.planning.plan import Plan

UNDECIDING_DATA_KEYS: dict[str, Any] = {
    **dict.fromkeys(("padding", "workers", "bad_records"), True),
    # files are known by what they are, wherever they are
    **{part: {"__all__": {"path"}} for part in ("train", "validation", "evaluation")},
    "apart": {"__all__": {"__all__": {"path"}}},
    "glue_folder": True,
    # decide the phase that scores it, or the one that learns from them, alone
    **dict.fromkeys(("test", "transfer", "transfer_share"), True),
    "order_seed": True,  # said by those whose steps it decides
}
"""What may change in ``data`` without a change in results."""

PATHS_OF_TESTS: dict[str, Any] = {
    **{key: {"__all__": {"sources": {"__all__": {"path"}}}} for key in ("perplexity", "last_word")},
    "lm_eval": True,  # decides a phase of its own
    # decide the phase that scores, which says so itself, or no number
    **dict.fromkeys(("models", "outcomes", "samples"), True),
}
"""What may change in ``evaluation``: files are known by what they are."""
UNDECIDING_KEYS: dict[str, Any] = {"data": UNDECIDING_DATA_KEYS, "evaluation": PATHS_OF_TESTS}


class Settled(NamedTuple):
    """What decides the results of a run, beside the models it starts from."""

    recipe: Recipe
    plan: Plan
    deepspeed_json: dict[str, Any]
    listing: DataListing
    start_tokens: list[str] | None
    """What ``task.bos`` came to; None where texts have no such beginning at all."""
    in_8_bits: bool
    """Whether the teacher's weights are not its files'."""
    teacher_precision: str | None = None
    """What the teacher computes in, where that is not the recipe's."""
    own: Own = NOTHING_OWN
    template_sha256: str | None = None
    """Of the chat template that texts are written by."""


class Inputs:
    """Says what of a run its phases depend on."""

    def __init__(self, settled: Settled, folders: RunFolders) -> None:
        self.recipe, self.plan, self.folders = settled.recipe, settled.plan, folders
        self._settled = settled

    def of_training(self, phase: Phase, **models: Path) -> dict[str, Any]:
        """What any phase that trains depends on, with the models it reads by what they are to it."""
        plan = training_of(self.recipe, phase)
        values = self._run_values(with_distillation=phase is DISTILL)
        return {
            **{name: self.folders.identity(model) for name, model in models.items()},
            "plan": plan.deciding_values(),
            # how models are sharded does not decide the result: a requeued run may change it
            "deepspeed": {key: self._settled.deepspeed_json.get(key) for key in ("optimizer", "scheduler")},
            **self.data_files(),
            **values,
            **(self._choice() if phase.trains is not None else {}),
        }

    def of_calibration(self) -> dict[str, Any]:
        """What anything depends on that the teacher and the calibration data decide, beside the teacher's files."""
        calibration = self.recipe.student.calibration.deciding_values()
        values = self._run_values(with_distillation=False)
        return {"calibration": calibration, **self.data_files(), **values, **self.fewer_bits()}

    def _run_values(self, *, with_distillation: bool) -> dict[str, Any]:
        """What of the recipe decides the batches of a phase and what is computed of them."""
        values = self.recipe_values("task", "data", "seed", "precision")
        for key in () if with_distillation else self.recipe.task.of_distillation:
            del values["task"][key]
        own_order = self.recipe.data.order_seed
        return values if own_order is None else {**values, "order_seed": own_order}

    def _choice(self) -> dict[str, Any]:
        """What decides which of a phase's models is its result; nothing where it is the last."""
        evaluation = self.recipe.evaluation
        if self.recipe.export == "last":
            return {}
        how = {"every_steps": evaluation.every_steps, "max_examples": evaluation.max_examples}
        return {"export": {**how, **self.own_of_scores()}}

    def data_files(self) -> dict[str, Any]:
        """The files that data is read from."""
        return {"data_files": self._settled.listing.identity()}

    def test_data(self) -> dict[str, Any]:
        """The files of ``data.test`` and how they are read; nothing where there are none."""
        test = self.recipe.data.test
        if test is None:
            return {}
        values = [source.model_dump(mode="json", exclude={"path"}) for source in test]
        return {"test": without_secrets(values), "test_files": self._settled.listing.test_identity()}

    def language_tests(self) -> dict[str, Any]:
        """The files of each test of language models; nothing where there are none.

        Raises:
            DataError: They cannot be read.
        """
        files = {
            within: [list_source(source).identity() for source in test.sources]
            for within, _, test in self.recipe.evaluation.tests
        }
        return {"language_tests": files} if files else {}

    def transfer(self) -> dict[str, Any]:
        """The files of ``data.transfer``, how they are read and how many are mixed in; nothing where there are none."""
        data = self.recipe.data
        if data.transfer is None:
            return {}
        values = {
            "sources": [source.model_dump(mode="json", exclude={"path"}) for source in data.transfer],
            "share": data.transfer_share,
            "files": self._settled.listing.transfer_identity(),
        }
        return {"transfer": without_secrets(values)}

    def recipe_values(self, *sections: str) -> dict[str, Any]:
        """What sections of the recipe say, with what ``task.bos`` or a chat template came to in their places."""
        values = without_secrets(self.recipe.model_dump(mode="json", include={*sections}, exclude=UNDECIDING_KEYS))
        if "data" in values:
            values["data"] = by_older_name(values["data"])
        if (
            "task" in values and self._settled.start_tokens is not None
        ):  # None, as in phases from before the setting, where nothing is added
            values["task"]["bos"] = self._settled.start_tokens or None
        if "task" in values and self._settled.template_sha256 is not None:  # whatever file it is in
            values["task"]["chat_template"] = self._settled.template_sha256
        return values

    def filter_files(self, side: str) -> dict[str, Any]:
        """Size and hash of a side's learned filters."""
        folder = self.folders.place(self.folders.filters_phase(side))
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        place = self.folders.filters_path(side).relative_to(folder)
        return {Path(name).name: hashed for name, hashed in files.items() if Path(name).parent == place}

    def own_of_stage_two(self) -> Mapping[str, Any]:
        """What the user's own code decides there; nothing where there is none."""
        return self._settled.own.of_stage_two()

    def own_of_scores(self) -> Mapping[str, Any]:
        """What it decides of how models are scored; likewise."""
        return self._settled.own.of_scores()

    def fewer_bits(self) -> dict[str, str]:
        """What to know of a teacher whose weights are not its files', or that computes in fewer bits than the student.

        No other host makes a difference.
        """
        precision = self._settled.teacher_precision
        weights = {"teacher_weights": "int8"} if self._settled.in_8_bits else {}
        return weights if precision is None else {**weights, "teacher_precision": precision}

    def dropout_part(self, side: str) -> dict[str, Any]:
        """What of a model that trains is dropped, where the recipe says so."""
        given = (self.recipe.teacher if side == "teacher" else self.recipe.student).dropout.given
        return {"dropout": given} if given else {}

    def frozen_part(self) -> dict[str, Any]:
        """What of the student does not train, or what trains instead."""
        student = self.recipe.student
        if student.lora is not None:
            return {"lora": student.lora.deciding_values()}
        if student.freeze_blocks is not None:
            return {"freeze_blocks": student.freeze_blocks}
        return {"freeze_embeddings": True} if student.freeze_embeddings else {}
