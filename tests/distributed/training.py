"""What the distributed tests run on each rank: a few real steps of a stage on tiny models, and its result."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from ted_ds.config.deepspeed import complete
from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.families import family_of
from ted_ds.models.heads import classification_probes, lm_probes
from ted_ds.models.loading import DTYPES, LoadSettings, load_model
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.objectives.learn_filters import FilterObjective
from ted_ds.phases.loop import Progress, Rhythm, train
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.runtime.sharding import full_state_dict, sharded_loading
from ted_ds.runtime.step_runner import EngineSettings
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner
from tests.distributed.steps import training_steps
from tests.task_kinds import OF_NAME, TASK_TERMS
from tests.tiny import LABELS, ROOT, VOCAB_SIZE, distill_plan

GLOBAL_BATCH, MICRO_BATCH, NUM_STEPS = 8, 2, 3
STUDENT_LAYERS, TEACHER_LAYERS = (1, 2), (3, 4)
HIDDEN, FILTER_DIM = 16, 12
LABELLED: dict[str, Any] = {"causal_lm": "tokens", "masked_lm": "token_classes"}
"""What labels are, where they are not those of whole texts."""
WEIGHTS = {"task_weight": 0.7, "kl_weight": 1.3, "temperature": 2.0, "feature_weight": 3.0}


def samples(kind: str) -> list[Sample]:
    """Texts of uneven length; one microbatch has a single real token per row, so that its LM labels are all ignored.

    (Rows 2 and 3 on one rank, 1 and 3 on two.)
    """
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(GLOBAL_BATCH * NUM_STEPS):
        length = 1 if index in (1, 2, 3) else int(torch.randint(2, 14, (1,), generator=generator))
        ids = torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()
        own_labels = {"causal_lm": None, "masked_lm": ids}  # each token of a masked LM predicts itself
        made.append(Sample(ids, own_labels.get(kind, index % len(LABELS))))
    return made


def plan(clipping: float) -> PhasePlan:
    return PhasePlan(
        max_steps=NUM_STEPS,
        learning_rate=0.2,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=MICRO_BATCH,
        schedule="constant",
        gradient_clipping=clipping,
    )


def raw_config(stage: int) -> tuple[dict[str, Any], Path]:
    """The shipped JSON of a stage with SGD, as Adam would hide a wrong scale of the gradient; and its path."""
    source = ROOT / "ds_configs" / "deepspeed" / f"zero{stage}.json"
    raw = json.loads(source.read_text())
    raw |= {"optimizer": {"type": "SGD", "params": {"lr": "auto"}}, "zero_allow_untested_optimizer": True}
    if stage == 3:
        raw["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # or nothing of a tiny model is sharded
    return raw, source


def config(stage: int, world_size: int, clipping: float, precision: str = "fp32") -> dict[str, Any]:
    raw, source = raw_config(stage)
    return complete(raw, plan(clipping), plan_path="distill", precision=precision, world_size=world_size, source=source)


def load_tapped(folder: Path, kind: str, layers: tuple[int, ...], *, shard: Any = None, precision: str = "fp32"):
    task = OF_NAME[kind].task
    model, _ = load_model(
        folder,
        LoadSettings(DTYPES[precision], sharded_loading(shard) if shard else contextlib.nullcontext()),
        head=None if task.has_lm_head else {"num_labels": len(LABELS)},
        architecture=task.architecture,
    )
    if task.rows_per_example > 1:
        choose_among_rows(model, task.rows_per_example)
    return TappedModel(model, family_of(model.config.model_type), layers, pooled=task.pooled)


def student_bank() -> FilterBank:
    torch.manual_seed(11)
    return FilterBank(STUDENT_LAYERS, HIDDEN, FILTER_DIM)


def teacher_bank() -> FilterBank:
    torch.manual_seed(12)
    return FilterBank(TEACHER_LAYERS, HIDDEN, FILTER_DIM).requires_grad_(False)


def probes(folder: Path, kind: str, model_type: str):
    torch.manual_seed(13)
    bank = FilterBank(TEACHER_LAYERS, HIDDEN, FILTER_DIM)
    if kind == "causal_lm":
        return lm_probes(bank, dim=FILTER_DIM, model_path=folder, kind="frozen", dtype=torch.float32)
    return classification_probes(
        bank, dim=FILTER_DIM, num_labels=len(LABELS), pooling=family_of(model_type).pooled_token
    )


def batches(world: World, kind: str):
    """This rank's microbatches of each step."""
    return training_steps(
        iter(samples(kind)),
        Collator(pad_id=0, labels=LABELLED.get(kind, "class")),
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=MICRO_BATCH,
        rank=world.rank,
        world_size=world.size,
    )


class Recorder:
    """What the training loop asks of the run around it, kept in lists; a state is saved in ``folder``."""

    def __init__(self, engine: ZeroRunner, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self.reports: list[tuple[int, Any]] = []
        self.said: list[str] = []

    def log(self, step: int, values: Any) -> None:
        self.reports.append((step, values))

    def stepped(self, step: int, skipped: str | None) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def evaluate(self, progress: Progress) -> None:
        raise AssertionError("no evaluation was asked for")

    def between_steps(self, progress: Progress) -> None:
        pass

    def save(self, progress: Progress) -> Path:
        for file, state in self._engine.states(self._folder).items():
            torch.save(state, file)
        return self._folder


def train_on(engine: ZeroRunner, steps: Any, objective: Any, recorder: Recorder, **settings: Any) -> float:
    """The training loop, from the first step on."""
    progress = settings.pop("progress", Progress())
    values = {"log_every_steps": 1, "evaluate_every_steps": None, "evaluate_last": False}
    return train(engine, steps, objective, recorder, progress=progress, rhythm=Rhythm(**{**values, **settings}))


def start_engine(
    world: World,
    module: Any,
    ds_config: dict[str, Any],
    *,
    precision: str = "fp32",
    schedule: str = "constant",
    schedule_parameters: dict[str, float] | None = None,
    warmup_steps: int = 0,
    max_steps: int = NUM_STEPS,
    weight_decay: float = 0.0,
    watched: dict[str, Any] | None = None,
    replay_every_steps: int | None = None,
) -> ZeroRunner:
    return ZeroRunner(
        module,
        EngineSettings(
            config=ds_config,
            schedule=schedule,
            warmup_steps=warmup_steps,
            max_steps=max_steps,
            weight_decay=weight_decay,
            dtype=DTYPES[precision],
            schedule_parameters=schedule_parameters or {},
            replay_every_steps=replay_every_steps,
        ),
        world=world,
        watched=watched or {},
    )


def run_stage(
    world: World, folder: Path, what: str, kind: str, stage: int, clipping: float, sharded: bool, precision: str
) -> dict[str, Any]:
    """Train ``NUM_STEPS`` steps; returns whole weights afterwards (rank 0), the reports, and what each rank holds."""
    ds_config = config(stage, world.size, clipping, precision)
    module, objective, teacher = assembled(world, folder, what, kind, ds_config, sharded=sharded, precision=precision)
    engine = start_engine(world, module, ds_config, precision=precision)
    steps, reports = batches(world, kind), []
    for _ in range(NUM_STEPS):
        engine.step(steps, objective)
        reports.append(engine.report(objective))
    held = teacher.num_parameters_held if teacher else 0
    whole = full_state_dict(module, keep=world.is_main)
    engine.engine.save_checkpoint(str(folder / "checkpoint"))
    total = teacher.num_parameters if teacher else 0
    return {"weights": whole, "reports": reports, "teacher_held": held, "teacher_total": total}


def assembled(
    world: World,
    folder: Path,
    what: str,
    kind: str,
    ds_config: dict[str, Any],
    *,
    sharded: bool,
    precision: str,
    **settings: Any,
) -> tuple[Any, Any, FrozenModel | None]:
    """What trains in a stage, its objective (in Stage II with these settings), and the teacher."""
    teacher = None
    if what != "finetune":
        shard = {**frozen_engine_config(ds_config, precision)} if sharded else None
        if shard:
            shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        tapped = load_tapped(folder / "teacher", kind, TEACHER_LAYERS, shard=shard, precision=precision)
        teacher = FrozenModel(tapped, device=world.device, engine_config=shard)
    if what == "filters":
        assert teacher is not None
        module: Any = probes(folder / "teacher", kind, "bert")
        objective: Any = FilterObjective(TASK_TERMS[kind], teacher, TEACHER_LAYERS)
    else:
        layers = STUDENT_LAYERS if what == "distill" else ()
        student = load_tapped(
            folder / "student",
            kind,
            layers,
            shard=ds_config if zero_stage(ds_config) == 3 else None,
            precision=precision,
        )
        module, objective = student, FinetuneObjective(TASK_TERMS[kind])
        if what == "distill":
            assert teacher is not None
            module = FilteredModel(student, student_bank())
            objective = DistillObjective(
                TASK_TERMS[kind],
                distill_plan(**{**WEIGHTS, **settings}),
                teacher=teacher,
                teacher_filters=teacher_bank().to(world.device),
                student_layers=STUDENT_LAYERS,
            )
    return module, objective, teacher
