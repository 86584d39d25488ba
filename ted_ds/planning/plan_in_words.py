"""A plan in words, for ``ted-ds check``."""

from __future__ import annotations

from ted_ds.config.glue import filled_in
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.planning.adapters import trains_in_words
from ted_ds.planning.frozen_blocks import freeze_in_words
from ted_ds.planning.heal import heal_in_words
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.pipeline_cut import shared_by_stages
from ted_ds.planning.plan import Plan
from ted_ds.planning.steps import epochs_in_words, plan_with_rows, transfer_in_words
from ted_ds.planning.student_facts import begun_with


def describe(recipe: Recipe, plan: Plan, *, num_ranks: int) -> str:
    """The plan in words, for ``ted-ds check``."""
    lines = [
        f"{recipe.name}: {recipe.task.kind} by {recipe.distill.method}, {counted(num_ranks, 'rank')}, "
        f"{recipe.precision}"
    ]
    if len(plan.files) > 1:
        lines.append(f"recipe    {' extends '.join(plan.files)}")
    for name, facts in (("teacher", plan.teacher), ("student", plan.student)):
        if facts is None:
            given = recipe.teacher.path if name == "teacher" else recipe.student.path
            lines.append(
                f"{name:9} {given}: no such folder here, so a name on the hub; known once it is fetched, or its "
                "config.json is beside the recipe (docs/recipes.md)"
            )
        else:
            quantised = f", quantised ({facts.quantisation})" if facts.quantisation else ""
            of_stacks = [
                f"{depth} {stack} " if stack else f"{depth} " for stack, depth in facts.blocks_of_stacks.items()
            ]
            blocks = "block" if of_stacks == ["1 "] else "blocks"
            shape = f"{'and '.join(of_stacks)}{blocks} of width {facts.hidden_size}"
            if facts.num_experts:
                shape += f" with {facts.num_experts} experts, of which a token goes through {facts.num_chosen_experts}"
            origin = f"{begun_with(recipe, name, facts)}{quantised}{plan.origins.get(name, '')}"
            lines.append(f"{name:9} {facts.model_type}, {shape}{origin}")
            is_cut = name == "student" and recipe.student.from_teacher is not None
            lines += [f"found     {name}: {line}" for line in (() if is_cut else facts.family.found)]
    trains = None if plan.student is None else trains_in_words(recipe, plan.student)
    lines += [] if trains is None else [f"trains    {trains}"]
    if recipe.student.freeze_blocks is not None and plan.teacher is not None and plan.student is not None:
        shared = shared_by_stages(recipe, plan.teacher, plan.student, plan.stages[DISTILL.name])
        lines.append(f"frozen    {freeze_in_words(recipe, plan.student, shared)}")
    if recipe.teacher.precision is not None:
        lines.append(
            "measured  teacher.precision: auto: in how many bits the teacher may be, on held-out examples as a run "
            "begins, with two copies of it on each rank"
        )
    if plan.layer_pairs:
        pairs = " ".join(f"{s}<-{t}" for s, t in plan.layer_pairs)
        lines.append(f"layers    student<-teacher {pairs}, matched in {plan.filter_dim} dimensions")
    lines += heal_in_words(recipe, plan.teacher, plan.student)
    if recipe.data.glue is not None:
        filled = "; ".join(filled_in(recipe.data.glue, recipe.model_dump(mode="json")))
        lines.append(f"glue      {recipe.data.glue} stands for {filled}")
    lines += [f"{place} {rows}" for place, rows in plan.data.items()]
    if recipe.data.transfer is not None:
        lines.append(f"transfer  {transfer_in_words(recipe)}; their labels are not read")
    lines.append(f"phases    {' > '.join(plan.phases)}")
    replicas = max(num_ranks // recipe.pipeline.stages, 1)
    readers = counted(replicas, "rank") if recipe.pipeline.stages == 1 else f"{replicas} in parallel"
    for path, phase in recipe.phase_plans().items():
        if phase.micro_batch_size is not None:
            accumulation = phase.global_batch_size // (phase.micro_batch_size * replicas)
            cut = f"{counted(accumulation, 'microbatch')} x {phase.micro_batch_size}"
        else:
            cut = f"microbatches of at most {phase.micro_batch_tokens:,} padded tokens"
        task = recipe.task
        what = "sequences" if task.rows_per_example == 1 else f"questions of {task.rows_per_example} sequences"
        known = phase if plan.num_rows is None else plan_with_rows(recipe, phase, plan.num_rows.number)
        steps = (
            counted(phase.max_steps or 0, "step")
            if phase.epochs is None
            else epochs_in_words(phase, known, plan.num_rows)
        )
        line = f"{path:16} {steps} x {phase.global_batch_size} {what} = {readers} x {cut}"
        if known.max_steps is not None:
            tokens = known.max_steps * phase.global_batch_size * task.rows_per_example * task.sequence_length
            is_fewest = plan.num_rows is not None and plan.num_rows.limit == "least"
            line += f"; {'about' if is_fewest else 'at most'} {counted(tokens, 'token')}"
        lines.append(line)
    if plan.text_ends is not None:
        lines.append(f"texts     {plan.text_ends}")
    lines += [f"note      {remark}" for remark in plan.remarks]
    lines.append(f"output    {recipe.output_dir}")
    upload = recipe.checkpoint.upload
    if upload is not None:
        lines.append(
            f"upload    checkpoints and complete phases also to {without_secrets(upload.to)}, read back; a run whose "
            "folder has lost them goes on from there"
        )
    lines += [f"WARN      {doubt}" for doubt in plan.doubts]
    return "\n".join(lines)
