"""Documents become sequences of one length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

PackedSequence = tuple[list[int], list[int]]
"""Token ids, and the lengths of the pieces of documents they are made of, in order."""


class Piece(NamedTuple):
    """A run of a document's tokens."""

    origin: Any
    """Which document."""
    begin: int
    """Its first token in the document."""
    tokens: Sequence[int]

    def cut(self, length: int) -> tuple[Piece, Piece | None]:
        """The first ``length`` tokens, and the rest."""
        if len(self.tokens) <= length:
            return self, None
        head = Piece(self.origin, self.begin, self.tokens[:length])
        return head, Piece(self.origin, self.begin + length, self.tokens[length:])


class Packer:
    """Makes sequences out of pieces; what it holds between two sequences is ``pool``."""

    def __init__(self, draw: Callable[[], Piece | None], *, length: int, method: str, window: int) -> None:
        """Pack to ``length`` tokens.

        Args:
            draw: Gives the next document; None for ever once there is none.
            length: Of a sequence, in tokens.
            method: ``wrap`` joins documents and cuts the whole, so that every sequence is full; ``best_fit`` cuts only
                documents longer than a sequence, and fills up with the largest piece that fits.
            window: Pieces to choose from; ``best_fit`` only.
        """
        self._draw, self._length, self._method, self._window = draw, length, method, window
        self.pool: list[Piece] = []

    def next(self) -> list[Piece] | None:
        """The pieces of the next sequence; None where there are no more."""
        pieces = self._wrap() if self._method == "wrap" else self._best_fit()
        return pieces or None

    def _wrap(self) -> list[Piece]:
        taken: list[Piece] = []
        room = self._length
        while room:
            piece = self.pool.pop() if self.pool else self._draw()
            if piece is None:
                break
            head, rest = piece.cut(room)
            taken.append(head)
            room -= len(head.tokens)
            if rest is not None:
                self.pool.append(rest)
        return taken

    def _best_fit(self) -> list[Piece]:
        while len(self.pool) < self._window:
            rest = self._draw()
            if rest is None:
                break
            while rest is not None:
                piece, rest = rest.cut(self._length)
                self.pool.append(piece)
        if not self.pool:
            return []
        taken = [self.pool.pop(0)]  # the oldest, so that none waits for ever
        room = self._length - len(taken[0].tokens)
        while fitting := [index for index, piece in enumerate(self.pool) if len(piece.tokens) <= room]:
            best = max(fitting, key=lambda index: (len(self.pool[index].tokens), -index))
            taken.append(self.pool.pop(best))
            room -= len(taken[-1].tokens)
        return taken


def pack(
    documents: Iterable[list[int]], *, length: int, separator: int, start: Sequence[int] = ()
) -> Iterator[PackedSequence]:
    """Join documents, each between ``start`` and ``separator``, and cut the whole into sequences of ``length`` tokens.

    Only the last sequence may be shorter; one of a single token is dropped, as it has no next token to predict.
    """
    rest = iter(documents)

    def draw() -> Piece | None:
        document = next(rest, None)
        return None if document is None else Piece(None, 0, [*start, *document, separator])

    packer = Packer(draw, length=length, method="wrap", window=1)
    while pieces := packer.next():
        ids, lengths = joined(pieces)
        if len(ids) > 1:
            yield ids, lengths


def joined(pieces: Iterable[Piece]) -> PackedSequence:
    """A sequence of pieces as ids and lengths."""
    ids: list[int] = []
    lengths: list[int] = []
    for piece in pieces:
        ids += piece.tokens
        lengths.append(len(piece.tokens))
    return ids, lengths


def predicts_something(sequence: PackedSequence, *, isolate_documents: bool) -> bool:
    """Whether any token of a sequence has one before it to be predicted from."""
    ids, lengths = sequence
    return max(lengths) > 1 if isolate_documents else len(ids) > 1
