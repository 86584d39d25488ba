"""Students with adapters, and their own base as teacher: ZeRO 0-3 on one and two ranks against plain peft in fp64."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ted_ds.models.adapters import AdapterSettings, add_adapters
from ted_ds.models.families import family_of
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.base_teacher import BaseTeacher
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import MODEL_TYPE, TOLERANCE, plain_loss
from tests.distributed.training import (
    FILTER_DIM,
    GLOBAL_BATCH,
    HIDDEN,
    NUM_STEPS,
    STUDENT_LAYERS,
    WEIGHTS,
    batches,
    config,
    load_tapped,
    plan,
    samples,
    start_engine,
)
from tests.optional import use_peft
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, distill_plan, write_model

# peft asks transformers for what it calls otherwise by now
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TEACHER_LAYERS = (2, 3)
RANK, ALPHA = 3, 12
TARGETS = {"causal_lm": ["q_proj", "mlp.down_proj"], "sequence_classification": ["query", "output.dense"]}
KINDS = [*TARGETS]
OF_PEFT = "base_model.model."
SAVED_AFTER = 1


def draw(model: nn.Module) -> None:
    """Adapters as after some training: a fresh one gives no gradient to its first map."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.removeprefix(OF_PEFT).encode()))
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 10)


def banks() -> tuple[FilterBank, FilterBank]:
    """The student's filters, and the teacher's."""
    torch.manual_seed(11)
    own, teachers = (FilterBank(layers, HIDDEN, FILTER_DIM) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    return own, teachers.requires_grad_(False)


# --- plain peft, in one process ---------------------------------------------------------------------------------------


def plain_outputs(model: Any, layers: tuple[int, ...], inputs: Mapping[str, torch.Tensor]) -> Any:
    output = model(**inputs, output_hidden_states=True)
    return output.logits, tuple(output.hidden_states[layer] for layer in layers)


def train_plainly(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """What trains, after SGD steps on peft's own model, whose adapters peft switches off for the teacher."""
    use_peft()
    import peft

    tapped = load_tapped(folder, kind, ())
    wrapped = peft.get_peft_model(
        type(tapped.model).from_pretrained(folder),
        peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=TARGETS[kind],
            modules_to_save=None if kind == "causal_lm" else ["classifier"],
        ),
    )
    draw(wrapped)
    model: Any = wrapped.double()
    own, teachers = (bank.double() for bank in banks())

    def teacher(inputs: Mapping[str, torch.Tensor]) -> Any:
        with model.disable_adapter():
            model.eval()
            found = plain_outputs(model, TEACHER_LAYERS, inputs)
            model.train()
        return found

    modules = {
        "teacher": teacher,
        "student": functools.partial(plain_outputs, model, STUDENT_LAYERS),
        "student_bank": own,
        "teacher_bank": teachers,
    }
    everything = samples(kind)
    trained = {
        **{f"tapped.model.{name.removeprefix(OF_PEFT)}": one for name, one in model.named_parameters()},
        **{f"bank.{name}": one for name, one in own.named_parameters()},
    }
    for step in range(NUM_STEPS):
        loss, _ = plain_loss("distill", kind, modules, everything[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH])
        for one in trained.values():
            one.grad = None
        loss.backward()
        with torch.no_grad():
            for one in trained.values():
                if one.grad is not None:
                    one -= plan(0.0).learning_rate * one.grad
    return {name: one.detach() for name, one in trained.items() if one.requires_grad}


# --- on ranks ---------------------------------------------------------------------------------------------------------


class Watched:
    """A teacher, of which each thing it says is held against what a base of its own says."""

    def __init__(self, teacher: BaseTeacher, base: FrozenModel) -> None:
        self._teacher, self._base = teacher, base
        self.num_equal, self.differing = 0, []

    def teach(self, batch: Any, then: Any, *, with_predictions: bool, on_state: Any) -> None:
        expected: dict[Any, torch.Tensor] = {}

        def keep(predictions: Any) -> None:
            expected["predictions"] = getattr(predictions, "hidden", None)
            if expected["predictions"] is None:
                expected["predictions"] = predictions.logits

        def compare(what: Any, found: torch.Tensor) -> None:
            if torch.equal(found, expected[what]):
                self.num_equal += 1
            else:
                self.differing.append(what)

        def state(place: int, found: torch.Tensor) -> None:
            compare(place, found)
            on_state(place, found)

        def last(predictions: Any) -> None:
            compare("predictions", predictions.hidden if hasattr(predictions, "hidden") else predictions.logits)
            then(predictions)

        self._base(batch.inputs, keep, on_state=expected.__setitem__)
        self._teacher.teach(batch, last, with_predictions=with_predictions, on_state=state)


def build(world: Any, folder: Path, kind: str, stage: int) -> tuple[Any, FilteredModel, DistillObjective, Watched]:
    """An engine that trains adapters, what it trains, and for what."""
    ds_config = config(stage, world.size, 0.0)
    loaded = load_tapped(folder, kind, (), shard=ds_config if stage == 3 else None)
    model, family = loaded.model, family_of(MODEL_TYPE[kind])
    add_adapters(model, family, AdapterSettings(RANK, ALPHA, 0.0, TARGETS[kind]), ())
    draw(model)
    student = TappedModel(model, family, STUDENT_LAYERS)
    base = FrozenModel(load_tapped(folder, kind, TEACHER_LAYERS), device=world.device, engine_config=None)
    teacher = Watched(BaseTeacher(TappedModel(model, family, TEACHER_LAYERS)), base)
    own, teachers = banks()
    module = FilteredModel(student, own)
    objective = DistillObjective(
        TASK_TERMS[kind],
        distill_plan(**WEIGHTS),
        teacher=teacher,
        teacher_filters=teachers,
        student_layers=STUDENT_LAYERS,
    )
    return start_engine(world, module, ds_config), module, objective, teacher


def go_on(world: Any, folder: Path, kind: str, stage: int, place: Path) -> dict[str, torch.Tensor]:
    """Whole weights after the steps that are left, from what was saved in ``place`` on all ranks."""
    world.sum_on_host(torch.zeros(1))  # all files are there
    engine, module, objective, _ = build(world, folder, kind, stage)
    engine.load(place)
    steps = batches(world, kind)
    for _ in range(SAVED_AFTER):
        next(steps)
    for _ in range(NUM_STEPS - SAVED_AFTER):
        engine.step(steps, objective)
    again = full_state_dict(module, keep=world.is_main)
    engine.release()
    return again


def train_on_ranks(world: Any, root: Path, cases: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Of each case, whole weights after all steps, and again after going on from a checkpoint; on each rank."""
    use_peft()
    results = {}
    for kind, stage in cases:
        place = root / f"{kind}_{stage}_{world.size}"
        engine, module, objective, teacher = build(world, root / kind, kind, stage)
        steps = batches(world, kind)
        saved: set[str] = set()
        for number in range(NUM_STEPS):
            if number == SAVED_AFTER:
                for file, content in engine.states(place).items():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    torch.save(content, file)
                    saved |= set(content.get("module") or {})
                    saved |= {name for group in content.get("param_shapes") or [] for name in group}
            engine.step(steps, objective)
        trained = {name for name, one in module.named_parameters() if one.requires_grad}
        whole = full_state_dict(module, keep=world.is_main)
        engine.release()
        again = go_on(world, root / kind, kind, stage, place) if world.size > 1 else whole
        results[kind, stage] = {
            "weights": whole,
            "resumed": [name for name in whole if not torch.equal(whole[name], again[name])],
            "saved": saved,
            "trained": trained,
            "taught": (teacher.num_equal, teacher.differing),
        }
    return results


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for kind in KINDS:
        write_model(root / kind, MODEL_TYPE[kind], labels=None if kind == "causal_lm" else LABELS, seed=1)
    return root


@pytest.fixture(scope="module")
def expected(models):
    return {kind: train_plainly(models / kind, kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("world_size", "stages"),
    [
        (2, (0, 3)),
        pytest.param(2, (1, 2), marks=pytest.mark.slow),
        pytest.param(1, (0, 3), marks=pytest.mark.slow),
    ],
    ids=["2", "2-of-others", "1"],
)
def test_every_stage_of_zero_takes_the_steps_of_plain_peft(models, expected, world_size, stages):
    cases = [(kind, stage) for kind in KINDS for stage in stages]
    main, *others = run_ranks(train_on_ranks, world_size, models, cases)
    for kind, stage in cases:
        result, where = main[kind, stage], f"{kind} under ZeRO-{stage}"
        wrong = []
        assert {*expected[kind]} == result["trained"], where
        before = load_tapped(models / kind, kind, ()).model.state_dict()
        for name, got in result["weights"].items():
            if name in expected[kind]:
                wrong += [name] if not torch.allclose(got.double(), expected[kind][name], **TOLERANCE) else []
            else:  # to the bit
                own = name.removeprefix("tapped.model.").replace(".base_layer", "").replace(".original_module", "")
                assert torch.equal(got, before[own]), f"{where}: {name} does not train"
        assert not wrong, where
        assert not result["resumed"], f"{where}: not the same after going on"
        assert result["saved"] == result["trained"], f"{where}: a checkpoint holds what trains"
        for one in (main, *others):  # the teacher is the base to the bit, whatever trains
            num_equal, differing = one[kind, stage]["taught"]
            assert (num_equal > 0, differing) == (True, []), where
