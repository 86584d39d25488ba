"""A recipe as text, a reason beside each value that was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.models.files import ModelFacts
from ted_ds.verbs.init.forms import Form
from ted_ds.verbs.init.looking import CHARACTERS_PER_TOKEN, Looked, longest_text

LENGTHS = (32, 64, 128, 256, 384, 512, 1024, 2048)
GLOBAL_BATCH, MICRO_BATCH = 32, 4
EPOCHS = 3
HELDOUT_ROWS, LARGEST_HELDOUT, SMALLEST_HELDOUT = 1000, 0.2, 0.005
MOST_STEPS, FEWEST_STEPS = 20_000, 20
WARMUP = 0.06
SWITCHES = ("true", "false", "yes", "no", "on", "off", "null", "True", "False", "Yes", "No", "On", "Off", "Null")
"""What YAML takes for something else than a word."""
"""Of steps."""


@dataclass(frozen=True)
class Wish:
    """What the user said."""

    teacher: str
    data: str
    blocks: int
    """Of the student."""
    method: str
    name: str
    output_dir: str
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
    batch, micro = _batches(wish.num_ranks)
    length = _length(facts, looked, form)
    lines = [
        f"# Written by ted-ds init; every value can be changed. Start it with: ted-ds run {wish.name}.yaml",
        f"name: {wish.name}",
        f"output_dir: {wish.output_dir}",
        "deepspeed: zero1  # optimizer states in shards; zero3 where the model does not fit",
        "precision: bf16",
        "",
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
        "",
        "data:",
        f"  train: [{{path: {_shown(wish.data)}}}]",
        f"  heldout_fraction: {heldout:g}  # never trained on, and what models are scored by",
        "",
        "teacher:",
        f"  path: {_shown(wish.teacher)}  # {facts.model_type}, {facts.num_blocks} blocks",
    ]
    steps = _steps(looked, form, batch, length)
    if not teacher_knows:
        lines += ["  finetune:  # it has not learned this task yet", *_plan(steps, 3e-5, batch, micro, "    ")]
    lines += ["", "student:", f"  from_teacher: {_cut(facts, wish.blocks)}"]
    if heals:
        lines.append("  heal: {}  # its blocks are brought to the teacher's states first, without a gradient")
    if wish.method == "ted":
        lines += ["", "filters:  # of both models, for the layers that are compared"]
        if form.can_be_solved:
            lines.append("  initialisation: ridge  # solved in closed form")
        filter_steps = {"max_steps": 0} if form.can_be_solved else steps
        for side in ("teacher", "student"):
            lines += [f"  {side}:", *_plan(filter_steps, 1e-3, batch, micro, "    ")]
    lines += [
        "",
        "distill:",
        f"  method: {wish.method}  # sft, kd, lwd or ted: ted-ds study compares them",
        *_plan(steps, form.learning_rate, batch, micro, "  "),
        "  kl_weight: 1.0",
        *([f"  temperature: {2.0 if form.has_labels else 1.0}"] if "target_columns" not in form.task else []),
        *(["  normalise_features: true"] if wish.method in ("lwd", "ted") and not form.has_labels else []),
        "",
        "tracking: {to: []}  # or wandb, tensorboard, trackio",
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    is_plain = isinstance(value, str) and value.replace("_", "").isalpha() and value not in SWITCHES
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _batches(num_ranks: int) -> tuple[int, int]:
    """A global batch that the ranks share, and a rank's microbatch."""
    micro = max(size for size in (1, 2, MICRO_BATCH) if size * num_ranks <= max(GLOBAL_BATCH, num_ranks))
    share = micro * num_ranks
    return -(-GLOBAL_BATCH // share) * share, micro


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


def _steps(looked: Looked, form: Form, batch: int, length: int) -> Mapping[str, float]:
    """Passes over rows, or the steps that one pass over a corpus takes."""
    if form.length_key != "sequence_length":
        return {"epochs": EPOCHS}
    tokens = looked.num_bytes / CHARACTERS_PER_TOKEN
    return {"max_steps": int(min(max(tokens / (batch * length), FEWEST_STEPS), MOST_STEPS))}


def _plan(steps: Mapping[str, float], rate: float, batch: int, micro: int, indent: str) -> list[str]:
    lines = [f"{key}: {value}" for key, value in steps.items()]
    if steps.get("max_steps", 0) > 1:
        lines.append(f"warmup_steps: {max(int(WARMUP * steps['max_steps']), 1)}")
    shown = f"{rate:.1e}"
    lines += [f"learning_rate: {shown}", f"global_batch_size: {batch}", f"micro_batch_size: {micro}"]
    return [indent + line for line in lines]


def _cut(facts: ModelFacts, blocks: int) -> str:
    """Blocks spread over the depth; of an encoder-decoder, of each stack."""
    encoder = facts.num_encoder_blocks
    if encoder is None:
        return f"{{num_blocks: {blocks}}}  # of {facts.num_blocks}, spread over the depth"
    parts = []
    for stack, whole in (("encoder", encoder), ("decoder", facts.num_blocks - encoder)):
        kept = max(round(blocks * whole / facts.num_blocks), 1)
        spread = sorted({round(place * (whole - 1) / max(kept - 1, 1)) for place in range(kept)})
        parts.append(f"{stack}_blocks: {spread}")
    return "{" + ", ".join(parts) + "}"
