"""The kinds of task that ``ted-ds init`` knows by columns; imports nothing, for the words of the command line."""

from __future__ import annotations

CHAT, WORDS, ANSWERS, TARGETS = "chat", "token_classification", "question_answering", "seq2seq"
ONE_LABEL, MANY_LABELS, NUMBERS = "sequence_classification", "multi_label_classification", "regression"
CAUSAL_LM, MASKED_LM = "causal_lm", "masked_lm"
OF_LABELS, OF_DOCUMENTS = (ONE_LABEL, MANY_LABELS, NUMBERS), (CAUSAL_LM, MASKED_LM)
KINDS = (CHAT, WORDS, ANSWERS, TARGETS, *OF_LABELS, *OF_DOCUMENTS)
"""In the order in which they are looked for."""
