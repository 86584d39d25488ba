"""Predictions as axolotl's KD plugin prepares them: ids and log-probabilities of each place, in lists.

The format is that of axolotl-ai-cloud/axolotl, ``src/axolotl/integrations/kd``, as seen at commit 139786b in November
2026 (its ``README.md``, under Target alignment; ``chat_template.py``, which prepares the rows; ``collator.py``). A
prepared row has ``input_ids``, ``labels``, and for each place j a list in each of these columns:

``target_token_ids``, ``target_logprobs``
    The ids, and the logs of their probabilities, made to add up to 1 among them at ``kd_temperature``.
``target_mask``
    1 where an id counts, 0 where it fills the list up or ``labels`` says nothing; it may be missing.

Place j is of token j + 1, and the last is filled up. What was prepared by older versions (seen at effacdf and 08a734b)
has place j of token j (``row_is_of: own``): logs of what vLLM says of a prompt stand at the token they are of, and were
put there as they come. Places are filled up with -1e9, in older data with -inf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ted_ds.teacher_cache.given_predictions import ABSENT, Given, UnreadableRow

IDS, LOGS, MASK = COLUMNS = ("target_token_ids", "target_logprobs", "target_mask")
FILLED = -1e8
"""What is below fills a place up."""


@dataclass(frozen=True)
class OfAxolotl:
    """Reads the predictions of a row."""

    columns = COLUMNS
    most = None
    """Rows say it, each by itself."""

    def __call__(self, row: Mapping[str, Any]) -> Given:
        """Ids and log-probabilities at all places; the id is ``ABSENT`` where there is none.

        Raises:
            UnreadableRow: There are none, or lists do not fit each other.
        """
        ids, logs = (_lists(row, name) for name in (IDS, LOGS))
        mask = _lists(row, MASK) if row.get(MASK) is not None else [[1] * len(one) for one in ids]
        for name, lists in ((LOGS, logs), (MASK, mask)):
            if len(lists) != len(ids):
                raise UnreadableRow(f"{IDS} has {len(ids)} places, {name} has {len(lists)}")
            for place, (one, of_ids) in enumerate(zip(lists, ids, strict=True)):
                if len(one) != len(of_ids):
                    raise UnreadableRow(f"place {place}: {IDS} has {len(of_ids)}, {name} has {len(one)}")
        widest = max(map(len, ids), default=0)
        found = Given(np.full((len(ids), widest), ABSENT), np.full((len(ids), widest), -np.inf))
        for place, (own_ids, own_logs, own_mask) in enumerate(zip(ids, logs, mask, strict=True)):
            if not len(own_ids):
                continue
            try:
                numbers = np.asarray(own_logs, np.float64)
                counts = (np.asarray(own_mask, np.int64) != 0) & ~(numbers <= FILLED)  # NaN counts, to be refused
                found.ids[place, : len(own_ids)] = np.where(counts, np.asarray(own_ids, np.int64), ABSENT)
            except (ValueError, TypeError) as error:
                raise UnreadableRow(f"place {place}: {error}; ids and logs must be numbers") from error
            found.logs[place, : len(own_ids)] = np.where(counts, numbers, -np.inf)
        return found


def _lists(row: Mapping[str, Any], name: str) -> Sequence[Sequence[Any]]:
    lists = row.get(name)
    if lists is None:
        raise UnreadableRow(f"no predictions in column {name!r}; it has {', '.join(map(str, row)) or 'none'}")
    if not isinstance(lists, list) or not all(isinstance(one, list | None) for one in lists):
        raise UnreadableRow(f"{name} holds {lists!r:.50}; it must be a list for each place")
    return [one or [] for one in lists]
