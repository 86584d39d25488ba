"""Masked LM: what a recipe may say, what the models must have, how documents end, and what the doctor shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ted_ds.config.load import load_recipe
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.loading import LoadSettings, load_model, load_tokenizer
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.pipeline_cut import FORWARD, LEARN, operations_per_token
from ted_ds.planning.plan import Plan
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import make_guess, make_plan
from tests.tiny import VOCAB_SIZE, recipe_dict, write_corpus, write_model, write_recipe, write_rows, write_tokenizer

MASK = VOCAB_SIZE - 1
FINETUNE = "{max_steps: 2, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a masked LM, its body alone, a causal LM, documents and a recipe."""
    folder = tmp_path_factory.mktemp("masked")
    write_model(folder / "teacher", "bert", architecture="MaskedLM")
    write_model(folder / "body", "bert")
    write_tokenizer(folder / "body", encoder=True, masks=True)
    write_model(folder / "causal", "llama")
    write_corpus(folder / "train.jsonl")
    write_recipe(folder / "recipe.yaml", recipe_dict(folder, kind="masked_lm"))
    return folder


def recipe(run: Path, *overrides: str) -> Any:
    return load_recipe(run / "recipe.yaml", overrides)


def plan(run: Path, *overrides: str) -> Plan:
    return make_plan(recipe(run, *overrides), num_ranks=1, source="recipe.yaml")


def refusal(run: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(run, *overrides)
    return str(caught.value)


# --- what a recipe may say --------------------------------------------------------------------------------------------


def test_documents_are_not_kept_apart_and_15_of_100_tokens_are_predicted(run: Path) -> None:
    task = recipe(run).task
    assert not task.packing.isolate_documents
    assert task.predicted_share == task.masking.probability == 0.15
    assert (task.masking.to_mask, task.masking.to_random, task.masking.whole_words) == (0.8, 0.1, False)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "task.packing.isolate_documents=true",
            "task.packing: isolate_documents: true: an encoder's attention goes over the whole sequence and cannot "
            "keep its documents apart; remove it (method: best_fit cuts fewer of them)",
        ),
        (
            "task.masking={to_mask: 0.8, to_random: 0.3}",
            "task.masking: to_mask is 0.8 and to_random 0.3: shares of the same tokens; together at most 1",
        ),
        ("task.masking.probability=0", "task.masking.probability: 0: "),
        ("task.masking.probability=1", "task.masking.probability: 1: "),
        ("task.masking.mask=0.8", "task.masking.mask: unknown key; "),
        ("task.bos=always", "task.bos: unknown key; "),
        (
            "data.length_grouping.window_steps=2",
            "data.length_grouping.window_steps: 2: the packed sequences of a masked_lm all have one length; remove it",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(run: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(run, override)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_without_effect_are_said(run: Path) -> None:
    given = recipe(run, "task.packing.window=4", "filters.pooling=mean")
    assert settings_without_effect(given) == [
        "without effect: filters.pooling (task.kind: masked_lm)",
        "without effect: task.packing.window (task.packing.method: wrap)",
    ]
    everywhere = "task.kl_on=all"
    assert settings_without_effect(recipe(run, everywhere)) == []
    assert settings_without_effect(recipe(run, everywhere, "distill.method=sft", "filters=null")) == [
        "without effect: task.kl_on (distill.method: sft)"
    ]
    assert settings_without_effect(recipe(run, everywhere, "distill.kl_weight=0")) == [
        "without effect: task.kl_on (distill.kl_weight: 0)"
    ]


def test_predictions_are_compared_where_the_recipe_says(run: Path) -> None:
    samples = [Sample([3, 5, MASK, 7, 4], [-100, -100, 6, 7, -100], [5]), Sample([3, 5, 4], [-100, 5, -100], [3]), None]
    for where, predicted in (("masked", None), ("all", [[True] * 5, [True] * 3 + [False] * 2, [False] * 5])):
        given = recipe(run, f"task.kl_on={where}")
        kind = kind_of(given.task)
        batch = kind.collator(0, given.data.padding)(samples)
        assert (None if batch.predicted is None else batch.predicted.tolist()) == predicted
        assert batch.labels.tolist()[:2] == [[-100, -100, 6, 7, -100], [-100, 5, -100, -100, -100]]
        assert kind.terms.predicted(batch.labels, batch.kept_tokens).sum() == (3 if where == "masked" else 8)


# --- what the models must have ----------------------------------------------------------------------------------------


def test_a_masked_lm_is_taken(run: Path) -> None:
    teacher = plan(run).teacher
    assert teacher is not None
    assert teacher.has_lm_head


def test_the_logits_of_tokens_that_are_not_predicted_cost_nothing(run: Path) -> None:
    def cost(where: str) -> float:
        given, planned = recipe(run, f"task.kl_on={where}"), plan(run)
        assert planned.teacher is not None
        assert planned.student is not None
        facts = {"teacher": planned.teacher, "student": planned.student}
        return operations_per_token(given, facts, planned.layer_pairs, planned.filter_dim, DISTILL)

    # the student's head learns, the teacher's is run; both are 100 x 16
    assert cost("all") - cost("masked") == pytest.approx(0.85 * 2 * VOCAB_SIZE * 16 * (LEARN + FORWARD))


def test_another_kind_of_model_is_refused(run: Path) -> None:
    message = refusal(run, f"teacher.path={run / 'causal'}")
    assert "teacher.path: a llama is no masked LM; use one of bert, roberta, " in message


def test_a_body_without_a_head_is_refused_where_it_is_not_trained_first(run: Path) -> None:
    body = f"teacher.path={run / 'body'}"
    assert (
        "teacher.path: its weights hold no head for masked_lm (cls.predictions.transform and what follows) and its "
        "predictions would be random; fine-tune it on the task: add teacher.finetune"
    ) in refusal(run, body)
    plan(run, body, f"teacher.finetune={FINETUNE}")


def test_a_student_without_a_head_needs_one_only_for_its_filters(run: Path) -> None:
    student = ["student.from_teacher=null", f"student.path={run / 'body'}"]
    assert (
        "student.path: its weights hold no head for masked_lm (cls.predictions.transform and what follows), by which "
        "filters.lm_head: frozen would read its filters; add student.finetune, or use filters.lm_head: new"
    ) in refusal(run, *student)
    for override in (f"student.finetune={FINETUNE}", "filters.lm_head=new", "distill.method=kd"):
        plan(run, *student, override)


def test_a_head_is_looked_for_where_the_config_says(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", "deberta-v2", architecture="MaskedLM", legacy=False)
    write_corpus(tmp_path / "train.jsonl")
    write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="masked_lm"))
    plan(tmp_path)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**config, "legacy": True}))
    assert "its weights hold no head for masked_lm" in refusal(tmp_path)
    plan(tmp_path, f"teacher.finetune={FINETUNE}")


def test_a_tokenizer_without_a_mask_token_is_refused_before_and_after_it_is_loaded(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", "bert", architecture="MaskedLM")
    write_tokenizer(teacher, encoder=True)
    write_corpus(tmp_path / "train.jsonl")
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="masked_lm"))
    words = (
        "its tokenizer has no mask token to hide others behind; use a model that was trained with one, or name one of "
        "its tokens as mask_token in tokenizer_config.json"
    )
    if "mask_token" not in json.loads((teacher / "tokenizer_config.json").read_text()):
        assert f"teacher.path: {words}" in refusal(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_data(load_recipe(path, []), teacher)
    assert str(caught.value) == f"{teacher}: {words}"


def test_a_new_head_starts_random_where_it_may(run: Path) -> None:
    settings = LoadSettings(torch.float32)
    with pytest.raises(CheckpointError, match=r"has no trained head \(cls\.predictions\.bias is missing.*finetune"):
        load_model(run / "body", settings, head=None, architecture="MaskedLM")
    model, fresh = load_model(run / "body", settings, head=None, architecture="MaskedLM", new_head_allowed=True)
    assert all(name.startswith("cls.predictions.") for name in fresh)
    assert "cls.predictions.transform.dense.weight" in fresh
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    assert head.weight is embeddings.weight


def test_a_missing_weight_of_the_body_is_no_new_head(run: Path, tmp_path: Path) -> None:
    write_model(tmp_path, "bert", architecture="MaskedLM")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the files lack 1 weight \(bert\.encoder\.layer\.1\."):
        load_model(tmp_path, LoadSettings(torch.float32), head=None, architecture="MaskedLM", new_head_allowed=True)


# --- documents --------------------------------------------------------------------------------------------------------


def open_data(recipe: Any, tokenizer: Path) -> CorpusData:
    data = kind_of(recipe.task).open_data(
        recipe.data, load_tokenizer(tokenizer), list_data(recipe.data), max_heldout=recipe.evaluation.max_examples
    )
    assert isinstance(data, CorpusData)
    return data


def test_documents_stand_between_the_tokenizers_own_tokens(run: Path) -> None:
    data = open_data(recipe(run), run / "teacher")
    assert data.text_ends == (
        "before each text '[CLS]' (3) (as the tokenizer's own encode does), behind it '[SEP]' (4)"
    )
    sample = data.heldout[0]
    assert isinstance(sample.label, list)
    tokens = [own if label == -100 else label for own, label in zip(sample.input_ids, sample.label, strict=True)]
    assert tokens[0] == 3
    assert 4 in tokens
    assert MASK not in tokens
    assert 1 not in tokens  # the end token, which an encoder's texts do not end with


def test_without_ends_of_its_own_a_text_ends_with_the_separator(run: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, masks=True)
    assert open_data(recipe(run), tmp_path).text_ends == (
        "before each text nothing (as the tokenizer's own encode does), behind it '[SEP]' (4)"
    )


def test_heldout_masks_are_those_of_every_run(run: Path, tmp_path: Path) -> None:
    samples = [
        [(one.input_ids, one.label) for one in open_data(given, run / "teacher").heldout]
        for given in (recipe(run), recipe(run, "seed=7"), recipe(run, "evaluation.max_examples=3"))
    ]
    assert samples[0] == samples[1]
    assert samples[0][:3] == samples[2]
    assert len({str(label) for _, label in samples[0]}) == len(samples[0])
    moved = write_rows(tmp_path / "other.jsonl", map(json.loads, (run / "train.jsonl").read_text().splitlines()))
    other = open_data(recipe(run, f"data.train=[{{path: {moved}}}]"), run / "teacher").heldout
    assert [(one.input_ids, one.label) for one in other] == samples[0]


# --- what is shown, and what is guessed -------------------------------------------------------------------------------


def test_the_doctor_shows_what_is_read_and_what_stood_there(run: Path) -> None:
    given = recipe(run)
    kind, tokenizer = kind_of(given.task), load_tokenizer(run / "teacher")
    ids, labels = [3, 5, MASK, 7, 4], [-100, -100, 6, 7, -100]
    collate = kind.collator(0, given.data.padding)
    assert isinstance(collate, Collator)
    batch = collate([Sample(ids, labels, [5]), Sample([3, 5, 4, 3, 5, 4, 4], [-100, 5, *[-100] * 5], [7])])
    assert kind.show_row(batch, 0, tokenizer) == "‹[CLS]›‹ ba› [MASK][be] bi[bi]‹ [SEP]›[pad x2]"


def test_a_guess_is_one_of_the_vocabulary() -> None:
    assert make_guess("masked_lm", num_outputs=50).loss == pytest.approx(math.log(50))
