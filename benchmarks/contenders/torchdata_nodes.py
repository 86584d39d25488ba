"""``torchdata``: its nodes in the training process, its StatefulDataLoader with a worker; it shuffles no stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torchdata.nodes import Batcher, IterableWrapper, Loader, Mapper, Unbatcher
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.contenders import Spec
from benchmarks.contenders.plain import DOCUMENTS_AT_ONCE, Batches, encoded, encoder, packed

PACKAGES = ("torchdata", "tokenizers", "torch")


def batches(spec: Spec) -> Iterator[Tensor]:
    """Batches of ids."""
    if spec.num_workers:
        dataset = Batches(lambda: packed(encoded(_texts(spec.file), spec), spec))
        return iter(StatefulDataLoader(dataset, batch_size=None, num_workers=spec.num_workers))
    encode = encoder(spec)
    texts = Batcher(IterableWrapper(_texts(spec.file)), DOCUMENTS_AT_ONCE)
    return packed(Loader(Unbatcher(Mapper(texts, encode))), spec)


def _texts(file: str) -> Iterator[str]:
    while True:
        with Path(file).open("rb") as lines:
            for line in lines:
                yield json.loads(line)["text"]
