"""``ted-ds doctor`` names what is wrong with a broken pair of models, and has nothing against a sound one."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ted_ds.data.cleaning import is_heldout
from ted_ds.models import taps
from ted_ds.planning.phase import FILTERS_STUDENT, FILTERS_TEACHER, FINETUNE_TEACHER
from ted_ds.verbs.doctor import examine
from ted_ds.verbs.run import run_phases
from tests.dist import run_ranks
from tests.tiny import (
    LABELS,
    ROOT,
    WORDS,
    recipe_dict,
    write_model,
    write_recipe,
    write_rows,
    write_run,
    write_tokenizer,
)

ZERO = {stage: f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{stage}.json'}" for stage in (1, 3)}


def counting_texts() -> list[str]:
    """Texts that a tiny model can learn: each word is followed by the next of the list."""
    return [" ".join(WORDS[(start + i) % len(WORDS)] for i in range(9)) for start in range(len(WORDS))] * 2


def train_plainly(folder, texts, labels=None):
    """Some hundred AdamW steps on all texts at once, so that the model beats a guess by far."""
    auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    tokenizer = write_tokenizer(folder, encoder=labels is not None)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    targets = torch.tensor(labels) if labels else batch["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs, labels=targets).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A language model and a classifier that know their task, each with a run whose filters are learned."""
    folder = tmp_path_factory.mktemp("sound")
    texts = counting_texts()
    for kind, family in (("causal_lm", "llama"), ("sequence_classification", "bert")):
        place = folder / kind
        labels = None if kind == "causal_lm" else [WORDS.index(text.split()[0]) % 2 for text in texts]
        for name, blocks, seed in (("teacher", 4, 1), ("student", 2, 2)):
            write_model(place / name, family, blocks=blocks, labels=LABELS if labels else None, seed=seed)
            train_plainly(place / name, texts, labels)
        rows = [{"text": text, "label": labels[i] if labels else 0} for i, text in enumerate(texts)]
        write_rows(place / "train.jsonl", rows)
        recipe = recipe_dict(place, kind=kind) | {"student": {"path": str(place / "student")}, "preflight": "refuse"}
        plan = recipe["filters"]["teacher"] | {"max_steps": 40, "learning_rate": 2e-2, "global_batch_size": 8}
        recipe["filters"] = {"initialisation": "identity", "teacher": plan, "student": plan}
        recipe["tracking"]["log_every_steps"] = 40
        recipe["evaluation"] = {"max_examples": 64, "micro_batch_size": 16}
        recipe["data"]["heldout_fraction"] = 0.4
        write_recipe(place / "recipe.yaml", recipe)
        run_ranks(learn_filters, 2, str(place / "recipe.yaml"))
    return folder


def learn_filters(_world, recipe):
    run_phases(recipe, [], (FILTERS_TEACHER, FILTERS_STUDENT))


def copy(sound, tmp_path, kind):
    """A pair of one's own to break, with the run's filters; the data stays where it is."""
    place = tmp_path / kind
    shutil.copytree(sound / kind, place)
    recipe = (place / "recipe.yaml").read_text().replace(str(sound / kind), str(place))
    (place / "recipe.yaml").write_text(recipe.replace(str(place / "train"), str(sound / kind / "train")))
    return place


def look(world, recipe, overrides):
    """The doctor's verdict and what it prints on rank 0."""
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        healthy = examine(recipe, overrides)
    return healthy, screen.getvalue()


def doctor(place, *overrides, num_ranks=2):
    results = run_ranks(look, num_ranks, str(place / "recipe.yaml"), list(overrides))
    assert len({healthy for healthy, _ in results}) == 1
    healthy, text = results[0]
    assert all(not other for _, other in results[1:])
    return healthy, verdicts(text), text


def verdicts(text):
    """Check -> (verdict, detail), out of the printed table."""
    found = {}
    for line in text[text.index(": doctor") :].splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) == 3 and cells[0]:
            last = cells[0]
            found[last] = (cells[1], cells[2])
        elif len(cells) == 3:
            found[last] = (found[last][0], f"{found[last][1]} {cells[2]}")
    return found


def failed(found):
    return {check for check, (verdict, _) in found.items() if verdict == "FAIL"}


def change_weight(folder, name, change):
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def kl_of_bf16(place):
    """Of the teacher in fp32 from itself in bf16, per prediction on the held-out texts, by plain transformers."""
    auto = AutoModelForCausalLM if place.name == "causal_lm" else AutoModelForSequenceClassification
    texts = [json.loads(line)["text"] for line in (place / "train.jsonl").read_text().splitlines()]
    texts = [text for text in texts if is_heldout(text, 0.4)]
    batch = AutoTokenizer.from_pretrained(place / "teacher")(texts, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        full, less = (
            auto.from_pretrained(place / "teacher", dtype=dtype)(**inputs).logits.double().log_softmax(-1)
            for dtype in (torch.float32, torch.bfloat16)
        )
    return float((full.exp() * (full - less)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["causal_lm", "sequence_classification"])
@pytest.mark.parametrize("stage", [1, 3])
def test_nothing_is_held_against_a_sound_pair(sound, kind, stage):
    before = sorted((sound / kind).rglob("*"))
    related = ("distill.relation_weight=1", "distill.relation_heads=4", "distill.balance=gradient_norm")
    healthy, found, text = doctor(sound / kind, ZERO[stage], *(related if stage == 3 else ()))
    assert healthy, text
    assert not failed(found)
    assert ("loss/relation_kl 0" in found["teacher as its own student"][1]) == (stage == 3)
    assert found["teacher as its own student"][1].startswith("loss/kl_teacher_student 0, loss/feature_mse/layer_01 0")
    assert found["filters of teacher"][1].startswith("held-out loss layer_")
    assert "on all 2" in found["gradients across ranks"][1]
    verdict, told = found["teacher's precision"]
    assert verdict == "pass"
    bias = re.search(r"bf16 is off by ([\d.e-]+) and takes [\d.]+ of the time", told)
    assert float(bias[1]) == pytest.approx(kl_of_bf16(sound / kind), rel=0.3, abs=1e-6), told
    assert found["teacher in other batches"][0] == found["student in other batches"][0] == "pass"
    assert "layer 1 │    16 │ layer 2 │    16 │         16" in text
    assert "first microbatch" in text
    assert "nothing failed" in text
    assert sorted((sound / kind).rglob("*")) == before


PLAN = "{max_steps: 1, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"


@pytest.mark.parametrize("finetune", ["", f", finetune: {PLAN}"])
def test_a_student_yet_to_be_cut_is_examined_and_leaves_nothing(sound, tmp_path, finetune):
    place = copy(sound, tmp_path, "causal_lm")
    shutil.rmtree(place / "run")
    before = sorted(place.rglob("*"))
    student = f"student={{from_teacher: {{blocks: [0, 3]}}{finetune}}}"
    healthy, found, text = doctor(place, student, f"output_dir={place / 'new' / 'run'}")
    assert healthy, text
    assert "not learned yet" in found["filters of student"][1]
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("kind", ["causal_lm", pytest.param("sequence_classification", marks=pytest.mark.slow)])
def test_a_random_teacher(sound, tmp_path, kind):
    place = copy(sound, tmp_path, kind)
    shutil.rmtree(place / "teacher")
    labels = None if kind == "causal_lm" else LABELS
    write_model(place / "teacher", "llama" if labels is None else "bert", blocks=4, labels=labels, seed=77)
    healthy, found, _ = doctor(place)
    assert not healthy
    check = next(check for check in found if check.startswith("teacher on"))
    assert "no better; are these its trained weights?" in found[check][1]
    # the filters were learned on the teacher that was there before
    assert failed(found) == {check, "filters of teacher"}


def test_a_teacher_fine_tuned_with_other_settings(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    run_ranks(finetune_teacher, 2, str(place / "recipe.yaml"), f"output_dir={place / 'tuned'}")
    overrides = [f"output_dir={place / 'tuned'}", f"teacher.finetune={PLAN}"]
    assert doctor(place, *overrides)[0]
    healthy, found, _ = doctor(place, *overrides, "teacher.finetune.learning_rate=1")
    assert not healthy
    assert "plan.learning_rate was 0.001, now 1" in found["finetune_teacher"][1]


def finetune_teacher(_world, recipe, override):
    run_phases(recipe, [override, f"teacher.finetune={PLAN}"], (FINETUNE_TEACHER,))


def test_labels_in_another_order_by_name(sound, tmp_path):
    place = copy(sound, tmp_path, "sequence_classification")
    healthy, found, _ = doctor(place, "task.labels=[positive, negative]")
    assert not healthy
    assert "its labels are ['negative', 'positive'], task.labels are ['positive', 'negative']" in found["labels"][1]


def test_labels_in_another_order_without_names(sound, tmp_path):
    place = copy(sound, tmp_path, "sequence_classification")

    def forget(config):
        config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
        config["label2id"] = {"LABEL_0": 0, "LABEL_1": 1}

    for name in ("teacher", "student"):
        edit_json(place / name / "config.json", forget)
    shutil.rmtree(place / "run")
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    write_rows(place / "train.jsonl", [{**row, "label": 1 - row["label"]} for row in rows])
    healthy, found, _ = doctor(place, f"data.train[0].path={place / 'train.jsonl'}")
    assert not healthy
    assert found["labels"][0] == "WARN"
    (check,) = failed(found)
    assert check.startswith("teacher on")
    assert "its labels are in another order" in found[check][1]
    assert "read as ['positive', 'negative']" in found[check][1]


def test_a_student_whose_head_starts_random(sound, tmp_path):
    place = copy(sound, tmp_path, "sequence_classification")
    shutil.rmtree(place / "run")
    file = place / "student" / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if not name.startswith("classifier.")}
    save_file(kept, file, metadata={"format": "pt"})
    healthy, found, text = doctor(place)
    assert healthy, text
    assert found["student initialisation"] == (
        "WARN",
        "not in its files, starts random: classifier.bias, classifier.weight",
    )
    assert found["teacher initialisation"] == ("pass", "every weight is in its files")


def test_a_truncated_tokenizer(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    write_tokenizer(place / "student", WORDS[:-3])
    healthy, found, _ = doctor(place)
    assert not healthy
    assert found["tokenizers"][0] == "FAIL"
    assert f"id {len(WORDS) + 2} is {WORDS[-3]!r} to the teacher and None to the student" in found["tokenizers"][1]


def test_a_tokenizer_of_the_same_vocabulary_and_other_special_tokens(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    changes = {"eos_token": "[SEP]", "padding_side": "left"}
    edit_json(place / "student" / "tokenizer_config.json", lambda values: values.update(changes))
    _, found, text = doctor(place)
    assert failed(found) == set(), text
    assert found["tokenizers"][0] == "WARN"
    for words in ("eos_token is '[EOS]' to the teacher and '[SEP]' to the student", "padding_side is 'right' to"):
        assert words in found["tokenizers"][1]


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    for name in ("teacher", "student"):
        write_tokenizer(place / name, [*WORDS, "extra"])
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    write_rows(place / "train.jsonl", [{**row, "text": f"extra {row['text']}"} for row in rows])
    healthy, found, _ = doctor(place, f"data.train[0].path={place / 'train.jsonl'}")
    assert not healthy
    assert found["stage II"] == ("skip", "a token without an embedding would end this in a crash")
    assert f"gives 'extra' the id {len(WORDS) + 5}" in found["vocabulary"][1]


def test_filters_of_another_checkpoint(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    change_weight(place / "teacher", "model.norm.weight", lambda weight: weight.mul_(1.01))
    healthy, found, _ = doctor(place)
    assert not healthy
    assert failed(found) == {"filters of teacher"}
    assert "was completed with other settings" in found["filters of teacher"][1]
    words = "".join(found["filters of teacher"][1].split())  # paths are broken where a line of the table ends
    assert re.search(r"teacherwas\S+\(SHA-256\w{12}\.\.\.\),now\S+\(SHA-256", words)


def test_filters_that_were_changed_since(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    file = place / "run" / "filters_student" / "filters.safetensors"
    weights = load_file(file)
    save_file({name: weight + 1 for name, weight in weights.items()}, file)
    healthy, found, _ = doctor(place)
    assert not healthy
    assert "changed or missing since its phase was completed" in found["filters of student"][1]


def test_one_nan_weight(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    change_weight(place / "student", "model.layers.1.mlp.up_proj.weight", lambda weight: weight[0].fill_(torch.nan))
    shutil.rmtree(place / "run" / "filters_student")
    healthy, found, _ = doctor(place)
    assert not healthy
    assert "1 tensors hold NaN or infinity: model.layers.1.mlp.up_proj.weight" in found["student weights"][1]
    assert "it begins in the output of student layer_02" in found["one step"][1]
    assert "not finite" in found[next(check for check in found if check.startswith("student on"))][1]


def test_missing_and_zero_weights(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file({name: weight * 0 for name, weight in weights.items()}, file, metadata={"format": "pt"})
    healthy, found, _ = doctor(place)
    assert not healthy
    assert "in matrices of nothing but zeros" in found["teacher weights"][1]
    assert "the files lack 1 weight (model.layers.2.mlp.up_proj.weight" in found["stage II"][1]


def test_a_term_that_reaches_no_filter(sound):
    healthy, found, _ = doctor(sound / "causal_lm", "distill.feature_weight=1e-60")
    assert not healthy
    assert "parameters receive none: bank.filters.0" in found["gradients"][1]


def test_every_fault_at_once_is_named(sound, tmp_path):
    place = copy(sound, tmp_path, "sequence_classification")
    shutil.rmtree(place / "teacher")
    write_model(place / "teacher", "bert", blocks=4, labels=LABELS, seed=77)
    write_tokenizer(place / "student", WORDS[:-3], encoder=True)
    change_weight(place / "student", "classifier.weight", lambda weight: weight[0].fill_(torch.nan))
    healthy, found, text = doctor(place, "task.labels=[positive, negative]")
    assert not healthy
    assert {"labels", "student weights", "filters of teacher", "filters of student"} <= failed(found)
    assert any(check.startswith("teacher on") for check in failed(found)), text


def preflight(_world, recipe, overrides):
    from ted_ds.errors import CheckpointError

    try:
        run_phases(recipe, overrides, (FILTERS_TEACHER,))
    except CheckpointError as error:
        return error.agreed, str(error)
    return None


def test_a_run_refuses_a_random_teacher_and_trains_one_that_knows_its_task(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    write_recipe(place / "recipe.yaml", recipe | {"output_dir": str(tmp_path / "other")})
    short = f"filters.teacher={PLAN}"
    assert run_ranks(preflight, 2, str(place / "recipe.yaml"), [short]) == [None, None]
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(place / "teacher")
    write_model(place / "teacher", "llama", blocks=4, seed=77)
    for agreed, text in run_ranks(preflight, 2, str(place / "recipe.yaml"), [short]):
        assert agreed
        assert "are these its trained weights?" in text
        assert "preflight: warn trains all the same" in text
    assert not (tmp_path / "other" / "filters_teacher").exists()
    assert run_ranks(preflight, 2, str(place / "recipe.yaml"), [short, "preflight=warn"]) == [None, None]


def test_a_run_refuses_a_nan_weight_before_it_writes_anything(sound, tmp_path):
    place = copy(sound, tmp_path, "causal_lm")
    change_weight(place / "teacher", "model.norm.weight", lambda weight: weight[:1].fill_(torch.inf))
    for agreed, text in run_ranks(preflight, 2, str(place / "recipe.yaml"), [f"output_dir={tmp_path / 'other'}"]):
        assert agreed
        assert "teacher weights: 1 tensors hold NaN or infinity: model.norm.weight" in text
    assert not (tmp_path / "other").exists()


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 6,
    "factor": 8.0,
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A classifier whose positions hang on a text's length, and texts on both sides of that length."""
    folder = tmp_path_factory.mktemp("uneven")
    place = write_run(folder, kind="sequence_classification", family="llama").parent
    write_model(place / "teacher", "llama", labels=LABELS, rope_parameters=LONGROPE)
    return place


def look_with(world, recipe, overrides, fault):
    fault()
    return look(world, recipe, overrides)


def let_the_batch_choose_positions():
    taps.choose_by_text = lambda _model: False


def mix_rows():
    """As a normalisation over the batch does."""
    plain = LlamaRMSNorm.forward
    LlamaRMSNorm.forward = lambda self, states: plain(self, states - 0.1 * states.mean(0, keepdim=True))


def nothing():
    pass


@pytest.mark.parametrize(
    ("fault", "verdict"), [(nothing, "pass"), (let_the_batch_choose_positions, "FAIL"), (mix_rows, "FAIL")]
)
def test_rows_that_hang_on_those_beside_them(uneven, fault, verdict):
    ((_, text),) = run_ranks(look_with, 1, str(uneven / "recipe.yaml"), [], fault)
    found = verdicts(text)
    for side in ("teacher", "student"):
        assert found[f"{side} in other batches"][0] == verdict, text
        assert ("each hangs on those beside it" in found[f"{side} in other batches"][1]) == (verdict == "FAIL")
