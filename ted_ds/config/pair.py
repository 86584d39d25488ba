"""The recipe's ``teacher`` and ``student`` sections: which models, where their weights are, and what trains of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ted_ds.config.calibration import Calibration
from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.heal import Heal
from ted_ds.config.lora import Lora
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.section import Section, rule
from ted_ds.config.teacher_cache import TeacherCache

Probability = Annotated[float, Field(ge=0, lt=1)]


class Dropout(Section):
    """What of a model is dropped while it trains, where that is another share than its ``config.json`` has."""

    classifier: Probability | None = None
    """Of what a head of labels reads."""
    hidden: Probability | None = None
    """Of states between and within blocks."""
    attention: Probability | None = None
    """Of the weights of attention."""

    @property
    def given(self) -> dict[str, float]:
        """Those that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Teacher(Section):
    """The model to learn from."""

    path: str = Field(min_length=1)
    """Local folder or Hugging Face name of the teacher."""
    finetune: PhasePlan | None = None
    """Train the teacher on the task first (Stage 0)."""
    dropout: Dropout = Dropout()
    """In that training; the teacher is frozen elsewhere, and nothing of it is dropped."""
    host: Literal["auto", "replica", "int8", "zero3", "cpu_offload", "nvme_offload"] = "auto"
    """Where its weights are: whole on every rank (``replica``); whole, its blocks' matrices in 8 bits (``int8``, needs
    torchao); in ZeRO-3 shards of an engine of its own (``zero3``), which wait in host memory (``cpu_offload``) or on a
    disk (``nvme_offload``); ``auto`` takes the first of these that fits, for the whole run. In Stage I and evaluation a
    frozen student is whole or sharded likewise."""
    offload_dir: Path | None = None
    """A folder on a fast disk of each node, for ``nvme_offload``."""
    precision: Literal["auto"] | None = None
    """What it computes in, where that is not the recipe's ``precision``: ``auto`` measures, as the run begins, how far
    its predictions on held-out examples are from its own in that precision where it computes in 16 or 8 bits, and
    takes the fastest way that is near enough."""
    precision_max_kl: float = Field(default=0.01, gt=0)
    """The most that such a way may be off by: the mean KL, in nats, of a prediction. The gradient that each prediction
    gives a student's logits, added up over labels or ids, is then off by 0.14 on average, where it is at most 2."""

    cache: TeacherCache | None = None
    """For task data that is seen several times, and for corpora that several runs read; unset: the teacher runs beside
    the student in every step."""

    @property
    def speaks_from_rows(self) -> bool:
        """Whether all that is heard of it stands in the data: its weights may be another model's."""
        return self.cache is not None and self.cache.rows is not None

    @rule
    def _dropout_is_for_training(self) -> Iterator[str]:
        if self.dropout.given and self.finetune is None:
            yield f"dropout.{next(iter(self.dropout.given))}: without finetune the teacher does not train; remove it"

    @rule
    def _rows_are_of_a_teacher_as_it_was(self) -> Iterator[str]:
        if self.speaks_from_rows and self.finetune is not None:
            yield "finetune: what cache.rows holds was said before, and by another model; remove one of the two"

    @rule
    def _what_is_measured_teaches(self) -> Iterator[str]:
        if self.precision is None and "precision_max_kl" in self.model_fields_set:
            yield "precision_max_kl: nothing is measured without precision: auto; give it, or remove this"
        if self.precision is not None and self.finetune is not None:
            yield (
                "precision: auto: is measured of the teacher as the run begins, before its finetune; fine-tune it in a "
                "run of its own, or remove one of the two"
            )
        if self.precision is not None and self.host not in ("auto", "replica"):
            yield f"precision: auto: a teacher is measured whole on each rank; with host: {self.host} remove it"

    @rule
    def _offload_has_a_place(self) -> Iterator[str]:
        if (self.host == "nvme_offload") and self.offload_dir is None:
            yield "host: nvme_offload needs offload_dir, a folder on a fast disk of each node"
        if self.host not in ("auto", "nvme_offload") and self.offload_dir is not None:
            yield f"offload_dir: host: {self.host} does not use it; remove it"


class FromConfig(Section):
    """A student of random weights, for studies of pre-training."""

    path: Path | None = None
    """A local folder with its ``config.json``; unset: the teacher's."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Entries of that config with other values (``num_hidden_layers``, ``hidden_size``, ...)."""

    @rule
    def _type_is_the_configs(self) -> Iterator[str]:
        if "model_type" in self.changes:
            yield "changes.model_type: the type is that of the config; give path, the folder of a config of that type"


class Student(Section):
    """The model that learns."""

    path: str | None = Field(default=None, min_length=1)
    """Local folder or Hugging Face name of a pretrained student."""
    from_teacher: CutFromTeacher | None = None
    """Cut the student out of the teacher instead."""
    from_config: FromConfig | None = None
    """Or begin with random weights, the same for any number of ranks."""
    calibration: Calibration = Calibration()
    """The texts by which it is made, and filters are, where that is done without a gradient."""
    heal: Heal | None = None
    """Bring a student that is cut out of its teacher to the teacher's states, before it is trained."""
    finetune: PhasePlan | None = None
    """Train the student on the task before Stage I (Stage 0)."""
    dropout: Dropout = Dropout()
    """While it trains. A student cut out of its teacher has that one's ``config.json``, with the dropout it was trained
    with."""
    lora: Lora | None = None
    """Train adapters instead of its weights."""
    freeze_embeddings: bool = False
    """Leave the token embeddings as they are, and an LM head that is tied to them: no gradients or optimizer state of
    them, and, while both models are whole on a rank, one copy of them for a student cut out of its teacher."""

    freeze_blocks: int | None = Field(default=None, gt=0)
    """Of a student cut out of its teacher: leave embeddings and so many of its first blocks as they are, without
    gradients or optimizer state; where these are the teacher's own first blocks, both models run them once in Stage
    II."""

    @rule
    def _one_origin(self) -> Iterator[str]:
        if [self.path, self.from_teacher, self.from_config].count(None) != 2:
            yield "give exactly one of path, from_teacher and from_config"

    @rule
    def _a_search_looks_at_something(self) -> Iterator[str]:
        cut, of_a_pass = self.from_teacher, self.calibration.heldout_tokens
        searches = cut is not None and cut.num_blocks is not None and cut.choose == "search"
        if cut is not None and searches and cut.search_tokens < 2 * of_a_pass:
            yield (
                f"from_teacher.search_tokens: {cut.search_tokens}: each look at a block takes "
                f"calibration.heldout_tokens ({of_a_pass}), and there are two to compare; use {2 * of_a_pass} or more"
            )

    @rule
    def _what_was_cut_is_healed(self) -> Iterator[str]:
        if self.heal is None:
            return
        if self.from_teacher is None:
            yield "heal: brings a student that is cut out of its teacher back to it; give from_teacher, or remove it"
            return
        for stack, blocks in self.from_teacher.of_stacks.items():
            if self.heal.towards == "cut" and sorted(set(blocks)) != blocks:
                yield (
                    "heal.towards: cut: brings each block to the teacher's state before the next one, and "
                    f"from_teacher.{stack + '_' if stack else ''}blocks are {blocks}; give them in ascending order, "
                    "each once, or use towards: layer_map"
                )

    @rule
    def _frozen_blocks_are_the_teachers(self) -> Iterator[str]:
        if self.freeze_blocks is not None and self.from_teacher is None:
            yield (
                "freeze_blocks: is for the first blocks of a student that is cut out of its teacher; give "
                "from_teacher, or remove it"
            )

    @rule
    def _adapters_have_a_base(self) -> Iterator[str]:
        if self.lora is None:
            return
        if self.from_config is not None:
            yield "lora: random weights that stay as they are teach nothing; remove it, or give path or from_teacher"
        for key in ("freeze_embeddings", "freeze_blocks"):
            if getattr(self, key):
                yield f"{key}: with lora all but adapters and head is left as it is; remove it"
        if self.lora.export == "adapter" and (self.path is None or self.finetune is not None):
            yield (
                "lora.export: adapter: its base would be a model that this run alone has; give path (and no finetune), "
                "or use merged"
            )
