"""Sequence-to-sequence: rows, batches, scores, and what a recipe of an encoder-decoder may not ask for."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoTokenizer

from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import Seq2Seq
from ted_ds.data.samples import BadRow
from ted_ds.errors import ConfigError
from ted_ds.models.predictions import VocabularyHead, VocabularyPredictions
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import make_plan, samples_of
from tests.tiny import task_dict, write_model, write_run, write_tokenizer


def kind(**changes):
    return kind_of(Seq2Seq(**{**task_dict("seq2seq"), **changes}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), kind="seq2seq")


def refusal(run, *overrides):
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(run, overrides))
    return str(caught.value)


def test_a_row_is_a_source_behind_the_prefix_and_a_target_each_cut_to_its_longest(tmp_path):
    tokenizer = write_tokenizer(tmp_path, encoder=True)
    own = kind(prefix="ba be ", max_source_length=7, max_target_length=4)
    row = {"source": "bi bo bu ca ce ci", "target": "co cu da de"}
    (sample,) = samples_of(own, tokenizer, own.read(row, where="", declared={}))
    assert tokenizer.decode(sample.input_ids) == "[CLS] ba be bi bo bu [SEP]"
    assert tokenizer.decode(sample.label) == "[CLS] co cu [SEP]"


@pytest.mark.parametrize("target", [None, "", "  ", 3])
def test_a_row_without_a_target_is_a_bad_one(target):
    with pytest.raises(BadRow, match=r"column 'target' holds .*; there is nothing in it to learn"):
        kind().read({"source": "ba", "target": target}, where="", declared={})


def test_sources_and_targets_have_lengths_of_their_own_and_empty_rows_keep_nothing(tmp_path):
    tokenizer = write_tokenizer(tmp_path, encoder=True)
    own = kind()
    rows = [{"source": "ba be bi", "target": "bo"}, {"source": "ca", "target": "ce ci co cu"}]
    samples = [one for row in rows for one in samples_of(own, tokenizer, own.read(row, where="", declared={}))]
    padding = load_padding()
    batch = own.collator(0, padding)([*samples, None])
    assert (batch.input_ids.shape, batch.target_ids.shape) == ((3, 8), (3, 8))
    assert batch.kept_tokens.sum(1).tolist() == [5, 3, 0]
    assert batch.kept_targets.sum(1).tolist() == [3, 5, 0]
    assert batch.labels[0].tolist() == [*samples[0].label, *[-100] * 5]
    assert (batch.labels[2] == -100).all()
    assert batch.inputs.keys() == {"input_ids", "attention_mask", "target_ids"}
    assert batch.to(torch.device("cpu")).target_rows.tolist() == [0, 1, 2, 8, 9, 10, 11, 12]
    assert own.show_row(batch, 0, tokenizer) == "‹[CLS]›‹ ba›‹ be›‹ bi›‹ [SEP]›[pad x3]  -> '[CLS] bo [SEP]'"


def load_padding():
    from ted_ds.config.data import Padding

    return Padding(multiple_of=8)


def test_scores_are_over_all_tokens_of_targets():
    own = kind()
    head = VocabularyHead(4, 6, bias=False)
    hidden, labels = torch.randn(2, 3, 4), torch.tensor([[1, 2, -100], [5, -100, -100]])
    logits = head(hidden).detach()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item() / 3
    right = (logits.argmax(-1) == labels).sum().item() / 3

    class Given:
        def __init__(self, rows):
            self.labels = labels[rows]

    observed = []
    for rows in (slice(0, 1), slice(1, 2)):
        batch = Given(rows)
        observed.append(own.scorer.observe(VocabularyPredictions(hidden[rows], head).outputs(batch), batch))
    found = own.scorer.score(observed)
    assert found == pytest.approx(
        {"loss": nats, "perplexity": math.exp(nats), "token_accuracy": right, "num_tokens": 3}, rel=1e-5
    )
    assert math.exp(own.guess([], vocab_size=100).loss) == pytest.approx(100)


def test_layers_are_named_by_stack_in_the_plan(run):
    plan = make_plan(load_recipe(run))
    assert plan.layer_pairs == (
        ("encoder.1", "encoder.2"),
        ("encoder.2", "encoder.4"),
        ("decoder.1", "decoder.1"),
        ("decoder.2", "decoder.3"),
    )
    assert plan.student.blocks_of_stacks == {"encoder": 2, "decoder": 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["layer_map={kind: explicit, pairs: [[encoder.1, decoder.1]]}"],
            "layer_map.pairs[0]: encoder.1 and decoder.1 are of different stacks, which read different tokens; match a "
            "layer of the encoder with one of the encoder, and one of the decoder with one of the decoder",
        ),
        (
            ["layer_map={kind: explicit, pairs: [[1, 2]]}"],
            "layer_map.pairs[0]: 1 is no layer here; the models are encoder-decoders: name its stack as well, as in "
            "encoder.3 or decoder.5",
        ),
        (
            ["layer_map={kind: explicit, pairs: [[encoder.1, encoder.2], [decoder.2, decoder.4]]}"],
            "layer_map.pairs[1]: teacher block 4 does not exist (the model has 3 blocks); use 1..3, or 0 for the "
            "embeddings (of the decoder)",
        ),
        (
            ["layer_map={kind: explicit, pairs: [[decoder.0, decoder.0]]}"],
            "layer_map.pairs[0]: what the decoder's embeddings put out is not matched; use decoder.1 or above",
        ),
        (
            ["student.from_teacher={blocks: [0]}"],
            "student.from_teacher: the teacher, a t5, is an encoder-decoder: give encoder_blocks and decoder_blocks, "
            "or a share as num_blocks",
        ),
        (
            ["student.from_teacher={num_blocks: 2}"],
            "student.from_teacher.num_blocks: the teacher, a t5, is an encoder-decoder: give encoder_blocks and "
            "decoder_blocks, or a share as num_blocks",
        ),
        (
            ["student.from_teacher.decoder_blocks=[0,3]"],
            "student.from_teacher: block 3 does not exist (the teacher's decoder has 3 blocks, numbered from 0); use "
            "0..2",
        ),
        (
            ["student.from_teacher.encoder_blocks=null"],
            "student.from_teacher: give blocks, or num_blocks, or encoder_blocks and decoder_blocks of an "
            "encoder-decoder, or a width; given: decoder_blocks",
        ),
        (
            ["student.from_teacher.decoder_blocks=[2,0]"],
            "student.from_teacher: decoder_blocks must be in ascending order (one may come more than once), got [2, 0]"
            "; where this order is meant, set any_order: true",
        ),
        (
            ["student.lora={rank: 2, targets: [EncDecAttention.q]}"],
            "student.lora.targets: EncDecAttention.q: nothing of the encoder would train, whose blocks have no linear "
            "map called so; name some of each stack (here layer.0.SelfAttention.k, ",
        ),
        (
            ["data.padding.side=left"],
            "teacher.path: data.padding.side is left, but a target begins at its row's first place; use right",
        ),
        (
            ["pipeline.stages=2"],
            "teacher.path: pipeline.stages is 2, but the stages of a pipeline pass one state on, and each block of a "
            "decoder reads the encoder's last beside that of the block before; remove it, and share memory out by ZeRO",
        ),
        (
            ["task={kind: causal_lm, sequence_length: 16}"],
            "teacher.path: a t5 is no causal LM; use one of llama, ",
        ),
        (
            ["task={kind: regression, target_columns: [target], text_column: source}"],
            "teacher.path: a t5 is an encoder-decoder, which is distilled as one, by task.kind: seq2seq; give labels "
            "as targets, or use an encoder or a decoder",
        ),
        (
            ["teacher.cache={max_gib: 1}"],
            "teacher.cache: a cache keeps one prediction for each text, and a seq2seq has one for each token of a "
            "target; remove it",
        ),
        (
            ["task.target_column=source"],
            "task: source_column and target_column must be two columns, got 'source' twice",
        ),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_said(run, overrides, message):
    assert message in refusal(run, *overrides)


def test_models_of_different_makes_are_refused(run, tmp_path):
    other = write_model(tmp_path, "llama")
    message = refusal(run, "student={path: " + str(other) + "}")
    assert (
        "layer_map: the student is of one stack of blocks and the teacher an encoder-decoder; layers are matched "
        "between models of the same make" in message
    )
    assert "student.path: a llama is no seq2seq LM; use one of t5, mt5, bart, pegasus" in message


def test_layers_of_a_stack_are_refused_in_models_of_one(tmp_path):
    run = write_run(tmp_path)
    message = refusal(run, "layer_map={kind: explicit, pairs: [[encoder.1, 1]]}")
    assert (
        "layer_map.pairs[0]: 'encoder.1' is no layer here; the models have one stack of blocks: give its number alone"
    ) in message
    message = refusal(run, "student.from_teacher={encoder_blocks: [0], decoder_blocks: [0]}")
    assert "the teacher, a llama, has one stack of blocks: give blocks" in message


def test_a_decoder_needs_a_token_to_start_with(tmp_path):
    run = write_run(tmp_path, kind="seq2seq")
    config = tmp_path / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"decoder_start_token_id": 0,', ""))
    assert (
        "teacher.path: its config.json has no decoder_start_token_id, with which its decoder starts; give the one that "
        "the weights were trained with" in refusal(run)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "teacher").pad_token_id == 0
