"""Checks of a recipe against the files it names, without torch: all of them run, whatever the others find."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ted_ds.config.checkpoint import refuse_missing_package
from ted_ds.config.data import Cleaning, Source, TransferSource
from ted_ds.config.deepspeed import filled, inspect_deepspeed_json, remarks
from ted_ds.config.deepspeed_keys import offload_device, zero_stage
from ted_ds.config.pair import Student, Teacher
from ted_ds.config.schema import Recipe
from ted_ds.config.tracking import refuse_missing_packages
from ted_ds.config.wandb import refuse_missing_account, wandb_mode
from ted_ds.data.first_rows import FirstRows, first_rows
from ted_ds.data.samples import Rows
from ted_ds.data.sources import is_remote, locate, names_hub
from ted_ds.data.transfer import TextsAlone
from ted_ds.errors import TedError, counted
from ted_ds.launching.starters import Told
from ted_ds.models.families import FAMILY_OF, SPAN_TYPES, types_of
from ted_ds.models.files import ModelFacts
from ted_ds.models.rope_rules import KNOWN_RULES
from ted_ds.planning.attention import attention_mistakes, dropped_attention

Result = TypeVar("Result")


class Mistakes:
    """What the checks have found so far, each mistake once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, *messages: str) -> None:
        """Note mistakes at a place in the recipe; at none where the messages name it."""
        for message in messages:
            mistake = f"{where}: {message}" if where else message
            if mistake not in self.found:
                self.found.append(mistake)

    def attempt(self, where: str, work: Callable[[], Result]) -> Result | None:
        """The result of ``work``, or None, once what it raised is noted."""
        try:
            return work()
        except (TedError, ValueError) as error:
            self.add(where, *str(error).splitlines())
            return None


def check_deepspeed(recipe: Recipe, num_ranks: int, mistakes: Mistakes) -> tuple[str, ...]:
    """The DeepSpeed JSON by itself, beside the recipe, and in every phase.

    Returns:
        What is worth saying of it, though it is right.
    """
    config, wrong = inspect_deepspeed_json(recipe.deepspeed)
    mistakes.add("deepspeed", *wrong)
    if config is None:
        return ()
    mistakes.add("torch_compile", *_compile_mistakes(recipe, config))
    mistakes.add("pipeline.stages", *_pipeline_mistakes(recipe, config, num_ranks))
    num_replicas = max(num_ranks // recipe.pipeline.stages, 1)
    for path, plan in recipe.phase_plans().items():
        _, wrong = filled(
            config,
            plan,
            plan_path=path,
            precision=recipe.precision,
            world_size=num_replicas,
            source=recipe.deepspeed,
        )
        mistakes.add("", *wrong)
    return tuple(remarks(config, recipe.phase_plans(), recipe.deepspeed))


def check_tracking(recipe: Recipe, mistakes: Mistakes) -> None:
    """Whether those who take numbers can do what the recipe and the environment want of them."""
    speaks = Told.by(os.environ).rank == 0  # alone
    if speaks:
        mistakes.attempt("", lambda: refuse_missing_packages(recipe.tracking))
    wanted = recipe.tracking.wandb
    if "wandb" in recipe.tracking.backends:
        known = mistakes.attempt("", lambda: wandb_mode(wanted, os.environ))
        if known is not None and speaks:
            mistakes.attempt("", lambda: refuse_missing_account(wanted, os.environ))


def check_upload(recipe: Recipe, mistakes: Mistakes) -> None:
    """Whether what reaches the store for checkpoints is installed; what it answers, a run asks as it starts."""
    mistakes.attempt("", lambda: refuse_missing_package(recipe.checkpoint.upload))


def check_data(recipe: Recipe, rows: Rows, mistakes: Mistakes) -> dict[str, FirstRows]:
    """Every source, by its place in the recipe: its files, and what their first rows say (to the first rank alone).

    ``rows`` reads those of the recipe's task.
    """
    looked_at = {}
    # texts of language models, whatever rows the task learns from
    texts = TextsAlone([recipe.task.document_column or "text"]) if rows.are_labelled else rows
    for place, one in found_sources(recipe, mistakes):
        if Told.by(os.environ).rank != 0:
            continue
        looked_at[place] = _look_at(one, rows if place.startswith("data.") else texts, recipe.data.cleaning)
        mistakes.add(place, *looked_at[place].problems)
    parts, heldout = recipe.data.parts, recipe.data.heldout_key
    for part, sources in parts.items():
        if part == "train" and heldout in parts:
            continue
        scored = [looked_at.get(f"data.{part}[{index}]") for index in range(len(sources))]
        if all(found is not None and found.has_no_label for found in scored):
            own = heldout if part == "train" else part
            mistakes.add(f"data.{part}", f"no row has a label to be scored by; give data.{own} rows with labels")
    return looked_at


def found_sources(recipe: Recipe, mistakes: Mistakes) -> Iterator[tuple[str, Source]]:
    """Every source that is there, or not on this machine, with its place in the recipe."""
    given = [(f"data.{within}", one) for within, one in recipe.data.sources]
    for within, _, test in recipe.evaluation.tests:
        given += [(f"evaluation.{within}.sources[{index}]", one) for index, one in enumerate(test.sources)]
    for place, one in given:
        is_here = not is_remote(one.path) and not names_hub(one)
        if not is_here or mistakes.attempt(f"{place}.path", functools.partial(locate, one)) is not None:
            yield place, one


def _look_at(source: Source, rows: Rows, cleaning: Cleaning) -> FirstRows:
    if isinstance(source, TransferSource):
        rows = TextsAlone(source.text_columns(rows.columns[: rows.num_texts]))
    found = first_rows(source, rows, cleaning=cleaning)
    return replace(found, num_unlabelled=0) if isinstance(rows, TextsAlone) else found  # there may be labels


def _compile_mistakes(recipe: Recipe, config: dict[str, Any]) -> Iterator[str]:
    if recipe.torch_compile and zero_stage(config) == 3:
        yield (
            f"{recipe.deepspeed} shards weights (ZeRO-3), which are gathered inside the blocks that would be compiled; "
            "use ZeRO stage 0, 1 or 2, or remove it"
        )


def _pipeline_mistakes(recipe: Recipe, config: dict[str, Any], num_ranks: int) -> Iterator[str]:
    num_stages = recipe.pipeline.stages
    if num_stages == 1:
        return
    if num_ranks % num_stages:
        yield (
            f"{num_stages} stages do not divide {counted(num_ranks, 'rank')}; use as many stages as ranks, or a divisor"
        )
    if zero_stage(config) > 1:
        yield (
            f"{num_stages} stages, but {recipe.deepspeed} has ZeRO stage {zero_stage(config)}: DeepSpeed's pipelines "
            "work with ZeRO stage 0 or 1; use zero1"
        )
    if offload_device(config, "offload_optimizer") != "none":
        yield (
            f"{num_stages} stages, but {recipe.deepspeed} offloads the optimizer, which is not supported with a "
            "pipeline; remove offload_optimizer"
        )


def check_output(output: Path, models: Iterable[Path | None], mistakes: Mistakes) -> None:
    """Whether a run may write there: no file, and in no model's folder."""
    if output.exists() and not output.is_dir():
        mistakes.add("output_dir", f"{output} is a file; give a folder")
    for folder in dict.fromkeys(model for model in models if model is not None):
        if output.resolve().is_relative_to(folder.resolve()):
            mistakes.add(
                "output_dir",
                f"{output} is in the model folder {folder}, which a run would write into; give another folder",
            )


def check_model(recipe: Recipe, facts: ModelFacts, where: str, mistakes: Mistakes) -> None:
    """A model beside what the recipe wants of it."""
    mistakes.add(where, *_model_mistakes(recipe, facts))


def check_routers(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None, mistakes: Mistakes) -> None:
    """Whether the auxiliary loss of routers that train can be computed."""
    if recipe.pipeline.stages == 1 or not recipe.task.has_lm_head:
        return
    trained = {"teacher": teacher if recipe.teacher.finetune is not None else None, "student": student}
    for side, facts in trained.items():
        if facts is not None and facts.balance_weight:
            is_cut = side == "student" and recipe.student.from_teacher is not None
            is_random = side == "student" and recipe.student.from_config is not None
            mistakes.add(
                "student.from_config" if is_random else f"{'teacher' if is_cut else side}.path",
                f"its config.json has {facts.family.balance_switch}: true: its routers have an auxiliary loss of all "
                "blocks together, and no stage of a pipeline has them all; set it to false, or use pipeline.stages: 1",
            )


def check_dropout(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None, mistakes: Mistakes) -> None:
    """Whether models have the dropout that the recipe sets, and no other than it can do with."""
    for side, facts in (("teacher", teacher), ("student", student)):
        if facts is None:
            continue
        mistakes.add("", *dropped_attention(recipe, side, facts))
        section: Teacher | Student = getattr(recipe, side)
        for what in section.dropout.given:
            if not facts.family.dropout_keys(what, recipe.task.architecture):
                mistakes.add(
                    f"{side}.dropout.{what}",
                    f"a {facts.model_type} for {recipe.task.kind} has no such dropout; remove it",
                )


def _two_stacks_mistakes(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """What an encoder-decoder cannot do here."""
    if not recipe.task.has_lm_head:
        yield (
            f"a {facts.model_type} is an encoder-decoder, which is distilled as one, by task.kind: seq2seq; give "
            "labels as targets, or use an encoder or a decoder"
        )
    if facts.decoder_start_id is None:
        yield (
            "its config.json has no decoder_start_token_id, with which its decoder starts; give the one that the "
            "weights were trained with"
        )
    if recipe.data.padding.side == "left":
        yield "data.padding.side is left, but a target begins at its row's first place; use right"


def _model_mistakes(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    wanted = recipe.task.architecture
    if recipe.task.has_lm_head and facts.family.language_model != wanted:
        kind = f"{wanted.removesuffix('LM').lower()} LM"
        yield f"a {facts.model_type} is no {kind}; use one of {', '.join(types_of(wanted))}"
    if facts.family.is_stacked:
        yield from _two_stacks_mistakes(recipe, facts)
    elif recipe.task.architecture in facts.family.lacks:
        able = [name for name, family in FAMILY_OF.items() if recipe.task.architecture not in family.lacks]
        yield f"transformers has no {recipe.task.kind} head for a {facts.model_type}; use one of {', '.join(able)}"
    if recipe.task.predicts_spans and facts.family.span_head is None:
        yield (
            f"a {facts.model_type} has no head for {recipe.task.kind} here, as its blocks have other names in "
            f"transformers' model for it; use one of {', '.join(SPAN_TYPES)}"
        )
    if recipe.pipeline.stages > 1 and facts.family.unstaged is not None:
        yield (
            f"pipeline.stages is {recipe.pipeline.stages}, but {facts.family.unstaged}; remove it, and share memory "
            "out by ZeRO"
        )
    yield from attention_mistakes(recipe, facts)
    key = recipe.task.length_key
    multiple = recipe.data.padding.multiple_of
    longest = -(-recipe.task.sequence_length // multiple) * multiple
    for within, _, test in recipe.evaluation.tests:
        if test.window is not None and test.window > facts.max_positions:
            yield (
                f"evaluation.{within}.window is {test.window}, but this model allows at most {facts.max_positions} "
                "tokens; lower it"
            )
    if longest > facts.max_positions:
        padded = f", padded to {longest}" if longest > recipe.task.sequence_length else ""
        yield (
            f"task.{key} is {recipe.task.sequence_length}{padded}, but this model allows at most "
            f"{facts.max_positions} tokens; lower task.{key}"
        )
    for rule in facts.rope_rules:
        if rule not in KNOWN_RULES:
            yield (
                f"its config.json has rope_type {rule!r}, a rule for positions that is not known here; known are "
                f"{', '.join(KNOWN_RULES)}"
            )
    if recipe.data.padding.side == "left" and facts.family.pooled_token == "first" and not facts.family.is_stacked:
        yield f"data.padding.side is left, but a {facts.model_type} reads its first token; use right"
