"""What each stage of the method trains: modules, objective, and the layers to watch, from models and recipe."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ted_ds.assembly.assembly import Assembly
from ted_ds.errors import ConfigError
from ted_ds.models.filter_files import load_filters
from ted_ds.models.heads import FilterProbes, ProbesOfModels, own_probes
from ted_ds.models.shared_block import last_shared_block
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.numerics.layer_map import layer_names
from ted_ds.objectives.distill import DistillObjective, StageLoss
from ted_ds.objectives.distill_texts import ReadAt, TextDistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.objectives.learn_filters import FilterObjective, FilterObjectives
from ted_ds.planning.phase import DISTILL, phase_named
from ted_ds.planning.pipeline_cut import Stage
from ted_ds.planning.ridge_filters import reader_of
from ted_ds.runtime.base_teacher import BaseTeacher
from ted_ds.runtime.determinism import seed_everything
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.outputs import Outputs, probe_outputs
from ted_ds.runtime.step_runner import Objective, StepRunner
from ted_ds.runtime.teacher import AbsentTeacher, Teacher
from ted_ds.tasks.base import pooling_of


@dataclass
class Probed:
    """A frozen model, with filters to be learned on it."""

    body: FrozenModel
    runs: bool
    """Whether this pipeline stage has something of it."""
    bank: FilterBank
    probes: FilterProbes
    prefix: str
    """Of the names of its filters, where those of the other model are learned, too."""

    @property
    def names(self) -> list[str]:
        """Of its filters, in the order of the layer map."""
        return [f"{self.prefix}{name}" for name in layer_names(self.bank.layers)]


@dataclass
class StageOne:
    """Filters to be learned on one model, or on both."""

    sides: dict[str, Probed]
    module: ProbesOfModels
    objective: FilterObjectives

    @property
    def watched(self) -> dict[str, nn.Module]:
        """Where to look for the origin of a number that is not finite."""
        found: dict[str, nn.Module] = {}
        for one in self.sides.values():
            found |= {f"{one.prefix}{name}": layer for name, layer in one.body.named_layers.items()}
            found |= _named("filter of", one.names, one.bank.filters) | _named("head of", one.names, one.probes.heads)
        return found

    def outputs(self, engine: StepRunner) -> Outputs:
        """What to score of a held-out batch while ``engine`` trains: each filter, in the order of :attr:`names`."""
        bodies = [(side, one.body if one.runs else None) for side, one in self.sides.items()]
        return probe_outputs(engine, bodies, len(next(iter(self.sides.values())).names))

    @property
    def names(self) -> list[str]:
        """Of all filters."""
        return [name for one in self.sides.values() for name in one.names]


def build_stage_one(
    build: Assembly, phase: str, models: Mapping[str, Path], *, solved: Mapping[str, FilterBank] = {}
) -> StageOne:
    """Frozen bodies with filters at their side of the layer map and a head on each. Every rank must call it.

    Args:
        build: The run's assembly.
        phase: One of Stage I.
        models: The folder of each side, and of the model whose head reads a side's filters.
        solved: Filters to begin with, by side; fresh ones of the others.

    Raises:
        TedError: A model cannot be loaded; on every rank.
    """
    stage = build.stage(phase)
    places = None if stage is None else stage.places
    bodies = phase_named(phase).frozen
    sides: dict[str, Probed] = {}
    objectives: dict[str, FilterObjective] = {}
    for side in bodies:
        layers = build.layers(side)
        body = build.models.frozen(side, models[side], layers, stage=stage, new_head_allowed=True)
        bank = solved.get(side) or fresh_filters(build, side)
        probes = probes_of(build, side, bank, body.tapped, models)
        if places is not None:
            probes.keep(places)
        prefix = f"{side}/" if len(bodies) > 1 else ""
        sides[side] = Probed(body, stage is None or side in stage.runs, bank, probes, prefix)
        objectives[side] = FilterObjective(build.training_terms, body, layers, places, prefix=prefix)
    module = ProbesOfModels({side: one.probes for side, one in sides.items()})
    running = [side for side, one in sides.items() if one.runs]
    return StageOne(sides, module, FilterObjectives(objectives, here=running))


def probes_of(
    build: Assembly, side: str, bank: FilterBank, tapped: TappedModel, models: Mapping[str, Path]
) -> FilterProbes:
    """What reads a side's filters in Stage I. Every rank must call it.

    Args:
        build: The run's assembly.
        side: Which of the two.
        bank: Its filters.
        tapped: Its model.
        models: The folder of each side, and of the model whose head reads the filters.

    Raises:
        TedError: What they are read by cannot be loaded; on every rank.
    """
    filters = build.recipe.filters
    assert filters is not None
    reader = reader_of(build.recipe, side)
    if filters.are_solved and not build.recipe.task.has_lm_head:
        output = build.models.output_of(reader, models[reader], build.facts(reader).num_blocks)
        return own_probes(bank, output, mean=build.recipe.task.pooled and filters.pooling == "mean")
    make = functools.partial(build.kind.probes, bank, filters, dim=build.plan.filter_dim, dtype=build.dtype)
    return build.world.agree(functools.partial(make, model_path=models[reader], tapped=tapped))


def fresh_filters(build: Assembly, side: str) -> FilterBank:
    """The filters of one side as Stage I starts with them, the same on every rank.

    The identity, where a solution is put in its place.
    """
    filters = build.recipe.filters
    assert filters is not None
    seed_everything(build.recipe.seed, phase=f"filters_{side}")
    return FilterBank(
        build.layers(side),
        build.facts(side).hidden_size,
        build.plan.filter_dim,
        kind=filters.kind,
        initialisation="identity" if filters.are_solved else filters.initialisation,
    )


@dataclass
class StageTwo:
    """A student to be trained, and what it learns from."""

    student: TappedModel
    bank: FilterBank
    """The student's filters; empty where no layers are matched."""
    filter_kind: str
    module: FilteredModel
    """The student and its filters as the one trainable module."""
    teacher: FrozenModel | None
    """None for ``sft``, where a cache knows what it would say, and where the student's own base says it."""
    teacher_filters: FilterBank | None
    """None where no layers are matched."""
    objective: Objective

    @property
    def watched(self) -> dict[str, nn.Module]:
        """Where to look for the origin of a number that is not finite."""
        teacher = self.teacher.named_layers if self.teacher is not None else {}
        student = self.student.named_layers()
        return {
            **_named("teacher", teacher, teacher.values()),
            **_named("student", student, student.values()),
            **_named("filter of", layer_names(self.bank.layers), self.bank.filters),
        }


def build_stage_two(
    build: Assembly,
    config: Mapping[str, Any],
    *,
    teacher: Path | None,
    student: Path,
    filters: Mapping[str, Path | None],
    new_head_allowed: bool = False,
    cached: Teacher | None = None,
) -> StageTwo:
    """The student, its teacher and the filters of both. Every rank must call it.

    Args:
        build: The run's assembly.
        config: The completed DeepSpeed config the student will train under.
        teacher: The teacher's folder; None where it is the base of the student's adapters, which are off while it
            teaches.
        student: The student's.
        filters: For ``ted``: the folders of the ``student``'s and the ``teacher``'s learned filters; None for fresh
            ones, as Stage I starts with.
        new_head_allowed: Whether the teacher's head may start random, as before its fine-tuning.
        cached: What knows the teacher's predictions and filtered states; then the teacher itself is not loaded.

    Raises:
        TedError: A model or filter cannot be loaded; on every rank.
    """
    plan = build.recipe.distill
    student_layers, teacher_layers = build.layers("student"), build.layers("teacher")
    stage = build.stage(DISTILL.name)
    tapped = build.models.trained("student", student, config, student_layers, stage=stage)
    bank, teacher_filters = build.world.agree(
        lambda: (
            _student_bank(build, filters["student"]),
            _no_filters(build) if cached is not None else teacher_bank(build, filters["teacher"]),
        )
    )
    if stage is not None:
        bank.keep(stage.places)
        if teacher_filters is not None:
            teacher_filters.keep(stage.places)
    kind = build.recipe.filters.kind if plan.needs.filters and build.recipe.filters is not None else "linear"
    frozen: FrozenModel | None = None
    base = BaseTeacher(build.models.base_of(tapped, teacher_layers)) if teacher is None else None
    if plan.needs.teacher and cached is None and teacher is not None:  # on every stage: to load it is to communicate
        frozen = build.models.frozen("teacher", teacher, teacher_layers, stage=stage, new_head_allowed=new_head_allowed)
    runs_here = frozen if stage is None or "teacher" in stage.runs else None
    teaching: Teacher = base or cached or runs_here or AbsentTeacher()
    objective: Objective
    if not plan.needs.teacher:
        objective = FinetuneObjective(build.terms_to_train("student"), plan.weights_at(0).task)
    elif build.readers.are_two:
        at_teacher = None if frozen is None else read_at(build, frozen.tapped)
        objective = TextDistillObjective(
            build.terms_to_train("student"),
            plan,
            teacher=teaching,
            teacher_filters=teacher_filters,
            student_layers=student_layers,
            read_at={"student": read_at(build, tapped), "teacher": at_teacher},
        )
    else:
        objective = _distill_objective(build, teaching, teacher_filters, stage)
    if isinstance(objective, DistillObjective) and plan.balance is not None:
        objective.balance_on(_balanced_parameters(tapped))
    return StageTwo(tapped, bank, kind, FilteredModel(tapped, bank), frozen, teacher_filters, objective)


def _balanced_parameters(tapped: TappedModel) -> list[nn.Parameter]:
    """Those on which gradients of terms are compared: what trains of the last block that all terms reach.

    Raises:
        ConfigError: Nothing does.
    """
    trained = [one for one in last_shared_block(tapped).parameters() if one.requires_grad]
    if not trained:
        raise ConfigError(
            "distill.balance: nothing trains in the student's block on which gradients of its terms would be compared; "
            "let student.lora.targets name a map in it, or give weights without balance"
        )
    return trained


def read_at(build: Assembly, tapped: TappedModel) -> ReadAt:
    """Where in a text the features of a model are compared: as Stage I reads them, or else as the model itself does."""
    filters = build.recipe.filters if build.recipe.distill.needs.filters else None
    return ReadAt(tapped.pooled_token if filters is None else pooling_of(filters, tapped), tapped.unread_id)


def _distill_objective(
    build: Assembly, teacher: Teacher, teacher_filters: FilterBank | None, stage: Stage | None
) -> DistillObjective:
    """The recipe's Stage II objective with this teacher; in a pipeline, what of it is here."""
    return DistillObjective(
        build.terms_to_train("student"),
        build.recipe.distill,
        teacher=teacher,
        teacher_filters=teacher_filters,
        student_layers=build.layers("student"),
        num_shared_ids=build.num_shared_ids,
        here=None if stage is None else StageLoss(stage.places, stage is build.plan.stages[DISTILL.name][-1]),
    )


def _student_bank(build: Assembly, folder: Path | None) -> FilterBank:
    recipe, layers = build.recipe, build.layers("student")
    width = build.facts("student").hidden_size
    if recipe.distill.needs.filters:
        return _filters(build, "student", folder)
    if recipe.distill.needs.states:
        seed_everything(recipe.seed, phase="lwd")
        return FilterBank(layers, width, build.plan.filter_dim)
    return FilterBank((), width, width)


def teacher_bank(build: Assembly, folder: Path | None) -> FilterBank | None:
    """The teacher's filters on the device, frozen: those learned, or none at all; None where no layers are matched.

    Raises:
        TedError: They cannot be loaded.
    """
    if not build.recipe.distill.needs.filters:
        return _no_filters(build)
    bank = _filters(build, "teacher", folder)
    return bank.to(build.world.device, build.dtype).requires_grad_(False).eval()


def _no_filters(build: Assembly) -> FilterBank | None:
    """The identity for each pair of layers; None where no layers are matched."""
    layers = build.layers("teacher")
    return IdentityFilters(layers) if layers else None


def _filters(build: Assembly, side: str, folder: Path | None) -> FilterBank:
    filters = build.recipe.filters
    assert filters is not None
    if folder is None:
        return fresh_filters(build, side)
    return load_filters(
        folder,
        layers=build.layers(side),
        hidden_size=build.facts(side).hidden_size,
        dim=build.plan.filter_dim,
        kind=filters.kind,
    )


def _named(what: str, names: Iterable[str], modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    named = {f"{what} {name}": module for name, module in zip(names, modules, strict=True)}
    # other stages of a pipeline have the others
    return {name: module for name, module in named.items() if not isinstance(module, nn.Identity)}
