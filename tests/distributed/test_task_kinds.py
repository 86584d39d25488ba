"""Whole runs on two ranks of every kind of task, of models with padded vocabularies, and of every way to make rows."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from ted_ds.config.load import load_recipe
from ted_ds.data.chat_template import find_template
from ted_ds.data.cleaning import is_heldout
from ted_ds.planning.phase import PHASES
from ted_ds.tasks.answers import marks_of
from ted_ds.verbs.run import run_phases
from tests.dist import run_ranks
from tests.runs import run as run_command
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, ROOT, VOCAB_SIZE, head_dict, write_model, write_rows, write_run, write_tokenizer

METRICS = {
    "sequence_classification": {"accuracy", "f1_macro", "matthews_correlation"},
    "soft_label_classification": {"accuracy", "f1_macro", "matthews_correlation"},
    "multi_label_classification": {"f1_micro", "f1_macro", "exact_match"},
    "regression": {"pearson", "spearman"},
    "token_classification": {"f1", "precision", "recall", "accuracy"},
    "multiple_choice": {"accuracy"},
    "question_answering": {"f1", "exact_match"},
}
PROBLEM_TYPES = {
    "sequence_classification": "single_label_classification",
    "soft_label_classification": "single_label_classification",
    "multi_label_classification": "multi_label_classification",
    "regression": "regression",
    "token_classification": None,
    "multiple_choice": None,
    "question_answering": None,
}


SCORED_APART = "sequence_classification"
"""The kind that is run with more settings: another set to score, a headline, weights of classes, dropout."""
DROPOUT = "{classifier: 0.3, hidden: 0.2, attention: 0.1}"
WITH_PAIRS = "regression"
"""The kind that is run on pairs of texts, as in STS-B."""
OTHER_TERMS = {
    "soft_label_classification": ("jsd", "loss/jsd_0.5_teacher_student"),
    "multi_label_classification": ("skew_reverse_kl", "loss/bernoulli_skew_kl_0.1_student_teacher"),
}
"""Divergences that some are run with, and what the prediction term is called then."""


LANGUAGE_TESTS = {"perplexity": "plain", "last_word": "ends"}
"""Of language models, by the names that they have here."""
MADE = ("finetune_teacher", "cut_student", "distill")
"""Phases that leave a model."""


def run(_world, recipe, overrides):
    run_phases(recipe, overrides, PHASES)


def inputs_of(folder, phase):
    return json.loads((folder / "run" / phase / "phase.json").read_text())["inputs"]


def config_of(folder):
    return AutoConfig.from_pretrained(folder)


def records(folder, phase):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["phase"] == phase]


@pytest.mark.parametrize(("kind", "stage"), [*zip(METRICS, itertools.cycle(range(4)), strict=False)])
def test_a_run_of_every_kind_of_task(tmp_path, kind, stage):
    recipe = write_run(tmp_path, kind=kind)
    overrides = [f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{stage}.json'}"]
    if kind == WITH_PAIRS:
        overrides.append("task.text_column=[text, second]")
        rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        write_rows(tmp_path / "train.jsonl", ({**row, "second": row["text"][::-1]} for row in rows))
    if kind == "question_answering":
        overrides += ["task.id_column=key", f"data.apart={{again: [{{path: {tmp_path / 'train.jsonl'}}}]}}"]
        rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        write_rows(tmp_path / "train.jsonl", ({**row, "key": f"q{number}"} for number, row in enumerate(rows)))
    if kind == SCORED_APART:
        overrides.append(f"student.dropout={DROPOUT}")
        overrides += ["task.headline=f1", "task.class_weights=balanced", "task.label_smoothing=0.1"]
        overrides += [f"data.apart={{again: [{{path: {tmp_path / 'train.jsonl'}}}]}}"]
    divergence, name = OTHER_TERMS.get(kind, ("kl", TASK_TERMS[kind].prediction_name))
    output = run_command(["run", str(recipe), *overrides, f"distill.divergence={divergence}"])
    (first, _) = records(tmp_path, "distill")
    assert first[name] > 0
    assert {one for one in first if one.endswith(("_teacher_student", "_student_teacher"))} == {name}
    # a run's student, cut from its teacher, has yet to learn
    results = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert METRICS[kind] | {"loss", "num_examples"} <= results["student after"].keys()
    if kind == SCORED_APART:
        assert {f"again/{metric}" for metric in (*METRICS[kind], "f1", "loss")} <= results["student after"].keys()
        assert (results["teacher"]["num_examples"], results["teacher"]["again/num_examples"]) == (8, 8)
        assert results["teacher"]["again/loss"] != results["teacher"]["loss"], "it is another set"
        summed_up = {name: value for record in records(tmp_path, "evaluate") for name, value in record.items()}
        assert inputs_of(tmp_path, "distill")["dropout"] == yaml.safe_load(DROPOUT)
        weights = [inputs_of(tmp_path, phase)["task"]["class_weights"] for phase in ("filters_teacher", "distill")]
        assert weights[0] == weights[1]
        said = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(LABELS, weights[0], strict=True))
        assert f"class weights in the task loss: {said}\n" in output
        assert sum(1 / weight for weight in weights[0]) == pytest.approx(2), "the mean over the data is 1"
        assert "dropout" not in inputs_of(tmp_path, "filters_student")
        names = ("classifier_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
        assert [getattr(config_of(tmp_path / "run" / "export"), name) for name in names] == [0.3, 0.2, 0.1]
        assert summed_up["student_after/again/f1"] == results["student after"]["again/f1"]
    assert METRICS[kind] <= {name.split("/")[1] for name in records(tmp_path, "filters_teacher")[-1] if "eval/" in name}
    export = tmp_path / "run" / "export"
    config = AutoConfig.from_pretrained(export)
    assert config.problem_type == PROBLEM_TYPES[kind]
    inputs = AutoTokenizer.from_pretrained(export)("ba be bi", return_tensors="pt")
    if kind == "multiple_choice":
        both = AutoTokenizer.from_pretrained(export)(["ba be"] * 2, ["bi", "bo bu"], return_tensors="pt", padding=True)
        model = AutoModelForMultipleChoice.from_pretrained(export)
        assert model(**{name: one[None] for name, one in both.items()}).logits.shape == (1, 2)
        return
    if kind == "question_answering":
        assert config.num_labels == 2
        outputs = AutoModelForQuestionAnswering.from_pretrained(export)(**inputs)
        assert outputs.start_logits.shape == outputs.end_logits.shape == (1, 5)
        assert results["teacher"]["num_examples"] == 8 < results["teacher"]["num_windows"]
        folder = tmp_path / "run" / "evaluate" / "predictions"
        names = {name.replace(" ", "_") for name in results}
        assert {one.name for one in folder.iterdir()} == names | {f"{name}.again" for name in names}
        said = json.loads((folder / "student_after" / "predictions.json").read_text())
        lines = (tmp_path / "train.jsonl").read_text().splitlines()
        right = {row["key"]: row["answers"]["text"] for row in map(json.loads, lines)}
        assert len(said) == 8
        marks = [marks_of(answer, right[name], no_answer=False) for name, answer in said.items()]
        assert sum(one.f1 for one in marks) / 8 == pytest.approx(results["student after"]["f1"])
        return
    (names,) = head_dict(kind).values()
    assert list(config.id2label.values()) == names
    of_words = kind == "token_classification"
    auto = AutoModelForTokenClassification if of_words else AutoModelForSequenceClassification
    assert auto.from_pretrained(export)(**inputs).logits.shape == (1, *([5] if of_words else []), len(names))


def test_a_masked_lm_whose_teacher_learns_its_head_first(tmp_path):
    recipe = write_run(tmp_path, kind="masked_lm")
    body = write_model(tmp_path / "body", "bert")
    write_tokenizer(body, encoder=True, masks=True)
    plan = "{max_steps: 2, learning_rate: 1e-2, global_batch_size: 4, micro_batch_size: 2}"
    task = ["task.masking.whole_words=true", "task.packing.method=best_fit", "task.kl_on=all"]
    zero = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
    run_ranks(run, 2, str(recipe), [zero, f"teacher.path={body}", f"teacher.finetune={plan}", *task])
    (first, _) = records(tmp_path, "distill")
    assert first["loss/kl_teacher_student"] > 0
    scores = {"pseudo_perplexity", "masked_accuracy", "loss"}
    results = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert scores | {"num_tokens"} <= results["student after"].keys()
    assert len({one["num_tokens"] for one in results.values()}) == 1
    assert scores <= {name.split("/")[1] for name in records(tmp_path, "filters_teacher")[-1] if "eval/" in name}
    export = tmp_path / "run" / "export"
    model = AutoModelForMaskedLM.from_pretrained(export)
    inputs = AutoTokenizer.from_pretrained(export)("ba [MASK] bi", return_tensors="pt")
    assert inputs["input_ids"][0, 2] == VOCAB_SIZE - 1
    assert model(**inputs).logits.shape == (1, 5, VOCAB_SIZE)
    # the head that both have was made once, learned, and went with the student's blocks
    weights = {name: load_file(tmp_path / "run" / name / "model" / "model.safetensors") for name in MADE}
    of_head = "cls.predictions.transform.dense.weight"
    assert torch.equal(weights["finetune_teacher"][of_head], weights["cut_student"][of_head])
    assert not torch.equal(weights["cut_student"][of_head], weights["distill"][of_head])
    assert torch.equal(weights["distill"][of_head], model.state_dict()[of_head])


def test_a_run_of_chats_exports_its_template_and_scores_completions_alone(tmp_path):
    recipe = write_run(tmp_path, kind="chat")
    zero = f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero3.json'}"
    story = write_rows(tmp_path / "story.jsonl", [{"text": "ba be bi bo ba bu"}, {"text": "bi ba"}])
    tests = [f"evaluation.{key}={{{name}: {{sources: [{{path: {story}}}]}}}}" for key, name in LANGUAGE_TESTS.items()]
    run_ranks(run, 2, str(recipe), [zero, "task.pack=true", "evaluation.max_examples=1000", *tests])
    (first, second) = records(tmp_path, "distill")
    assert all(one["loss/kl_teacher_student"] > 0 for one in (first, second))
    settled = json.loads((tmp_path / "run" / "distill" / "phase.json").read_text())["inputs"]["task"]["chat_template"]
    assert settled == find_template(load_recipe(recipe).task.template_file, None).sha256
    export = tmp_path / "run" / "export"
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    total, count = 0.0, 0
    for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines()):
        if not is_heldout("\n".join(f"{one['role']}: {one['content']}" for one in row["messages"]), 0.2):
            continue
        ids, learned = [], []
        for one in row["messages"]:
            answers = one["role"] == "assistant"
            own = [*tokenizer(one["content"])["input_ids"], *([tokenizer.eos_token_id] if answers else [])]
            ids, learned = ids + own, learned + [answers] * len(own)
        assert tokenizer.apply_chat_template(row["messages"])["input_ids"] == ids
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [place for place, one in enumerate(learned[:16]) if one]
        total -= sum(logs[place - 1, ids[place]].item() for place in places)
        count += len(places)
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())["student after"]
    assert scores["num_tokens"] == count > 0
    assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
    # and as a language model, on plain texts, of which the template and the packing know nothing
    texts = [json.loads(line)["text"] for line in story.read_text().splitlines()]
    losses, lasts = [], []
    for ids in (tokenizer(text)["input_ids"] for text in texts):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        of_tokens = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        losses += of_tokens.tolist()
        lasts.append(of_tokens[-1].item())
    assert scores["plain/token_perplexity"] == pytest.approx(math.exp(sum(losses) / 6), rel=1e-4)
    assert scores["ends/perplexity"] == pytest.approx(math.exp(sum(lasts) / 2), rel=1e-4)


def probabilities_of_ids(folder, text):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)


@pytest.mark.parametrize(
    ("teacher_rows", "student_rows"), [(VOCAB_SIZE + 27, VOCAB_SIZE), (VOCAB_SIZE, VOCAB_SIZE + 11)]
)
def test_models_padded_to_different_vocabularies_distil(tmp_path, teacher_rows, student_rows):
    # as Qwen2.5: 151,936 embeddings in the small models, 152,064 in the large, 151,665 tokens in all
    recipe = write_run(tmp_path)
    write_model(tmp_path / "teacher", "llama", vocab=teacher_rows)
    write_model(tmp_path / "student", "llama", blocks=2, vocab=student_rows, seed=3)
    run_ranks(run, 2, str(recipe), [f"student={{path: {tmp_path / 'student'}}}", "distill.task_weight=0"])
    (first, _) = records(tmp_path, "distill")
    assert 0 < first["loss/kl_teacher_student"] < 10
    exported = AutoConfig.from_pretrained(tmp_path / "run" / "export")
    assert exported.vocab_size == student_rows
    # the teacher's padded ids have logits of their own, and none of them reaches the student
    teacher = probabilities_of_ids(tmp_path / "teacher", "ba be bi")
    if teacher_rows > VOCAB_SIZE:
        assert teacher[..., VOCAB_SIZE:].sum() > 0.01
    if student_rows > VOCAB_SIZE:
        before = AutoModelForCausalLM.from_pretrained(tmp_path / "student").get_output_embeddings().weight
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").get_output_embeddings().weight
        assert torch.equal(before[VOCAB_SIZE:], after[VOCAB_SIZE:])  # without a task loss
        assert not torch.equal(before[:VOCAB_SIZE], after[:VOCAB_SIZE])


@pytest.mark.slow
def test_rows_made_otherwise_make_the_same_run(tmp_path):
    made = {}
    for name, override in {"right": "seed=0", "left": "data.padding={side: left, multiple_of: 8}"}.items():
        recipe = write_run(tmp_path / name, kind="sequence_classification", family="llama")
        run_ranks(run, 2, str(recipe), [override])
        made[name] = [record["loss/total"] for record in records(tmp_path / name, "distill")]
    assert made["left"] == pytest.approx(made["right"], rel=1e-5)


def test_isolation_is_a_setting_and_matters(tmp_path):
    made = {}
    for isolate in ("true", "false"):
        recipe = write_run(tmp_path / isolate)
        run_ranks(run, 2, str(recipe), [f"task.packing.isolate_documents={isolate}"])
        made[isolate] = records(tmp_path / isolate, "distill")[0]["loss/task"]
    assert made["true"] != pytest.approx(made["false"], rel=1e-3)


def test_a_model_whose_positions_begin_behind_its_padding_keeps_its_own_id(tmp_path):
    """Its tokenizer may fill rows with another one, by which the exported model would count otherwise."""
    recipe = write_run(tmp_path, kind="sequence_classification", family="roberta")
    write_model(tmp_path / "teacher", "roberta", labels=LABELS, pad_token_id=1)
    assert AutoTokenizer.from_pretrained(tmp_path / "teacher").pad_token_id == 0
    run_ranks(run, 1, str(recipe), [])
    assert config_of(tmp_path / "run" / "export").pad_token_id == 1
