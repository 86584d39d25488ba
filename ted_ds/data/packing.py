"""Documents become sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def pack(documents: Iterable[list[int]], *, length: int, separator: int) -> Iterator[list[int]]:
    """Join documents, each ended by ``separator``, and cut the whole into sequences of ``length`` tokens.

    Only the last sequence may be shorter; one of a single token is dropped, as it has no next token to predict.
    """
    rest: list[int] = []
    for document in documents:
        rest += [*document, separator]
        whole = len(rest) // length * length
        for start in range(0, whole, length):
            yield rest[start : start + length]
        rest = rest[whole:]
    if len(rest) > 1:
        yield rest
