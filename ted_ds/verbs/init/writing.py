"""A recipe as text, a reason beside each value that was chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.defaults import GLOBAL_BATCH_SIZE
from ted_ds.config.recipe_schema import FILE as SCHEMA
from ted_ds.config.shipped import ROOT
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.block_choice import spread
from ted_ds.verbs.init.forms import Form
from ted_ds.verbs.init.looking import CHARACTERS_PER_TOKEN, Looked, longest_text

LENGTHS = (32, 64, 128, 256, 384, 512, 1024, 2048)
EPOCHS = 3
HELDOUT_ROWS, LARGEST_HELDOUT, SMALLEST_HELDOUT = 1000, 0.2, 0.005
MOST_STEPS, FEWEST_STEPS = 20_000, 20
WARMUP = 0.06
"""Of steps."""
SWITCHES = ("true", "false", "yes", "no", "on", "off", "null", "True", "False", "Yes", "No", "On", "Off", "Null")
"""What YAML takes for something else than a word."""


@dataclass(frozen=True)
class Wish:
    """What the user said."""

    teacher: str
    """As it is seen from the recipe, as is the next."""
    data: str
    num_blocks: int | str
    """Of the student: how many, or which share of the teacher's."""
    method: str
    file: str
    """The recipe's."""
    num_ranks: int


def write_recipe(wish: Wish, facts: ModelFacts, looked: Looked, form: Form, *, heals: bool, teacher_knows: bool) -> str:
    """The text of a recipe.

    Args:
        wish: What the user said.
        facts: Of the teacher.
        looked: The data.
        form: The task they are of.
        heals: Whether the student is healed before it trains.
        teacher_knows: Whether the teacher has a head for the task already.
    """
    batch, length = _batch(wish.num_ranks), _length(facts, looked, form)
    lines = [
        f"# yaml-language-server: $schema={(ROOT / SCHEMA).resolve()}",
        "# Written by ted-ds init; every value can be changed. What is not said here follows from it, and is shown by:",
        f"#   ted-ds check {wish.file} --show",
        f"task:  # {form.reason}",
        *(f"  {key}: {_shown(value)}" for key, value in form.task.items()),
    ]
    if form.length_key is not None:
        why = "95 % of texts are shorter" if form.usual_length is None else "tokens that a sequence has at most"
        lines.append(f"  {form.length_key}: {length}  # {why}")
    if form.is_of_parts:
        lines.append(f"  stride: {length // 3}  # tokens that a part has in common with the next")
    heldout = _heldout(looked)
    lines += [
        "data:",
        f"  train: [{{path: {_shown(wish.data)}}}]",
        f"  heldout_fraction: {heldout:g}  # never trained on, and what models are scored by",
        "teacher:",
        f"  path: {_shown(wish.teacher)}  # {facts.model_type}, {facts.num_blocks} blocks",
    ]
    steps = _steps(looked, form, batch, length)
    if not teacher_knows:
        own = f"{{max_steps: {steps}}}" if steps is not None else "{}"
        lines.append(f"  finetune: {own}  # it has not learned this task yet")
    lines += ["student:", f"  from_teacher: {_cut(facts, wish.num_blocks)}"]
    if heals:
        lines.append("  heal: {}  # its blocks are brought to the teacher's states first, without a gradient")
    lines += ["distill:", f"  method: {wish.method}  # sft, kd, lwd or ted: ted-ds study compares them"]
    if steps is None:
        lines.append(f"  epochs: {EPOCHS}  # passes over the rows")
    else:
        lines.append(f"  max_steps: {steps}  # about a pass over the data, and {FEWEST_STEPS} to {MOST_STEPS:,}")
        lines.append(f"  warmup_steps: {max(int(WARMUP * steps), 1)}")
    if batch != GLOBAL_BATCH_SIZE:
        lines.append(f"  global_batch_size: {batch}  # that {wish.num_ranks} ranks can share")
    if not form.has_labels:
        lines.append("  temperature: 1.0  # usual for language models")
        if wish.method in ("lwd", "ted"):
            lines.append("  normalise_features: true  # a few channels of their states are far larger than others")
    lines += ["tracking: {to: []}  # or wandb, tensorboard, trackio"]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    is_plain = isinstance(value, str) and value.replace("_", "").isalpha() and value not in SWITCHES
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _batch(num_ranks: int) -> int:
    """The usual global batch, or the next that the ranks can share."""
    return -(-GLOBAL_BATCH_SIZE // num_ranks) * num_ranks


def _length(facts: ModelFacts, looked: Looked, form: Form) -> int:
    if form.usual_length is not None:
        return min(form.usual_length, facts.max_positions)
    columns = [name for key in ("text_column", "words_column") for name in _as_list(form.task.get(key))]
    wanted = longest_text(looked.rows, columns or list(looked.rows[0]))
    return min(next((one for one in LENGTHS if one >= wanted), LENGTHS[-1]), facts.max_positions)


def _as_list(value: Any) -> Sequence[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _heldout(looked: Looked) -> float:
    """So many rows that a point of accuracy can be seen, but not too large a share."""
    share = HELDOUT_ROWS / len(looked.rows) if looked.are_all else SMALLEST_HELDOUT
    return round(min(max(share, SMALLEST_HELDOUT), LARGEST_HELDOUT), 3)


def _steps(looked: Looked, form: Form, batch: int, length: int) -> int | None:
    """The steps that one pass over a corpus takes; None of rows, which are counted."""
    if form.length_key != "sequence_length":
        return None
    tokens = looked.num_bytes / CHARACTERS_PER_TOKEN
    return int(min(max(tokens / (batch * length), FEWEST_STEPS), MOST_STEPS))


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
