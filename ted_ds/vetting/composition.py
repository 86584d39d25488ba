"""Whether what a model makes of an example hangs on what is beside it in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ted_ds.data.loader import Batch
from ted_ds.data.samples import Sample
from ted_ds.models.predictions import DensePredictions, Predictions
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.vetting.verdict import Verdict

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Of a difference, relative to the largest number if that is above 1. Sums in another order come to 1e-6 in fp32, and
to a few units in the last of 11 or 8 bits; another choice of positions, or padding that is seen, to far more."""
PART = 3
"""Of the longest example, one such part is looked at as well."""


def mixed_lengths(samples: Sequence[Sample]) -> list[Sample]:
    """A batch as uneven as the data allow: the longest example, a part of it, the shortest, and one in between."""
    by_length = sorted(samples, key=lambda sample: len(sample.input_ids))
    longest = by_length[-1]
    return [
        longest,
        _beginning(longest, -(-len(longest.input_ids) // PART)),
        by_length[0],
        by_length[len(samples) // 2],
    ]


def _beginning(sample: Sample, length: int) -> Sample:
    documents: list[int] = []
    for of_document in sample.document_lengths:
        documents.append(min(of_document, length - sum(documents)))
    types = None if sample.token_types is None else sample.token_types[:length]
    ids, lengths = sample.input_ids[:length], [one for one in documents if one]
    choices = tuple(_beginning(one, length) for one in sample.choices)
    return replace(sample, input_ids=ids, token_types=types, document_lengths=lengths, choices=choices)


def numbers_of_rows(predictions: Predictions, batch: Batch, terms: TaskTerms) -> list[list[float]]:
    """Of each row of a batch: the loss per kept label, and the logits where they are few, of a text."""
    rows = []
    for row, loss in enumerate(predictions.task_sums(terms, batch)):
        count = max(int(terms.kept(batch.labels[row : row + 1]).sum()), 1)
        logits: list[float] = []
        if isinstance(predictions, DensePredictions) and predictions.logits.dim() == 2:
            logits = predictions.logits[row].tolist()
        rows.append([loss / count, *logits])
    return rows


def judge_composition(
    model: str, alone: Sequence[Sequence[float]], together: Sequence[Sequence[float]], *, precision: str
) -> Verdict:
    """The verdict on a model, from what it makes of examples one at a time, and all in one batch."""
    check = f"{model} in other batches"
    own, beside = np.asarray(alone), np.asarray(together)
    if not np.isfinite(own).all():
        return Verdict(check, "skip", "what it makes of an example alone is not finite")
    worst = float(np.abs(own - beside).max() / max(1.0, float(np.abs(own).max())))
    facts = f"{len(own)} examples alone and side by side differ by {worst:.2g}"
    if worst <= TOLERANCES[precision]:
        return Verdict(check, "pass", facts)
    return Verdict(
        check, "fail", f"{facts}, at most {TOLERANCES[precision]:.2g} is rounding: each hangs on those beside it"
    )
