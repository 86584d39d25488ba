"""Families of encoders: masked language models."""

from __future__ import annotations

from ted_ds.models.family import Family

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
ENCODERS = (BERT, DEBERTA_V2)
