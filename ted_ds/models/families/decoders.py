"""Families of decoders: causal language models."""

from __future__ import annotations

from dataclasses import replace

from ted_ds.models.family import Family

UNITS = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("key_value_heads", "hidden"),
    "self_attn.v_proj": ("key_value_heads", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
"""Of Llama's maps, and of those of many after it."""
NORMS = ("input_layernorm", "post_attention_layernorm")
NORMED_OUTPUT = "a norm stands between the last linear map of its blocks and the sum they put out"
OF_EXPERTS = "each token goes through other experts in its blocks, of which none sees enough"
LLAMA = Family(
    model_types=("llama",),
    embeddings_path="model.embed_tokens",
    token_embeddings_path="model.embed_tokens",
    blocks_path="model.layers",
    arrival_path="model.embed_tokens",
    behind_blocks=("model.norm",),
    final_norm_path="model.norm",
    lm_head_path="lm_head",
    lm_heads_in_files=("lm_head",),
    ties_by_default=False,
    label_heads=("score",),
    lacks=("MultipleChoice",),
    pooled_token="last",
    positions="rotary",
    attention_dropouts=("attention_dropout",),
    label_dropouts={"TokenClassification": "classifier_dropout"},
    buffers=("rotary_emb.inv_freq",),
    units_of_maps=UNITS,
    norms_of_blocks=NORMS,
    output_map="mlp.down_proj",
    mlp_path="mlp",
    attention_maps=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
MISTRAL = replace(LLAMA, model_types=("mistral",), span_head="qa_outputs")
QWEN2 = replace(
    LLAMA,
    model_types=("qwen2",),
    block_kinds=("full_attention", "sliding_attention"),
    tokenizer_class="Qwen2Tokenizer",
    believes_tokenizer_files=False,
)
QWEN3 = replace(QWEN2, model_types=("qwen3",), believes_tokenizer_files=True)
GPT2 = Family(
    model_types=("gpt2",),
    embeddings_path="transformer.drop",
    token_embeddings_path="transformer.wte",
    blocks_path="transformer.h",
    arrival_path="transformer.wte",
    before_blocks={"transformer.wpe": "added", "transformer.drop": "passed"},
    behind_blocks=("transformer.ln_f",),
    final_norm_path="transformer.ln_f",
    lm_head_path="lm_head",
    lm_heads_in_files=("lm_head",),
    ties_by_default=True,
    label_heads=("score", "classifier"),
    lacks=("MultipleChoice",),
    span_head="qa_outputs",
    pooled_token="last",
    positions="learned",
    position_embeddings_path="transformer.wpe",
    own_names={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
    hidden_dropouts=("embd_pdrop", "resid_pdrop"),
    attention_dropouts=("attn_pdrop",),
    label_dropouts={"TokenClassification": "classifier_dropout"},
    inverse_number_key="scale_attn_by_inverse_layer_idx",
    fused_queries=("attn.c_attn.weight", "attn.c_attn.bias"),
    buffers=(".attn.bias", ".attn.masked_bias"),
    units_of_maps={
        "attn.c_attn": ("heads heads heads", "hidden"),
        "attn.c_proj": ("hidden", "heads"),
        "mlp.c_fc": ("inner", "hidden"),
        "mlp.c_proj": ("hidden", "inner"),
    },
    norms_of_blocks=("ln_1", "ln_2"),
    maps_are_transposed=True,
    heads_fill_hidden=True,
    output_map="mlp.c_proj",
    mlp_path="mlp",
    attention_maps=("attn.c_attn",),
    tokenizer_class="GPT2Tokenizer",
)
GPT_NEOX = replace(
    LLAMA,
    model_types=("gpt_neox",),
    embeddings_path="gpt_neox.emb_dropout",
    token_embeddings_path="gpt_neox.embed_in",
    blocks_path="gpt_neox.layers",
    arrival_path="gpt_neox.embed_in",
    before_blocks={"gpt_neox.emb_dropout": "passed"},
    behind_blocks=("gpt_neox.final_layer_norm",),
    final_norm_path="gpt_neox.final_layer_norm",
    lm_head_in_files="embed_out",
    lm_heads_in_files=("lm_head", "embed_out"),
    label_heads=("score", "classifier"),
    span_head="qa_outputs",
    hidden_dropouts=("hidden_dropout",),
    buffers=("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    output_map="mlp.dense_4h_to_h",
    units_of_maps={},  # queries, keys and values of a head stand together
    attention_maps=(),
    tokenizer_class="GPTNeoXTokenizer",
)
PHI3 = replace(
    LLAMA,
    model_types=("phi3",),
    hidden_dropouts=("resid_pdrop",),
    attention_maps=(),  # of one map, but not as many of each
    units_of_maps={
        "self_attn.qkv_proj": ("heads key_value_heads key_value_heads", "hidden"),
        "self_attn.o_proj": ("hidden", "heads"),
        "mlp.gate_up_proj": ("inner inner", "hidden"),
        "mlp.down_proj": ("hidden", "inner"),
    },
)
OLMO2 = replace(
    LLAMA,
    model_types=("olmo2",),
    lacks=("MultipleChoice", "TokenClassification"),
    label_dropouts={},
    norms_of_blocks=("post_attention_layernorm", "post_feedforward_layernorm"),
    fixed_widths=dict.fromkeys(("heads", "key_value_heads"), "its norms of queries and keys are over all heads"),
    refused={"heal": NORMED_OUTPUT},
)
SMOLLM3 = replace(
    LLAMA,
    model_types=("smollm3",),
    ties_by_default=True,
    block_kinds=("full_attention", "sliding_attention"),
)
GRANITE = replace(
    LLAMA,
    model_types=("granite",),
    embeddings_path=None,
    embeddings_factor_path="model.embedding_multiplier",
    logits_divisor_key="logits_scaling",
    label_heads=(),
    lacks=("SequenceClassification", "TokenClassification", "MultipleChoice"),
    label_dropouts={},
    output_factor_key="residual_multiplier",
)
GEMMA2 = replace(
    LLAMA,
    model_types=("gemma2",),
    ties_by_default=True,
    attention=("eager", "flash"),
    logits_cap_key="final_logit_softcapping",
    block_kinds=("full_attention", "sliding_attention"),
    must_be={
        "use_bidirectional_attention": (
            False,
            "each token sees those behind it, which a decoder is to predict; use another model",
        ),
    },
    buffers=("rotary_emb.inv_freq", "embed_tokens.embed_scale"),
    norms_of_blocks=(*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    fixed_widths={"hidden": "its embeddings are multiplied by the root of their width"},
    tokenizer_class="GemmaTokenizer",
    refused={"heal": NORMED_OUTPUT},
)
GEMMA3 = replace(
    GEMMA2,
    model_types=("gemma3_text",),
    attention=LLAMA.attention,
    lacks=("TokenClassification", "MultipleChoice"),
    label_dropouts={},
)
OPT = replace(
    LLAMA,
    model_types=("opt",),
    embeddings_path=None,
    token_embeddings_path="model.decoder.embed_tokens",
    blocks_path="model.decoder.layers",
    arrival_path="model.decoder.embed_tokens",
    before_blocks={"model.decoder.embed_positions": "added", "model.decoder.project_in": "passed"},
    behind_blocks=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    final_norm_path="model.decoder.final_layer_norm",
    behind_norm_path="model.decoder.project_out",
    ties_by_default=True,
    lacks=("TokenClassification", "MultipleChoice"),
    span_head="qa_outputs",
    finds_documents=False,
    positions="learned",
    position_embeddings_path="model.decoder.embed_positions",
    rows_before_positions=2,
    own_names={"intermediate_size": "ffn_dim", "embedding_size": "word_embed_proj_dim"},
    hidden_dropouts=("dropout",),
    label_dropouts={},
    units_of_maps={},
    must_be={
        "layerdrop": (
            0,
            "blocks are left out at random in training, and their states could not be compared; set it to 0",
        )
    },
    buffers=(),
    tokenizer_class="GPT2Tokenizer",
    output_map="fc2",
    mlp_path="fc1",
    norm_behind_map="final_layer_norm",
    is_normed_before_key="do_layer_norm_before",
)
MIXTRAL = replace(
    MISTRAL,
    model_types=("mixtral",),
    own_names={"num_experts": "num_local_experts"},
    num_experts_keys=("num_experts", "num_local_experts"),
    units_of_maps={},
    refused={"heal": OF_EXPERTS},
)
QWEN3_MOE = replace(
    QWEN3,
    model_types=("qwen3_moe",),
    block_kinds=None,
    own_names=MIXTRAL.own_names,
    num_experts_keys=MIXTRAL.num_experts_keys,
    units_of_maps={},
    sparse_step_key="decoder_sparse_step",
    dense_blocks_key="mlp_only_layers",
    refused={"heal": OF_EXPERTS},
)
WITH_A_TEXT_MODEL = {"gemma3": "gemma3_text"}
"""Types that read more than text, and the type of the language model in them, which can be written down alone."""
DECODERS = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GPT2,
    GPT_NEOX,
    PHI3,
    OLMO2,
    SMOLLM3,
    GRANITE,
    GEMMA2,
    GEMMA3,
    OPT,
    MIXTRAL,
    QWEN3_MOE,
)
