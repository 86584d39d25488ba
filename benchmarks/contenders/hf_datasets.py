"""``datasets``: a streamed file, shuffled in a buffer, a batched map that tokenises, and a plain packing loop."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import load_dataset
from torch import Tensor

from benchmarks.contenders import Spec
from benchmarks.contenders.plain import DOCUMENTS_AT_ONCE, delivered, encoder, packed

PACKAGES = ("datasets", "tokenizers", "torch")
BUFFERED_DOCUMENTS = 1000


def batches(spec: Spec) -> Iterator[Tensor]:
    """Batches of ids."""
    encode = encoder(spec)
    documents = (
        load_dataset("json", data_files=spec.file, split="train", streaming=True)
        .repeat(None)
        .shuffle(seed=1, buffer_size=BUFFERED_DOCUMENTS)
        .map(
            lambda rows: {"ids": encode(rows["text"])},
            batched=True,
            batch_size=DOCUMENTS_AT_ONCE,
            remove_columns=["text"],
        )
    )
    return delivered(lambda: packed((row["ids"] for row in documents), spec), spec)
