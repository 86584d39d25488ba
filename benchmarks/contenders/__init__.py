"""Ways to read, tokenise and pack a file of JSON lines; each runs in a process of its own (``__main__``).

Each module has ``PACKAGES``, the distributions that it is about, and ``batches(spec)``, which gives batches of
``batch_size`` full sequences for ever. They load only what they need: the memory of each is measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """What all contenders have in common."""

    file: str
    """JSON lines with a column ``text``."""
    shards: str
    """A folder with the same documents as MDS shards."""
    tokenizer: str
    """A folder with a ``tokenizer.json``."""
    end_id: int
    """The token that ends each document."""
    sequence_length: int
    batch_size: int
    num_workers: int
    """Processes beside the one that receives the batches; 0: none."""
    shuffle_mib: float
    """ted_ds only: the others have shuffles of other kinds."""
