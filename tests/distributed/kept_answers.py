"""What a corpus' cache holds of a teacher, by plain formulas, and what a student's predictions come to beside it.

For the invariance matrix: written once, document by document in fp64, and read by any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ted_ds.data.loader import checksum
from ted_ds.teacher_cache.parts import PartWriter
from ted_ds.teacher_cache.store import Reader, finish
from ted_ds.teacher_cache.token_record import Answer, TokenRecord

WAYS = ("top_k bf16", "top_k int8", "sampled bf16", "sampled int8")
"""How predictions are kept, and the precision of filtered states."""
NUM_KEPT = {"top_k": 7, "sampled": 40}


class Spoken(NamedTuple):
    """What a teacher says of a document."""

    logits: Tensor
    """``[tokens, vocab]``, in fp64."""
    is_asked: Tensor
    """Of each token, whether its prediction is compared."""
    states: Tensor
    """``[layers, tokens, dim]``, filtered."""
    is_matched: Tensor
    task_loss: float
    """The sum over labels."""


def record_of(way: str, *, num_layers: int, dim: int, num_ids: int) -> TokenRecord:
    """The form of a cache."""
    kept, precision = way.split()
    return TokenRecord(num_layers, dim, precision, NUM_KEPT[kept], num_ids, kept == "sampled")


def answer_of(spoken: Spoken, record: TokenRecord, *, temperature: float, seed: int) -> Answer:
    """What is kept of it, before it is rounded."""
    logs = (spoken.logits[spoken.is_asked] / temperature).log_softmax(-1)
    keep = _drawn if record.drawn else _most_probable
    ids, numbers = keep(logs, record.num_kept, seed)
    return Answer(ids, numbers, spoken.states[:, spoken.is_matched], spoken.task_loss, 0)


def _most_probable(logs: Tensor, count: int, _: int) -> tuple[Tensor, Tensor]:
    order = logs.argsort(dim=-1, descending=True)
    top, others = (logs.gather(-1, part) for part in order.split([count, logs.shape[-1] - count], dim=-1))
    return order[:, :count], torch.cat([top, others.logsumexp(-1, keepdim=True)], -1)


def _drawn(logs: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each place i + start, of so many, is of the id in whose part of the cumulated probabilities it is."""
    starts = np.random.default_rng(seed).random(len(logs))
    counts = torch.zeros(logs.shape, dtype=torch.float64)
    for row, (start, bounds) in enumerate(zip(starts, logs.exp().cumsum(-1).numpy(), strict=True)):
        for place in range(count):
            counts[
                row, min(int(np.searchsorted(bounds, (start + place) / count, side="right")), logs.shape[-1] - 1)
            ] += 1
    most, ids = counts.topk(count, dim=-1)
    return ids, torch.cat([most, -(logs.exp() * logs).sum(-1, keepdim=True)], -1)


def rounded(answer: Answer, record: TokenRecord) -> Answer:
    """What is read of it."""
    return record.unpack(np.frombuffer(record.pack(answer), np.uint8))


def joined(answers: Sequence[Answer]) -> Answer:
    """Of documents that share a row."""
    ids, numbers = (torch.cat([getattr(one, name) for one in answers]) for name in ("ids", "numbers"))
    states, losses = torch.cat([one.states for one in answers], 1), sum(one.task_loss for one in answers)
    return Answer(ids, numbers, states, losses, 0)


def write_cache(place: Path, record: TokenRecord, answers: Mapping[int, tuple[Answer, Sequence[int]]]) -> None:
    """A cache of answers, each with the tokens it is of."""
    begun = place.with_name(f"{place.name} begun")
    begun.mkdir(parents=True)
    writer = PartWriter(begun, 0)
    for index, (answer, tokens) in answers.items():
        writer.add(index, record.pack(answer._replace(tokens=checksum(tokens))), tokens=len(tokens))
    writer.close()
    counts = [int(index in answers) for index in range(max(answers) + 1)]  # each is a lane, some of which are empty
    finish(begun, place, record, about={}, counts=counts)


def open_cache(place: Path, record: TokenRecord) -> Reader[TokenRecord]:
    """Such a cache."""
    return Reader(place, record)


def plain_divergences(student: Tensor, kept: Answer, *, drawn: bool, temperature: float) -> Tensor:
    """The KL of each row beside what was kept: of these ids and all others as one, or by the draws."""
    logs = (student / temperature).log_softmax(-1)
    own, numbers = logs.gather(-1, kept.ids), kept.numbers.double()
    if drawn:
        shares = numbers[:, :-1] / NUM_KEPT["sampled"]
        return -(shares * own).sum(-1) - numbers[:, -1]
    others = logs.scatter(-1, kept.ids, -torch.inf).logsumexp(-1, keepdim=True)
    return (numbers.exp() * (numbers - torch.cat([own, others], -1))).sum(-1)
