"""Which source of a mixture gives the next document, so that its share of *tokens* is its weight's share."""

from __future__ import annotations

from collections.abc import Sequence

from ted_ds.config.weights import weight_at
from ted_ds.data.stream.order import uniform
from ted_ds.data.stream.settings import StreamSettings


def shares_at(settings: StreamSettings, step: int, available: Sequence[bool]) -> list[float]:
    """The share of tokens each source has at a step: weight^(1/temperature) over the available ones, of sum 1.

    All zero where no available source has a weight.
    """
    powers = [
        weight_at(source.weight, step) ** (1 / settings.temperature) if is_available else 0.0
        for source, is_available in zip(settings.sources, available, strict=True)
    ]
    total = sum(powers)
    return [power / total for power in powers] if total else powers


def first_credits(settings: StreamSettings, lane: int) -> list[float]:
    """Credits at a lane's start: each source owes up to a sequence, another in each lane.

    With equal credits all lanes would begin with the same source, and the first steps be nothing but that.
    """
    return [
        -uniform(settings.seed, "credit", source, "lane", lane) * settings.sequence_length
        for source in range(len(settings.sources))
    ]


def most_due(credits: Sequence[float], shares: Sequence[float]) -> int | None:
    """The source whose turn it is: its credit has been due for the longest. None where no source has a share.

    This is stride scheduling (Waldspurger and Weihl, 1995) with debts kept in tokens, so that weights may change.
    """
    candidates = [index for index, share in enumerate(shares) if share > 0]
    return max(candidates, key=lambda index: (credits[index] / shares[index], -index), default=None)


def settle(credits: list[float], shares: Sequence[float], drawn: int, num_tokens: int) -> None:
    """Give each source its share of a document's tokens, and take them all from the one it was drawn from."""
    for index, share in enumerate(shares):
        credits[index] += share * num_tokens
    credits[drawn] -= num_tokens
