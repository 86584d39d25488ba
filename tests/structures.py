"""Tiny configs of types without a record, what they may be used for, and why others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from tests.tiny import VOCAB_SIZE

SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 5},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 2, "n_head": 4},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 5},
    "ctrl": {"dff": 24},
    "falcon": {"ffn_hidden_size": 24, "alibi": False},
    "mpt": {"max_seq_len": 64},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 12},
    "biogpt": {},
    "xglm": {"ffn_dim": 24},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
    },
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 16},
    "rwkv": {"attention_hidden_size": 16, "num_hidden_layers": 8, "context_length": 64},
    "xlnet": {"d_inner": 24},
    "convbert": {"embedding_size": 16},
    "rembert": {"input_embedding_size": 12, "output_embedding_size": 20},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 3},
    "longformer": {"attention_window": 8},
    "nemotron": {},
}
"""What else a config needs to be small, and to have what is its own."""
NOTHING: tuple[str, ...] = ()
TAKEN: Mapping[str, tuple[str, ...]] = {
    "gpt_neo": NOTHING,
    "bloom": ("isolated documents",),
    "cohere": NOTHING,
    "mamba": ("isolated documents", "zero3", "int8", "adapters"),
    "jamba": ("isolated documents", "zero3", "int8", "adapters"),
    "openai-gpt": ("isolated documents",),
    "roformer": NOTHING,
    **dict.fromkeys(("gptj", "codegen", "phi", "starcoder2", "stablelm", "cohere2", "olmo", "gemma", "glm"), NOTHING),
    **dict.fromkeys(("glm4", "persimmon", "ernie4_5", "biogpt", "gpt_bigcode", "megatron-bert", "big_bird"), NOTHING),
    **dict.fromkeys(("nemotron", "exaone4"), ("QuestionAnswering",)),
    "falcon": ("int8",),
    "mpt": ("isolated documents",),
    "olmoe": ("int8",),
    "deepseek_v3": ("int8",),
    "mamba2": ("isolated documents", "zero3", "adapters"),
    "falcon_mamba": ("isolated documents", "zero3", "int8", "adapters"),
    "recurrent_gemma": ("padding on the left", "isolated documents", "pipeline", "int8"),
    "xglm": ("pipeline",),
    "ctrl": ("pipeline",),
    **dict.fromkeys(("camembert", "data2vec-text"), NOTHING),
    "rembert": ("pipeline",),
    "esm": ("cut", "zero3"),  # it has a head over the attention of all blocks
    "layoutlm": ("zero3",),
    "ibert": ("pipeline", "int8", "adapters"),
}
"""The types that are taken, and what not for, beside compiled blocks, which nobody tries."""
REFUSED: Mapping[str, str] = {
    "blenderbot": "it has an encoder and a decoder",
    "xlnet": "layer 0 is not what transformers calls",
    "fnet": "hang on what is beside it",
    "rwkv": "the model does something of its own between them",
    "xlm": "the model does something of its own between them",
    "flaubert": "the model does something of its own between them",
    "funnel": "its blocks were not found",
    "longformer": "transformers fails: RuntimeError: The size of tensor",
    "nystromformer": "hang on what is beside it",
    "convbert": "hang on what is beside it",
}


def content_of(name: str) -> dict[str, Any]:
    """A ``config.json`` of a type, of the entries that it has."""
    kind = CONFIG_MAPPING[name]
    general = kind.attribute_map
    known = kind().to_dict()
    own = {general.get(key, key): value for key, value in SHAPE.items()}
    own = {key: value for key, value in own.items() if key in known or key.endswith("_token_id")}
    return {**kind(**{**own, **OWN.get(name, {})}).to_dict(), "model_type": name}
