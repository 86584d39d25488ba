"""Documents become sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PackedSequence = tuple[list[int], list[int]]
"""Token ids, and the lengths of the pieces of documents they are made of, in order."""


def pack(documents: Iterable[list[int]], *, length: int, separator: int) -> Iterator[PackedSequence]:
    """Join documents, each ended by ``separator``, and cut the whole into sequences of ``length`` tokens.

    Only the last sequence may be shorter; one of a single token is dropped, as it has no next token to predict.
    """
    ids: list[int] = []
    pieces: list[int] = []
    for document in documents:
        rest = [*document, separator]
        while rest:
            taken = rest[: length - len(ids)]
            ids += taken
            pieces.append(len(taken))
            rest = rest[len(taken) :]
            if len(ids) == length:
                yield ids, pieces
                ids, pieces = [], []
    if len(ids) > 1:
        yield ids, pieces
