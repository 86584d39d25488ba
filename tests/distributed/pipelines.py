"""Phases of tiny runs, a few SGD steps each: on a pipeline, under ZeRO, and by formulas in one fp64 process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.utils import safe_get_full_grad
from torch.nn import functional as F

from ted_ds.assembly.shared_prefix import share_prefix
from ted_ds.assembly.stages import build_stage_one, build_stage_two
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.numerics.divergences import make_divergence
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.planning.phase import phase_named
from ted_ds.runtime.checkpoints.engine_state import STAND_IN
from ted_ds.runtime.checkpoints.resharding import own_name
from ted_ds.runtime.outputs import engine_outputs
from ted_ds.runtime.preemption import StopRequests
from ted_ds.runtime.step_runner import StepRunner
from ted_ds.verbs.prepare import prepare as prepare_run
from tests.plain import plain_cka, plain_divergence, probe_logits
from tests.tiny import (
    ARCHITECTURES,
    LABELS,
    OF_TEXTS,
    ROOT,
    recipe_dict,
    write_chats,
    write_corpus,
    write_labelled,
    write_model,
    write_pairs,
    write_recipe,
)

NUM_STEPS = 5
MAPS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "distilgpt2": {"kind": "distilgpt2"},
    "last": {"kind": "last"},
    # embeddings, a teacher layer that two student layers share, and student layers without a partner
    "explicit": {"kind": "explicit", "pairs": [[0, 0], [1, 3], [2, 3], [4, 7]]},
}
FAMILIES = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "sequence_classification"}
FAMILIES |= {"deberta-v2": "sequence_classification", "mistral": "question_answering"}
WITH_PAIRS: dict[str, dict[str, Any]] = {"deberta-v2": {"type_vocab_size": 2}}
"""Families whose texts come in pairs, and what models need that tell their tokens apart."""
FAMILIES["llama-chat"] = "chat"
OF_TEACHERS = {"llama-cut": "causal_lm", "bert-cut": "sequence_classification"}
"""Families of a student that is made of its teacher's blocks."""
CUT = [0, 1, 2, 5]
"""Which."""
OTHER_DECODERS = ("granite", "gemma2", "opt", "mixtral")
"""Which differ in what is between embeddings, blocks and logits; not all of them is known to fp64."""


class Layout(NamedTuple):
    stages: int
    replicas: int
    zero: int


PLAIN = Layout(1, 1, 0)


class Case(NamedTuple):
    family: str
    layer_map: str
    phase: str
    clipping: float
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.family, self.layer_map, self.phase, f"clip{self.clipping:g}", *self.changes])


class Trained(NamedTuple):
    """What rank 0 knows of a case, but for gradients: each rank has its own."""

    reports: list[dict[str, float]]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    scores: list[dict[str, float]]


def write_pair(folder: Path, family: str) -> None:
    """A teacher of 8 blocks, a narrower student of 4, data and a recipe in ``folder``."""
    kind = {**FAMILIES, **OF_TEACHERS}.get(family, "causal_lm")
    labels = LABELS if kind in ("sequence_classification", "question_answering") else None
    folder.mkdir(parents=True)
    types, model_type = {**WITH_PAIRS.get(family, {})}, family.removesuffix("-chat").removesuffix("-cut")
    is_cut = family in OF_TEACHERS
    types |= {"architecture": ARCHITECTURES.get(kind, OF_TEXTS)} if labels else {}
    tied = {"tie_word_embeddings": True} if model_type == "llama" else {}
    of_teacher = tied if is_cut else {}
    write_model(folder / "teacher", model_type, blocks=8, hidden=24, labels=labels, seed=1, **of_teacher, **types)
    if is_cut:
        origins = Origins(folder / "teacher", None)
        cut(folder / "teacher", folder / "student", blocks=CUT, family=family_of(model_type), origins=origins)
    else:
        write_model(folder / "student", model_type, blocks=4, hidden=16, labels=labels, seed=2, **tied, **types)
    if kind == "causal_lm":
        write_corpus(folder / "train.jsonl", 200)
    elif kind == "chat":
        write_chats(folder / "train.jsonl", 120)
    elif family in WITH_PAIRS:
        write_pairs(folder / "train.jsonl", 120)
    else:
        write_labelled(folder / "train.jsonl", 120, kind=kind)
    for stage in (0, 1):
        config = json.loads((ROOT / "ds_configs" / "deepspeed" / f"zero{stage}.json").read_text())
        # Adam would hide a wrong scale of the gradient
        config |= {"optimizer": {"type": "SGD", "params": {"lr": "auto"}}, "zero_allow_untested_optimizer": True}
        (folder / f"zero{stage}.json").write_text(json.dumps(config))
    for name, layer_map in MAPS.items():
        recipe = recipe_dict(folder, kind=kind, steps=NUM_STEPS) | {"layer_map": layer_map}
        student = {"from_teacher": {"blocks": CUT}} if is_cut else {"path": str(folder / "student")}
        recipe |= {"student": {**student, "finetune": recipe["filters"]["teacher"]}}
        recipe["filters"]["dim"] = 12
        if kind == "causal_lm":
            recipe["task"] |= {"packing": {"isolate_documents": False}}
        if family in WITH_PAIRS:
            recipe["task"] |= {"text_column": ["first", "second"]}
        plans = (recipe["distill"], *(recipe["filters"][side] for side in ("teacher", "student")))
        for plan in (*plans, recipe["student"]["finetune"]):
            plan |= {"global_batch_size": 8, "micro_batch_size": 2, "learning_rate": 0.2, "schedule": "constant"}
        recipe["distill"] |= {"task_weight": 0.7, "kl_weight": 1.3, "temperature": 2.0, "feature_weight": 3.0}
        write_recipe(folder / f"{name}.yaml", recipe)
        filters = {"dim": 12, "both": recipe["filters"]["teacher"]}
        write_recipe(folder / f"{name}-both.yaml", recipe | {"filters": filters})


def open_case(folder: Path, case: Case, layout: Layout) -> Any:
    """The assembly of a case."""
    in_one_pass = case.phase == "filters_both"
    of_filters = ["filters.both"] if in_one_pass else ["filters.teacher", "filters.student"]
    plans = ["distill", *of_filters, "student.finetune"]
    overrides = [
        f"deepspeed={folder / case.family / f'zero{layout.zero}.json'}",
        f"pipeline.stages={layout.stages}",
        *(f"{plan}.gradient_clipping={case.clipping}" for plan in plans),
        *case.changes,
    ]
    recipe = folder / case.family / f"{case.layer_map}{'-both' if in_one_pass else ''}.yaml"
    build, _ = prepare_run(str(recipe), overrides, contracts_hold=True, stops=StopRequests())
    return build


def models_of(folder: Path, case: Case) -> dict[str, Path]:
    return {side: folder / case.family / side for side in ("teacher", "student")}


def train(_world: Any, folder: Path, layout: Layout, cases: list[Case]) -> list[Trained]:
    """Train each case for a few steps."""
    return [train_one(open_case(folder, case, layout), models_of(folder, case), case) for case in cases]


class Prepared(NamedTuple):
    """What a case trains, and how."""

    module: Any
    objective: Any
    passing: dict[str, Any]
    """The models of ``build.engine``."""
    plan: Any
    config: dict[str, Any]
    watched: dict[str, Any]
    outputs: Any
    """What to score while an engine trains it."""


def prepare(build: Any, models: dict[str, Path], case: Case) -> Prepared:
    plan_path = phase_named(case.phase).plan_path
    plan = build.recipe.phase_plans()[plan_path]
    config = build.engine_config(plan, plan_path)
    if case.phase == "distill":
        stage: Any = build_stage_two(build, config, **models, filters={"teacher": None, "student": None})
        share_prefix(build, stage)
        passing = {"trained": stage.student, "frozen": {"teacher": stage.teacher}}
        return Prepared(stage.module, stage.objective, passing, plan, config, stage.watched, engine_outputs)
    if case.phase == "finetune_student":
        module = build.models.trained("student", models["student"], config, stage=build.stage(case.phase))
        return Prepared(
            module, FinetuneObjective(build.training_terms), {"trained": module}, plan, config, {}, engine_outputs
        )
    stage = build_stage_one(build, case.phase, models)
    bodies = {side: one.body for side, one in stage.sides.items()}
    for body in bodies.values():
        build.models.drop_beyond_taps(body)
    return Prepared(stage.module, stage.objective, {"frozen": bodies}, plan, config, stage.watched, stage.outputs)


def open_engine(build: Any, case: Case, prepared: Prepared) -> Any:
    return build.engine(
        case.phase,
        prepared.module,
        prepared.config,
        prepared.plan,
        watched=prepared.watched,
        **prepared.passing,
    )


def train_one(build: Any, models: dict[str, Path], case: Case) -> Trained:
    prepared = prepare(build, models, case)
    objective = prepared.objective
    reports, gradients = [], {}
    with open_engine(build, case, prepared) as engine:
        record_first_gradients(engine, gradients)
        steps = build.training_batches(prepared.plan, num_workers=0)
        for _ in range(NUM_STEPS):
            assert engine.step(steps, objective) is None
            reports.append(engine.report(objective))
        scores, _ = build.evaluate(prepared.outputs(engine), in_pipeline=True)
        weights = build.models.whole_state(prepared.module)
    return Trained(reports, gradients, weights, scores)


def saved_weights(_world: Any, folder: Path, layout: Layout, case: Case) -> tuple[set[str], set[str]]:
    """The weights this rank would write into a checkpoint, and those it trains."""
    build = open_case(folder, case, layout)
    prepared = prepare(build, models_of(folder, case), case)
    with open_engine(build, case, prepared) as engine:
        states = engine.states(folder)
        trained = {name for group in engine._trained_names for name in group if not name.startswith(STAND_IN)}
    found: set[str] = set()
    for file, content in states.items():
        weights = content if file.name.startswith("layer_") else content.get("module")
        found |= {own_name(name) for name in weights or ()}
    return {name for name in found if "stand_ins" not in name}, trained


def record_first_gradients(engine: StepRunner, found: dict[str, torch.Tensor]) -> None:
    """Keep what the optimizer is given in the first step, before it is clipped."""
    optimizer = engine.engine.optimizer
    plain_step = optimizer.step

    def step(*arguments: Any, **more: Any) -> Any:
        for parameter in engine.engine.module.parameters():
            name = engine._names[id(parameter)]
            if parameter.requires_grad and name not in found:
                gradient = safe_get_full_grad(parameter)
                assert gradient is not None, name
                found[name] = gradient.detach().float().reshape(parameter.shape).clone()
        return plain_step(*arguments, **more)

    optimizer.step = step


# --- by formulas --------------------------------------------------------------------------------------------------


def plain_train(_world: Any, folder: Path, cases: list[Case]) -> list[Trained]:
    """The same in fp64, from the formulas, with torch's own losses, whole batches, and SGD written out."""
    return [_plain_one(open_case(folder, case, PLAIN), models_of(folder, case), case) for case in cases]


def _plain_one(build: Any, models: dict[str, Path], case: Case) -> Trained:
    recipe, plan = build.recipe, build.recipe.distill
    stage = build_stage_two(build, build.engine_config(plan, "distill"), **models, filters=dict.fromkeys(models))
    student, bank = stage.student.double(), stage.bank.double()
    teacher, teacher_bank = stage.teacher.tapped.double(), stage.teacher_filters.double()
    trained = {f"tapped.{name}": one for name, one in student.named_parameters()}
    trained |= {f"bank.{name}": one for name, one in bank.named_parameters()}
    if case.phase != "distill":
        one = build_stage_one(build, case.phase, models)
        bodies = {side: probed.body.tapped.double() for side, probed in one.sides.items()}
        trained = {name: p for name, p in one.module.double().named_parameters() if p.requires_grad}
    reports, gradients = [], {}
    steps = build.training_batches(plan, num_workers=0)
    for _ in range(NUM_STEPS):
        batches = list(next(steps))
        inputs, labels, predicted, matched, allowed = _joined(batches)
        counted = labels != -100
        if case.phase == "distill":
            logits, states = student(inputs)
            with torch.no_grad():
                theirs, teacher_states = teacher(inputs)
            if allowed is not None:
                logits, theirs = (torch.where(allowed[:, None], one, -1e6) for one in (logits, theirs))
            features = list(zip(bank(states), teacher_bank(teacher_states), strict=True))
            apart = [_apart(own, other, matched, plan.feature_distance) for own, other in features]
            given = getattr(recipe.task, "class_weights", None)
            weights = None if given is None else torch.tensor(given, dtype=torch.float64)
            smoothing = getattr(recipe.task, "label_smoothing", None) or 0.0
            summed: dict[str, Any] = {"weight": weights, "label_smoothing": smoothing, "reduction": "sum"}
            task = F.cross_entropy(logits[counted], labels[counted], **summed) / counted.sum()
            heat = plan.temperature
            softened = [one[predicted] / heat for one in (theirs, logits)]
            prediction = plain_divergence(plan.divergence, plan.divergence_parameter, *softened).mean()
            loss = plan.task_weight * task + plan.kl_weight * heat**2 * prediction
            loss = loss + plan.feature_weight * sum(apart) / len(apart)
            name = make_divergence(plan.divergence, plan.divergence_parameter).name
            report = {"loss/task": task, f"loss/{name}": prediction}
            report[f"loss/feature_{plan.feature_distance}"] = sum(apart) / len(apart)
        else:
            loss = torch.zeros((), dtype=torch.float64)
            for side, body in bodies.items():
                with torch.no_grad():
                    _, states = body(inputs)
                of_filters = probe_logits(one.sides[side].probes, states, inputs)
                if allowed is not None:
                    of_filters = [torch.where(allowed[:, None], logits, -1e6) for logits in of_filters]
                losses = [F.cross_entropy(logits[counted], labels[counted]) for logits in of_filters]
                loss = loss + sum(losses) / len(losses)
            report = {"loss/total": loss}
        loss.backward()
        report["loss/total"] = loss
        reports.append({name: value.item() for name, value in report.items()})
        norm = torch.stack([p.grad.square().sum() for p in trained.values() if p.grad is not None]).sum().sqrt()
        factor = min(1.0, case.clipping / float(norm)) if case.clipping else 1.0
        for name, parameter in trained.items():
            if parameter.grad is None:
                continue
            gradients.setdefault(name, parameter.grad.clone())
            parameter.data -= recipe.distill.learning_rate * factor * parameter.grad
            parameter.grad = None
    weights = {name: parameter.detach() for name, parameter in trained.items()}
    return Trained(reports, gradients, weights, [])


Joined = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def _joined(batches: list[Any]) -> Joined:
    """Microbatches of one step as one, padded on the right to one length.

    Behind the labels: where it is predicted, where it is matched, and where labels may stand, if anywhere.
    """
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def padded(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return F.pad(tensor, (0, longest - tensor.shape[1]), value=value) if tensor.dim() == 2 else tensor

    ids = torch.cat([padded(batch.input_ids, 0) for batch in batches])
    mask = torch.cat([padded(batch.attention_mask, 0) for batch in batches])
    are_positions = batches[0].candidates is not None
    labels = torch.cat([batch.labels if are_positions else padded(batch.labels, -100) for batch in batches])
    allowed = torch.cat([padded(batch.candidates, 0) for batch in batches]) if are_positions else None
    matched = torch.cat([padded(batch.matched_tokens.long(), 0) for batch in batches]).bool()
    predicted = labels != -100
    if batches[0].predicted is not None:
        predicted = torch.cat([padded(batch.predicted.long(), 0) for batch in batches]).bool()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if batches[0].token_type_ids is not None:
        inputs["token_type_ids"] = torch.cat([padded(batch.token_type_ids, 0) for batch in batches])
    return inputs, labels, predicted, matched, allowed


# --- numbers that go wrong ----------------------------------------------------------------------------------------


def train_with_a_bad_step(world: Any, folder: Path, layout: Layout, case: Case, what: str, bad_rank: int) -> Any:
    """Three steps, the second with a bad number on one rank; why it was skipped, and weights around it."""
    build = open_case(folder, case, layout)
    prepared = prepare(build, models_of(folder, case), case)
    armed = [False]
    objective, bad_here = prepared.objective, world.rank == bad_rank
    plain_loss = objective.loss

    def loss(forward: Any, batch: Any, counts: Any) -> Any:
        value, totals = plain_loss(forward, batch, counts)
        if not (armed[0] and bad_here):
            return value, totals
        if what == "loss":  # its gradient is finite
            name = next(iter(totals))
            return value + torch.full_like(value, torch.inf).detach(), {**totals, name: totals[name] + torch.inf}
        return value + (value - value.detach()).abs().sqrt(), totals  # 0, and its gradient is not finite

    objective.loss = loss  # type: ignore[method-assign]
    skipped, weights = [], []
    with open_engine(build, case, prepared) as engine:
        steps = build.training_batches(prepared.plan, num_workers=0)
        for step in range(3):
            armed[0] = step == 1
            skipped.append(engine.step(steps, objective))
            weights.append(build.models.whole_state(prepared.module))
        report = engine.report(objective)
    return skipped, weights, report


def _apart(own, other, matched, distance):
    """Of rows of which each is one text, at the tokens that are matched."""
    if distance == "cka":
        return sum(plain_cka(*of_text) for of_text in _by_text(own, other, matched)) / matched.sum()
    if distance == "cosine":
        return (1 - (own * other).sum(-1) / (own.norm(dim=-1) * other.norm(dim=-1)))[matched].mean()
    return (own - other).square().mean(-1)[matched].mean()


def _by_text(own, other, matched):
    return ((mine[kept], theirs[kept]) for mine, theirs, kept in zip(own, other, matched, strict=True))
