"""What a student in closed form costs: its blocks chosen, healed, and filters solved, beside a pass of the teacher.

    python -m benchmarks.closed_form [--quick] [--json FILE]

A Llama-type teacher of random weights, and a student of a third of its blocks, on one process. In turns: a pass of the
teacher over the calibration tokens without its head, the influence of its blocks, the healing of the student, and the
filters of both models. The solves (Cholesky factors in fp64, as many as there are strengths and maps) are timed by
themselves: they do not grow with the tokens. Memory is the most that healing has in use, both models' weights among it,
beside what Stage II needs by the arithmetic of ``ted-ds check``.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.memory import peak_of
from benchmarks.report import ROOT, Claim, at_most, installed, option_parser, publish, table
from benchmarks.timing import in_turns, ratio
from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import Calibration, open_calibration
from ted_ds.assembly.healing import Healer
from ted_ds.assembly.measured_teacher import MeasuredTeacher
from ted_ds.assembly.solved_filters import solve_filters
from ted_ds.assembly.student_choice import choose_student
from ted_ds.assembly.student_cut import cut_student
from ted_ds.config.heal import STRENGTHS
from ted_ds.numerics.normal_equations import NormalEquations, fit
from ted_ds.planning.heal import heal_targets
from ted_ds.planning.memory import frozen_bytes
from ted_ds.planning.phase import FILTERS_BOTH
from ted_ds.planning.phase_memory import phase_memories
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import prepare

HEAL_GOAL, MEMORY_GOAL = 3.0, 1.0


class Size(NamedTuple):
    """The teacher, and what it reads."""

    hidden: int
    inner: int
    blocks: int
    tokens: int
    rounds: int

    @property
    def kept(self) -> list[int]:
        """A third of the blocks, from the first on."""
        return list(range(0, self.blocks, 3))


SIZES = {False: Size(576, 1536, 9, 8192, 2), True: Size(192, 512, 6, 8192, 3)}
LENGTH, HELDOUT_TOKENS, ROWS = 128, 2048, 8


class Costs(NamedTuple):
    """Seconds by what was done, in each round, and bytes."""

    seconds: dict[str, list[float]]
    healing: int
    training: int


def main() -> None:
    """Measure, and publish."""
    options = option_parser(__doc__).parse_args()
    size = SIZES[options.quick]
    logging.disable_progress_bar()
    # what a run prints is no part of the report
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        costs = measure(Path(folder), size)
    rows = [
        [name, f"{min(taken):.2f} s", f"{ratio(costs.seconds, name, 'a pass of the teacher'):.2f}"]
        for name, taken in costs.seconds.items()
    ]
    about = (
        f"{size.blocks} > {len(size.kept)} blocks of width {size.hidden}, {size.tokens:,} + {HELDOUT_TOKENS:,} tokens"
    )
    shown = [table(about, ("work", "shortest", "to a pass of the teacher"), rows)]
    memory = [["healing", f"{costs.healing / 2**20:.0f} MiB"], ["training", f"{costs.training / 2**20:.0f} MiB"]]
    shown.append(table("with the weights of both models; training by ted-ds check", ("work", "memory"), memory))
    publish(shown, claims_of(costs), versions=installed(["ted_ds", "torch", "transformers"]), json_path=options.json)


def claims_of(costs: Costs) -> list[Claim]:
    """What is promised of healing."""
    healing = ratio(costs.seconds, "healing", "a pass of the teacher") - ratio(
        costs.seconds, "its solves alone", "a pass of the teacher"
    )
    return [
        at_most("healing without its solves / a pass of the teacher", healing, HEAL_GOAL),
        at_most("memory of healing / of training the student", costs.healing / costs.training, MEMORY_GOAL),
    ]


def measure(folder: Path, size: Size) -> Costs:
    """All of it, on models in ``folder``."""
    recipe = write_run(folder, size)
    build, inputs = prepare(str(recipe), [], contracts_hold=True, stops=StopRequests())
    teacher_path, student_path = inputs.folders.teacher_path(), folder / "student"
    cut_student(build, teacher_path, student_path, choose_student(build, teacher_path))
    calibration = open_calibration(build)
    teacher = build.models.frozen("teacher", teacher_path, range(size.blocks + 1))
    work: dict[str, Callable[[], object]] = {
        "a pass of the teacher": lambda: read(build, teacher, calibration),
        "influence of its blocks": MeasuredTeacher(build, teacher, calibration).influence,
        "healing": lambda: heal(build, size, teacher_path, student_path, calibration),
        "its solves alone": lambda: solve(size),
        "filters of both models": lambda: solve_filters(
            build,
            FILTERS_BOTH,
            {"teacher": teacher_path, "student": student_path},
            teacher_filters=None,
            vet=lambda _: None,
        ),
    }
    healing = peak_of(work["healing"])
    (memory,) = (
        one
        for one in phase_memories(build.recipe, build.plan, build.deepspeed_json, world_size=1)
        if one.phase == "distill"
    )
    teacher_bytes = frozen_bytes(build.teacher_facts.parameters, host="replica", precision="fp32", world_size=1)
    training = memory.total(build.deepspeed_json, device_is_host=True) + teacher_bytes
    return Costs(in_turns(work, rounds=size.rounds), healing, training)


def read(build: Assembly, teacher: FrozenModel, calibration: Calibration) -> None:
    """A pass of a model over the calibration data, without its head."""
    for one in calibration.batches:
        teacher(one.batch.to(build.world.device).inputs, on_state=lambda _place, _state: None)


def heal(build: Assembly, size: Size, teacher_path: Path, student_path: Path, calibration: Calibration) -> None:
    """Load both models, and heal the student."""
    targets = heal_targets(build.recipe, build.teacher_facts, build.student_facts, size.kept)
    student = build.models.frozen("student", student_path, new_head_allowed=True)
    teacher = build.models.frozen("teacher", teacher_path, (max(targets.values()),))
    healer = Healer(build, teacher, student, calibration, targets=targets, strengths=STRENGTHS)
    for number in range(len(size.kept)):
        healer.heal(number)
    teacher.release()
    student.release()


def solve(size: Size) -> None:
    """As many maps as healing solves, of sums that are there already."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, width, generator=generator) for width in (size.inner, size.hidden))
    sums, others = (NormalEquations(size.inner, size.hidden, with_bias=False) for _ in range(2))
    sums.add(x, y)
    others.add(x[:64], y[:64])
    for _ in size.kept[1:]:  # what the first one puts out is the teacher's already
        fit(sums, towards=torch.zeros(size.hidden, size.inner), strengths=STRENGTHS, heldout=others)


def write_run(folder: Path, size: Size) -> Path:
    """A teacher of random weights, texts, and a recipe."""
    torch.manual_seed(0)
    teacher = folder / "teacher"
    tokenizer = write_tokenizer(teacher)
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(teacher)
    generator = torch.Generator().manual_seed(1)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(4 * (size.tokens + HELDOUT_TOKENS) // LENGTH):
            letters = torch.randint(97, 123, (LENGTH // 2,), generator=generator).tolist()
            file.write(json.dumps({"text": bytes(letters).decode()}) + "\n")
    phase = {"max_steps": 0, "learning_rate": 1e-4, "global_batch_size": ROWS, "micro_batch_size": ROWS}
    content: dict[str, Any] = {
        "name": "closed_form",
        "output_dir": str(folder / "run"),
        "deepspeed": str(ROOT / "ds_configs" / "deepspeed" / "zero1.json"),
        "precision": "fp32",
        "preflight": "warn",
        "task": {"kind": "causal_lm", "sequence_length": LENGTH},
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "heldout_fraction": 0.05},
        "evaluation": {"max_examples": 8},
        "teacher": {"path": str(teacher)},
        "student": {
            "from_teacher": {"blocks": size.kept},
            "calibration": {"tokens": size.tokens, "heldout_tokens": HELDOUT_TOKENS, "micro_batch_size": ROWS},
            "heal": {},
        },
        "filters": {"initialisation": "ridge", "both": phase},
        "distill": {"method": "ted", **phase, "max_steps": 1},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One token for each byte, and one for the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, "<pad>": 1} | {letter: index for index, letter in enumerate(alphabet, start=2)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


if __name__ == "__main__":
    main()
