"""Labels on the first token of a word, or on all: the terms and their gradients against fp64, word by word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from ted_ds.config.tasks import TokenClassification
from ted_ds.data.loader import Collator
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.token_classification import Words
from tests.task_kinds import samples_of
from tests.tiny import SPECIAL_TOKENS

LABELS = ["O", "B-PER", "I-PER"]
ROWS = [
    (["reject", "a", "unaff"], [1, 0, 2]),
    (["a", "rejects"], [-100, 2]),
    (["unaff"], None),
    (["rejects", "rejects", "a", "a"], [0, 0, 1, 2]),
]
TEMPERATURE = 2.0


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["re", "##ject", "##s", "un", "##a", "##ff", "a"]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *pieces])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL_TOKENS)


def plainly(student: torch.Tensor, teacher: torch.Tensor, rows: list[int], where: str) -> tuple[Any, Any, int]:
    """Of token logits of unpadded rows, in fp64: both terms, word by word, and the count of labels."""
    task, prediction, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for row, (words, given) in enumerate(ROWS):
        of_tokens = tokenizer()(words, is_split_into_words=True).word_ids()
        for word, label in enumerate(given or []):
            places = [place for place, one in enumerate(of_tokens) if one == word]
            for place in (places[:1] if where == "first" else places) if label != -100 else []:
                mine, theirs = (logits[row, rows[row] + place].double() for logits in (student, teacher))
                task = task - mine.log_softmax(-1)[label]
                probable = (theirs / TEMPERATURE).softmax(-1)
                prediction = prediction + (probable * (probable.log() - (mine / TEMPERATURE).log_softmax(-1))).sum()
                count += 1
    return task, prediction, count


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("where", "count"), [("first", 8), ("all", 17)])
def test_terms_are_those_of_words_one_by_one(where: Any, count: int, side: Any) -> None:
    kind = kind_of(TokenClassification(kind="token_classification", labels=LABELS, label_on=where))
    rows = [Words(" ".join(words), label, words=words) for words, label in ROWS]
    samples = samples_of(kind, tokenizer(), rows)
    batch = Collator(0, kind.collated_as, side=side, multiple_of=4)([*samples, None])
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(*batch.input_ids.shape, 3, generator=generator).requires_grad_() for _ in range(2))
    terms = kind.training_terms
    keep = terms.predicted(batch.labels, batch.kept_tokens)
    mine = (
        terms.loss_sum(student, batch.labels),
        terms.prediction_sum(student, teacher.detach(), keep, TEMPERATURE),
    )
    starts = batch.kept_tokens.int().argmax(-1).tolist()
    *expected, num_labels = plainly(student, teacher.detach(), starts, where)
    assert int(terms.kept(batch.labels).sum()) == int(keep.sum()) == num_labels == count
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)
        of_one, of_other = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (one, other))
        torch.testing.assert_close(of_one, of_other, rtol=1e-5, atol=1e-7)
    whole = F.cross_entropy(student.flatten(0, 1).double(), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(mine[0].double(), whole, rtol=1e-6, atol=0)
