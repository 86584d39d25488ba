"""The model families that ted_ds knows, without torch: all that is asked by a model type is asked here.

To add one, write a :class:`~ted_ds.models.family.Family`; ``tests/parity/test_families.py`` then holds it against the
plain transformers forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ted_ds.errors import ConfigError
from ted_ds.models.family import Family

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
    tokenizer_class="GPT2Tokenizer",
)
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
    buffers=("position_ids",),
    tokenizer_class="DebertaV2Tokenizer",
)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, BERT, DEBERTA_V2)
FAMILY_OF: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.model_types}
KNOWN_TYPES = tuple(FAMILY_OF)
SPAN_TYPES = tuple(name for name, family in FAMILY_OF.items() if family.span_head is not None)


def types_of(language_model: str) -> tuple[str, ...]:
    """The types whose language models are a ``CausalLM``, or a ``MaskedLM``."""
    return tuple(name for name, family in FAMILY_OF.items() if family.language_model == language_model)


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        ConfigError: No family covers it.
    """
    if model_type not in FAMILY_OF:
        raise ConfigError(f"model type {model_type!r} has no family; ted_ds knows {', '.join(sorted(FAMILY_OF))}")
    return FAMILY_OF[model_type]
