"""Encoder-decoders on ranks: steps of SGD against transformers' own forward in fp64, and a whole run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.models.files import read_model_facts
from ted_ds.models.readers import seq2seq_probes
from ted_ds.models.student import FilteredModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.learn_filters import FilterObjective
from ted_ds.planning.phase import PHASES
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.runtime.sharding import full_state_dict
from ted_ds.verbs.run import run_phases
from tests.dist import run_ranks
from tests.distributed.steps import training_steps
from tests.distributed.training import FILTER_DIM, HIDDEN, WEIGHTS, config, load_tapped, start_engine
from tests.plain import probe_logits
from tests.task_kinds import TASK_TERMS
from tests.tiny import ROOT, VOCAB_SIZE, distill_plan, write_model, write_run

KIND = "seq2seq"
STAGES = (0, 3)
"""Of ZeRO: gradients under all of them, and on any ranks, are those of one process in ``test_matrix.py``."""
TYPES = ("t5", "bart")
STUDENT_LAYERS = ("encoder.1", "encoder.2", "decoder.1")
TEACHER_LAYERS = ("encoder.2", "encoder.3", "decoder.2")
SIZES = ((7, 3), (2, 9), (5, 5), (1, 1), (11, 2), (4, 7), (6, 4), (3, 8))
"""Tokens of each source and its target."""
# after a step of SGD at a rate of 0.2 in fp32, of weights of size ~1
TOLERANCE = {"rtol": 1e-4, "atol": 5e-6}


def samples():
    generator = torch.Generator().manual_seed(5)

    def ids(length):
        return torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()

    return [Sample(ids(source), ids(target)) for source, target in SIZES]


def bank(layers, seed):
    torch.manual_seed(seed)
    return FilterBank(layers, HIDDEN, FILTER_DIM)


def make_probes(folder):
    torch.manual_seed(13)
    own = bank(TEACHER_LAYERS, 13)
    return seq2seq_probes(own, dim=FILTER_DIM, model_path=folder, kind="frozen", dtype=torch.float32)


def take_a_step(world, folder, what, stage, micro_batch_size):
    ds_config = config(stage, world.size, 0.0)
    shard = None
    if stage == 3:
        shard = {**frozen_engine_config(ds_config, "fp32")}
        shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    teacher = FrozenModel(
        load_tapped(folder / "teacher", KIND, TEACHER_LAYERS, shard=shard), device=world.device, engine_config=shard
    )
    if what == "filters":
        module: Any = make_probes(folder / "teacher")
        objective: Any = FilterObjective(TASK_TERMS[KIND], teacher, TEACHER_LAYERS)
    else:
        student = load_tapped(folder / "student", KIND, STUDENT_LAYERS, shard=ds_config if stage == 3 else None)
        module = FilteredModel(student, bank(STUDENT_LAYERS, 11))
        objective = DistillObjective(
            TASK_TERMS[KIND],
            distill_plan(**WEIGHTS),
            teacher=teacher,
            teacher_filters=bank(TEACHER_LAYERS, 12).requires_grad_(False),
            student_layers=STUDENT_LAYERS,
        )
    engine = start_engine(world, module, ds_config)
    steps = training_steps(
        iter(samples()),
        Collator(0, "targets", multiple_of=stage + 1),
        global_batch_size=len(SIZES),
        micro_batch_size=micro_batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    engine.step(steps, objective)
    found = engine.report(objective), full_state_dict(module, keep=world.is_main)
    engine.release()
    teacher.release()
    return found


def take_steps(world, folder):
    found = {}
    for model_type in TYPES:
        for stage in STAGES:
            for what in ("distill", *(["filters"] if model_type == "t5" else [])):
                micro = 2 if stage % 2 else 4 // world.size
                found[model_type, what, stage] = take_a_step(world, folder / model_type, what, stage, micro)
    return found


def states_of(model, given, layers):
    """Transformers' logits, and the states of layers below the last blocks."""
    output = model(
        input_ids=given.input_ids,
        attention_mask=given.attention_mask,
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(given.labels),
        output_hidden_states=True,
        use_cache=False,
    )
    names = [layer.split(".") for layer in layers]
    return output.logits, [getattr(output, f"{stack}_hidden_states")[int(number)] for stack, number in names]


def plain_step(folder, what):
    """The same step by the formulas on the whole batch at once."""
    given = Collator(0, "targets")(samples())
    teacher = AutoModelForSeq2SeqLM.from_pretrained(folder / "teacher").double().eval()
    kept = given.kept_targets
    with torch.no_grad():
        teacher_logits, teacher_states = states_of(teacher, given, TEACHER_LAYERS)
    if what == "filters":
        probes = make_probes(folder / "teacher").double()
        outputs = probe_logits(probes, teacher_states, given.inputs)
        losses = [F.cross_entropy(one[kept].double(), given.labels[kept]) for one in outputs]
        loss, trained = sum(losses) / len(losses), dict(probes.named_parameters())
        names = [f"loss/task/{layer.replace('.', '_0')}" for layer in TEACHER_LAYERS]
        terms = dict(zip(names, losses, strict=True))
    else:
        student = AutoModelForSeq2SeqLM.from_pretrained(folder / "student").double().train()
        own, others = bank(STUDENT_LAYERS, 11).double(), bank(TEACHER_LAYERS, 12).double()
        logits, states = states_of(student, given, STUDENT_LAYERS)
        terms = {"loss/task": F.cross_entropy(logits[kept], given.labels[kept])}
        softened = [F.log_softmax(one[kept] / WEIGHTS["temperature"], -1) for one in (logits, teacher_logits)]
        terms["loss/kl_teacher_student"] = F.kl_div(*softened, reduction="batchmean", log_target=True)
        mse = []
        for place, layer in enumerate(STUDENT_LAYERS):
            rows = given.kept_tokens if layer.startswith("encoder") else kept
            (one, other) = (
                bank_.filters[place](of[place][rows]) for bank_, of in ((own, states), (others, teacher_states))
            )
            mse.append(F.mse_loss(one, other.detach()))
            terms[f"loss/feature_mse/{layer.replace('.', '_0')}"] = mse[-1]
        loss = WEIGHTS["task_weight"] * terms["loss/task"]
        loss = loss + WEIGHTS["kl_weight"] * WEIGHTS["temperature"] ** 2 * terms["loss/kl_teacher_student"]
        loss = loss + WEIGHTS["feature_weight"] * sum(mse) / len(mse)
        trained = {f"tapped.model.{name}": one for name, one in student.named_parameters()}
        trained |= {f"bank.{name}": one for name, one in own.named_parameters()}
    loss.backward()
    rate = 0.2
    after = {name: (one - rate * one.grad if one.grad is not None else one).detach() for name, one in trained.items()}
    return {name: term.item() for name, term in terms.items()} | {"loss/total": loss.item()}, after


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_whole_and_sharded_they_take_the_step_of_transformers_own_forward(tmp_path, world_size):
    for model_type in TYPES:
        write_model(tmp_path / model_type / "teacher", model_type, blocks=4, seed=1)
        write_model(tmp_path / model_type / "student", model_type, blocks=3, seed=2)
    main, *_ = run_ranks(take_steps, world_size, tmp_path)
    for (model_type, what, stage), (report, weights) in main.items():
        terms, after = plain_step(tmp_path / model_type, what)
        where = f"{model_type} {what} stage {stage}"
        for name, value in terms.items():
            assert report[name] == pytest.approx(value, rel=2e-5, abs=5e-7), f"{where}: {name}"
        assert after.keys() <= weights.keys(), where
        for name in after:
            torch.testing.assert_close(
                weights[name].double(),
                after[name],
                **TOLERANCE,
                msg=lambda text, n=name, w=where: f"{w} {n}: {text}",
            )


def run(_world, recipe, overrides):
    run_phases(recipe, overrides, PHASES)


@pytest.mark.parametrize("model_type", [pytest.param("t5", marks=pytest.mark.slow), "bart"])
def test_a_run_of_an_encoder_decoder_in_shards_ends_in_a_plain_model(tmp_path, model_type):
    recipe = write_run(tmp_path, kind=KIND, family=model_type)
    bias = torch.linspace(-1, 1, VOCAB_SIZE)
    if model_type == "bart":
        file = tmp_path / "teacher" / "model.safetensors"
        save_file({**load_file(file), "final_logits_bias": bias[None]}, file, metadata={"format": "pt"})
    zero3 = ROOT / "ds_configs" / "deepspeed" / "zero3.json"
    run_ranks(run, 2, str(recipe), [f"deepspeed={zero3}"])
    results = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert {"perplexity", "token_accuracy", "loss"} <= results["student after"].keys()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_distill = next(one for one in lines if one["phase"] == "distill")
    stacks = {name.split("/")[-1] for name in of_distill if name.startswith("loss/feature_mse/")}
    assert stacks == {"encoder_01", "encoder_02", "decoder_01", "decoder_02"}
    export = tmp_path / "run" / "export"
    model, report = AutoModelForSeq2SeqLM.from_pretrained(export, output_loading_info=True)
    assert read_model_facts(export).blocks_of_stacks == {"encoder": 2, "decoder": 2}
    if model_type == "bart":
        assert torch.equal(model.final_logits_bias[0], bias), "it goes along, though it does not train"
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    distilled = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "distill" / "model")
    inputs = AutoTokenizer.from_pretrained(export)("ba be bi", return_tensors="pt", return_token_type_ids=False)
    start = torch.tensor([[0, 7, 8]])
    with torch.no_grad():
        logits = [one.eval()(**inputs, decoder_input_ids=start).logits for one in (model, distilled)]
    assert torch.equal(*logits)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1
