"""Tiny models, tokenizers, recipes and data for tests: random, seeded, written in well under a second, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from ted_ds.config.distill import Distill
from ted_ds.models.families import FAMILY_OF, KNOWN_TYPES, family_of, types_of

ROOT = Path(__file__).parent.parent
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "eos_token": "[EOS]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}
WORDS = tuple(consonant + vowel for consonant in "bcdfghjklmnprstvwyz" for vowel in "aeiou")
VOCAB_SIZE = len(SPECIAL_TOKENS) + len(WORDS)
ENCODERS = types_of("MaskedLM")
CAUSAL_LM_TYPES = types_of("CausalLM")
TYPES_WITH_LABELS = tuple(name for name, one in FAMILY_OF.items() if "SequenceClassification" not in one.lacks)
DECODERS_WITH_LABELS = tuple(name for name in CAUSAL_LM_TYPES if name in TYPES_WITH_LABELS)
IN_ALL_WAYS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "bert", "deberta-v2")
"""Types that are tried in every combination of sides, masks and cuts; of the others, each of these once."""
OWN_SHAPES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 5,
        "query_pre_attn_scalar": 3,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 5,
        "query_pre_attn_scalar": 3,
        "final_logit_softcapping": 2.0,
    },
    "gpt_neox": {"hidden_dropout": 0.0},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 12, "dropout": 0.0},
    "phi3": {"resid_pdrop": 0.0},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 3, "sep_token_id": 4},
}
"""What else a tiny model of a family has, so that what is its own shows."""
ENCODER_DECODERS = types_of("Seq2SeqLM")
ONE_STACK_TYPES = tuple(name for name in KNOWN_TYPES if name not in ENCODER_DECODERS)
OF_TWO_STACKS = {"encoder_blocks": [1, 3], "decoder_blocks": [1, 2]}
"""Blocks of an encoder-decoder that become a student."""
LM_FAMILIES = {"causal_lm": "llama", "masked_lm": "bert"}
"""The family of a teacher whose kind of task has an LM head."""
LABELS = ("negative", "positive")
WORD_LABELS = ("O", "B-NAME", "I-NAME")
OF_TEXTS = "SequenceClassification"
ARCHITECTURES = {
    "token_classification": "TokenClassification",
    "multiple_choice": "MultipleChoice",
    "question_answering": "QuestionAnswering",
}
"""Of kinds whose models have another head than one for texts with labels."""
MAX_POSITIONS = 64
MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
"""What an encoder's tokenizer gives."""


def distill_plan(**settings: Any) -> Distill:
    """Stage II with these settings, where how long and in which batches it trains is nobody's business."""
    plan = {"max_steps": 1, "learning_rate": 1.0, "global_batch_size": 1, "micro_batch_size": 1}
    return Distill(**{**plan, **settings})


def write_tokenizer(
    folder: Path, words: Sequence[str] = WORDS, *, encoder: bool = False, masks: bool = False
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the special tokens and ``words``; an ``encoder``'s texts become [CLS] ... [SEP].

    Two of an encoder become [CLS] ... [SEP] ... [SEP], of two types of tokens, as BERT has them. One that ``masks`` has
    a mask token in the place of the last word.
    """
    roles = {**SPECIAL_TOKENS, **({"mask_token": "[MASK]"} if masks else {})}
    words = [*words[:-1], "[MASK]"] if masks else words
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder:
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=ends
        )
    given = {"model_input_names": MODEL_INPUTS} if encoder else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, **given)
    fast.save_pretrained(folder)
    return fast


def write_letters(folder: Path, *, encoder: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of letters: no id means to it what it means to that of words, and texts have about twice the tokens.

    A text becomes <s> ..., an ``encoder``'s <s> ... </s>; two of these <s> ... </s> ... </s>, all of one type.
    """
    special = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    letters = sorted({letter for word in WORDS for letter in word}, reverse=True)
    vocabulary = {token: index for index, token in enumerate([*special.values(), *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    one_by_one = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), one_by_one])
    end, between = (" </s>", " </s>") if encoder else ("", "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}",
        pair=f"<s> $A{between} $B{end}",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    for file in folder.glob("*token*"):
        file.unlink()
    given = {"model_input_names": ["input_ids", "attention_mask"]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **given)
    fast.save_pretrained(folder)
    return fast


def model_config(family: str, *, blocks: int = 4, hidden: int = 16, vocab: int = VOCAB_SIZE, **changes: Any) -> Any:
    """The config of a tiny model without dropout; ``changes`` are further values of it."""
    common = {"vocab_size": vocab, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    if family == "gpt2":
        shape = {"n_layer": blocks, "n_embd": hidden, "n_head": 2, "n_inner": 2 * hidden, "n_positions": MAX_POSITIONS}
        shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        shape = {
            "num_hidden_layers": blocks,
            "hidden_size": hidden,
            "num_attention_heads": 2,
            "intermediate_size": 2 * hidden,
            "max_position_embeddings": MAX_POSITIONS,
        }
    if family in ENCODER_DECODERS:
        return AutoConfig.for_model(
            family, **{**common, **two_stacks_shape(family, blocks=blocks, hidden=hidden), **changes}
        )
    if family in ENCODERS:
        facts = family_of(family)
        shape |= dict.fromkeys((*facts.hidden_dropouts, *facts.attention_dropouts), 0.0)
        if family not in ("bert", "deberta-v2"):
            shape |= dict.fromkeys(facts.label_dropouts.values(), 0.0)
        own = {facts.own_names.get(name, name): value for name, value in shape.items()}
        shape = {**own, **OWN_SHAPES.get(family, {})}
    elif family != "gpt2":
        shape |= {"num_key_value_heads": 2, "head_dim": hidden // 2, "attention_dropout": 0.0}
    if family == "deberta-v2":  # as in DeBERTa v3
        shape |= {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": hidden,
            "pooler_dropout": 0.0,
            "pooler_hidden_act": "gelu",
        }
    own = dict(OWN_SHAPES.get(family, {}))
    if "layer_types" in own:  # one after the other
        own["layer_types"] = [own["layer_types"][block % 2] for block in range(blocks)]
    return AutoConfig.for_model(family, **{**common, **shape, **own, **changes})


def two_stacks_shape(family: str, *, blocks: int, hidden: int) -> dict[str, Any]:
    """Of an encoder-decoder: its decoder has a block less than its encoder."""
    if family in ("t5", "mt5"):
        buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
        shape = {"d_model": hidden, "d_kv": hidden // 2, "d_ff": 2 * hidden, "num_heads": 2, "dropout_rate": 0.0}
        depths = {"num_layers": blocks, "num_decoder_layers": blocks - 1}
        gated = {} if family == "t5" else {"feed_forward_proj": "gated-gelu"}
        return {**shape, **buckets, **depths, **gated, "decoder_start_token_id": 0}
    sides = ("encoder", "decoder")
    shape = {"d_model": hidden, "max_position_embeddings": MAX_POSITIONS, "dropout": 0.0, "decoder_start_token_id": 1}
    shape |= {f"{side}_layers": blocks - (side == "decoder") for side in sides}
    shape |= {f"{side}_attention_heads": 2 for side in sides} | {f"{side}_ffn_dim": 2 * hidden for side in sides}
    return {**shape, "attention_dropout": 0.0, "activation_dropout": 0.0, "init_std": 0.1}


def write_model(
    folder: Path,
    family: str,
    *,
    blocks: int = 4,
    hidden: int = 16,
    vocab: int = VOCAB_SIZE,
    labels: Sequence[str] | None = None,
    architecture: str = "SequenceClassification",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A random model and its tokenizer: a classifier with ``labels``, else a causal or masked LM or a bare encoder."""
    if labels is not None:
        changes |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        if architecture == "TokenClassification":
            changes = {"classifier_dropout": 0.0, **changes}  # which decoders have by default
    config = model_config(family, blocks=blocks, hidden=hidden, vocab=vocab, **changes)
    auto = getattr(transformers, f"AutoModelFor{architecture}") if labels is not None else AutoModelForCausalLM
    if labels is None and family in ENCODERS:
        auto = AutoModelForMaskedLM if architecture == "MaskedLM" else AutoModel
    if family in ENCODER_DECODERS:
        auto = AutoModelForSeq2SeqLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, encoder=family in (*ENCODERS, *ENCODER_DECODERS), masks=architecture == "MaskedLM")
    return folder


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(count: int, *, seed: int = 0, longest: int = 12) -> list[str]:
    """Random texts of 3 to ``longest`` known words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[index] for index in torch.randint(len(WORDS), (length,), generator=generator).tolist())
        for length in lengths
    ]


def write_corpus(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Documents in the column ``text``."""
    return write_rows(path, ({"text": text} for text in texts(count, seed=seed)))


def write_chats(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Conversations of a turn or two in ``messages``; each but the first begins with a space, to be put together."""
    given = iter(texts(4 * count, seed=seed, longest=6))
    roles = ("user", "assistant", "user", "assistant")
    return write_rows(
        path,
        (
            {
                "messages": [
                    {"role": role, "content": " " * (turn > 0) + next(given)}
                    for turn, role in enumerate(roles[: 2 + 2 * (index % 3 == 0)])
                ]
            }
            for index in range(count)
        ),
    )


def write_labelled(
    path: Path,
    count: int = 60,
    *,
    kind: str = "sequence_classification",
    labels: Sequence[str] = LABELS,
    seed: int = 0,
) -> Path:
    """Texts in the column ``text``, and beside each what a task of ``kind`` predicts: it follows from the first letter.

    ``score`` for regression, else ``label``. Or words and their labels, in ``tokens`` and ``ner_tags``. Or a question
    about a ``context``: the answer is its last word, where that stands, and the one behind.
    """

    def row(text: str) -> dict[str, Any]:
        if kind == "token_classification":
            words = text.split()
            return {"tokens": words, "ner_tags": [WORD_LABELS[ord(word[0]) % len(WORD_LABELS)] for word in words]}
        if kind == "question_answering":
            words = text.split()
            first = ord(text[0]) % (len(words) - 1)
            start = len(" ".join([*words[:first], ""]))
            answer = " ".join(words[first : first + 2])
            return {
                "question": f"ba be bi bo {words[first]}",
                "context": text,
                "answers": {"text": [answer], "answer_start": [start]},
            }
        if kind == "seq2seq":
            return {"source": text, "target": " ".join(text.split()[1:5])}
        letter = ord(text[0])
        if kind == "multiple_choice":
            words = text.split()
            return {"text": text, "one": words[0], "two": words[-1], "label": letter % 2}
        share = (letter % 5) / 5
        return {
            "sequence_classification": {"label": labels[letter % len(labels)]},
            "soft_label_classification": {"label": [share, 1 - share, *[0.0] * (len(labels) - 2)]},
            "multi_label_classification": {"label": [name for i, name in enumerate(labels) if letter % (i + 2) == 0]},
            "regression": {"score": 2 * share - 1},
        }[kind] | {"text": text}

    return write_rows(path, (row(text) for text in texts(count, seed=seed)))


def write_pairs(path: Path, count: int = 60, *, labels: Sequence[str] = LABELS, seed: int = 0) -> Path:
    """Two texts in the columns ``first`` and ``second``, and a label that follows from both first letters."""
    pairs = zip(texts(count, seed=seed, longest=9), texts(count, seed=seed + 1, longest=6), strict=True)
    return write_rows(
        path,
        (
            {"first": one, "second": other, "label": labels[(ord(one[0]) + ord(other[0])) % len(labels)]}
            for one, other in pairs
        ),
    )


def recipe_dict(folder: Path, *, kind: str = "causal_lm", method: str = "ted", steps: int = 2) -> dict[str, Any]:
    """A minimal valid recipe: model in ``folder/teacher``, its blocks 0 and 3 as student, data in ``train.jsonl``."""
    plan = {"max_steps": steps, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
    return {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "deepspeed": str(ROOT / "ds_configs" / "deepspeed" / "zero1.json"),
        "precision": "fp32",
        "task": task_dict(kind),
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "heldout_fraction": 0.2, "workers": 0},
        "teacher": {"path": str(folder / "teacher")},
        "student": {"from_teacher": {"blocks": [0, 3]} if kind != "seq2seq" else OF_TWO_STACKS},
        "filters": {"teacher": {**plan}, "student": {**plan}},
        "distill": {"method": method, **plan},
        "evaluation": {"max_examples": 8, "micro_batch_size": 2, "samples": 0},
        "tracking": {"log_every_steps": 1, "log_every_seconds": 0},
        "preflight": "warn",  # these teachers are random
    }


def task_dict(kind: str) -> dict[str, Any]:
    """A minimal valid ``task`` section of any kind."""
    if kind in LM_FAMILIES:
        return {"kind": kind, "sequence_length": 16}
    if kind == "chat":  # each term with a count of its own
        template = ROOT / "ds_configs" / "chat_templates" / "plain.jinja"
        return {"kind": kind, "max_length": 16, "chat_template": str(template), "kl_on": "all"}
    if kind == "question_answering":
        return {"kind": kind, "max_length": 16, "stride": 3}
    if kind == "seq2seq":
        return {"kind": kind, "max_source_length": 16, "max_target_length": 5}
    return {"kind": kind, "max_length": 16, **head_dict(kind)}


def labels_of(kind: str) -> Sequence[str]:
    """The outputs of a head."""
    of_kind = {"question_answering": ("start", "end"), "multiple_choice": ("fits",)}
    return of_kind.get(kind) or next(iter(head_dict(kind).values()))


def head_dict(kind: str) -> dict[str, list[str]]:
    """What the outputs of a head are, as a recipe says it."""
    if kind == "regression":
        return {"target_columns": ["score"]}
    if kind == "multiple_choice":
        return {"choice_columns": ["one", "two"]}
    return {"labels": [*(WORD_LABELS if kind == "token_classification" else LABELS)]}


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def write_run(folder: Path, *, kind: str = "causal_lm", family: str | None = None, method: str = "ted") -> Path:
    """All a tiny run needs, in ``folder``: teacher of 4 blocks, data, and the recipe, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in (*LM_FAMILIES, "chat"):
        architecture = "MaskedLM" if kind == "masked_lm" else "CausalLM"
        write_model(folder / "teacher", family or LM_FAMILIES.get(kind, "llama"), architecture=architecture)
        (write_chats if kind == "chat" else write_corpus)(folder / "train.jsonl")
    elif kind == "seq2seq":
        write_model(folder / "teacher", family or "t5")
        write_labelled(folder / "train.jsonl", kind=kind)
    else:
        labels = labels_of(kind)
        write_model(folder / "teacher", family or "bert", labels=labels, architecture=ARCHITECTURES.get(kind, OF_TEXTS))
        write_labelled(folder / "train.jsonl", kind=kind)
    return write_recipe(folder / "recipe.yaml", recipe_dict(folder, kind=kind, method=method))
