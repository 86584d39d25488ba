"""Whole runs of models with a tokenizer each: what each reads, what is compared, kept and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.layouts import zero_stage
from tests.runs import copy_run, run
from tests.tiny import LABELS, write_corpus, write_labelled, write_letters, write_model, write_run

PLAN = "{max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def reports(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "distill" and "loss/task" in line]


def same_tokenizer(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TOKENIZER_FILES)


@pytest.fixture(scope="module")
def ted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A run of a BERT of words and a Llama of letters, both fine-tuned; and a cached teacher beside it."""
    folder = tmp_path_factory.mktemp("ted")
    recipe = write_run(folder, kind="sequence_classification")
    write_model(folder / "student", "llama", blocks=2, labels=LABELS, vocab=40, seed=3)
    write_letters(folder / "student")
    (folder / "student" / "LICENSE").write_text("of the student")
    heldout, more = (write_labelled(folder / f"{seed}.jsonl", 12, seed=seed) for seed in (5, 6))
    arguments = [
        "run",
        str(recipe),
        "student.from_teacher=null",
        f"student.path={folder / 'student'}",
        f"filters={{both: {PLAN}, dim: 12}}",
        f"student.finetune={PLAN}",
        f"teacher.finetune={PLAN}",
        f"data.evaluation=[{{path: {heldout}}}]",
        f"data.transfer=[{{path: {more}}}]",
        "data.transfer_share=0.25",
        "data.length_grouping.window_steps=2",
        "distill.max_steps=20",
        "distill.micro_batch_size=null",
        "distill.micro_batch_tokens=40",
        "evaluation.max_examples=100",
    ]
    return folder, arguments, run([*arguments, zero_stage(2)])


def test_each_model_is_read_by_its_own_and_the_student_takes_its_own_along(ted: Any) -> None:
    folder, _, output = ted
    assert "note: two tokenizers (100 ids differ: " in output
    assert "): each model reads by its own, up to task.max_length of its tokens; the student's is exported" in output
    assert "note: two tokenizers: layers are compared by one state of each text, where Stage I reads it" in output
    assert "texts: to the student before each text '<s>' (2)" in output
    assert same_tokenizer(folder / "run" / "finetune_teacher" / "model", folder / "teacher")
    for place in ("finetune_student/model", "distill/model", "export"):
        assert same_tokenizer(folder / "run" / place, folder / "student"), place
    config = json.loads((folder / "run" / "export" / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"], config["bos_token_id"]) == (0, 1, 2)
    card = (folder / "run" / "export" / "README.md").read_text()
    assert "Tokenizer, chat template and how text is generated are the student's own." in card


def test_scores_are_those_of_transformers_with_each_folders_own_tokenizer(ted: Any) -> None:
    folder, _, _ = ted
    rows = [json.loads(line) for line in (folder / "5.jsonl").read_text().splitlines()]
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    scores = json.loads((folder / "run" / "evaluate" / "evaluation.json").read_text())
    assert scores.keys() == {"teacher", "student before", "student fine-tuned", "student after"}
    models = {"teacher": folder / "run" / "finetune_teacher" / "model", "student after": folder / "run" / "export"}
    for name, place in models.items():
        tokenizer, model = (
            AutoTokenizer.from_pretrained(place),
            AutoModelForSequenceClassification.from_pretrained(place),
        )
        logits = [
            model(**tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")).logits for row in rows
        ]
        whole = torch.cat(logits)
        assert scores[name]["loss"] == pytest.approx(F.cross_entropy(whole, labels).item(), rel=1e-5)
        assert scores[name]["accuracy"] == pytest.approx((whole.argmax(-1) == labels).float().mean().item())
        assert scores[name]["num_examples"] == len(rows)


def test_layers_are_compared_by_texts(ted: Any) -> None:
    folder, _, _ = ted
    for report in reports(folder / "run"):
        of_layers = {name for name in report if "feature_mse" in name}
        assert of_layers == {"loss/text_feature_mse", *(f"loss/text_feature_mse/layer_0{layer}" for layer in (1, 2))}
        parts = report["loss/task"] + 4 * report["loss/kl_teacher_student"] + report["loss/text_feature_mse"]
        assert report["loss/total"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.slow
def test_other_ranks_a_sharded_teacher_and_a_cached_one_teach_the_same(ted: Any) -> None:
    folder, arguments, _ = ted
    whole = reports(folder / "run")
    for name in ("cached", "sharded"):  # they go on behind Stage I
        copy = copy_run(folder / "run", folder / name)
        for phase in ("distill", "evaluate", "export"):
            shutil.rmtree(copy / phase)
    cached = run([*arguments, "teacher.cache.max_gib=1", f"output_dir={folder / 'cached'}"], num_ranks=1)
    assert "teacher cache: " in cached
    assert "filters_both: complete, skipped" in cached
    run([*arguments, zero_stage(3), "teacher.host=zero3", f"output_dir={folder / 'sharded'}"])
    # what is rounded in another order goes through 20 steps of Adam; a cache rounds what layers are compared with to 8
    # bits, and after some steps that is another student
    for name, num_steps, tolerance in (("sharded", 20, 1e-3), ("cached", 5, 2e-2)):
        for one, other in zip(whole[:num_steps], reports(folder / name)[:num_steps], strict=True):
            for loss in ("loss/task", "loss/kl_teacher_student", "loss/text_feature_mse"):
                assert other[loss] == pytest.approx(one[loss], rel=tolerance), (name, one["step"], loss)


def test_the_doctor_looks_at_each_in_its_own_tokens(ted: Any) -> None:
    folder, arguments, _ = ted
    text = run(["doctor", *arguments[1:]], num_ranks=1, codes=None)
    found = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if line.count("│") == 4}
    verdicts = {check: (verdict.strip(), detail.strip()) for check, (verdict, detail) in found.items()}
    assert verdicts["tokenizers"][0] == "pass"
    assert verdicts["vocabulary"][1].startswith("100 and 28 tokens; embeddings 100 (teacher), 40")
    for check in ("teacher as its own student", "gradients", "one step", "student in other batches"):
        assert verdicts[check][0] == "pass", (check, verdicts[check])
    assert "loss/text_feature_mse/layer_01 0" in text
    assert "student: first microbatch: " in text
    assert "teacher: first microbatch: " in text
    assert "student:   ‹<s>›" in text or "student:   <s>" in text
    assert "teacher:   [CLS]" in text or "teacher:   ‹[CLS]›" in text
    assert (folder / "run").is_dir()


def test_a_language_model_without_a_teacher_reads_by_its_own(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, method="sft")
    write_model(tmp_path / "student", "gpt2", blocks=2, vocab=40, seed=3)
    write_letters(tmp_path / "student")
    write_corpus(tmp_path / "story.jsonl", 5, seed=4)
    story = f"evaluation.perplexity={{story: {{sources: [{{path: {tmp_path / 'story.jsonl'}}}], window: 8}}}}"
    arguments = ["run", str(recipe), "student.from_teacher=null", f"student.path={tmp_path / 'student'}", story]
    output = run(arguments, num_ranks=1)
    assert "): the data are read by the student's, which is exported; the teacher is not scored" in output
    assert "texts: before each text '<s>' (2) (as the tokenizer's own encode does), behind it '</s>' (1)" in output
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert scores.keys() == {"student before", "student after"}
    assert "story/word_perplexity" in scores["student after"]
    assert same_tokenizer(tmp_path / "run" / "export", tmp_path / "student")
    generation = json.loads((tmp_path / "run" / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 1
    again = run(arguments, num_ranks=1)
    assert again.count("complete, skipped") == 3
