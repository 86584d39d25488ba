"""What a run has before anything of it is built."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.assembly.readers import Readers
from ted_ds.config.schema import Recipe
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.models.companions import Origins
from ted_ds.output.run_folder import Run
from ted_ds.output.screen import Screen
from ted_ds.planning.deepspeed_choice import DeepSpeedChoice
from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.hosting import Hosting
from ted_ds.planning.plan import Plan
from ted_ds.runtime.preemption import StopRequests
from ted_ds.runtime.world import World
from ted_ds.tasks.kind import AnyKind, kind_of


@dataclass(frozen=True)
class Given:
    """One recipe on one world of ranks."""

    recipe: Recipe
    """Its models are local folders: those of the hub were fetched."""
    plan: Plan
    """With both models known."""
    world: World
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    """By which the data are read for each side: one and the same, or each model's own."""
    data: LabelledData | CorpusData
    screen: Screen
    stops: StopRequests
    run: Run
    hosting: Hosting
    deepspeed_choice: DeepSpeedChoice | None = None
    """None where the recipe names its DeepSpeed file."""

    @functools.cached_property
    def deepspeed_json(self) -> dict[str, Any]:
        """The recipe's DeepSpeed config."""
        return deepspeed_json_of(self.recipe, self.plan)

    @functools.cached_property
    def kind(self) -> AnyKind:
        """Its task."""
        return kind_of(self.recipe.task)

    @functools.cached_property
    def readers(self) -> Readers:
        """The data in the tokens of each model."""
        return Readers(self.kind, self.recipe.data.padding, self.data, self.tokenizers)

    @functools.cached_property
    def origins(self) -> Origins:
        """Whose tokenizer, licences and cards go with what is saved."""
        student = self.recipe.student.path
        teacher = Path(self.recipe.teacher.path)
        two = self.plan.two_tokenizers
        return Origins(teacher, None if student is None else Path(student), student_has_tokenizer=two)
