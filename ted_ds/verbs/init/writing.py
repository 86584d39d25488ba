"""A recipe as text, a reason beside each value that was chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.recipe_schema import FILE as SCHEMA
from ted_ds.config.shipped import ROOT
from ted_ds.errors import counted
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.block_choice import spread
from ted_ds.planning.plain_numbers import plainly
from ted_ds.verbs.init.course import Course
from ted_ds.verbs.init.forms import Form
from ted_ds.verbs.init.looking import TRAIN, Given, Looked, longest_text
from ted_ds.verbs.init.means import Means

LENGTHS = (32, 64, 128, 256, 384, 512, 1024, 2048)
LENGTH_ON_CPU = 256
"""Of a corpus' sequences."""
HELDOUT_ROWS, LARGEST_HELDOUT, SMALLEST_HELDOUT = 1000, 0.2, 0.005
HELDOUT_DOCUMENTS, HELDOUT_OF_CORPUS = 50, 0.05
"""Of a corpus: at least so many, and this share of it."""
SCORED_ON_CPU = 64
"""Sequences of a corpus."""
MOST_HELDOUT = 0.99
"""Of few rows, of which else none might be held out."""
MODELINE, SCHEMA_BESIDE = "# yaml-language-server: $schema=", "recipe.schema.json"
PACKED = ROOT.name == "shipped"
"""Whether this is an installed package, which other environments have elsewhere."""
WHAT_IS_SCORED = {
    "validation": "its split of that name: never trained on, scored as training goes on",
    "test": "its split of that name: decides nothing, and is scored at the end",
}
WARMUP = 0.06
"""Of steps."""
SWITCHES = ("true", "false", "yes", "no", "on", "off", "null", "True", "False", "Yes", "No", "On", "Off", "Null")
"""What YAML takes for something else than a word."""


@dataclass(frozen=True)
class Draft:
    """All that a recipe is written from."""

    given: Given
    teacher: str
    """As it is seen from the recipe, as is the next."""
    data: str
    num_blocks: int | str
    """Of the student: how many, or which share of the teacher's."""
    method: str
    file: str
    """The recipe's."""
    means: Means
    length: int
    """Of a sequence, in tokens."""
    course: Course
    heals: bool
    """Whether the student is healed before it trains."""
    teacher_knows: bool
    """Whether the teacher has a head for the task already."""
    heldout: float | None = None
    """The share of rows that are held out; None: as is usual for so many."""


def write_recipe(draft: Draft) -> str:
    """The text of a recipe."""
    return "\n".join([*_head(draft), *_task(draft), *_data(draft), *_models(draft), *_distill(draft)]) + "\n"


def _head(draft: Draft) -> Iterator[str]:
    yield _for_editors(Path(draft.file).parent)
    yield "# Written by ted-ds init; any value can be changed. What is not said here follows from it, and is shown by:"
    yield f"#   ted-ds check {draft.file} --show"
    if not draft.means.bf16:
        yield "precision: fp32  # this CPU has no instructions for bf16"


def _for_editors(folder: Path) -> str:
    """Where the schema is: named as it is seen from the recipe, so that it is found wherever both are taken together.

    Another environment has the package elsewhere. So there is no path into it; what makes the file is said instead.
    """
    own, shipped = folder.resolve() / SCHEMA_BESIDE, (ROOT / SCHEMA).resolve()
    if own.is_file():
        return f"{MODELINE}{SCHEMA_BESIDE}"
    if not PACKED and shipped.is_relative_to(folder.resolve()):
        return f"{MODELINE}{shipped.relative_to(folder.resolve()).as_posix()}"
    return f"# Editors complete keys after: ted-ds schema > {SCHEMA_BESIDE}; then begin with {MODELINE}{SCHEMA_BESIDE}"


def _task(draft: Draft) -> Iterator[str]:
    form = draft.given.form
    yield "task:"
    for key, value in form.task.items():
        why = form.reason if key == "kind" else form.reasons[key]
        yield f"  {key}: {_shown(value)}  # {why}"
    if form.length_key is not None:
        why = "95 % of texts are shorter" if form.usual_length is None else "tokens that a sequence has at most"
        if form.is_corpus and draft.means.is_cpu:
            why = "tokens of a sequence, few as there is no GPU"
        yield f"  {form.length_key}: {draft.length}  # {why}"
    if form.is_of_parts:
        yield f"  stride: {draft.length // 3}  # tokens that a part has in common with the next"


def _data(draft: Draft) -> Iterator[str]:
    looked, scored = draft.given.looked, draft.given.scored
    own, why = {"path": draft.data}, "what is learned from"
    if looked.splits:
        why = f"its split {TRAIN}, which is learned from"
    if looked.source.delimiter is not None:
        own["delimiter"], why = looked.source.delimiter, f"{why}; values are separated so"
    if looked.source.documents != "line":
        own["documents"], why = looked.source.documents, "one ends at a blank line"
    yield "data:"
    yield f"  train: {_source(own)}  # {why}"
    for split, why_not in scored.items():
        if why_not is not None:
            yield f"  # its split {split} is not used: {why_not}"
        else:
            yield f"  {split}: {_source({**own, 'split': split})}  # {WHAT_IS_SCORED[split]}"
    if scored.get("validation", "none") is not None:
        few = ", more than usual, as else none of so few rows would be" if _heldout(draft) > LARGEST_HELDOUT else ""
        yield f"  heldout_fraction: {_heldout(draft):g}  # never trained on, and what models are scored by{few}"


def _source(values: Mapping[str, str]) -> str:
    """Of the recipe's data."""
    return f"[{{{', '.join(f'{key}: {_shown(value)}' for key, value in values.items())}}}]"


def _models(draft: Draft) -> Iterator[str]:
    facts, course = draft.given.facts, draft.course
    yield "teacher:"
    yield f"  path: {_shown(draft.teacher)}  # {facts.model_type}, {counted(facts.num_blocks, 'block')}"
    if not draft.teacher_knows:
        own = f"{{max_steps: {course.steps}}}" if course.steps is not None else "{}"
        if course.steps is None and course.why_passes:
            own = f"{{epochs: {course.passes:g}}}"
        yield f"  finetune: {own}  # it has not learned this task yet"
    yield "student:"
    yield f"  from_teacher: {_cut(facts, draft.num_blocks)}"
    if draft.heals:
        yield "  heal: {}  # its blocks are brought to the teacher's states first, without a gradient"


def _distill(draft: Draft) -> Iterator[str]:
    course, form = draft.course, draft.given.form
    yield "distill:"
    yield f"  method: {draft.method}  # sft, kd, lwd or ted: ted-ds study compares them"
    if course.steps is None:
        yield f"  epochs: {course.passes:g}  # passes over the rows{course.why_passes}"
    else:
        passes = plainly(course.passes, digits=2)
        what = f"{passes} pass{'' if passes == '1' else 'es'} over the data"
        yield f"  max_steps: {course.steps}  # about {what}{course.why_passes}"
        warmup = max(int(WARMUP * course.steps), 1)
        yield f"  warmup_steps: {warmup}  # in which the learning rate rises: {100 * WARMUP:g} % of steps"
    if course.why_batch:
        yield f"  global_batch_size: {course.batch}  # {course.why_batch}"
    yield f"  micro_batch_size: {course.micro}  # {course.why_micro}"
    if not form.has_labels:
        yield "  temperature: 1.0  # usual for language models"
        if draft.method in ("lwd", "ted"):
            yield "  normalise_features: true  # a few channels of their states are far larger than others"
    if course.recomputes:
        yield "activation_checkpointing: true  # else not even one sequence would fit"
    if form.is_corpus and draft.means.is_cpu:
        yield f"evaluation: {{max_examples: {SCORED_ON_CPU}}}  # sequences, as scoring takes time without a GPU, too"
    yield "tracking: {to: []}  # or wandb, tensorboard, trackio"


def _shown(value: Any) -> str:
    is_plain = isinstance(value, str) and value.replace("_", "").isalpha() and value not in SWITCHES
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def length_of(facts: ModelFacts, looked: Looked, form: Form, *, is_cpu: bool) -> int:
    """Of a sequence, in tokens: as the texts are, or as is usual."""
    if form.usual_length is not None:
        usual = LENGTH_ON_CPU if form.is_corpus and is_cpu else form.usual_length
        return min(usual, facts.max_positions)
    columns = [name for key in ("text_column", "words_column") for name in _as_list(form.task.get(key))]
    wanted = longest_text(looked.rows, columns or list(looked.rows[0]))
    return min(next((one for one in LENGTHS if one >= wanted), LENGTHS[-1]), facts.max_positions)


def _as_list(value: Any) -> Sequence[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _heldout(draft: Draft) -> float:
    """So many rows that a point of accuracy can be seen, but not too large a share."""
    if draft.heldout is not None:
        return draft.heldout
    looked = draft.given.looked
    wanted, least = (HELDOUT_DOCUMENTS, HELDOUT_OF_CORPUS) if draft.given.form.is_corpus else (HELDOUT_ROWS, 0.0)
    share = max(wanted / len(looked.rows), least) if looked.are_all else SMALLEST_HELDOUT
    return round(min(max(share, SMALLEST_HELDOUT), LARGEST_HELDOUT), 3)


def _cut(facts: ModelFacts, wanted: int | str) -> str:
    """Blocks spread over the depth; of an encoder-decoder, of each stack."""
    encoder = facts.num_encoder_blocks
    if isinstance(wanted, str) or encoder is None:
        number = CutFromTeacher(num_blocks=wanted).number_of(facts.num_blocks)
        return f"{{num_blocks: {wanted}}}  # {number} of {facts.num_blocks}, spread over the depth"
    parts = []
    for stack, whole in (("encoder", encoder), ("decoder", facts.num_blocks - encoder)):
        kept = max(round(wanted * whole / facts.num_blocks), 1)
        parts.append(f"{stack}_blocks: {spread(whole, kept)}")
    return "{" + ", ".join(parts) + "}"
