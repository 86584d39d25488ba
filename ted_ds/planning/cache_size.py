"""What a teacher's cache keeps of a token, in bytes; without torch."""

from __future__ import annotations

from dataclasses import dataclass

ID_BYTES, LOG_BYTES, REST_BYTES = 2, 2, 4
COUNT_BYTES = 2
"""Of how many ids of a prediction were drawn, and how often each was."""
SCALE_BYTES = 4
STATE_BYTES = {"bf16": 2, "int8": 1}


def num_planes(num_ids: int) -> int:
    """The bits of an id beyond its 16 lowest."""
    return max((num_ids - 1).bit_length() - 8 * ID_BYTES, 0)


@dataclass(frozen=True)
class TokenSizes:
    """What is kept of each token of a language model."""

    num_layers: int
    dim: int
    """Of a filtered state."""
    precision: str
    """Of filtered states: ``bf16``, or ``int8`` with a scale per token."""
    num_kept: int
    """Ids of each prediction, or draws from it; 0 where nobody asks for them."""
    num_ids: int
    """Of the vocabulary that predictions are over."""
    drawn: bool = False
    """Whether ids are drawn; else those most probable are kept."""

    @property
    def of_prediction(self) -> float:
        """Bytes of what a token is predicted to be; at most, where ids are drawn."""
        if not self.num_kept:
            return 0.0
        number, once = (COUNT_BYTES, COUNT_BYTES + REST_BYTES) if self.drawn else (LOG_BYTES, REST_BYTES)
        return self.num_kept * (ID_BYTES + number + num_planes(self.num_ids) / 8) + once

    @property
    def of_states(self) -> int:
        """Bytes of its states."""
        scale = SCALE_BYTES if self.precision == "int8" else 0
        return self.num_layers * (self.dim * STATE_BYTES[self.precision] + scale)
