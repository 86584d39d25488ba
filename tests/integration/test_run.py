"""The whole chain under the real launcher on tiny models: phases, files, skipping, tracking, export."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ted_ds.cli import main
from ted_ds.output.phase_folder import model_identity
from tests.integration.launching import alone, by_mpirun, by_srun, deepspeed, environment, forked, ranks
from tests.optional import MISSING, NO_TRACKERS, OPTIONAL, TRACKERS
from tests.tiny import ROOT, write_corpus, write_model, write_run

ZERO3 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
FINETUNE = "{max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"

BOTH_FINETUNED = (f"student.finetune={FINETUNE}", f"teacher.finetune={FINETUNE}")


PAPERS = ("LICENSE", "NOTICE.txt", "README.md")
LOAD_ELSEWHERE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not report["missing_keys"] and not report["unexpected_keys"]
assert not any(name.startswith(("ted_ds", "deepspeed")) for name in sys.modules)
ids = model.generate(**tokenizer("ba be bi", return_tensors="pt"), max_new_tokens=2)
assert ids.shape[1] > 3
print(json.dumps([one.eos_token_id for one in (tokenizer, model.config, model.generation_config)]))
"""


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def metrics(folder):
    return read_metrics(folder / "run")


def language_tests(folder):
    """Settings of a run: what its models are tested by as language models, and that each sequence's loss is kept."""
    story = folder / "story.jsonl"
    return (
        f"evaluation.perplexity={{story: {{sources: [{{path: {story}}}], window: 8}}}}",
        f"evaluation.last_word={{ends: {{sources: [{{path: {story}}}]}}}}",
        "evaluation.outcomes=true",
        "evaluation.samples=2",
    )


@pytest.fixture(scope="module")
def lm_run(tmp_path_factory):
    """A TED run of a tiny Llama on two ranks, by the file that it chooses itself, and the same command once more."""
    folder = tmp_path_factory.mktemp("lm")
    recipe = write_run(folder)
    teacher = folder / "teacher"
    for name in PAPERS:
        (teacher / name).write_text(f"{name} of the teacher\n")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "_name_or_path": str(teacher)}))
    write_corpus(folder / "story.jsonl", 7, seed=4)
    arguments = ("run", str(recipe), "deepspeed=auto", *BOTH_FINETUNED, *language_tests(folder))
    first = deepspeed(*arguments)
    assert first.code == 0, first.output
    return folder, first, forked(*arguments, num_ranks=2)


def test_every_phase_leaves_a_manifest(lm_run):
    folder, _, _ = lm_run
    phases = "finetune_teacher cut_student finetune_student filters_teacher filters_student distill evaluate export"
    for phase in phases.split():
        assert (folder / "run" / phase / "phase.json").is_file(), phase


def test_the_screen_shows_progress_once_and_the_table(lm_run):
    _, first, _ = lm_run
    assert first.output.count("distill 1/2") == 1  # rank 0 only
    for word in ("kl", "feature mse", "tok/s", "teacher", "student before", "student after", "perplexity"):
        assert word in first.output
    assert "torch.distributed" not in first.output


def test_the_screen_ticks_phases_off_and_ends_with_what_to_do_next(lm_run):
    folder, first, again = lm_run
    took = r"\d+(\.\d)? s"
    assert re.search(rf"^✓ distill: {took} \(6 of 8\)$", first.output, re.MULTILINE)
    assert re.search(rf"^phases      ✓ finetune_teacher {took}  ✓ cut_student {took}  ", first.output, re.MULTILINE)
    assert re.search(r"^phases      ✓ finetune_teacher  ✓ cut_student  .*  ✓ export$", again.output, re.MULTILINE)
    run = folder / "run"
    for one in (first, again):
        assert f"\nlook at it  ted-ds predict {run} 'a text'\na page      ted-ds report {run}\n" in one.output
        assert f"\nits scores  ted-ds evaluate {folder / 'recipe.yaml'} deepspeed=auto " in one.output


def test_what_deepspeed_prints_as_it_starts_is_in_the_log_of_the_rank(tmp_path):
    outcome = forked("run", str(write_run(tmp_path)), "precision=bf16")
    assert outcome.code == 0, outcome.output
    assert "CPU Virtual Memory" not in outcome.output
    assert (tmp_path / "run" / "logs" / "rank_00000.log").read_text().count("begin bf16_optimizer") == 3


def test_running_again_skips_everything(lm_run):
    _, _, again = lm_run
    assert again.code == 0
    assert again.output.count("complete, skipped") == 8
    assert "distill 1/2" not in again.output
    assert "student after" in again.output


def test_every_loss_term_is_in_the_jsonl_under_its_name(lm_run):
    folder, _, _ = lm_run
    records = [record for record in metrics(folder) if record["phase"] == "distill"]
    assert [record["step"] for record in records] == [1, 2]
    for name in (
        "loss/total",
        "loss/task",
        "loss/kl_teacher_student",
        "loss/feature_mse",
        "loss/feature_mse/layer_01",
        "loss/feature_mse/layer_02",
        "perf/tokens_per_s",
        "train/learning_rate",
    ):
        assert name in records[0]
    one = records[0]
    assert one["loss/total"] == pytest.approx(
        one["loss/task"] + 4 * one["loss/kl_teacher_student"] + one["loss/feature_mse"], rel=1e-5
    )


def test_a_report_says_where_time_goes_and_how_near_the_teacher_is(lm_run):
    folder, _, _ = lm_run
    one, other = (record for record in metrics(folder) if record["phase"] == "distill")
    for record in (one, other):
        parts = [value for name, value in record.items() if name.startswith("perf/step_s/")]
        assert sum(parts) == pytest.approx(record["perf/step_s"], rel=1e-9)
        for part in ("data", "teacher", "forward", "losses", "backward", "optimizer", "communication"):
            assert record[f"perf/step_s/{part}"] > 0, part
        # a report also waits for what is between steps
        assert record["perf/step_s"] <= record["train/tokens"] / record["perf/tokens_per_s"]
        assert record["perf/peak_host_gib"] > 0.1
        assert record["perf/tflops_per_rank"] > 0
        for layer in ("layer_01", "layer_02"):
            assert record[f"match/relative_error/{layer}"] > 0
            assert record[f"match/cka/{layer}"] <= 1.01
        assert record["gap/task_loss_student"] == pytest.approx(record["loss/task"], rel=1e-6)
    assert one["gap/closed"] == 0
    gaps = [record["gap/task_loss_student"] - record["gap/task_loss_teacher"] for record in (one, other)]
    assert gaps[0] < 0 or other["gap/closed"] == pytest.approx(1 - gaps[1] / gaps[0])


def test_models_write_what_they_write_elsewhere(lm_run):
    folder, _, _ = lm_run
    samples = json.loads((folder / "run" / "evaluate" / "samples.json").read_text())
    assert samples["changed"] == []
    assert len(samples["written"]) == 2
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "export")
    model = AutoModelForCausalLM.from_pretrained(folder / "run" / "export")
    for one in samples["written"]:
        assert {*one["written"]} == {"teacher", "student after"}
        given = tokenizer(one["beginning"], return_tensors="pt", add_special_tokens=False)
        ids = model.generate(**given, do_sample=False, max_new_tokens=32, pad_token_id=tokenizer.eos_token_id)
        written = tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert " ".join(written.split()) == one["written"]["student after"]


def test_filters_are_evaluated_one_by_one(lm_run):
    folder, _, _ = lm_run
    names = {name for record in metrics(folder) if record["phase"] == "filters_teacher" for name in record}
    assert {"eval/perplexity/layer_02", "eval/perplexity/layer_04"} <= names


def test_what_each_sequence_came_to_makes_the_perplexity_of_each_model(lm_run):
    """Of two ranks, each with batches of its own."""
    folder, _, _ = lm_run
    results = json.loads((folder / "run" / "evaluate" / "evaluation.json").read_text())
    kept = {
        name: json.loads((folder / "run" / "evaluate" / "outcomes" / f"{name.replace(' ', '_')}.json").read_text())
        for name in results
    }
    assert len({tuple(one["ids"]) for one in kept.values()}) == 1, "all models are scored on the same sequences"
    for name, one in kept.items():
        losses, counts = one["columns"]["loss"], one["columns"]["count"]
        assert one["metrics"]["perplexity"] == ["exp_ratio", "loss", "count"]
        assert len(losses) == len(one["ids"]) > 1
        assert sum(counts) == results[name]["num_tokens"]
        assert math.exp(sum(losses) / sum(counts)) == pytest.approx(results[name]["perplexity"], rel=1e-6)


def test_tests_of_language_models_are_run_on_each_model(lm_run):
    folder, _, _ = lm_run
    results = json.loads((folder / "run" / "evaluate" / "evaluation.json").read_text())
    assert len(results) == 4
    for values in results.values():
        assert values["ends/num_examples"] == 7
        assert values["story/num_words"] == values["story/num_tokens"] + 7  # of these words, and no start
        assert values["story/word_perplexity"] < values["story/token_perplexity"]
        assert 0 <= values["ends/accuracy"] <= 1 < values["ends/perplexity"]
    assert results["teacher"]["story/token_perplexity"] != results["student after"]["story/token_perplexity"]


def test_the_same_numbers_are_in_the_offline_wandb_run(lm_run):
    folder, _, _ = lm_run
    (binary, *_) = sorted((folder / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    content = binary.read_bytes()
    for name in (b"distill/loss/kl_teacher_student", b"filters_student/loss/task/layer_01", b"distill/step"):
        assert name in content


READ_TRACKERS = """
import json, sqlite3, sys
from pathlib import Path
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
run = Path(sys.argv[1])
runs = EventMultiplexer().AddRunsFromDirectory(str(run / "tensorboard")).Reload()
board = [[name, tag, one.step] for name in runs.Runs() for tag in runs.Runs()[name]["scalars"]
         for one in runs.Scalars(name, tag)]
(file,) = (run / "trackio").glob("*.db")
rows = sqlite3.connect(file).execute("SELECT step, metrics FROM metrics").fetchall()
print(json.dumps([board, [[*name.split("/", 1), step] for step, metrics in rows for name in json.loads(metrics)]]))
"""


@pytest.mark.slow
def test_the_same_numbers_are_wherever_the_recipe_says(tmp_path):
    assert TRACKERS.is_dir(), NO_TRACKERS
    recipe, path = write_run(tmp_path), f"{ROOT}:{TRACKERS}"
    outcome = alone("run", str(recipe), "tracking.to=[tensorboard,trackio]", PYTHONPATH=path)
    assert outcome.code == 0, outcome.output
    run = tmp_path / "run"
    assert f"TensorBoard {run / 'tensorboard'}\nTrackio     {run / 'trackio'}\n" in outcome.output
    assert "W&B" not in outcome.output
    assert not (run / "wandb").exists()
    command = [sys.executable, "-c", READ_TRACKERS, str(run)]
    done = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True, check=True)
    board, trackio = json.loads(done.stdout)
    expected = {
        (record["phase"], name, record["step"])
        for record in metrics(tmp_path)
        for name in record.keys() - {"time", "phase", "step"}
    }
    assert {(phase, name, step) for phase, name, step in board if phase != "."} == expected
    assert {(phase, name, step) for phase, name, step in trackio if phase != "summary"} == expected
    final = {"student_after/perplexity", "student_before/perplexity", "teacher/perplexity"}
    assert {name for phase, name, _ in board if phase == "."} == final
    assert {name for phase, name, _ in trackio if phase == "summary"} == final


def test_the_export_is_plain_transformers_and_equal_to_the_student(lm_run):
    folder, _, _ = lm_run
    export, student = folder / "run" / "export", folder / "run" / "distill" / "model"
    inputs = AutoTokenizer.from_pretrained(export)("ba be bi bo bu", return_tensors="pt")
    loaded = AutoModelForCausalLM.from_pretrained(export)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(student)(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, expected)
    assert not any("filter" in name or "bank" in name for name in loaded.state_dict())
    assert not list(export.glob("filters*"))


def test_the_export_loads_from_another_place_in_a_process_without_ted_ds(lm_run, tmp_path):
    folder, _, _ = lm_run
    elsewhere = shutil.copytree(folder / "run" / "export", tmp_path / "elsewhere")
    command = [sys.executable, "-c", LOAD_ELSEWHERE, str(elsewhere)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 1, 1]


@pytest.mark.parametrize("made", ["finetune_teacher/model", "cut_student/model", "finetune_student/model", "export"])
def test_a_folder_that_a_run_makes_is_clean_and_licensed(lm_run, made):
    folder, _, _ = lm_run
    teacher, result = folder / "teacher", folder / "run" / made
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", "NOTICE.txt"):
        assert (result / name).read_bytes() == (teacher / name).read_bytes(), name
    assert (result / "README.teacher.md").read_bytes() == (teacher / "README.md").read_bytes()
    assert (result / "README.md").exists() == (made == "export")
    texts = [file.read_text() for file in result.iterdir() if file.suffix != ".safetensors"]
    assert not any(str(folder) in text or "_name_or_path" in text or "is_local" in text for text in texts)
    with safe_open(result / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_the_exports_card_names_what_it_was_made_from(lm_run):
    folder, _, _ = lm_run
    card = (folder / "run" / "export" / "README.md").read_text()
    assert "- Teacher: `teacher`." in card
    assert "- The student began as blocks [0, 3] of the teacher." in card
    assert "`README.teacher.md`" in card
    assert "`LICENSE`, `NOTICE.txt`. They bind" in card


def test_the_teacher_is_named_by_path_and_hash_and_not_copied(lm_run):
    folder, _, _ = lm_run
    manifest = json.loads((folder / "run" / "distill" / "phase.json").read_text())
    teacher = folder / "run" / "finetune_teacher" / "model"
    assert manifest["inputs"]["teacher"] == model_identity(teacher)
    assert set(manifest["files"]) == {
        "filters.safetensors",
        *(f"model/{p.name}" for p in (folder / "run" / "distill" / "model").iterdir()),
    }


def test_a_copy_of_the_run_is_asked_for_its_own_models(lm_run, tmp_path, capsys):
    folder, _, _ = lm_run
    start = json.loads((folder / "run" / "starts.jsonl").read_text().splitlines()[0])
    assert start["output_dir"] == str(folder / "run")
    assert Path(start["folder"]).is_dir()
    copy = shutil.copytree(folder / "run", tmp_path / "copy", symlinks=True)
    assert main(["predict", str(copy), "ba be", "--tokens", "2"]) == 0
    assert re.search(r"teacher .*\n  student after ", capsys.readouterr().out)
    shutil.rmtree(copy / "distill")
    assert main(["predict", str(copy), "ba be"]) == 2
    assert f"{copy}: its student after is no more in it" in capsys.readouterr().err


def test_another_cut_of_the_batch_or_another_stage_is_the_same_run(lm_run):
    folder, _, _ = lm_run
    outcome = forked(
        "run",
        str(folder / "recipe.yaml"),
        *(one.replace("micro_batch_size: 2", "micro_batch_size: 1") for one in BOTH_FINETUNED),
        *language_tests(folder),
        ZERO3,
    )
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("complete, skipped") == 8


def test_a_changed_recipe_does_not_silently_reuse_old_phases(lm_run):
    folder, _, _ = lm_run
    outcome = forked(
        "run",
        str(folder / "recipe.yaml"),
        *BOTH_FINETUNED,
        "distill.kl_weight=9",
    )
    assert outcome.code == 2
    assert "plan.kl_weight was 1.0, now 9.0" in outcome.output


def test_classification_under_zero3_with_a_sharded_teacher(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification")
    write_model(tmp_path / "teacher", "bert", labels=("a", "b", "c"))  # a head for other labels, which starts anew
    by_tokens = FINETUNE.replace("micro_batch_size: 2", "micro_batch_tokens: 32")
    grouped = "data.length_grouping.window_steps=2"
    settings = (ZERO3, "teacher.host=zero3", f"teacher.finetune={by_tokens}", grouped, "evaluation.samples=3")
    settings += ("distill.learning_rate=0.3",)  # so that some predictions change
    outcome = forked("run", str(recipe), *settings, "evaluation.outcomes=true", num_ranks=2)
    assert outcome.code == 0, outcome.output
    evaluated = tmp_path / "run" / "evaluate"
    before, after = (
        json.loads((evaluated / "outcomes" / f"{name}.json").read_text())["columns"]["right"]
        for name in ("student_before", "student_after")
    )
    shown = json.loads((evaluated / "samples.json").read_text())["changed"]
    for change, wanted in (("wrong before training, right after it", (0, 1)), ("right before", (1, 0))):
        count = sum(pair == wanted for pair in zip(before, after, strict=True))
        assert sum(one["change"].startswith(change) for one in shown) == min(count, 3)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    texts = {json.loads(line)["text"]: json.loads(line)["label"] for line in lines}
    for one in shown:
        assert texts[one["text"]] == one["label"]
        assert {*one["predictions"]} == {"teacher", "student before", "student after"}
        assert one["predictions"]["student after"] == one["label"] or "wrong" in one["change"].split(", ")[1]
    assert all(0 <= line["train/padding"] < 1 for line in metrics(tmp_path) if "train/tokens" in line)
    assert "ZeRO-3 sharded; per rank" in outcome.output
    results = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert set(results) == {"teacher", "student before", "student after"}
    assert all(0 <= values["accuracy"] <= 1 for values in results.values())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    for made in ("finetune_teacher/model", "cut_student/model", "distill/model", "export"):  # use leaves no truncation
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "run" / made / name).read_bytes() == (tmp_path / "teacher" / name).read_bytes()


def test_blocks_that_no_matched_layer_needs_are_freed_in_shards_too(tmp_path):
    recipe = write_run(tmp_path)
    early = "layer_map={kind: explicit, pairs: [[1, 1], [2, 2]]}"
    outcome = forked("run", str(recipe), ZERO3, "teacher.host=zero3", early, "distill.kl_weight=0", num_ranks=2)
    assert outcome.code == 0, outcome.output
    # the teacher's last blocks in Stage I and Stage II; and in Stage I the student's LM head, whose weights are its own
    assert outcome.output.count("parameters that no matched layer needs, freed per rank: ") == 3
    assert (tmp_path / "run" / "export" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("told", [by_mpirun, by_srun])
def test_tasks_of_other_launchers_are_ranks(tmp_path, told):
    arguments = ["run", str(write_run(tmp_path)), "distill.method=sft", "distill.max_steps=1"]
    first, second = ranks(2, arguments, told=told)
    assert first.code == second.code == 0, first.output + second.output
    assert "sft on 2 x cpu" in first.output
    assert "2 x cpu" not in second.output


@pytest.mark.slow
def test_a_teacher_in_8_bits_beside_a_sharded_student(tmp_path):
    """ZeRO-3 puts its own linear map in the place of torch's, and torchao has none of its kind."""
    assert OPTIONAL.is_dir(), MISSING
    arguments = ("run", str(write_run(tmp_path)), "teacher.host=int8", ZERO3)
    outcome = alone(*arguments, PYTHONPATH=str(OPTIONAL))
    assert outcome.code == 0, outcome.output
    assert "its blocks in 8 bits" in outcome.output


@pytest.mark.slow
def test_a_teacher_in_8_bits_and_frozen_embeddings(tmp_path):
    assert OPTIONAL.is_dir(), MISSING
    recipe = write_run(tmp_path)
    arguments = ("run", str(recipe), "teacher.host=int8", "student.freeze_embeddings=true")
    outcome = alone(*arguments, PYTHONPATH=str(OPTIONAL))
    assert outcome.code == 0, outcome.output
    assert "whole on each rank, its blocks in 8 bits; per rank" in outcome.output
    assert "parameters equal on both sides, kept once; per rank" in outcome.output
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(tmp_path / folder).get_input_embeddings().weight
        for folder in ("teacher", "run/export")
    )
    assert torch.equal(teacher, student)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["teacher_host"] is None
    # 8 bits are not the same teacher
    again = forked("run", str(recipe), "teacher.host=replica", "student.freeze_embeddings=true")
    assert again.code == 2
    assert "filters_teacher: was completed with other settings: teacher_weights was 'int8', now None" in again.output


CACHED = ("teacher.cache.max_gib=1", "distill.max_steps=40", "distill.micro_batch_size=1")


def test_a_teacher_in_a_cache_runs_over_each_example_once(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification")
    outcome = forked("run", str(recipe), *CACHED, num_ranks=2)
    assert outcome.code == 0, outcome.output
    assert re.search(
        r"teacher cache: \d+ examples, [\d.e-]+ MiB in .*/run/teacher_cache, each seen [\d.]+ times", outcome.output
    )
    # loaded in Stage I, to fill the cache, and to be evaluated: not beside the student
    assert outcome.output.count(f"{tmp_path}/teacher: ") == 3
    assert not (tmp_path / "run" / "teacher_cache").exists()
    live = forked("run", str(recipe), *CACHED[1:], f"output_dir={tmp_path / 'live'}", num_ranks=2)
    assert live.code == 0, live.output
    first, second = (
        next(line for line in read_metrics(tmp_path / name) if line["phase"] == "distill") for name in ("run", "live")
    )
    for name in ("loss/kl_teacher_student", "loss/feature_mse"):
        assert first[name] == pytest.approx(second[name], rel=1e-2)


def test_a_cache_that_would_be_too_large_is_refused(tmp_path):
    recipe = write_run(tmp_path, kind="sequence_classification")
    outcome = forked("run", str(recipe), "teacher.cache.max_gib=1e-9", *CACHED[1:])
    assert outcome.code == 2
    assert "teacher.cache.max_gib: 1e-09 is less than the " in outcome.output
    assert not (tmp_path / "run").exists()
    outcome = forked("run", str(recipe), "teacher.cache.max_gib=1")
    assert outcome.code == 2
    assert re.search(
        r"teacher.cache: Stage II sees 0.\d+ of \d+ examples, none of them twice; remove it, raise ", outcome.output
    )
    assert not (tmp_path / "run").exists()


def test_a_host_that_was_chosen_is_kept(lm_run):
    folder, first, again = lm_run
    assert "teacher: replica, " in first.output
    assert "teacher: replica, as when this run began (teacher.host: auto)" in again.output
    assert "deepspeed: zero2, about " in first.output
    assert "deepspeed: zero2, as when this run began" in again.output
    run = json.loads((folder / "run" / "run.json").read_text())
    assert (run["teacher_host"], run["deepspeed"]) == ("replica", "zero2")


@pytest.mark.slow
def test_settings_of_how_blocks_run_work_together(tmp_path):
    recipe = write_run(tmp_path)
    zero2 = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero2.json'}"
    settings = ("attention=sdpa", "activation_checkpointing=true", "torch_compile=true")
    reports = []
    for name, chosen in (("plain", ("attention=eager",)), ("all", settings)):
        outcome = forked(
            "run", str(recipe), zero2, "precision=bf16", f"output_dir={tmp_path / name}", *chosen, num_ranks=2
        )
        assert outcome.code == 0, outcome.output
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        reports.append([line for line in map(json.loads, lines) if "loss/total" in line])
    assert len(reports[0]) == len(reports[1]) > 0
    for plain, other in zip(*reports, strict=True):
        assert other["loss/total"] == pytest.approx(plain["loss/total"], rel=2e-2)  # of bf16


@pytest.mark.parametrize("method", ["sft", "kd", "lwd"])
def test_baselines_are_the_same_run_with_a_switch(tmp_path, method):
    recipe = write_run(tmp_path, method=method)
    outcome = forked("run", str(recipe))
    assert outcome.code == 0, outcome.output
    terms = {name for record in metrics(tmp_path) if record["phase"] == "distill" for name in record}
    assert ("loss/kl_teacher_student" in terms) == (method in ("kd", "lwd"))
    assert ("loss/feature_mse" in terms) == (method == "lwd")
    assert not (tmp_path / "run" / "filters_teacher").exists()


@pytest.mark.parametrize("family", ["gpt2", "deberta-v2"])
def test_other_families_run_the_chain_under_zero3(tmp_path, family):
    kind = "causal_lm" if family == "gpt2" else "sequence_classification"
    outcome = forked("run", str(write_run(tmp_path, kind=kind, family=family)), ZERO3, num_ranks=2)
    assert outcome.code == 0, outcome.output


def test_a_teacher_layer_can_be_matched_twice(tmp_path):
    recipe = write_run(tmp_path)
    outcome = forked("run", str(recipe), "layer_map={kind: explicit, pairs: [[1, 3], [2, 3]]}")
    assert outcome.code == 0, outcome.output
    terms = {name for record in metrics(tmp_path) for name in record}
    assert {"loss/task/layer_03", "loss/task/layer_03_2"} <= terms


def test_verbs_one_by_one_are_the_run(tmp_path):
    recipe = str(write_run(tmp_path))
    early = forked("distill", recipe)
    assert early.code == 2
    assert "phase cut_student is not complete" in early.output
    assert not (tmp_path / "run").exists()
    for verb in ("finetune", "filters", "distill", "evaluate", "export"):
        outcome = forked(verb, recipe)
        assert outcome.code == 0, outcome.output
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    recipe = str(write_run(tmp_path))
    slow = [sys.executable, "-m", "ted_ds", "run", recipe, "distill.max_steps=100000"]
    process = subprocess.Popen(slow, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "filters_student" / "phase.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert (tmp_path / "run" / "filters_student" / "phase.json").exists()
    assert not (tmp_path / "run" / "distill").exists()
    outcome = forked("run", recipe)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("complete, skipped") == 3
