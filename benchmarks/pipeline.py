"""A pipeline of two stages beside ZeRO-1 and ZeRO-3 on two ranks: time and memory of a step, waiting, bytes sent.

    python -m benchmarks.pipeline [--quick] [--json FILE]

The same models, global batch and microbatches for all; they take turns, each rank on a core of its own. What a stage
does not work in a step, by its processor time, it waits.
"""

from __future__ import annotations

import gc
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.memory import peak_of
from benchmarks.ranks import Orders, Ranks
from benchmarks.report import ROOT, Claim, at_most, installed, option_parser, publish, table
from benchmarks.steps import SHAPES, Shape, gpt2, new_model
from benchmarks.timing import ratio
from ted_ds.assembly.stages import build_stage_two
from ted_ds.data.samples import Sample
from ted_ds.planning.stage_memory import bubble
from ted_ds.runtime.host_allocator import keep_freed_memory
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import prepare

ROUNDS = 3
TOKENS = 256
"""Of a microbatch."""
NUM_STAGES = 2
FEW, MANY = 2, 8
"""Microbatches of a step."""
CONTENDERS = {
    "pipeline, 2 stages": (1, ["pipeline.stages=2"]),
    "ZeRO-1, 2 ranks": (1, []),
    "ZeRO-3, 2 ranks": (3, ["teacher.host=zero3"]),
}
PIPELINE, ZERO_1, ZERO_3 = CONTENDERS
WORDS = ["[UNK]", "[END]", *(f"word{index}" for index in range(100))]
SMALL = Shape("GPT-2 type 8>4", gpt2(8, 256, 4000), gpt2(4, 256, 4000), 1, TOKENS)
"""For the quick form; its vocabulary leaves the stages something to balance."""
BALANCE_GOAL, BYTES_GOAL = 1.1, 1.05


def write_pair(folder: Path, shape: Shape) -> Path:
    """Both models, a corpus (which is not read) and a recipe."""
    for side, config in (("teacher", shape.teacher), ("student", shape.student)):
        new_model(shape, config, torch.float32, torch.device("cpu")).save_pretrained(folder / side)
        words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
        fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0], eos_token=WORDS[1])
        fast.save_pretrained(folder / side)
    documents = [json.dumps({"text": " ".join(WORDS[number:])}) for number in range(100)]
    (folder / "train.jsonl").write_text("\n".join(documents), encoding="utf-8")
    plan = {"max_steps": 1000, "learning_rate": 1e-6, "global_batch_size": MANY, "micro_batch_size": 1}
    recipe = folder / "recipe.yaml"
    content = {
        "name": "benchmark",
        "output_dir": str(folder / "run"),
        "deepspeed": "set by each contender",
        "precision": "fp32",
        "task": {
            "kind": "causal_lm",
            "sequence_length": TOKENS,
            "packing": {"isolate_documents": False},
        },
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "heldout_fraction": 0.2, "workers": 0},
        "teacher": {"path": str(folder / "teacher")},
        "student": {"path": str(folder / "student")},
        "filters": {"teacher": plan, "student": plan},
        "distill": {"method": "ted", **plan},
    }
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def work(folder: Path, name: str, orders: Orders) -> None:
    """One rank: steps of as many microbatches as it is told to."""
    zero, changes = CONTENDERS[name]
    json_path = ROOT / "ds_configs" / "deepspeed" / f"zero{zero}.json"
    arguments = (str(folder / "recipe.yaml"), [f"deepspeed={json_path}", *changes])
    build, _ = prepare(*arguments, contracts_hold=True, stops=StopRequests())
    plan, length = build.recipe.distill, build.recipe.task.sequence_length
    config = build.engine_config(plan, "distill")
    stage = build_stage_two(
        build,
        config,
        teacher=folder / "teacher",
        student=folder / "student",
        filters={"teacher": None, "student": None},
    )
    tokens = torch.randint(5, 100, (length,), generator=torch.Generator().manual_seed(build.world.replica)).tolist()
    assert stage.teacher is not None
    batch = build.collate([Sample(tokens, None)])
    sent = _count_sent()
    with build.engine(
        "distill", stage.module, config, plan, watched={}, trained=stage.student, frozen={"teacher": stage.teacher}
    ) as engine:

        def step(count: int) -> dict[str, float]:
            mine = count // build.world.num_replicas if build.world.reads_data else 0
            before = dict(sent)
            started, worked = time.perf_counter(), time.process_time()
            engine.step(itertools.repeat([batch] * mine), stage.objective)
            seconds, work_s = time.perf_counter() - started, time.process_time() - worked
            return {"seconds": seconds, "work": work_s, "sent": (sent["bytes"] - before["bytes"]) / count}

        def obey(order: str) -> Any:
            what, count = order.split()
            if what == "memory":
                gc.collect()
                return peak_of(lambda: step(int(count)), since=0)
            return step(int(count))

        orders.answer(obey)


def _count_sent() -> dict[str, int]:
    """Counts the bytes this rank sends to other stages from now on."""
    from deepspeed import comm

    plain_send, sent = comm.send, {"bytes": 0}

    def send(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        sent["bytes"] += tensor.numel() * tensor.element_size()
        return plain_send(tensor, *arguments, **more)

    comm.send = send
    return sent


def main() -> None:
    """Measure, and publish."""
    options = option_parser(__doc__).parse_args()
    torch.set_num_threads(1)  # ranks are copies of this process
    keep_freed_memory()  # as a run does
    tables: list[Any] = []
    claims: list[Claim] = []
    for shape in [SMALL] if options.quick else [shape for shape in SHAPES[False] if shape.is_lm]:
        for found, of_shape in zip((tables, claims), _measure(shape, 2 if options.quick else ROUNDS), strict=True):
            found += of_shape
    publish(tables, claims, versions=installed(_PACKAGES), json_path=options.json)


def _measure(shape: Shape, rounds: int) -> tuple[list[Any], list[Claim]]:
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_pair(Path(folder), shape)
        groups = {name: Ranks(work, (Path(folder), name), 2, one_core_each=True) for name in CONTENDERS}
        try:
            answers = _in_turns(groups, rounds)
            memory = {name: ranks.ask(f"memory {MANY}") for name, ranks in groups.items()}
        finally:
            for ranks in groups.values():
                ranks.stop()
        return _report(shape, answers, memory, _planned(recipe))


_PACKAGES = ("torch", "deepspeed", "transformers")
Answers = dict[tuple[str, int], list[list[dict[str, float]]]]


def _in_turns(groups: dict[str, Ranks], rounds: int) -> Answers:
    answers: Answers = {(name, count): [] for name in groups for count in (FEW, MANY)}
    for number in range(rounds + 1):
        for (name, count), found in answers.items():
            one = groups[name].ask(f"step {count}")
            if number:  # the first makes buffers
                found.append(one)
    return answers


def _planned(recipe: Path) -> list[float]:
    """What each stage was to cost, in parts of the mean."""
    from ted_ds.config.load import load_recipe
    from ted_ds.planning.plan import make_plan
    from ted_ds.tasks.kind import kind_of

    path = ROOT / "ds_configs" / "deepspeed" / "zero1.json"
    loaded = load_recipe(recipe, [f"deepspeed={path}", "pipeline.stages=2"])
    stages = make_plan(loaded, kind_of, num_ranks=NUM_STAGES).stages["distill"]
    mean = sum(stage.cost for stage in stages) / NUM_STAGES
    return [stage.cost / mean for stage in stages]


def _parts_at_work(found: list[list[dict[str, float]]]) -> list[float]:
    """In what part of a step each stage works, by its processor time."""
    return [median(one[rank]["work"] / one[rank]["seconds"] for one in found) for rank in range(NUM_STAGES)]


def _report(
    shape: Shape, answers: Answers, memory: dict[str, list[int]], planned: list[float]
) -> tuple[list[Any], list[Claim]]:
    slowest = {case: [max(rank["seconds"] for rank in one) for one in found] for case, found in answers.items()}
    taken = {name: slowest[name, MANY] for name in CONTENDERS}
    rows = [
        [
            name,
            f"{median(seconds) * 1000:,.0f}",
            ", ".join(f"{size / 2**20:,.0f}" for size in memory[name]),
        ]
        for name, seconds in taken.items()
    ]
    busy = {count: _parts_at_work(answers[PIPELINE, count]) for count in (FEW, MANY)}
    waiting = {count: 1 - sum(parts) / NUM_STAGES for count, parts in busy.items()}
    imbalance = max(busy[MANY]) / (sum(busy[MANY]) / NUM_STAGES)
    item = 4
    least = item * TOKENS * (2 * shape.student.hidden_size + shape.teacher.hidden_size)
    sent = {count: sum(rank["sent"] for rank in answers[PIPELINE, count][-1]) for count in (FEW, MANY)}
    case = f"{shape.name} fp32"
    waits = [
        [
            str(count),
            ", ".join(f"{part:.0%}" for part in busy[count]),
            f"{waiting[count]:.1%}",
            f"{bubble(NUM_STAGES, count):.1%}",
            f"{sent[count] / 2**20:.2f}",
            f"{least / 2**20:.2f}",
        ]
        for count in (FEW, MANY)
    ]
    columns = ["microbatches", "stages work", "they wait", "by formula", "MiB sent per microbatch", "at least"]
    tables = [
        table(
            f"{case}, {MANY} microbatches of {TOKENS} tokens, median of {len(taken[PIPELINE])}",
            ["layout", "ms a step", "MiB at most on each rank"],
            rows,
        ),
        table(f"{case}, the pipeline", columns, waits),
    ]
    claims = [
        at_most(f"planned slowest stage / mean: {case}", max(planned), BALANCE_GOAL),
        at_most(f"measured slowest stage / mean: {case}", imbalance, BALANCE_GOAL),
        at_most(f"bytes sent / least: {case}", sent[MANY] / least, BYTES_GOAL),
        at_most(f"pipeline / ZeRO-3, time: {case}", ratio(taken, PIPELINE, ZERO_3), 1.0),
        at_most(f"pipeline / ZeRO-1, time: {case}", ratio(taken, PIPELINE, ZERO_1), 1.0),
        at_most(f"pipeline / ZeRO-3, memory: {case}", max(memory[PIPELINE]) / max(memory[ZERO_3]), 1.0),
        at_most(f"pipeline / ZeRO-1, memory: {case}", max(memory[PIPELINE]) / max(memory[ZERO_1]), 1.0),
        *(
            at_most(f"|waiting - formula|, {count} microbatches: {case}", abs(share - bubble(NUM_STAGES, count)), 0.1)
            for count, share in waiting.items()
        ),
    ]
    return tables, claims


if __name__ == "__main__":
    main()
