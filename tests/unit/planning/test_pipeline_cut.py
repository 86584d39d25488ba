"""Where models are cut into pipeline stages: against every possible cut, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ted_ds.config.deepspeed import read_deepspeed_json
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.models.files import read_model_facts
from ted_ds.models.parameters import Parameters
from ted_ds.models.share import Share
from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.phase import phase_named
from ted_ds.planning.pipeline_cut import operations_per_token, plan_stages
from ted_ds.planning.stage_memory import bubble, sent_bytes, stage_needs
from tests.task_kinds import make_plan
from tests.tiny import ROOT, write_run

# blocks, width, vocabulary, parameters in a block's matrices
GPT2, DISTILGPT2 = (12, 768, 50257, 12 * 768**2), (6, 768, 50257, 12 * 768**2)
SMOLLM2, SMALLER = (30, 576, 49152, 3_540_000), (10, 576, 49152, 3_540_000)
FILTERS_BOTH = "filters={both: {max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def facts_like(recipe, blocks, width, vocab, matrices):
    tiny = read_model_facts(recipe.parent / "teacher")
    parameters = Parameters(tuple(((matrices // width, width),) for _ in range(blocks)), vocab * width, 0, ((width,),))
    return dataclasses.replace(
        tiny, num_blocks=blocks, hidden_size=width, vocab_size=vocab, max_positions=1024, parameters=parameters
    )


def cut(recipe, student, teacher, pairs, stages, *overrides, phase="distill"):
    loaded = load_recipe(recipe, [f"pipeline.stages={stages}", "task.sequence_length=1024", *overrides])
    facts = {"student": facts_like(recipe, *student), "teacher": facts_like(recipe, *teacher)}
    return plan_stages(loaded, facts, pairs, teacher[1])[phase]


def test_a_token_costs_the_experts_that_it_goes_through(run):
    recipe = load_recipe(run, ["distill.method=sft", "distill.feature_weight=0", "distill.kl_weight=0"])
    dense = facts_like(run, 4, 16, 100, 1600)
    experts = dataclasses.replace(
        dense.parameters, of_blocks=tuple((*one, (8, 32, 16)) for one in dense.parameters.of_blocks)
    )
    moe = dataclasses.replace(dense, parameters=experts, num_experts=8, num_chosen_experts=2)
    assert moe.parameters.total - dense.parameters.total == 4 * 8 * 32 * 16
    phase = phase_named("distill")
    costs = [operations_per_token(recipe, {"student": one, "teacher": one}, (), 16, phase) for one in (dense, moe)]
    assert costs[1] - costs[0] == 3 * 2.0 * 4 * 2 * 32 * 16  # forward once, backward twice


def uniform(student, teacher):
    return tuple((k, k * teacher // student) for k in range(1, student + 1))


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [(DISTILGPT2, GPT2, uniform(6, 12)), (SMALLER, SMOLLM2, uniform(10, 30))],
    ids=["gpt2-12-6", "smollm2-30-10"],
)
def test_two_stages_of_known_pairs_are_balanced(run, student, teacher, pairs):
    costs = [stage.cost for stage in cut(run, student, teacher, pairs, 2)]
    assert max(costs) <= 1.1 * sum(costs) / 2


@pytest.mark.parametrize("kl_weight", [0, 1])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_no_other_cut_has_a_faster_slowest_stage(run, num_stages, kl_weight):
    student, teacher = (5, 16, 100, 2048), (8, 24, 100, 9000)
    pairs = ((0, 0), (1, 3), (2, 3), (5, 6))
    chosen = cut(run, student, teacher, pairs, num_stages, f"distill.kl_weight={kl_weight}")
    found = max(stage.cost for stage in chosen)
    # costs of one block, pair and head, out of the plan itself: a single stage less has them all
    block, theirs, pair, head = costs_of(run, student, teacher, kl_weight)
    last = 8 if kl_weight else 6
    best = float("inf")
    for own in itertools.combinations_with_replacement(range(1, 6), num_stages - 1):
        if len(set(own)) < len(own):
            continue
        for other in itertools.combinations_with_replacement(range(last + 1), num_stages - 1):
            borders = [(0, 0), *zip(own, other, strict=True), (5, last)]
            if any((s <= b) != (t <= c) and not (s > b and t == c) for b, c in borders[1:-1] for s, t in pairs):
                continue
            slowest = 0.0
            for (b0, c0), (b1, c1) in itertools.pairwise(borders):
                here = sum(b0 < s <= b1 or (s == 0 == b0) for s, _ in pairs)
                slowest = max(
                    slowest, (b1 - b0) * block + (c1 - c0) * theirs + here * pair + ((b1, c1) == (5, last)) * head
                )
            best = min(best, slowest)
    assert found == pytest.approx(best)


def costs_of(run, student, teacher, kl_weight):
    attention = [2 * 1024 * width for width in (student[1], teacher[1])]
    block, theirs = 3 * 2 * (student[3] + attention[0]), 2 * (teacher[3] + attention[1])
    pair = 3 * 2 * student[1] * teacher[1] + 2 * teacher[1] * teacher[1]
    head = 3 * 2 * student[1] * student[2] + (2 * teacher[1] * teacher[2] if kl_weight else 0)
    return block, theirs, pair, head


def test_stages_hold_everything_once_and_both_layers_of_each_pair(run):
    student, teacher = (5, 16, 100, 2048), (8, 24, 100, 9000)
    pairs = ((0, 0), (1, 3), (2, 3), (5, 6))
    stages = cut(run, student, teacher, pairs, 3)
    for side, blocks in (("student", 5), ("teacher", 8)):
        shares = [stage.shares[side] for stage in stages]
        assert [shares[0].start, *(share.stop for share in shares)][-1] == blocks
        assert all(a.stop == b.start for a, b in itertools.pairwise(shares))
        assert [share.has_embeddings for share in shares] == [True, False, False]
        assert [share.has_output for share in shares] == [False, False, True]
    assert sorted(place for stage in stages for place in stage.places) == [0, 1, 2, 3]
    for stage in stages:
        for place in stage.places:
            for side, layer in zip(("student", "teacher"), pairs[place], strict=True):
                share = stage.shares[side]
                assert share.start <= layer <= share.stop, (stage, place)


def test_without_kl_the_teachers_last_blocks_are_nowhere(run):
    stages = cut(run, (4, 16, 100, 2048), (8, 24, 100, 9000), ((1, 2), (2, 4)), 2, "distill.kl_weight=0")
    assert max(stage.shares["teacher"].stop for stage in stages) == 4
    assert not any(stage.shares["teacher"].has_output for stage in stages)


def test_a_teacher_that_is_done_passes_no_further(run):
    pairs = ((1, 2), (2, 4))
    stages = cut(run, (4, 16, 100, 2048), (8, 24, 100, 9000), pairs, 4, "distill.kl_weight=0")
    assert ["teacher" in stage.runs for stage in stages] == [True, True, False, False]


def test_stage_one_needs_no_block_above_the_last_filter(run):
    stages = cut(run, (4, 16, 100, 2048), (8, 24, 100, 9000), ((1, 2), (2, 6)), 2, phase="filters_teacher")
    assert stages[-1].shares == {"teacher": Share(stages[0].shares["teacher"].stop, 6, False, False)}


@pytest.mark.parametrize(("lm_head", "passes"), [("frozen", 2), ("new", 3)])
def test_a_head_that_learns_costs_a_pass_more(run, lm_head, passes):
    recipe = load_recipe(run, [f"filters.lm_head={lm_head}"])
    facts = {"student": facts_like(run, *DISTILGPT2), "teacher": facts_like(run, *GPT2)}
    costs = {
        vocabulary: operations_per_token(
            recipe,
            {
                side: dataclasses.replace(one, parameters=dataclasses.replace(one.parameters, embeddings=vocabulary))
                for side, one in facts.items()
            },
            ((2, 4), (4, 8)),
            16,
            phase_named("filters_teacher"),
        )
        for vocabulary in (0, 1000)
    }
    assert costs[1000] - costs[0] == 2 * passes * 2.0 * 1000  # of two filters, multiply-adds counted twice


def test_stage_one_of_both_models_is_cut_like_the_pairs(run):
    student, teacher, pairs = (4, 16, 100, 2048), (8, 24, 100, 9000), ((1, 2), (2, 4), (3, 6))
    stages = cut(run, student, teacher, pairs, 2, FILTERS_BOTH, phase="filters_both")
    assert stages[-1].shares["student"].stop == 3
    assert stages[-1].shares["teacher"].stop == 6
    assert not any(share.has_output for stage in stages for share in stage.shares.values())
    assert all(stage.runs == {"student", "teacher"} for stage in stages)
    assert sorted(place for stage in stages for place in stage.places) == [0, 1, 2]
    alone = {
        side: sum(stage.cost for stage in cut(run, student, teacher, pairs, 2, phase=f"filters_{side}"))
        for side in ("student", "teacher")
    }
    assert sum(stage.cost for stage in stages) == pytest.approx(sum(alone.values()))


def test_a_map_that_crosses_is_cut_where_it_does_not(run):
    # 1<-4 and 2<-2 cross: both are on one stage
    stages = cut(run, (4, 16, 100, 2048), (8, 24, 100, 9000), ((1, 4), (2, 2), (4, 8)), 2)
    assert stages[0].shares["student"].stop >= 2


def test_a_map_that_crosses_everywhere_is_refused_with_the_reason(run):
    with pytest.raises(ConfigError) as caught:
        cut(run, (3, 16, 100, 2048), (8, 24, 100, 9000), ((1, 8), (2, 4), (3, 1)), 3)
    assert str(caught.value) == (
        "pipeline.stages: 3: distill can be cut into at most 2: the pairs 1<-8 and 2<-4 cross, and a stage must hold "
        "both layers of a pair; use fewer stages, or a layer map in which later student layers have later teacher "
        "layers"
    )


def test_more_stages_than_blocks_are_refused(run):
    with pytest.raises(
        ConfigError, match=r"stages: 9: filters_teacher can be cut into at most 8: 8 blocks of the teacher"
    ):
        cut(run, (3, 16, 100, 2048), (8, 24, 100, 9000), ((3, 8),), 9)


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["pipeline.stages=2"], 3, "pipeline.stages: 2 stages do not divide 3 ranks"),
        (
            ["pipeline.stages=2", "deepspeed=ds_configs/deepspeed/zero2.json"],
            2,
            "pipelines work with ZeRO stage 0 or 1",
        ),
        (["pipeline.stages=2", "teacher.host=zero3"], 2, "use auto, replica or int8"),
        (["pipeline.stages=2", "precision=fp16"], 2, "use bf16 or fp32"),
        (["pipeline.stages=0"], 2, "pipeline.stages"),
        (["pipeline.stage=2"], 2, "pipeline.stage"),
        (["pipeline.stages=2"], 12, "4 does not divide into microbatches of 2 on 6 ranks"),
    ],
)
def test_bad_pipelines_are_refused_before_anything_starts(run, monkeypatch, overrides, ranks, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        make_plan(load_recipe(run, overrides), num_ranks=ranks)


def test_the_stages_are_described(run):
    recipe = load_recipe(run, ["pipeline.stages=2"])
    text = describe_memory(recipe, make_plan(recipe, num_ranks=4), num_ranks=4)
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith("  ")] == [
        ["stages", "filters_teacher"],
        ["stages", "filters_student"],
        ["stages", "distill"],
    ]
    assert "2 pipelines of 2 stages, 1 microbatch: a stage waits 50.0% of a step" in lines[-3]
    assert "stage 0  student embeddings + block 1; teacher embeddings + blocks 1-3; pairs 1<-2;" in lines[-2]
    assert "stage 1  student block 2 + output; teacher block 4 + output; pairs 2<-4;" in lines[-1]


def test_what_crosses_a_border_is_counted(run):
    recipe = load_recipe(run, ["pipeline.stages=2"])
    plan = make_plan(recipe, num_ranks=2)
    tokens, width = 2 * 16, 16
    assert sent_bytes(recipe, plan, "distill", 0) == tokens * (2 * 4 * width + 4 * width + 5 * 4)
    assert sent_bytes(recipe, plan, "filters_teacher", 0) == tokens * (4 * width + 5 * 4)
    recipe = load_recipe(run, ["pipeline.stages=2", FILTERS_BOTH])
    plan = make_plan(recipe, num_ranks=2)
    assert sent_bytes(recipe, plan, "filters_both", 0) == tokens * (2 * 4 * width + 5 * 4)


def test_frozen_embeddings_have_neither_gradient_nor_moments_on_any_stage(run):
    recipe = load_recipe(run, ["pipeline.stages=2"])
    plan, config = make_plan(recipe, num_ranks=2), read_deepspeed_json(recipe.deepspeed)
    tied = dataclasses.replace(plan.student.parameters, lm_head=0)  # the last stage has them, too
    plan = dataclasses.replace(plan, student=dataclasses.replace(plan.student, parameters=tied))
    frozen = recipe.model_copy(update={"student": recipe.student.model_copy(update={"freeze_embeddings": True})})
    before, after = (stage_needs(one, plan, config, "distill", num_replicas=1) for one in (recipe, frozen))
    gradient_and_moments = 4 + 8 + (4 if config["zero_optimization"]["stage"] else 0)
    saved = plan.student.parameters.embeddings * gradient_and_moments
    assert [one.weights - other.weights for one, other in zip(before, after, strict=True)] == [saved, saved]


def test_what_waits_for_its_backward_pass_is_counted_with_what_it_came_with(run):
    recipe = load_recipe(run, ["pipeline.stages=2", "distill.micro_batch_size=1", "distill.global_batch_size=4"])
    plan, config = make_plan(recipe, num_ranks=2), read_deepspeed_json(recipe.deepspeed)
    first, last = stage_needs(recipe, plan, config, "distill", num_replicas=1)
    tokens, width = 16, 16
    crossing = tokens * (4 * width + 4 * width + 5 * 4)
    of_block = 2 * 34 * tokens * width  # fp32
    assert (first.activations, last.activations) == (2 * (of_block + crossing), of_block + crossing)
    # of microbatches that wait only the blocks' inputs, and one block is computed anew at a time
    sparing = recipe.model_copy(update={"activation_checkpointing": True})
    first, _ = stage_needs(sparing, plan, config, "distill", num_replicas=1)
    assert first.activations == 2 * (2 * 2 * tokens * width + crossing) + of_block


def test_the_bubble_is_that_of_gpipe():
    assert [bubble(1, 4), bubble(2, 1), bubble(4, 5)] == [0, 0.5, 3 / 8]
