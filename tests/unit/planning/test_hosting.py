"""What a phase needs on a rank, and where the teacher goes in what is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ted_ds.assembly.host_teacher import host_teacher
from ted_ds.config.load import load_recipe
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model, num_parameters
from ted_ds.models.parameters import Parameters
from ted_ds.models.share import Share
from ted_ds.numerics import chunks, keeping
from ted_ds.output.run_folder import Run
from ted_ds.planning import filling
from ted_ds.planning.filling import filling_memory
from ted_ds.planning.hosting import Hosting, Machine, choose_host, describe_memory
from ted_ds.planning.memory import Trained, activation_bytes, bucket_bytes, frozen_bytes, gib, on_device, trained_bytes
from ted_ds.planning.phase_memory import keeps_scores, phase_memories
from tests.task_kinds import make_plan
from tests.tiny import ENCODERS, LABELS, write_model, write_run

ADAM = {"optimizer": {"type": "AdamW"}}
SIZES = [1000, *[10] * 100]


def trained(stage, precision, ranks, sizes=SIZES, optimizer="AdamW", **rest):
    config = {"optimizer": {"type": optimizer}, "zero_optimization": {"stage": stage, **rest}}
    return trained_bytes(sizes, config=config, precision=precision, world_size=ranks)


@pytest.mark.parametrize(
    ("stage", "precision", "ranks", "expected"),
    [
        (0, "fp32", 2, Trained(8000, 8000, 16000)),
        (1, "fp32", 1, Trained(8000, 8000, 24000)),
        (1, "fp32", 2, Trained(8000, 4000, 12000)),
        (2, "bf16", 2, Trained(4000, 4000, 12000)),
        (1, "bf16", 2, Trained(4000, 12000, 12000)),
        (3, "fp32", 2, Trained(4000 + 8000, 4000, 12000)),
        (3, "bf16", 1, Trained(4000, 8000, 24000)),
    ],
)
def test_bytes_of_what_trains(stage, precision, ranks, expected):
    assert trained(stage, precision, ranks) == expected


def test_small_parameters_stay_whole_under_zero3_as_its_threshold_says():
    assert trained(3, "bf16", 2, stage3_param_persistence_threshold=0).parameters == 2000
    assert trained(3, "bf16", 2, stage3_param_persistence_threshold=11).parameters == 2000 + 2000


def test_a_parameter_on_the_border_of_two_ranks_keeps_its_gradient_whole_on_both():
    assert trained(2, "fp32", 4).gradients == 4000  # half of all is one parameter, which two ranks share
    assert trained(2, "fp32", 2, sizes=[600, 600, 600]).gradients == 4 * 1200
    assert trained(2, "bf16", 2, sizes=[600, 600, 600]).gradients == 4 * 900  # copied to fp32, without the rest


def test_an_optimizer_without_moments_needs_its_master_weights_alone():
    assert trained(2, "bf16", 1, optimizer="SGD").optimizer == 8000


@pytest.mark.parametrize("optimizer", ["Adagrad", "SGD"])
def test_an_optimizer_with_one_moment_needs_half_of_adams(optimizer):
    momentum = {"momentum": 0.9} if optimizer == "SGD" else {}
    config = {"optimizer": {"type": optimizer, "params": momentum}, "zero_optimization": {"stage": 2}}
    assert trained_bytes([10] * 100, config=config, precision="bf16", world_size=1).optimizer == 4000 + 4000


def test_what_is_offloaded_is_not_on_the_device():
    whole = Trained(3, 5, 7)
    offload = {"offload_optimizer": {"device": "cpu"}}
    assert on_device(whole, {"zero_optimization": {"offload_optimizer": {"device": "none"}}}) == whole
    assert on_device(whole, {"zero_optimization": offload}) == Trained(3, 0, 0)
    both = {**offload, "offload_param": {"device": "nvme"}}
    assert on_device(whole, {"zero_optimization": both}) == Trained(0, 0, 0)


@pytest.mark.parametrize(
    ("stage", "precision", "settings", "expected"),
    [
        (0, "fp32", {}, 0),
        (1, "bf16", {}, 0),
        (1, "fp32", {"reduce_bucket_size": 1000}, 4000),
        (2, "bf16", {}, 10**9),
        (2, "bf16", {"overlap_comm": True}, 2 * 10**9),
        (2, "fp32", {"reduce_bucket_size": 1000}, 4000),
        (2, "fp32", {"contiguous_gradients": False}, 0),
        (3, "bf16", {"overlap_comm": True, "reduce_bucket_size": "auto"}, 10**9),
    ],
)
def test_bytes_of_buckets(stage, precision, settings, expected):
    config = {"zero_optimization": {"stage": stage, **settings}}
    assert bucket_bytes(config, precision) == expected


def test_a_pipeline_has_two_buckets_and_no_overlap():
    config = {"zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000}}
    assert bucket_bytes(config, "fp32", in_pipeline=True) == 8000
    assert bucket_bytes(config, "bf16", in_pipeline=True) == 0


PARAMETERS = Parameters((((50, 60), (100,)), ((100, 30), (100,))), 200_000, 0, ((30,),))


@pytest.mark.parametrize(
    ("host", "ranks", "expected"),
    [
        ("replica", 4, 2 * 206_230),
        ("int8", 4, 2 * 200_230 + 6000 + 5 * 150),
        ("zero3", 4, 2 * (51_558 + 6230)),
        ("zero3", 1, 2 * 206_230),
        ("cpu_offload", 4, 2 * 6230),
    ],
)
def test_bytes_of_a_teacher(host, ranks, expected):
    assert frozen_bytes(PARAMETERS, host=host, precision="bf16", world_size=ranks) == expected


def test_recomputed_activations_are_fewer(lm_run):
    facts = read_model_facts(lm_run / "teacher")
    shape = {"tokens": 64, "row_tokens": 16, "precision": "bf16"}
    plain = activation_bytes(facts, **shape, keeps_scores=False, checkpointing=False)
    assert plain == 4 * 34 * 64 * 16
    assert activation_bytes(facts, **shape, keeps_scores=True, checkpointing=False) == plain + 4 * 5 * 64 * 2 * 16
    recomputed = activation_bytes(facts, **shape, keeps_scores=False, checkpointing=True)
    assert recomputed == 4 * 2 * 64 * 16 + plain // 4


# --- what files say of parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", *ENCODERS])
def test_parameters_are_counted_from_the_files(tmp_path, family):
    is_lm = family in ("llama", "gpt2")
    write_model(tmp_path, family, blocks=3, labels=None if is_lm else LABELS)
    model, _ = load_model(tmp_path, LoadSettings(torch.float32), head=None if is_lm else {"num_labels": 2})
    found = read_model_facts(tmp_path).parameters
    assert found.total == num_parameters(model)
    assert sum(found.sizes) == found.total
    assert found.embeddings == model.get_input_embeddings().weight.numel()
    assert len(found.cut([0, 2]).of_layers) == 2
    assert (found.cut([0, 2]).total < found.total) == (family != "albert")  # whose blocks all layers share


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ENCODERS)
def test_parameters_of_a_masked_lm_are_counted_whether_its_head_is_in_the_files_or_new(
    tmp_path, family, tied, has_head
):
    architecture = {"architecture": "MaskedLM"} if has_head else {}
    write_model(tmp_path, family, blocks=3, tie_word_embeddings=tied, **architecture)
    model, fresh = load_model(
        tmp_path, LoadSettings(torch.float32), head=None, architecture="MaskedLM", new_head_allowed=True
    )
    assert bool(fresh) != has_head
    facts = read_model_facts(tmp_path)
    assert facts.has_lm_head == has_head
    found = facts.as_language_model
    has_pooler = not has_head and any("pooler" in path for path in facts.family.before_label_head)
    of_pooler = 16 * 16 + 16 if has_pooler and family != "deberta-v2" else 0  # which files have, and is not loaded
    assert found.total - of_pooler == num_parameters(model)
    assert sum(found.sizes) == found.total
    if facts.family.unstaged is not None:
        return
    whole = Share.whole(3)
    assert found.of_share(whole, predicts_tokens=True) == found
    halves = (Share(0, 2, has_embeddings=True, has_output=False), Share(2, 3, has_embeddings=False, has_output=True))
    totals = [found.of_share(half, predicts_tokens=True).total for half in halves]
    assert sum(totals) == found.total + (found.embeddings if tied else 0)


def test_buffers_and_tied_heads_in_files_are_no_parameters(tmp_path):
    write_model(tmp_path, "gpt2", blocks=1)
    before = read_model_facts(tmp_path).parameters
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.h.0.attn.bias"] = torch.zeros(1, 1, 64, 64)
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert read_model_facts(tmp_path).parameters == before


# --- the choice -------------------------------------------------------------------------------------------------------


def choose(run, free_device, *overrides, ranks=2, free_host=10**12, began_whole=False, **situation):
    recipe = load_recipe(run / "recipe.yaml", overrides)
    return choose_host(
        recipe,
        make_plan(recipe, num_ranks=ranks),
        ADAM | {"zero_optimization": {"stage": 2}},
        Machine(ranks, free_device, free_host, **{"device_is_host": False, "torchao_is_there": True, **situation}),
        began_whole=began_whole,
    )


@pytest.fixture(scope="module")
def large_run(tmp_path_factory):
    """A teacher whose blocks outweigh all else, and a student of one of them."""
    folder = tmp_path_factory.mktemp("large")
    write_run(folder)
    write_model(folder / "teacher", "llama", blocks=4, hidden=512)
    return folder


SMALL_STUDENT = ("student.from_teacher.blocks=[0]", "layer_map.num_pairs=1", "filters.dim=8", "distill.kl_weight=1")


def test_the_first_host_that_fits_is_taken(large_run):
    def beside(host):
        recipe = load_recipe(large_run / "recipe.yaml", SMALL_STUDENT)
        plan = make_plan(recipe, num_ranks=2)
        config = ADAM | {"zero_optimization": {"stage": 2}}
        phases = phase_memories(recipe, plan, config, world_size=2, host=host)
        assert plan.teacher is not None
        own = frozen_bytes(plan.teacher.parameters, host=host, precision="fp32", world_size=2)
        return own + max(one.total(config, device_is_host=False) for one in phases if one.hosts_teacher)

    needed = {host: beside(host) for host in ("replica", "int8", "zero3", "cpu_offload")}
    assert needed["replica"] > needed["zero3"] > needed["int8"] > needed["cpu_offload"]
    plenty = choose(large_run, needed["replica"] / 0.9 + 1, *SMALL_STUDENT)
    assert plenty.host == "replica"
    assert "free per rank" in plenty.why
    short = needed["replica"] / 0.9 - 1
    assert choose(large_run, short, *SMALL_STUDENT).host == "int8"
    without = choose(large_run, short, *SMALL_STUDENT, torchao_is_there=False)
    assert without.host == "zero3"
    assert "replica: " in without.why
    assert "int8: torchao is not installed" in without.why
    alone = choose(large_run, short, *SMALL_STUDENT, torchao_is_there=False, ranks=1)
    assert alone.host == "cpu_offload"
    assert "zero3: one rank has nobody to share with" in alone.why
    less = needed["int8"] / 0.9 - 1
    assert choose(large_run, less, *SMALL_STUDENT).host == "cpu_offload"
    tight = choose(large_run, needed["replica"] / 0.9 + 1, *SMALL_STUDENT, free_host=1000)
    assert tight.host == "zero3"
    assert "replica: to load " in tight.why
    old = choose(large_run, short, *SMALL_STUDENT, began_whole=True)
    assert old.host == "zero3"
    assert "int8: the run began without it" in old.why
    on_disk = (*SMALL_STUDENT, "teacher.offload_dir=/disk")
    assert choose(large_run, less, *on_disk, free_host=1000).host == "nvme_offload"
    on_cpu = choose(large_run, less - 2 * 10**9 / 0.9, *on_disk, device_is_host=True)  # where buckets cost nothing
    assert on_cpu.host == "nvme_offload"
    assert "cpu_offload: the device is the host" in on_cpu.why


@pytest.mark.parametrize(
    ("host", "error", "message"),
    [
        ("disk", CheckpointError, "run.json: teacher_host: 'disk' is none of replica, int8, zero3, "),
        ("nvme_offload", ConfigError, "'nvme_offload' needs teacher.offload_dir, which is no longer set; restore it"),
    ],
)
def test_a_kept_host_that_is_none_is_refused_by_all_ranks_alike(lm_run, host, error, message):
    recipe = load_recipe(lm_run / "recipe.yaml")
    alone: Any = SimpleNamespace(size=1)
    with pytest.raises(error) as caught:
        host_teacher(recipe, make_plan(recipe), Run("a1", host), alone, run_is_old=True)
    assert message in str(caught.value)
    assert caught.value.agreed


def test_where_nothing_fits_the_smallest_is_taken_and_said(large_run):
    nothing = choose(large_run, 1000, *SMALL_STUDENT, device_is_host=True)
    assert nothing.host == "int8"
    assert nothing.why.startswith("nothing fits into 0.000954 MiB free per rank, this is least: replica: ")
    assert "cpu_offload: the device is the host" in nothing.why


@pytest.mark.parametrize(("host", "is_sharded"), [("replica", False), ("int8", False), ("zero3", True)])
def test_which_hosts_shard(host, is_sharded):
    assert Hosting(host, "").is_sharded is is_sharded


def test_the_memory_is_described_by_phase(lm_run):
    recipe = load_recipe(lm_run / "recipe.yaml", ["teacher.host=zero3"])
    text = describe_memory(recipe, make_plan(recipe, num_ranks=2), num_ranks=2)
    phases = [line.split()[1] for line in text.splitlines()]
    assert phases == ["filters_teacher", "filters_student", "distill", "teacher,"]
    assert "+ activations about " in text
    assert text.splitlines()[-1].startswith("memory    teacher, per rank: zero3 ")


def test_a_cached_teacher_is_not_beside_the_student(classification_run):
    recipe = load_recipe(classification_run / "recipe.yaml", ["teacher.cache.max_gib=1"])
    text = describe_memory(recipe, make_plan(recipe), num_ranks=1)
    beside = {line.split()[1]: line.endswith("+ teacher") for line in text.splitlines()}
    assert beside == {
        "filters_teacher": True,
        "filters_student": False,
        "filling": True,
        "distill": False,
        "teacher,": False,
    }


def test_a_teacher_that_fills_its_cache_has_room_for_that(tmp_path):
    """No phase of this recipe has the teacher beside it, and filling the cache does."""
    cached = (f"teacher.cache={{max_gib: 1, dir: {tmp_path}}}", "evaluation.micro_batch_size=64")
    write_run(tmp_path, method="kd")
    write_model(tmp_path / "teacher", "llama", blocks=4, hidden=128)
    recipe = load_recipe(tmp_path / "recipe.yaml", cached)
    plan = make_plan(recipe, num_ranks=2)
    beside = filling_memory(recipe, plan)
    assert beside.activations > 2**20
    own = frozen_bytes(plan.teacher.parameters, host="replica", precision="fp32", world_size=2)
    needed = (own + beside.activations) / 0.9
    assert choose(tmp_path, needed + 1, *cached).host == "replica"
    chosen = choose(tmp_path, needed - 1, *cached)
    assert chosen.host == "int8"
    assert f"beside about {gib(beside.activations)} of filling" in chosen.why
    fewer = load_recipe(tmp_path / "recipe.yaml", [*cached, "evaluation.micro_batch_size=8"])
    assert beside.activations == pytest.approx(8 * filling_memory(fewer, plan).activations)


def test_what_the_plan_knows_of_chunks_is_so():
    largest = max(chunks.HOST_BYTES, 1024 * chunks.MIB)  # of any card
    assert largest == filling.CHUNK_BYTES
    assert max(keeping.BLOCK_BYTES.values()) == filling.BLOCK_BYTES


def test_one_rank_has_a_sharded_teacher_for_itself(lm_run):
    recipe = load_recipe(lm_run / "recipe.yaml", ["teacher.host=zero3"])
    assert " per rank: zero3 " in describe_memory(recipe, make_plan(recipe), num_ranks=1)


def test_frozen_embeddings_need_no_gradient(lm_run):
    def distill(*overrides):
        recipe = load_recipe(lm_run / "recipe.yaml", overrides)
        config = ADAM | {"zero_optimization": {"stage": 0}}
        plan = make_plan(recipe)
        assert plan.student is not None
        return phase_memories(recipe, plan, config, world_size=1)[-1].trained, plan.student.parameters.embeddings

    (all_train, count), (frozen, _) = distill(), distill("student.freeze_embeddings=true")
    assert all_train.parameters == frozen.parameters
    assert all_train.gradients - frozen.gradients == 4 * count
    assert all_train.optimizer - frozen.optimizer == 8 * count


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(
    ("method", "student_filter", "teacher_filters"),
    [
        ("ted", {"linear": 16 * 16 + 16, "mlp": 2 * (16 * 16 + 16)}, True),
        ("lwd", {"linear": 16 * 16 + 16, "mlp": 16 * 16 + 16}, False),  # one map, whatever Stage I would train
        ("kd", {"linear": 0, "mlp": 0}, False),
        ("sft", {"linear": 0, "mlp": 0}, False),
    ],
)
def test_stage_two_holds_the_filters_of_its_method(lm_run, method, kind, student_filter, teacher_filters):
    recipe = load_recipe(lm_run / "recipe.yaml", [f"distill.method={method}", f"filters.kind={kind}"])
    plan = make_plan(recipe)
    phases = {one.phase: one for one in phase_memories(recipe, plan, ADAM, world_size=1)}
    assert plan.student is not None
    filters = 2 * student_filter[kind]  # of two pairs
    assert phases["distill"].num_trained == sum(plan.student.parameters.sizes) + filters
    assert phases["distill"].frozen == (4 * filters if teacher_filters else 0)
    assert phases["distill"].hosts_teacher == (method != "sft")
    stage_one = {"filters_teacher", "filters_student"} if method == "ted" else set()
    assert phases.keys() == {"distill", *stage_one}
    for name in stage_one:  # the head of its own is the model's frozen one
        assert phases[name].num_trained == filters
    if stage_one:
        assert (phases["filters_teacher"].hosts_teacher, phases["filters_student"].hosts_teacher) == (True, False)
        assert phases["filters_teacher"].frozen == 0
        assert phases["filters_student"].frozen == 4 * sum(plan.student.parameters.sizes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.host=nvme_offload"], "needs offload_dir, a folder on a fast disk of each node"),
        (
            ["teacher.host=replica", "teacher.offload_dir=/disk"],
            "offload_dir: host: replica does not use it; remove it",
        ),
        (["teacher.host=disk"], "'disk': use auto, replica, int8, zero3, cpu_offload or nvme_offload"),
    ],
)
def test_hosts_that_make_no_sense_are_refused(lm_run, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(lm_run / "recipe.yaml", overrides)
    assert message in str(caught.value)


def test_sizes_for_people():
    assert [gib(size) for size in (3 * 2**30, 2**29, 100)] == ["3 GiB", "512 MiB", "9.54e-05 MiB"]


@pytest.mark.parametrize(
    ("family", "attention", "keeps"),
    [("llama", "auto", False), ("llama", "eager", True), ("deberta-v2", "auto", True)],
)
def test_attention_that_is_not_fused_keeps_its_scores(lm_run, tmp_path, family, attention, keeps):
    write_model(tmp_path, family)
    recipe = load_recipe(lm_run / "recipe.yaml", [f"attention={attention}"])
    assert keeps_scores(recipe, read_model_facts(tmp_path)) == keeps


@pytest.mark.parametrize(
    ("num_ranks", "expected"),
    [(1, {"replica", "cpu_offload", "int8"}), (2, {"replica", "cpu_offload", "int8", "zero3"})],
)
def test_what_a_teacher_needs_is_told_for_each_way_to_hold_it(lm_run, num_ranks, expected):
    recipe = load_recipe(lm_run / "recipe.yaml", [f"distill.global_batch_size={4 * num_ranks}"])
    line = describe_memory(recipe, make_plan(recipe, num_ranks=num_ranks), num_ranks=num_ranks).splitlines()[-1]
    hosts = {part.split()[0] for part in line.partition("per rank: ")[2].split(", ")}
    assert hosts == expected
    assert line.endswith(" (the first that fits)")
