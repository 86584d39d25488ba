"""Families of encoder-decoders: sequence-to-sequence language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ted_ds.models.family import Family

NO_LAYERDROP: Mapping[str, tuple[Any, str]] = dict.fromkeys(
    ("encoder_layerdrop", "decoder_layerdrop"),
    (0, "blocks are left out at random in training, and their states could not be compared; set it to 0"),
)
NO_LIMIT = 2**31
"""Tokens of a text whose positions are distances alone."""
UNSTAGED = (
    "the stages of a pipeline pass one state on, and each block of a decoder reads the encoder's last beside that of "
    "the block before"
)
NOT_STACK_BY_STACK = {"heal": "its decoder's blocks read the encoder's last state, and healing goes up one stack"}
T5 = Family(
    model_types=("t5",),
    embeddings_path=None,
    token_embeddings_path="shared",
    blocks_path="encoder.block",
    decoder_blocks_path="decoder.block",
    decoder_depth_key="num_decoder_layers",
    body_has_own_name=False,
    parts_of_first_block=("layer.0.SelfAttention.relative_attention_bias",),
    flags_of_first_block=("has_relative_attention_bias",),
    unstaged=UNSTAGED,
    arrival_path="shared",
    blocks_return_tuples=True,
    language_model="Seq2SeqLM",
    final_norm_path="decoder.final_layer_norm",
    lm_head_path="lm_head",
    lm_heads_in_files=("lm_head",),
    divides_logits_key="scale_decoder_outputs",
    ties_by_default=True,
    is_untied_by_files=True,
    label_heads=(),
    lacks=("SequenceClassification", "TokenClassification", "MultipleChoice"),
    pooled_token="first",
    attention=("eager", "sdpa"),
    positions="relative",
    entries_by_default={"max_position_embeddings": NO_LIMIT},
    own_names={
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "d_ff",
        "head_dim": "d_kv",
    },
    hidden_dropouts=("dropout_rate",),
    buffers=(),
    refused=NOT_STACK_BY_STACK,
)
MT5 = replace(T5, model_types=("mt5",), divides_logits_key=None)
BART = Family(
    model_types=("bart",),
    embeddings_path=None,
    token_embeddings_path="model.shared",
    blocks_path="model.encoder.layers",
    decoder_blocks_path="model.decoder.layers",
    decoder_depth_key="decoder_layers",
    unstaged=UNSTAGED,
    arrival_path="model.shared",
    language_model="Seq2SeqLM",
    final_norm_path=None,
    lm_head_path="lm_head",
    lm_heads_in_files=("lm_head",),
    logits_bias_path="final_logits_bias",
    ties_by_default=True,
    label_heads=(),
    lacks=T5.lacks,
    pooled_token="first",
    positions="learned",
    position_embeddings_path="model.encoder.embed_positions",
    rows_before_positions=2,
    own_names={
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
    },
    hidden_dropouts=("dropout", "activation_dropout"),
    attention_dropouts=("attention_dropout",),
    must_be=NO_LAYERDROP,
    buffers=("final_logits_bias",),
    tokenizer_class="RobertaTokenizer",
    refused=NOT_STACK_BY_STACK,
)
PEGASUS = replace(
    BART,
    model_types=("pegasus",),
    final_norm_path="model.decoder.layer_norm",
    rows_before_positions=0,
    tokenizer_class=None,
)
ENCODER_DECODERS = (T5, MT5, BART, PEGASUS)
