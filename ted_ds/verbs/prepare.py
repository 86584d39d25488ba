"""From the command line to what phases and checks need: read, meet the other ranks, own the output, assemble."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.deepspeed_file import find_deepspeed
from ted_ds.assembly.given import Given
from ted_ds.assembly.host_teacher import host_teacher
from ted_ds.assembly.own import NOTHING_OWN, Own
from ted_ds.config.given import AnyRecipe, source_of
from ted_ds.config.schema import Recipe
from ted_ds.config.weights import highest
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data
from ted_ds.data.rows import refuse_without_labels
from ted_ds.data.tokenizers import traits_of
from ted_ds.errors import ConfigError, RankLostError, counted, raise_all
from ted_ds.models.adapter_folder import read_adapter
from ted_ds.models.loading import DTYPES, fetch, load_tokenizer
from ted_ds.models.merging import whole_model
from ted_ds.output.chatter import LOGS
from ted_ds.output.output_lock import OutputLock, wait_for
from ted_ds.output.run_folder import new_run, read_run
from ted_ds.output.run_folders import RunFolders
from ted_ds.output.screen import Screen
from ted_ds.phases.inputs import Inputs, Settled
from ted_ds.planning.contracts import broken_by_loaded
from ted_ds.planning.plan import Plan, make_plan, model_sides, plan_recipe
from ted_ds.planning.steps import counts_all_texts, counts_epochs, with_rows
from ted_ds.runtime.arithmetic import set_arithmetic, without_effect
from ted_ds.runtime.device_faults import as_device_fault, is_device_fault
from ted_ds.runtime.flight_records import keep_records, leave_position
from ted_ds.runtime.kernels import interpreted_kernels, refuse_kernels
from ted_ds.runtime.preemption import StopRequests
from ted_ds.runtime.rendezvous import find_ranks
from ted_ds.runtime.world import World, is_lost_rank, uses_nccl
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.two_tokenizers import open_for_both
from ted_ds.verbs.agreement import refuse_other_families, refuse_other_files, refuse_other_settings
from ted_ds.verbs.store_access import run_at_store
from ted_ds.vetting.teacher_precision import find_precision

JOIN_TIMEOUT_S = 1800.0


@contextlib.contextmanager
def hearing(stops: StopRequests) -> Iterator[None]:
    """Take signals, and say so where another rank is lost.

    Raises:
        RankLostError: Another rank died or hangs.
    """
    with stops.listening():
        try:
            yield
        except RuntimeError as error:
            if not is_lost_rank(error):
                if is_device_fault(error):
                    raise as_device_fault(error) from error
                raise
            seen = str(error).splitlines()[0].partition(". This is typically")[0]
            positions = "".join(f"\n    {line}" for line in leave_position(error))
            raise RankLostError(
                f"rank {os.environ.get('RANK', '0')}: another rank died or hangs, or the network to it is cut; its own "
                f"output says more. What was seen here: {seen:.300}. Start the same command "
                f"again to go on from the newest checkpoint{positions}"
            ) from error


def prepare(
    given: AnyRecipe,
    overrides: Sequence[str],
    *,
    contracts_hold: bool,
    in_pipeline: bool = True,
    stops: StopRequests,
    held: contextlib.ExitStack | None = None,
    own: Own = NOTHING_OWN,
) -> tuple[Assembly, Inputs]:
    """Everything up to the first use of a model's weights.

    Args:
        given: The recipe.
        overrides: Changes to it.
        contracts_hold: Whether models that break a contract (:mod:`ted_ds.planning.contracts`) are refused.
        in_pipeline: Whether the recipe's pipeline is used.
        stops: Takes requests to stop.
        own: What is given beside the recipe.
        held: Gets what gives the output folder back; None for who writes nothing there.
    """
    find_ranks()
    source = source_of(given)
    planned: tuple[Recipe, Plan] | Exception
    timeout_s, num_stages = JOIN_TIMEOUT_S, 1
    try:
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        planned = plan_recipe(
            given, overrides, kind_of, num_ranks=num_ranks, contracts_hold=contracts_hold, in_pipeline=in_pipeline
        )
        recipe, plan = planned
        raise_all([f"{source}: {line}" for line in own.mistakes(recipe, two_tokenizers=plan.two_tokenizers)])
        set_arithmetic(tf32=recipe.tf32, deterministic=recipe.deterministic, attention=recipe.attention)
        # known once all is right, which includes that the stages divide the ranks
        timeout_s, num_stages = recipe.collective_timeout_s, recipe.pipeline.stages
    except Exception as error:  # a defect of ours on one rank must not leave the others waiting either
        planned = error
    if not isinstance(planned, Exception):
        keep_records(planned[0].output_dir / LOGS, uses_nccl=uses_nccl())
    world = World.join(timeout_s, num_stages)
    recipe, plan = world.settle(planned)
    refuse_other_settings(world, recipe, own.deciding_values())
    with world.together():
        world.check_precision(recipe.precision)
        refuse_kernels(recipe.distill.kernels, world.device)
    at_store = None
    if held is not None:
        _own_output(recipe.output_dir, world, stops, held)
        at_store = run_at_store(recipe, world)
    recipe, plan, teacher, student = _resolve_models(recipe, plan, source, world, contracts_hold=contracts_hold)
    wanted = recipe.data
    listing = world.on_main(lambda: list_data(wanted))  # once, and the same for all
    refuse_other_files(world, {"teacher": teacher, "student": student}, listing)
    refuse_other_families(world, {"teacher": plan.teacher, "student": plan.student})

    def read() -> tuple[dict[str, PreTrainedTokenizerBase], LabelledData | CorpusData]:
        of_teacher = load_tokenizer(teacher)
        of_student = load_tokenizer(student) if plan.two_tokenizers and student is not None else None
        if contracts_hold:
            sides = model_sides(recipe, teacher, plan.teacher, student or teacher, plan.student)
            own = None if of_student is None else traits_of(of_student)
            broken = broken_by_loaded(traits_of(of_teacher), *sides, of_student=own)
            if broken:
                raise ConfigError("\n".join(f"{source}: {line}" for line in broken))
        tokenizers = {"student": of_teacher if of_student is None else of_student, "teacher": of_teacher}
        kind, most = kind_of(recipe.task), recipe.evaluation.max_examples
        data: LabelledData | CorpusData
        if of_student is not None and recipe.task.pooled:
            data = open_for_both(kind, recipe.data, tokenizers, listing, max_heldout=most)
        else:
            data = kind.open_data(recipe.data, tokenizers["student"], listing, max_heldout=most)
        with_labels = [
            path for path in recipe.phase_plans() if path != "distill" or highest(recipe.distill.task_weight) > 0
        ]
        refuse_without_labels(recipe.data, with_labels, has_labels=data.has_labels)
        return tokenizers, data

    tokenizers, data = world.agree(read)
    recipe = _settle(recipe, data, source, world)
    screen = Screen(shown=world.is_main, log_every_s=recipe.tracking.log_every_seconds)
    output_dir = recipe.output_dir
    before = world.on_main(lambda: read_run(output_dir) or at_store)
    run = before or world.on_main(new_run)
    recipe, run, choice = find_deepspeed(recipe, plan, run, world)
    run, hosting = host_teacher(recipe, plan, run, world, run_is_old=before is not None)
    all_given = Given(recipe, plan, world, tokenizers, data, screen, stops, run, hosting, choice, own)
    folders = RunFolders(recipe, teacher=teacher, student=student)
    assembly = find_precision(
        all_given,
        teacher_sha256=lambda: folders.identity(teacher)["sha256"],
        run_is_old=before is not None,
        may_measure=contracts_hold,
    )
    start: list[str] | None = None
    if data.start is not None:
        start = list(tokenizers["student"].convert_ids_to_tokens(list(data.start)))
    settled = Settled(
        recipe,
        plan,
        assembly.deepspeed_json,
        listing,
        start_tokens=start,
        in_8_bits=assembly.hosting.host == "int8",
        teacher_precision=None if assembly.hosting.precision == recipe.precision else assembly.hosting.precision,
        own=own,
        template_sha256=data.template_sha256,
    )
    return assembly, Inputs(settled, folders)


def _settle(recipe: Recipe, data: LabelledData | CorpusData, source: str, world: World) -> Recipe:
    """The recipe with the numbers that follow from the data, the same on every rank. Every rank must call it.

    These are the steps that its epochs come to, and class weights that are balanced.

    Raises:
        ConfigError: A warm-up is too long for the steps, or ranks count other rows; on every rank.
        DataError: A label that is to be balanced is not there; on every rank.
    """

    def count() -> Recipe:
        known = recipe.model_copy(update={"task": kind_of(recipe.task).settled(data.train)})
        if data.num_rows is None or not counts_epochs(recipe):
            return known
        try:
            return with_rows(known, data.num_rows, len(data.transfer))
        except ConfigError as error:
            raise ConfigError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from error

    known = world.agree(count)
    if known != recipe:
        refuse_other_settings(world, known, {})
    return known


def _own_output(output_dir: Path, world: World, stops: StopRequests, held: contextlib.ExitStack) -> None:
    """Let rank 0 own the output folder until the run ends. Every rank must call it.

    Raises:
        ConfigError: It is in use, or cannot be written; on every rank.
    """
    lock = OutputLock(output_dir)
    if world.is_main:
        held.callback(lock.release)
        stops.before_end.append(lock.release)
    screen = Screen(shown=world.is_main)
    wait_for(lambda: world.on_main(lock.try_take), output_dir, say=screen.say)


def _resolve_models(
    recipe: Recipe, plan: Plan, source: str, world: World, *, contracts_hold: bool
) -> tuple[Recipe, Plan, Path, Path | None]:
    """Fetch hub models and merge adapters, and plan again where there were some: what is in them is known only now."""
    names = [name for name in (recipe.teacher.path, recipe.student.path) if name is not None]

    def local(name: str) -> Path:
        return whole_model(fetch(name), recipe.task.architecture)

    world.first_on_host(lambda: [local(name) for name in names])  # the others find it there
    student_name = recipe.student.path
    teacher, student = world.agree(
        lambda: (local(names[0]), local(student_name) if student_name is not None else None),
    )
    merged = any(Path(name).is_dir() and read_adapter(Path(name)) is not None for name in names)
    recipe = recipe.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update={"path": str(teacher)}),
            "student": recipe.student.model_copy(update={"path": str(student) if student is not None else None}),
        }
    )
    with world.together():
        if plan.teacher is None or plan.student is None or merged:
            known = make_plan(recipe, kind_of, num_ranks=world.size, source=source, contracts_hold=contracts_hold)
            plan = replace(known, chooses_deepspeed=plan.chooses_deepspeed)
    return recipe, plan, teacher, student


def greet(assembly: Assembly) -> None:
    """Say what is about to be done, with what, and every doubt about it."""
    recipe, plan, world, screen = assembly.recipe, assembly.plan, assembly.world, assembly.screen
    screen.say(
        f"{recipe.name}: {recipe.task.kind} by {recipe.distill.method} on {world.size} x {world.device.type}, "
        f"{len(assembly.data.heldout)} held-out sequences"
        + "".join(f", {len(samples)} of {name}" for name, samples in assembly.data.beside.items())
    )
    screen.say(f"data: {assembly.data.describe(world.num_replicas)}")
    screen.say(f"texts: {assembly.data.text_ends}")
    if assembly.kind.weights_in_words is not None:
        screen.say(f"class weights in the task loss: {assembly.kind.weights_in_words}")
    screen.say(f"phases: {' > '.join(plan.phases)}")
    for path, phase in recipe.phase_plans().items():
        if phase.epochs is not None:
            all_texts = counts_all_texts(recipe, phase)
            num_rows = len(assembly.data.train) + len(assembly.data.transfer) * all_texts
            rows = counted(num_rows, "text" if all_texts else "row")
            screen.say(
                f"{path}: {counted(phase.epochs, 'epoch')} of {rows}: {counted(phase.steps, 'step')} of "
                f"{phase.global_batch_size}"
            )
    if plan.layer_pairs:
        screen.say(f"layers, student<-teacher: {' '.join(f'{s}<-{t}' for s, t in plan.layer_pairs)}")
    if assembly.deepspeed_choice is not None:
        screen.say(f"deepspeed: {assembly.deepspeed_choice.name}, {assembly.deepspeed_choice.why}")
    if assembly.own.terms_in_words is not None:
        screen.say(f"terms of your own: {assembly.own.terms_in_words}")
    screen.say(f"teacher: {assembly.hosting.host}, {assembly.hosting.why}")
    if assembly.hosting.precision_why is not None:
        screen.say(f"teacher.precision: auto: {assembly.hosting.precision_why}")
    for side, facts in (("teacher", plan.teacher), ("student", plan.student)):
        is_cut = side == "student" and recipe.student.from_teacher is not None
        for line in facts.family.found if facts is not None and not is_cut else ():
            screen.say(f"{side}, found by structure: {line}")
    for remark in plan.remarks:
        screen.say(f"note: {remark}")
    for doubt in (*plan.doubts, assembly.data.doubt):
        if doubt is not None:
            screen.say(f"WARN {doubt}")
    idle = without_effect(
        tf32=recipe.tf32, attention=recipe.attention, dtype=DTYPES[recipe.precision], device=world.device
    )
    for doubt in (idle, interpreted_kernels(recipe.distill.kernels)):
        if doubt is not None:
            screen.say(f"WARN {doubt}")
