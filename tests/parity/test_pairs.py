"""Pairs of texts as the models read them: tokens, token types and predictions are those of transformers' own encode."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForSequenceClassification

from ted_ds.config.tasks import SequenceClassification
from ted_ds.data.loader import Collator
from ted_ds.data.samples import Example
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model, load_tokenizer
from ted_ds.models.taps import TappedModel
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import samples_of
from tests.tiny import LABELS, MODEL_INPUTS, WORDS, texts, write_model

LONGEST = 16
TASK = SequenceClassification(
    kind="sequence_classification", labels=[*LABELS], text_column=["first", "second"], max_length=LONGEST
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# the first alone too long, the second alone, both, neither
PAIRS = [
    ("ba be bi bo bu ca ce ci co cu da de di", "bo"),
    ("bo", "ba be bi bo bu ca ce ci co cu da de di do du fa"),
    ("ba be bi bo bu ca ce ci co cu", "da de di do du fa fe fi fo"),
    ("ba be", "bi"),
    ("zo", "zo"),
]


def numbered(tokens):
    return {token: index for index, token in enumerate(tokens)}


def tokenizer_of(kind):
    """A tokenizer of the class that a type of model has, with a vocabulary of letters or syllables."""
    alphabet = sorted(ByteLevel.alphabet())
    if kind == "bert":
        return transformers.BertTokenizer(vocab=numbered(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    if kind == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        return transformers.RobertaTokenizer(vocab=numbered([*special, *alphabet]), merges=[])
    if kind == "mpnet":
        return transformers.MPNetTokenizer(vocab=numbered(["<s>", "<pad>", "</s>", "[UNK]", *WORDS, "<mask>"]))
    if kind in ("xlm-roberta", "albert"):
        own, special = {
            "xlm-roberta": (transformers.XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
            "albert": (transformers.AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        }[kind]
        pieces = [*((token, 0.0) for token in special), *((f"▁{word}", -1.0) for word in WORDS)]
        return own(vocab=[*pieces, *((letter, -9.0) for letter in f"{LETTERS}▁")])
    if kind == "deberta":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        pieces = [*((token, 0.0) for token in special), *((f"▁{word}", -1.0) for word in WORDS)]
        return transformers.DebertaV2Tokenizer(vocab=[*pieces, *((letter, -9.0) for letter in f"{LETTERS}▁")])
    if kind == "gpt2":
        return transformers.GPT2Tokenizer(vocab=numbered([*alphabet, "<|endoftext|>"]), merges=[])
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = numbered(["<unk>", "<s>", "</s>", *bytes_of, "▁", *LETTERS])
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)


KINDS = ["bert", "roberta", "xlm-roberta", "mpnet", "albert", "deberta", "gpt2", "llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_read_as_the_tokenizer_of_each_type_of_model_reads_it(kind):
    tokenizer = tokenizer_of(kind)
    samples = samples_of(
        kind_of(TASK), tokenizer, [Example(one, index % 2, other) for index, (one, other) in enumerate(PAIRS)]
    )
    for sample, pair in zip(samples, PAIRS, strict=True):
        whole = tokenizer(*pair, truncation="longest_first", max_length=LONGEST)
        assert sample.input_ids == whole["input_ids"]
        assert sample.token_types == whole.get("token_type_ids")
        # by hand: tokens are taken from the end of whichever text is the longer one
        plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
        room = LONGEST - tokenizer.num_special_tokens_to_add(pair=True)
        while sum(map(len, plain)) > room:
            plain[0 if len(plain[0]) > len(plain[1]) else 1].pop()
        special = {*tokenizer.all_special_ids}
        assert [one for one in sample.input_ids if one not in special] == [*plain[0], *plain[1]]
    assert [sample.label for sample in samples] == [0, 1, 0, 1, 0]
    assert max(len(sample.input_ids) for sample in samples) == LONGEST
    has_types = kind in ("bert", "deberta")
    assert all((sample.token_types is not None) == has_types for sample in samples)
    if has_types:
        assert all({*sample.token_types} == {0, 1} for sample in samples)


def some_pairs():
    return list(zip(texts(5, seed=3, longest=9), texts(5, seed=4, longest=6), strict=True))


@pytest.mark.parametrize(
    ("family", "changes", "side"),
    [
        ("bert", {}, "right"),
        ("bert", {"type_vocab_size": 1}, "right"),  # as RoBERTa has it: the second text's type has no row in the table
        ("deberta-v2", {}, "right"),
        ("deberta-v2", {"type_vocab_size": 2}, "right"),
        ("gpt2", {}, "right"),  # would add the embeddings of words 0 and 1
        ("gpt2", {}, "left"),
        ("llama", {}, "right"),
        ("llama", {}, "left"),
    ],
)
def test_what_a_model_predicts_of_pairs_is_what_transformers_makes_of_them(tmp_path, family, changes, side):
    folder = write_model(tmp_path, family, labels=LABELS, **changes)
    tokenizer = load_tokenizer(folder)
    tokenizer.model_input_names = MODEL_INPUTS  # whether the model takes types is not the tokenizer's to know
    samples = samples_of(kind_of(TASK), tokenizer, [Example(one, 0, other) for one, other in some_pairs()])
    assert all({*sample.token_types} == {0, 1} for sample in samples)
    collate = Collator(0, "class", side=side, multiple_of=4, with_token_types=True)
    batch = collate([*samples, None])
    model, _ = load_model(folder, LoadSettings(torch.float32), head=kind_of(TASK).head_config)
    tapped = TappedModel(model.eval(), family_of(family))
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    names = ["input_ids", "attention_mask"]
    takes_types = changes.get("type_vocab_size", 2 if family == "bert" else 0) > 1
    names += ["token_type_ids"] if takes_types else []
    with torch.no_grad():
        found, _ = tapped(batch.inputs)
        for row, (one, other) in enumerate(some_pairs()):
            whole = tokenizer(one, other, truncation=True, max_length=LONGEST, return_tensors="pt")
            expected = plain(**{name: whole[name] for name in names}).logits[0]
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)
        if takes_types:  # and they are not nothing
            joined = plain(**{name: whole[name] for name in names[:2]}).logits[0]
            assert not torch.allclose(joined, expected, rtol=1e-2)


@pytest.mark.parametrize("side", ["right", "left"])
def test_token_types_stand_where_their_tokens_do(tmp_path, side):
    tokenizer = tokenizer_of("bert")
    samples = samples_of(kind_of(TASK), tokenizer, [Example("ba be", 0, "bi"), Example("ba", 1, "be bi bo bu")])
    batch = Collator(0, "class", side=side, with_token_types=True)([*samples, None])
    for row, sample in enumerate(samples):
        kept = batch.kept_tokens[row]
        assert batch.token_type_ids[row][kept].tolist() == sample.token_types
        assert batch.token_type_ids[row][~kept].sum() == 0
    assert batch.token_type_ids[2].sum() == 0
    assert torch.equal(batch.inputs["token_type_ids"], batch.token_type_ids)
    assert "token_type_ids" not in Collator(0, "class", side=side)(samples).inputs


def test_a_config_that_does_not_say_has_as_many_token_types_as_transformers_gives_it(tmp_path):
    for family, number in {"bert": 2, "deberta-v2": 0, "gpt2": 0, "llama": 0}.items():
        config = transformers.CONFIG_MAPPING[family]()
        said = json.loads(config.to_json_string(use_diff=False))
        of_family = family_of(family)
        if of_family.token_types_key is not None:
            assert said.pop(of_family.token_types_key) == number
        assert of_family.num_token_types(said) == number
