"""Families of encoders: masked language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ted_ds.models.family import Family, Shapes, linear, norm, numbered


def _block_shapes(config: Mapping[str, Any], attention: Shapes) -> Shapes:
    """Of a block with these in its attention, and what follows it."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {f"attention.self.{name}": shape for name, shape in attention.items()}
    shapes |= linear("attention.output.dense", width, width) | norm("attention.output.LayerNorm", width)
    shapes |= linear("intermediate.dense", inner, width) | linear("output.dense", width, inner)
    return shapes | norm("output.LayerNorm", width)


def _bert_shapes(config: Mapping[str, Any]) -> Shapes:
    width, attention = config["hidden_size"], {}
    for name in ("query", "key", "value"):
        attention |= linear(name, width, width)
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "bert.embeddings.token_type_embeddings.weight": (BERT.num_token_types(config), width),
    }
    shapes |= norm("bert.embeddings.LayerNorm", width)
    shapes |= numbered("bert.encoder.layer", _block_shapes(config, attention), config["num_hidden_layers"])
    return shapes | linear("bert.pooler.dense", width, width)


def _deberta_shapes(config: Mapping[str, Any]) -> Shapes:
    width, count, attention = config["hidden_size"], config["num_hidden_layers"], {}
    is_relative, kinds = config.get("relative_attention", False), config.get("pos_att_type") or ()
    size = config.get("attention_head_size") or width // config["num_attention_heads"]
    whole = size * config["num_attention_heads"]
    names = ["query_proj", "key_proj", "value_proj"]
    if is_relative and not config.get("share_att_key", False):
        names += [name for kind, name in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj")) if kind in kinds]
    for name in names:
        attention |= linear(name, whole, width)
    narrow = config.get("embedding_size") or width
    shapes: Shapes = {"deberta.embeddings.word_embeddings.weight": (config["vocab_size"], narrow)}
    if config.get("position_biased_input", True):
        shapes["deberta.embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], narrow)
    if DEBERTA_V2.num_token_types(config):
        shapes["deberta.embeddings.token_type_embeddings.weight"] = (DEBERTA_V2.num_token_types(config), narrow)
    if narrow != width:
        shapes["deberta.embeddings.embed_proj.weight"] = (width, narrow)
    shapes |= norm("deberta.embeddings.LayerNorm", width)
    shapes |= numbered("deberta.encoder.layer", _block_shapes(config, attention), count)
    if is_relative:
        buckets, longest = config.get("position_buckets", -1), config.get("max_relative_positions", -1)
        longest = longest if longest > 0 else config["max_position_embeddings"]
        shapes["deberta.encoder.rel_embeddings.weight"] = (2 * (buckets if buckets > 0 else longest), width)
    if "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower():
        shapes |= norm("deberta.encoder.LayerNorm", width)
    kernel = config.get("conv_kernel_size") or 0
    if kernel > 0:
        shapes |= {
            "deberta.encoder.conv.conv.weight": (width, width, kernel),
            "deberta.encoder.conv.conv.bias": (width,),
        }
        shapes |= norm("deberta.encoder.conv.LayerNorm", width)
    return shapes


BERT = Family(
    model_types=("bert",),
    embeddings_path="bert.embeddings",
    token_embeddings_path="bert.embeddings.word_embeddings",
    blocks_path="bert.encoder.layer",
    arrival_path="bert.embeddings",
    behind_blocks=("bert.pooler",),
    final_norm_path=None,
    language_model="MaskedLM",
    before_lm_head="cls.predictions.transform",
    lm_head_path="cls.predictions.decoder",
    lm_heads_in_files=("cls",),
    ties_by_default=True,
    label_heads=("classifier",),
    span_head="qa_outputs",
    before_label_head=("bert.pooler",),
    pooled_token="first",
    positions="learned",
    position_embeddings_path="bert.embeddings.position_embeddings",
    token_types_key="type_vocab_size",
    token_types_by_default=2,
    hidden_dropouts=("hidden_dropout_prob",),
    attention_dropouts=("attention_probs_dropout_prob",),
    label_dropouts=dict.fromkeys(
        ("SequenceClassification", "TokenClassification", "MultipleChoice"), "classifier_dropout"
    ),
    shapes=_bert_shapes,
    buffers=("position_ids",),
    tokenizer_class="BertTokenizer",
)
DEBERTA_V2 = Family(
    model_types=("deberta-v2",),
    embeddings_path="deberta.embeddings",
    token_embeddings_path="deberta.embeddings.word_embeddings",
    blocks_path="deberta.encoder.layer",
    arrival_path="deberta.embeddings",
    behind_first_block="deberta.encoder.conv",
    behind_first_block_key="conv_kernel_size",
    blocks_return_tuples=True,
    final_norm_path=None,
    language_model="MaskedLM",
    before_lm_head="cls.predictions.transform",
    lm_head_path="cls.predictions.decoder",
    lm_heads_in_files=("cls", "lm_predictions", "mask_predictions"),
    lm_head_switch="legacy",
    ties_by_default=True,
    label_heads=("classifier",),
    span_head="qa_outputs",
    before_label_head=("pooler",),
    pooled_token="first",
    attention=("eager",),
    positions="relative",
    position_embeddings_path="deberta.embeddings.position_embeddings",
    token_types_key="type_vocab_size",
    hidden_dropouts=("hidden_dropout_prob",),
    attention_dropouts=("attention_probs_dropout_prob",),
    label_dropouts=dict.fromkeys(("SequenceClassification", "MultipleChoice"), "cls_dropout"),
    shapes=_deberta_shapes,
    buffers=("position_ids",),
    tokenizer_class="DebertaV2Tokenizer",
)
ENCODERS = (BERT, DEBERTA_V2)
