"""Data or numbers that go wrong in the middle of training: all ranks stop, or all skip the step and go on as before."""

from __future__ import annotations

import pytest
import torch

from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.errors import DataError, NumericsError
from ted_ds.models.student import FilteredModel
from ted_ds.numerics.layer_map import layer_names
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.nonfinite import Sighting, explain
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.steps import training_steps
from tests.distributed.training import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    WEIGHTS,
    Recorder,
    config,
    load_tapped,
    start_engine,
    student_bank,
    teacher_bank,
    train_on,
)
from tests.task_kinds import TASK_TERMS
from tests.tiny import VOCAB_SIZE, distill_plan, write_model

BAD_STEP, NUM_STEPS = 2, 3
STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
OFFLOADED = [(2, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]


def write_models(folder):
    write_model(folder / "teacher", "llama", blocks=4, seed=1)
    write_model(folder / "student", "llama", blocks=2, seed=2)


def one_sample(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    return Sample(torch.randint(5, VOCAB_SIZE, (3 + index % 5,), generator=generator).tolist())


def steps_of(world, numbers):
    """Microbatches of the numbered global batches."""
    samples = (one_sample(8 * number + index) for number in numbers for index in range(8))
    collate = Collator(pad_id=0, labels="tokens")
    return training_steps(
        samples, collate, global_batch_size=8, micro_batch_size=2, rank=world.rank, world_size=world.size
    )


class Fault:
    """Breaks one number on rank 1 while it is armed."""

    def __init__(self, what: str, student, objective, rank: int) -> None:
        self.armed = False
        if rank != 1:
            return
        if what in ("output", "gradient"):
            inside = student.model.model.layers[0].mlp
            inside.register_forward_hook(self.break_output if what == "output" else self.break_gradient)
        plain = objective.loss

        def loss(*arguments):
            share, terms = plain(*arguments)
            if self.armed and what == "term":  # not finite, and yet with a finite gradient
                terms["loss/kl_teacher_student"] = terms["loss/kl_teacher_student"] + torch.inf
            return share, terms

        objective.loss = loss

    def break_output(self, _module, _inputs, output):
        return output * (torch.nan if self.armed else 1.0)

    def break_gradient(self, _module, _inputs, output):
        if self.armed and output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.inf)


def start(world, folder, stage, precision, what, *, offload=False):
    ds_config = config(stage, world.size, 1.0, precision)
    if offload:
        ds_config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        ds_config["zero_force_ds_cpu_optimizer"] = False
    teacher = FrozenModel(
        load_tapped(folder / "teacher", "causal_lm", TEACHER_LAYERS, precision=precision),
        device=world.device,
        engine_config=None,
    )
    student = load_tapped(
        folder / "student", "causal_lm", STUDENT_LAYERS, shard=ds_config if stage == 3 else None, precision=precision
    )
    objective = DistillObjective(
        TASK_TERMS["causal_lm"],
        distill_plan(**WEIGHTS),
        teacher=teacher,
        teacher_filters=teacher_bank(),
        student_layers=STUDENT_LAYERS,
    )
    module = FilteredModel(student, student_bank())
    watched = {f"student {name}": layer for name, layer in student.named_layers().items()}
    watched |= dict(zip([f"filter of {n}" for n in layer_names(STUDENT_LAYERS)], module.bank.filters, strict=True))
    fault = Fault(what, student, objective, world.rank)
    return start_engine(world, module, ds_config, precision=precision, watched=watched), objective, fault, module


def train_over_faults(world, folder, stage, precision, offload):
    """Two good steps; and the same two with a bad one between them, for each fault."""
    results = {}
    for what in ("none", *FAULTS):
        numbers = (1, 3) if what == "none" else (1, BAD_STEP, 3)
        engine, objective, fault, module = start(world, folder, stage, precision, what, offload=offload)
        batches, reasons = steps_of(world, numbers), []
        for number in numbers:
            fault.armed = number == BAD_STEP
            skipped = engine.step(batches, objective)
            reasons.append(skipped and skipped.reason)
        report = engine.report(objective)
        results[what] = (full_state_dict(module, keep=True), reasons, report, engine.engine.global_steps)
        engine.release()
    return results


FAULTS = {
    "term": "loss/kl_teacher_student not finite on rank 1; the outputs of all layers are finite",
    "output": "loss/task, loss/kl_teacher_student, loss/feature_mse/layer_01, loss/feature_mse/layer_02 not finite on "
    "rank 1; it begins in the output of student layer_01",
    "gradient": "the gradient is not finite, though the loss is; it begins in what comes back to the output of "
    "student layer_00",
}


@pytest.mark.parametrize(
    ("stage", "precision", "offload"),
    [(*one, False) for one in STAGES]
    + [pytest.param(*one, True, marks=[] if one == (3, "bf16") else pytest.mark.slow) for one in OFFLOADED],
)
def test_a_step_that_went_bad_on_one_rank_leaves_no_trace(tmp_path, stage, precision, offload):
    write_models(tmp_path)
    for of_rank in run_ranks(train_over_faults, 2, tmp_path, stage, precision, offload):
        expected, none, clean, _ = of_rank["none"]
        assert none == [None, None]
        for what, explanation in FAULTS.items():
            weights, reasons, report, num_steps = of_rank[what]
            assert reasons == [None, explanation, None]
            assert (report["train/skipped_steps"], clean["train/skipped_steps"], num_steps) == (1, 0, 3)
            assert all(value == value for value in report.values())
            for name in ("loss/total", "loss/kl_teacher_student", "train/tokens"):
                assert report[name] == clean[name], name
            for name, value in expected.items():
                assert torch.equal(weights[name], value), name


def step_that_ends_empty(world, folder, stage):
    """A term goes bad in a rank's first microbatch, and the last microbatch of every rank keeps nothing."""
    engine, objective, fault, module = start(world, folder, stage, "fp32", "term")
    before = full_state_dict(module, keep=True)
    batches = training_steps(
        iter([one_sample(index) for index in range(2 * world.size)]),
        Collator(pad_id=0, labels="tokens"),
        global_batch_size=8,
        micro_batch_size=2,
        rank=world.rank,
        world_size=world.size,
    )
    fault.armed = True
    skipped = engine.step(batches, objective)
    after = full_state_dict(module, keep=True)
    return skipped, all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_bad_term_is_seen_though_the_last_microbatch_keeps_nothing(tmp_path, stage):
    write_models(tmp_path)
    for skipped, unmoved in run_ranks(step_that_ends_empty, 2, tmp_path, stage):
        assert skipped is not None
        assert skipped.reason.startswith("loss/kl_teacher_student not finite on rank 1")
        assert unmoved


def train_and_end_in_skips(world, folder, good_steps):
    engine, objective, fault, _ = start(world, folder, 2, "fp32", "output")

    def batches():
        for number, step in enumerate(steps_of(world, range(1, 5)), start=1):
            fault.armed = number > good_steps
            yield step

    recorder = Recorder(engine, folder / "last_good")
    try:
        train_on(engine, batches(), objective, recorder, max_steps=4, max_consecutive_skips=9)
    except NumericsError as error:
        return str(error)
    return None


def test_a_phase_without_any_step_taken_is_no_success(tmp_path):
    write_models(tmp_path)
    assert run_ranks(train_and_end_in_skips, 2, tmp_path, 2) == [None, None]
    for text in run_ranks(train_and_end_in_skips, 2, tmp_path, 0):
        assert text.startswith("skipped 4 steps in a row; step 4: loss/task")


def test_a_loss_scale_on_its_way_down_is_no_bad_step():
    fine = Sighting([], [], ["student layer_01"])
    assert explain([fine, fine], fp16=True).is_scale_search
    assert not explain([fine, fine], fp16=False).is_scale_search
    assert not explain([fine, Sighting(["loss/task"], [], [])], fp16=True).is_scale_search


def train_until_it_stops(world, folder, stage, max_skips, broken_weights):
    """The training loop with every step bad from ``BAD_STEP`` on."""
    engine, objective, fault, module = start(world, folder, stage, "fp32", "output")

    def batches():
        for number, step in enumerate(steps_of(world, range(1, 20)), start=1):
            fault.armed = number >= BAD_STEP
            yield step

    recorder = Recorder(engine, folder / "last_good")
    good = None
    if broken_weights:
        with torch.no_grad():
            for parameter in module.bank.parameters():
                getattr(parameter, "ds_tensor", parameter).fill_(torch.nan)
    try:
        train_on(engine, batches(), objective, recorder, max_steps=20, max_consecutive_skips=max_skips)
    except NumericsError as error:
        good = full_state_dict(module, keep=True)
        reports = [(step, values["train/skipped_steps"]) for step, values in recorder.reports]
        return str(error), error.agreed, reports, recorder.said, good
    return None


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_too_many_in_a_row_stop_every_rank_and_leave_the_last_good_state(tmp_path, stage):
    write_models(tmp_path)
    for text, agreed, reports, said, weights in run_ranks(train_until_it_stops, 2, tmp_path, stage, 2, False):
        assert agreed
        assert text.startswith("skipped 3 steps in a row; step 4: loss/task, loss/kl_teacher_student")
        assert f"the state after step 1, the last that was taken, is in {tmp_path / 'last_good'}" in text
        assert reports == [(1, 0), (2, 1), (3, 2)]
        assert [line.split(":")[0] for line in said] == [f"  step {1 + n} skipped, {n} in a row" for n in (1, 2, 3)]
        assert all(bool(value.isfinite().all()) for value in weights.values())
    saved = run_ranks(load_last_good, 2, tmp_path, stage)
    for name, value in weights.items():
        torch.testing.assert_close(saved[0][name], value, rtol=0, atol=0)


def load_last_good(world, folder, stage):
    engine, _, _, module = start(world, folder, stage, "fp32", "none")
    engine.load(folder / "last_good")
    return full_state_dict(module, keep=True)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_not_finite_are_said_and_not_saved(tmp_path, stage):
    write_models(tmp_path)
    for text, *_ in run_ranks(train_until_it_stops, 2, tmp_path, stage, 0, True):
        assert "the weights themselves are not finite and were not saved" in text
        assert "it begins in the output of filter of layer_01" in text
    assert not (tmp_path / "last_good").exists()


def train_on_bad_data(world, folder, stage):
    engine, objective, _, _ = start(world, folder, stage, "fp32", "none")

    def batches():
        yield from [next(steps_of(world, [1]))]
        if world.rank == 1:
            raise DataError("corpus.jsonl: row 7: no value in column 'text'")
        yield next(steps_of(world, [2]))

    steps = batches()
    engine.step(steps, objective)
    try:
        engine.step(steps, objective)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_bad_row_on_one_rank_ends_all(tmp_path, stage):
    write_models(tmp_path)
    text = "rank 1: corpus.jsonl: row 7: no value in column 'text'"
    assert run_ranks(train_on_bad_data, 2, tmp_path, stage) == [text] * 2
