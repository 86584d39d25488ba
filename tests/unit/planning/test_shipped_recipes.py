"""Every recipe that ships: ``check`` passes on it without a network, and says what it comes to."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from ted_ds.cli import main
from ted_ds.config.deepspeed import complete, read_deepspeed_json
from ted_ds.config.load import load_recipe
from ted_ds.config.schema import Recipe
from ted_ds.models.built_shapes import built_shapes
from ted_ds.models.config_facts import read_config_facts
from ted_ds.planning.phase import phases_of
from tests.optional import NO_PEFT, PEFT
from tests.tiny import ROOT, write_chats, write_corpus, write_labelled, write_model, write_rows

RECIPES = ROOT / "ds_configs" / "recipes"
BASE = "base.yaml"
"""What a folder's recipes extend, no recipe by itself."""
SHIPPED = sorted(file for file in RECIPES.rglob("*.yaml") if file.name != BASE)
NAMES = [str(file.relative_to(RECIPES)) for file in SHIPPED]
PUBLISHED = {  # TED's scripts: batch, epochs, rates and warm-up of teacher and student; weights of KD, LWD and TED
    "mnli": (64, 3, 2e-5, 7e-5, 1500, 1500, (5, 0), (5, 100), (5, 7500)),
    "qqp": (64, 8, 2e-5, 6e-5, 5000, 5000, (20, 0), (20, 20), (20, 1000)),
    "qnli": (32, 3, 1e-5, 5e-5, 500, 500, (20, 0), (20, 10), (20, 100)),
    "sst2": (32, 6, 2e-5, 4e-5, 0, 0, (20, 0), (20, 20), (20, 20)),
    "rte": (16, 6, 3e-5, 6e-5, 0, 0, (20, 0), (20, 20), (20, 50)),
    "cola": (32, 6, 2e-5, 6e-5, 100, 0, (20, 0), (0, 5), (0, 10)),
    "mrpc": (32, 6, 3e-5, 7e-5, 0, 0, (20, 0), (20, 5), (20, 100)),
    "stsb": (16, 6, 2e-5, 1e-4, 100, 100, (20, 0), (20, 5), (20, 50)),
    "squad_v2": (8, 3, 3e-5, 5e-5, 0, 0, (10, 0), (10, 100), (10, 5000)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be in, with small ones in the place of the demo assets."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    assets = folder / "demo_assets"
    write_model(assets / "minilm-l6", "bert", blocks=6, architecture="MaskedLM", max_position_embeddings=128)
    write_model(assets / "mpnet-base", "mpnet", blocks=12, architecture="MaskedLM", max_position_embeddings=130)
    write_model(assets / "smollm2-135m", "llama", blocks=30, max_position_embeddings=128)
    for name in ("kjv", "imdb", "imdb_sentences", "owt", "wikipedia"):
        write_corpus(assets / f"{name}.jsonl")
    write_labelled(assets / "rotten_tomatoes.jsonl", 60)
    for name in ("movies", "products", "editorials"):
        write_rows(
            assets / f"vader_{name}.jsonl", ({"text": f"film {row}", "label": row / 15 - 2} for row in range(60))
        )
    for name in ("sarcasm", "sarcasm_train", "sarcasm_test"):
        write_labelled(assets / f"{name}.jsonl", 60, labels=("plain", "sarcastic"))
    write_model(folder / "runs" / "minilm_masked_imdb" / "export", "bert", blocks=3, architecture="MaskedLM")
    question = "More resistance means\n\n A: more current\n B: less current, say {}"
    write_rows(assets / "quartz.jsonl", ({"input": question.format(row), "ideal": "AB"[row % 2]} for row in range(60)))
    write_chats(assets / "answers.jsonl")
    of_hub = (RECIPES / "hub").glob("models--*/config.json")
    built_shapes(*(json.loads(file.read_text(encoding="utf-8")) for file in of_hub))  # by one process
    return folder


def no_network(*arguments: Any) -> Any:
    raise AssertionError(f"check needs a network: {arguments}")


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_check_passes_without_a_network_and_says_tokens_passes_and_hours(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PEFT.is_dir(), NO_PEFT
    monkeypatch.syspath_prepend(str(PEFT))  # for students with adapters
    monkeypatch.chdir(place)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    inside = path.relative_to(ROOT)
    template = (
        ["task.chat_template=ds_configs/chat_templates/plain.jinja"] if path.stem.startswith("smollm2_chat") else []
    )
    code = main(["check", str(inside), *template, "--ranks", "2"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert [*(place / "runs").iterdir()] == [place / "runs" / "minilm_masked_imdb"], "as it was"
    recipe = load_recipe(path)
    for phase in phases_of(recipe):
        if phase.plan_path is None:
            continue
        plans = [line for line in printed.out.splitlines() if line.startswith(f"{phase.plan_path:16} ")]
        assert len(plans) == 1
        assert re.search(r"; (at most|about) [\d,]+ tokens$", plans[0])
        (work,) = (line for line in printed.out.splitlines() if line.startswith(f"work      {phase.name:16} "))
        assert re.search(r"[\d.]+ pass(es)? over ", work)
        assert re.search(r" h of training if each of 2 ranks computes 400 TFLOP/s \(--tflops\)", work)


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_it_is_valid_and_its_phases_complete_on_two_ranks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path)
    config = read_deepspeed_json(recipe.deepspeed)
    for plan_path, phase in recipe.phase_plans().items():
        phase = phase.with_rows(10**6)
        completed = complete(
            config, phase, plan_path=plan_path, precision=recipe.precision, world_size=2, source=recipe.deepspeed
        )
        assert completed["train_batch_size"] == phase.global_batch_size


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_its_header_says_how_to_start_it_and_whether_it_was_run(path: Path) -> None:
    header = path.read_text(encoding="utf-8").partition("\nname: ")[0]
    assert str(path.relative_to(ROOT)) in header
    assert re.search(r"^# (Run|Not run|Checked)\b", header, re.MULTILINE)


def test_the_table_of_recipes_has_them_all() -> None:
    table = (RECIPES / "README.md").read_text(encoding="utf-8")
    groups = re.findall(r"^\| `([\w/]*)\{([\w,]+)\}\.yaml`", table, re.MULTILINE)
    named = {f"{before}{name}.yaml" for before, names in groups for name in names.split(",")}
    named |= {*re.findall(r"^\| `([\w/]+\.yaml)`", table, re.MULTILINE)}
    assert named == {*NAMES}


def of_deberta(task: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / "deberta_v3" / f"{task}.yaml", overrides)


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_settings_are_those_of_every_phase(task: str) -> None:
    batch, epochs, *rates, teacher_warmup, student_warmup, kd, lwd, ted = PUBLISHED[task]
    for method, weights in (("kd", kd), ("lwd", lwd), ("ted", ted), ("sft", (0, 0))):
        distill = of_deberta(task, f"distill.method={method}").distill
        assert (distill.kl_weight, distill.feature_weight) == weights
    recipe = of_deberta(task)
    assert recipe.filters is not None
    plans = recipe.phase_plans()
    assert list(plans) == ["teacher.finetune", "student.finetune", "filters.teacher", "filters.student", "distill"]
    for path, plan in plans.items():
        side = 0 if "teacher" in path else 1
        own_batch = {("rte", "filters.student"): 32, ("squad_v2", "filters.teacher"): 48}.get((task, path), batch)
        own_batch = 48 if (task, path) == ("squad_v2", "teacher.finetune") else own_batch
        assert (plan.global_batch_size, plan.epochs, plan.learning_rate) == (own_batch, epochs, rates[side]), path
        assert plan.warmup_steps == (teacher_warmup, student_warmup)[side], path
        assert (plan.gradient_clipping, plan.weight_decay, plan.schedule) == (0, 0, "linear"), path
    lengths = {"stsb": 128, "squad_v2": 384}
    assert recipe.task.sequence_length == lengths.get(task, 256)
    zero = dict.fromkeys(("classifier", "hidden", "attention"), 0.0)
    dropouts = {"rte": (zero, zero), "cola": ({}, {"classifier": 0.0})}.get(task, ({}, {}))
    assert (recipe.teacher.dropout.given, recipe.student.dropout.given) == dropouts


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen--Qwen3-8B", 8_190_735_360),
        ("google-bert--bert-base-uncased", 109_482_240),
        ("meta-llama--Llama-3.1-8B", 8_030_261_248),
        ("openai-community--gpt2", 124_439_808),
        ("microsoft--deberta-v3-base", 183_831_552),
        ("microsoft--deberta-v3-xsmall", 70_682_112),
    ],
)
def test_facts_of_hub_models_make_models_of_their_size(name: str, parameters: int) -> None:
    assert read_config_facts(RECIPES / "hub" / f"models--{name}").parameters.total == parameters
