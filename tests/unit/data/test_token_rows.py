"""Rows that hold tokens: what is learned of them, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from ted_ds.data.samples import BadRow
from ted_ds.data.token_rows import read_tokens, sample_of

VOCAB = 37


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "no tokens in columns text; a row needs input_ids"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": [3, -1]}, "input_ids holds -1; ids are 0 or above"),
        ({"input_ids": "3 4"}, "input_ids holds '3 4'; it must be a list of whole numbers"),
        ({"input_ids": [3, 4.5]}, r"input_ids holds \[3, 4.5\]; it must be a list of whole numbers"),
        ({"input_ids": [[3], [4, 5]]}, "it must be a list of whole numbers"),
        ({"input_ids": [3, 4], "labels": [3]}, "labels has 1 places, input_ids has 2; they must be as many"),
        (
            {"input_ids": [3, 4], "labels": [3, 5]},
            "labels: place 1 has 5, input_ids has 4 there; use -100 to learn nothing",
        ),
        (
            {"input_ids": [3, 4, 5], "labels": [4, 5, -100]},
            "they stand one place before their tokens: move them one place on",
        ),
        ({"input_ids": [3, 4], "attention_mask": [1, 2]}, "attention_mask holds 2; 1 is for tokens, 0 for padding"),
        (
            {"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]},
            "attention_mask is 0 between tokens; padding stands before or behind",
        ),
        ({"input_ids": [3, 4], "attention_mask": [0, 0]}, "attention_mask is 0 everywhere"),
        (
            {"input_ids": [3, 4, 5], "position_ids": [0, 1, 0]},
            "position_ids start again: there are several texts in the row",
        ),
    ],
)
def test_rows_that_are_no_tokens_are_named(row, message):
    with pytest.raises(BadRow, match=message):
        read_tokens(row)


def test_what_is_learned_of_a_row():
    def spans(row: dict[str, Any], **options: Any) -> Any:
        samples = sample_of(read_tokens(row), **{"num_ids": VOCAB, "padding": 0, "length": 99, **options})
        return samples if isinstance(samples, str) else [(list(one.input_ids), one.label) for one in samples]

    assert spans({"input_ids": [3, 4, 5]}) == [([3, 4, 5], [1, 3])]
    assert spans({"input_ids": [3, 4, 0, 0]}) == [([3, 4], [1, 2])]
    assert spans({"input_ids": [3, 4, 0, 0]}, padding=None) == [([3, 4, 0, 0], [1, 4])]
    assert spans({"input_ids": [3, 4, 0, 0], "attention_mask": [1, 1, 1, 0]}) == [([3, 4, 0], [1, 3])]
    labels = [3, -100, 5, 6, -100, 8]
    assert spans({"input_ids": [3, 4, 5, 6, 7, 8], "labels": labels}) == [([3, 4, 5, 6, 7, 8], [2, 4, 5, 6])]
    assert spans({"input_ids": [3, 4, 5, 6, 7, 8], "labels": labels}, length=4) == [([3, 4, 5, 6], [2, 4])]
    assert spans({"input_ids": [3, 4], "labels": [3, -100]}) == []
    assert spans({"input_ids": [3]}) == []
    assert spans({"input_ids": [3, 4], "labels": [-100, 4]}, num_ids=4) == (
        "input_ids: place 1 has 4, and the tokenizer has 4 ids, from 0 on; the row is of another tokenizer"
    )
