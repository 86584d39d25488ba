"""``mosaicml-streaming``: a shuffled StreamingDataset over MDS shards on the local disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from streaming import MDSWriter, StreamingDataset
from torch import Tensor

from benchmarks.contenders import Spec
from benchmarks.contenders.plain import delivered, encoded, packed

PACKAGES = ("mosaicml-streaming", "tokenizers", "torch")


def convert(file: str, shards: str) -> None:
    """Write the documents of a file of JSON lines as shards."""
    with MDSWriter(out=shards, columns={"text": "str"}) as writer, Path(file).open("rb") as lines:
        for line in lines:
            writer.write({"text": json.loads(line)["text"]})


def batches(spec: Spec) -> Iterator[Tensor]:
    """Batches of ids."""
    dataset = StreamingDataset(local=spec.shards, shuffle=True, batch_size=spec.batch_size)

    def texts() -> Iterator[str]:
        while True:
            for sample in dataset:
                yield sample["text"]

    return delivered(lambda: packed(encoded(texts(), spec), spec), spec)
