"""Tiny teachers and data of every form that ``ted-ds init`` knows, and what each pair is to come to."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import write_chats, write_corpus, write_model, write_rows, write_tokenizer

ANSWER = {"text": ["cat"], "answer_start": [4]}
DATA = {
    "labels": [{"text": f"the cat sat {row}", "label": ["bad", "good"][row % 2]} for row in range(40)],
    "ids": [{"text": f"the cat sat {row}", "label": row // 20} for row in range(40)],  # sorted by them
    "pairs": [{"premise": f"the cat {row}", "hypothesis": "a dog", "label": row % 3} for row in range(40)],
    "numbers": [{"text": f"the cat {row}", "score": row / 7} for row in range(40)],
    "several": [{"text": f"the cat {row}", "labels": [["a", "b"][row % 2]]} for row in range(40)],
    "words": [{"tokens": ["the", f"cat{row}"], "ner_tags": ["O", ["B-X", "I-X"][row % 2]]} for row in range(40)],
    "answers": [{"question": f"what {row}", "context": f"the cat sat {row}", "answers": ANSWER} for row in range(40)],
    "unknown": [{"left": "the cat", "right": "sat"}],
    "targets": [{"document": f"the cat sat {row}", "summary": "cat"} for row in range(40)],
}
CASES = [
    ("bert", "labels", {"kind": "sequence_classification", "labels": ["bad", "good"]}),
    ("llama", "ids", {"kind": "sequence_classification", "labels": ["0", "1"]}),
    ("bert", "pairs", {"kind": "sequence_classification", "text_column": ["premise", "hypothesis"]}),
    ("bert", "numbers", {"kind": "regression", "target_columns": ["score"]}),
    ("bert", "several", {"kind": "multi_label_classification", "label_column": "labels"}),
    ("bert", "words", {"kind": "token_classification", "labels": ["B-X", "I-X", "O"]}),
    ("bert", "answers", {"kind": "question_answering"}),
    ("llama", "documents", {"kind": "causal_lm", "sequence_length": 256}),
    ("bert", "documents", {"kind": "masked_lm", "sequence_length": 256}),
    ("body", "documents", {"kind": "masked_lm"}),
    ("t5", "targets", {"kind": "seq2seq", "source_column": "document", "target_column": "summary"}),
]


def write_place(folder: Path) -> Path:
    """All of them, in a folder."""
    write_model(folder / "bert", "bert", blocks=4, architecture="MaskedLM", max_position_embeddings=512)
    write_model(folder / "body", "bert", blocks=4, max_position_embeddings=512)
    write_tokenizer(folder / "body", encoder=True, masks=True)
    write_model(folder / "llama", "llama", blocks=4, max_position_embeddings=256)
    write_model(folder / "t5", "t5", blocks=4)
    for name, rows in DATA.items():
        write_rows(folder / f"{name}.jsonl", rows)
    write_corpus(folder / "documents.jsonl")
    write_chats(folder / "chats.jsonl")
    return folder
