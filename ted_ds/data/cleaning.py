"""Which documents are trained on."""

from __future__ import annotations

import hashlib

from ted_ds.config.data import Cleaning


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out split: decided by its SHA-256, never by its position.

    The same text is on the same side in every run, order, shard and epoch, and duplicates never straddle the split.
    """
    return _is_below(_digest(text), fraction)


class HeldoutTexts:
    """Knows the texts that models are scored on, so that none of them is learned from by another way."""

    def __init__(self, fraction: float) -> None:
        """``fraction`` of all texts is held out by :func:`is_heldout`."""
        self._fraction, self._digests = fraction, set[bytes]()

    def add(self, text: str) -> None:
        """Note a text that is scored."""
        self._digests.add(_digest(_plain(text)))

    def has(self, text: str) -> bool:
        """Whether a text is held out, or is one that is scored: but for its white space and capitals."""
        return is_heldout(text, self._fraction) or _digest(_plain(text)) in self._digests


class Cleaner:
    """Decides on the documents of one shuffle window."""

    def __init__(self, cleaning: Cleaning, heldout_fraction: float) -> None:
        """Remember nothing yet."""
        self._cleaning, self._heldout_fraction = cleaning, heldout_fraction
        self._seen: set[bytes] = set()

    def keeps(self, text: str) -> bool:
        """Whether a document is long enough, not held out, and, if asked for, no copy of one before in the window."""
        if len(text.strip()) < self._cleaning.min_characters:
            return False
        digest = _digest(text)
        if _is_below(digest, self._heldout_fraction):
            return False
        if self._cleaning.deduplicate:
            if digest in self._seen:
                return False
            self._seen.add(digest)
        return True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_below(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
