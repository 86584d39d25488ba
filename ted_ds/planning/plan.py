"""What a recipe will do, and every mistake in it that shows without a GPU, weights or torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ted_ds.config.defaults import RIDGE_KEY
from ted_ds.config.evaluation import lm_eval_mistakes
from ted_ds.config.extends import Chain
from ted_ds.config.given import AnyRecipe
from ted_ds.config.load import draft_mistakes, load_draft
from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import Task
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.data.first_rows import FirstRows
from ted_ds.data.row_counts import RowCount
from ted_ds.data.samples import Rows
from ted_ds.errors import raise_all
from ted_ds.models.adapter_folder import tokenizer_folder
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.layer_map import Layer, LayerPairs
from ted_ds.planning.adapters import adapter_mistakes
from ted_ds.planning.cache_size import cache_mistakes
from ted_ds.planning.contracts import (
    Side,
    broken_contracts,
    doubts,
    has_own_tokenizer,
    text_ends,
    tokenizers_in_words,
)
from ted_ds.planning.data_sizes import corpus_bytes, count_rows
from ted_ds.planning.family_uses import refused_uses
from ted_ds.planning.frozen_blocks import freeze_mistakes
from ted_ds.planning.heal import heal_doubts, heal_mistakes
from ted_ds.planning.kernels import kernel_mistakes
from ted_ds.planning.layer_pairs import layer_mistakes, layer_pairs_of
from ted_ds.planning.mistakes import (
    Mistakes,
    check_data,
    check_deepspeed,
    check_dropout,
    check_model,
    check_output,
    check_routers,
    check_tracking,
    check_upload,
    found_sources,
)
from ted_ds.planning.model_lookup import HubLookup, KnownModel, by_local_files
from ted_ds.planning.phase import phases_of
from ted_ds.planning.pipeline_cut import Stage, plan_stages
from ted_ds.planning.quantised_teacher import quantised_mistakes
from ted_ds.planning.relations import relation_mistakes
from ted_ds.planning.ridge_filters import ridge_mistakes
from ted_ds.planning.shipped_deepspeed import is_open, with_some_file
from ted_ds.planning.student_facts import find_student

RowsOf = Callable[[Task], Rows]


@dataclass(frozen=True)
class Plan:
    """What the recipe comes to."""

    phases: tuple[str, ...]
    """By name, in order."""
    teacher: ModelFacts | None
    """None while the teacher is a hub name that is not fetched yet."""
    student: ModelFacts | None
    layer_pairs: LayerPairs
    filter_dim: int
    """Width in which layers are matched; 0 where nothing is matched."""
    stages: Mapping[str, tuple[Stage, ...]]
    """The pipeline stages of each phase that trains, one where there is no pipeline; empty while a model is unknown."""
    data: Mapping[str, FirstRows]
    """The first rows of each source, by its place in the recipe."""
    text_ends: str | None = None
    """What is put around each text, in words; None while the teacher's tokenizer is unknown."""
    two_tokenizers: bool = False
    """Whether the student reads by a tokenizer of its own."""
    doubts: tuple[str, ...] = ()
    """What is no mistake in the models and should be known."""
    remarks: tuple[str, ...] = ()
    """What is worth saying of settings that are right."""
    chain: Chain = field(default_factory=Chain)
    """The recipe's files, and which of them says what; none where it was not read from a file."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """What facts of a side are from, in words for behind them, where they are not from all its files."""
    num_rows: RowCount | None = None
    """Training rows, where they are asked for and quickly counted."""
    chooses_deepspeed: bool = False
    """Whether the recipe leaves it to the run which DeepSpeed file it has."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why values are what they are that the recipe does not say, by their places."""
    corpus_bytes: Mapping[int, int] = field(default_factory=dict)
    """About how many bytes of text sources of ``data.train`` have, by their places there, where that is known."""

    @property
    def files(self) -> tuple[str, ...]:
        """The recipe's file, the one it extends, and so on."""
        return tuple(map(str, self.chain.files))

    def layers(self, side: str) -> tuple[Layer, ...]:
        """The ``student``'s or the ``teacher``'s side of the layer map."""
        return tuple(pair[0 if side == "student" else 1] for pair in self.layer_pairs)


def make_plan(
    recipe: Recipe, rows_of: RowsOf, *, num_ranks: int = 1, source: str = "recipe", contracts_hold: bool = True
) -> Plan:
    """Check the recipe against the files it names, and lay out the run.

    Args:
        recipe: The recipe, which names its DeepSpeed file.
        rows_of: Tells how a task's rows are read (:func:`ted_ds.tasks.kind.kind_of`).
        num_ranks: Ranks the batches must divide over, once they are divided by the pipeline's stages.
        source: The recipe's file, for messages.
        contracts_hold: Whether models that break a contract (:mod:`ted_ds.planning.contracts`) are a mistake.

    Raises:
        ConfigError: Lists every mistake found.
    """
    mistakes = Mistakes()
    plan = _lay_out(recipe, rows_of, mistakes, num_ranks=num_ranks, contracts_hold=contracts_hold)
    raise_all([f"{source}: {mistake}" for mistake in mistakes.found])
    return plan


def plan_recipe(
    given: AnyRecipe,
    overrides: Sequence[str],
    rows_of: RowsOf,
    *,
    num_ranks: int = 1,
    contracts_hold: bool = True,
    in_pipeline: bool = True,
    looks_up_hub: bool = False,
) -> tuple[Recipe, Plan]:
    """Read a recipe and plan it; see :func:`make_plan`. It names a DeepSpeed file, whether chosen yet or not.

    Args:
        given: Its file, or what stands for one.
        overrides: Changes to it.
        rows_of: As there.
        num_ranks: Ranks the batches must divide over.
        contracts_hold: Whether models that break a contract are a mistake.
        in_pipeline: Whether the recipe's pipeline is used.
        looks_up_hub: Whether hub names are looked up in what is here (:mod:`ted_ds.planning.model_lookup`); a run
            fetches them first.

    Raises:
        ConfigError: Lists every mistake in the recipe and in the files it names, whatever else is wrong.
    """
    for can_solve in (True, False):  # as the recipe leaves it open, and the models do not allow it
        draft, found = load_draft(given, overrides, num_ranks=num_ranks, can_solve=can_solve), Mistakes()
        recipe, plan, chooses_deepspeed = draft.recipe, None, False
        if recipe is None:
            break
        chooses_deepspeed = is_open(recipe)
        recipe = with_some_file(recipe if in_pipeline else recipe.without_pipeline())
        hub = HubLookup(draft.chain.files) if looks_up_hub else None
        if not draft.knows_task:
            _look_at_files(recipe, found, num_ranks=num_ranks, hub=hub)
            break
        plan = _lay_out(recipe, rows_of, found, num_ranks=num_ranks, contracts_hold=contracts_hold, hub=hub)
        if RIDGE_KEY not in draft.reasons or not any(one.startswith(f"{RIDGE_KEY}: ridge: ") for one in found.found):
            break
    mistakes = [*draft_mistakes(draft), *(one for one in found.found if not draft.concerns_a_stand_in(one))]
    raise_all([draft.chain.place(mistake) for mistake in mistakes])
    assert recipe is not None
    assert plan is not None
    return recipe, replace(plan, chain=draft.chain, chooses_deepspeed=chooses_deepspeed, reasons=draft.reasons)


def _look_at_files(recipe: Recipe, mistakes: Mistakes, *, num_ranks: int, hub: HubLookup | None) -> None:
    """What can be said of a recipe whose task is not known: paths, and blocks that are chosen and matched."""
    look_up = by_local_files if hub is None else hub
    check_deepspeed(recipe, num_ranks, mistakes)
    for _ in found_sources(recipe, mistakes):
        pass
    teacher = mistakes.attempt("teacher.path", lambda: look_up(recipe.teacher.path)) or KnownModel()
    student = KnownModel()
    if recipe.student.from_config is None:  # what becomes of a config depends on the task
        student = find_student(recipe, teacher, look_up, mistakes)
    check_output(recipe.output_dir, [teacher.folder, student.folder], mistakes)
    if recipe.distill.needs.states:
        _match_layers(recipe, student.facts, teacher.facts, mistakes)
    mistakes.add("", *freeze_mistakes(recipe, student.facts, ()))


def _match_layers(
    recipe: Recipe, student: ModelFacts | None, teacher: ModelFacts | None, mistakes: Mistakes
) -> LayerPairs:
    """The pairs of layers; none while a model is not known, whose partner's are looked at all the same."""
    if teacher is None or student is None:
        mistakes.add("", *layer_mistakes(recipe, student, teacher))
        return ()
    return mistakes.attempt("", lambda: layer_pairs_of(recipe, student, teacher)) or ()


def _lay_out(
    recipe: Recipe,
    rows_of: RowsOf,
    mistakes: Mistakes,
    *,
    num_ranks: int,
    contracts_hold: bool,
    hub: HubLookup | None = None,
) -> Plan:
    look_up = by_local_files if hub is None else hub
    remarks = check_deepspeed(recipe, num_ranks, mistakes)
    data = check_data(recipe, rows_of(recipe.task), mistakes)
    num_rows = count_rows(recipe, rows_of, mistakes, hub)
    num_bytes: Mapping[int, int] = {}
    if hub is not None and recipe.task.packed and not mistakes.found:
        num_bytes = mistakes.attempt("", lambda: corpus_bytes(recipe.data, hub)) or {}
    check_tracking(recipe, mistakes)
    check_upload(recipe, mistakes)
    mistakes.add("evaluation.lm_eval", *lm_eval_mistakes(recipe.evaluation.lm_eval))
    known = {"teacher": mistakes.attempt("teacher.path", lambda: look_up(recipe.teacher.path)) or KnownModel()}
    known["student"] = find_student(recipe, known["teacher"], look_up, mistakes)
    teacher, student = known["teacher"].facts, known["student"].facts

    check_output(recipe.output_dir, [one.folder for one in known.values()], mistakes)
    if teacher is not None:
        check_model(recipe, teacher, "teacher.path", mistakes)
    if student is not None and recipe.student.from_teacher is None:
        place = "student.path" if recipe.student.path is not None else "student.from_config"
        check_model(recipe, student, place, mistakes)
    check_dropout(recipe, teacher, student, mistakes)
    check_routers(recipe, teacher, student, mistakes)
    mistakes.add("", *refused_uses(recipe, teacher, student), *kernel_mistakes(recipe))
    mistakes.add("", *quantised_mistakes(recipe, teacher, student), *adapter_mistakes(recipe, student))
    mistakes.add("", *relation_mistakes(recipe, teacher, student))
    mistakes.add("", *heal_mistakes(recipe, teacher, student))
    places = known["teacher"].place, known["student"].place
    by_config = [side for side, one in known.items() if one.config]
    sides = model_sides(recipe, places[0], teacher, places[1], student, by_config=by_config)
    broken = [line for lines in broken_contracts(recipe, *sides).values() for line in lines]
    if contracts_hold:
        mistakes.add("", *broken)
    layer_pairs: LayerPairs = ()
    filter_dim = 0
    if recipe.distill.needs.states:
        layer_pairs = _match_layers(recipe, student, teacher, mistakes)
    if teacher is not None and student is not None and recipe.distill.needs.states:
        own_dim = recipe.filters.dim if recipe.filters and recipe.distill.needs.filters else None
        filter_dim = own_dim or teacher.hidden_size
        mistakes.add("", *ridge_mistakes(recipe, teacher, student, filter_dim))
    mistakes.add("", *freeze_mistakes(recipe, student, layer_pairs))
    if teacher is not None:
        mistakes.add("", *cache_mistakes(recipe, teacher, num_layers=len(layer_pairs), dim=filter_dim))
    stages: Mapping[str, tuple[Stage, ...]] = {}
    if not mistakes.found and teacher is not None and student is not None:
        facts = {"student": student, "teacher": teacher}
        stages = mistakes.attempt("", lambda: plan_stages(recipe, facts, layer_pairs, filter_dim)) or {}
    return Plan(
        tuple(phase.name for phase in phases_of(recipe)),
        teacher,
        student,
        layer_pairs,
        filter_dim,
        stages,
        data,
        text_ends=None if broken else text_ends(recipe, *sides),
        two_tokenizers=has_own_tokenizer(recipe, *sides),
        remarks=(*settings_without_effect(recipe), *remarks, *tokenizers_in_words(recipe, *sides)),
        num_rows=num_rows,
        corpus_bytes=num_bytes,
        doubts=()
        if broken
        else (
            *_doubts(known),
            *(line for lines in doubts(recipe, *sides).values() for line in lines),
            *heal_doubts(recipe, student),
        ),
        origins={side: known[side].origin for side in ("teacher", *(["student"] if recipe.student.path else []))},
    )


def _doubts(known: Mapping[str, KnownModel]) -> Iterator[str]:
    return (f"{side}.path: {one.doubt}" for side, one in known.items() if one.doubt is not None)


def model_sides(
    recipe: Recipe,
    teacher_dir: Path | None,
    teacher: ModelFacts | None,
    student_dir: Path | None,
    student: ModelFacts | None,
    *,
    by_config: Collection[str] = (),
) -> tuple[Side | None, Side | None]:
    """The two models as contracts see them; None for one that is not known yet.

    Those ``by_config`` have no other files in their folders.
    """
    teacher_tuned = recipe.teacher.finetune is not None
    cut_from_tuned = recipe.student.from_teacher is not None and teacher_tuned
    is_random = recipe.student.from_config is not None  # with a head for this task
    tuned = {"teacher": teacher_tuned, "student": recipe.student.finetune is not None or cut_from_tuned or is_random}
    keys = {"teacher": "path", "student": "from_config" if is_random else "path"}
    teacher_side, student_side = (
        Side(name, tokenizer_folder(folder), facts, tuned[name], keys[name], by_config=name in by_config)
        if folder is not None and facts is not None
        else None
        for name, folder, facts in (("teacher", teacher_dir, teacher), ("student", student_dir, student))
    )
    return teacher_side, student_side
