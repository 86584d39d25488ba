"""What the teacher says of a microbatch, as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import read_at
from ted_ds.data.loader import Batch, checksum
from ted_ds.data.samples import Sample
from ted_ds.data.stream.order import hash_of
from ted_ds.models.predictions import Predictions, VocabularyPredictions, predicted_of
from ted_ds.numerics.chunks import select_rows
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.keeping import Keeping, Kept, keep_drawn, keep_top, lost
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.teacher_cache.parts import NOTHING_LOST
from ted_ds.teacher_cache.store import Record
from ted_ds.teacher_cache.token_record import Answer, TokenRecord


class Ask(Protocol):
    """Asks the teacher."""

    @property
    def lost(self) -> Sequence[float]:
        """What was seen to be lost of predictions by writing them down (:func:`ted_ds.numerics.keeping.lost`).

        Both sums, and of how many predictions.
        """
        ...

    def __call__(self, samples: list[Sample]) -> list[bytes]:
        """The record of each sample. Every rank must call it, whether it has any or not."""
        ...


class Asker:
    """Runs a frozen teacher, with its filters."""

    def __init__(self, build: Assembly, frozen: FrozenModel, bank: FilterBank | None) -> None:
        self._build, self._frozen, self._bank = build, frozen, bank
        self._rows = build.recipe.evaluation.micro_batch_size
        self._collate = build.readers.of("teacher").collate

    def batch_of(self, samples: list[Sample]) -> Batch:
        """Samples, filled up with empty rows."""
        return self._collate([*samples, *[None] * (self._rows - len(samples))]).to(self._build.world.device)

    def run(self, batch: Batch, then: Callable[[Predictions], None] | None) -> list[Tensor]:
        """Filtered states of all matched layers, in their order, once ``then`` has the predictions."""
        build, bank, states = self._build, self._bank, dict[int, Tensor]()
        pooling = read_at(build, self._frozen.tapped).of(batch) if build.readers.are_two else None

        def keep_state(place: int, state: Tensor) -> None:
            assert bank is not None
            own: Any = bank.filters[place]
            states[place] = own(state) if pooling is None else own.of_texts(state, pooling)

        def hand_on(predictions: Predictions | None) -> None:
            if predictions is not None and then is not None:
                then(predictions)

        on_state = keep_state if bank is not None else None
        self._frozen.teach(batch, hand_on, with_predictions=then is not None, on_state=on_state)
        return [states[place] for place in sorted(states)]


class OutputAsker:
    """Asks for a prediction for each text, and a state of each of its tokens.

    Or a state of the text, where each model has a tokenizer of its own.
    """

    lost = NOTHING_LOST
    """See :class:`Ask`."""

    def __init__(self, asker: Asker, record: Record, *, of_texts: bool) -> None:
        self._asker, self._record, self._of_texts = asker, record, of_texts

    def __call__(self, samples: list[Sample]) -> list[bytes]:
        """See :class:`Ask`."""
        batch, outputs = self._asker.batch_of(samples), list[Tensor]()
        keep = (lambda predictions: outputs.append(predictions.outputs(batch))) if self._record.num_outputs else None
        states = self._asker.run(batch, keep)
        kept = batch.kept_tokens
        return [
            self._record.pack(
                outputs[0][row] if outputs else None,
                [state[row] if self._of_texts else state[row][kept[row]] for state in states],
            )
            for row in range(len(samples))
        ]


class TokenAsker:
    """Asks for predictions of tokens; those of its first microbatch are looked at."""

    def __init__(self, asker: Asker, record: TokenRecord, terms: TaskTerms, *, temperature: float) -> None:
        self._asker, self._record, self._terms = asker, record, terms
        self._keeping = Keeping(record.num_kept, record.num_ids, temperature, record.drawn)
        self.lost: Sequence[float] = NOTHING_LOST
        """See :class:`Ask`."""

    def __call__(self, samples: list[Sample]) -> list[bytes]:
        """See :class:`Ask`."""
        batch, record = self._asker.batch_of(samples), self._record
        places = batch.output_rows
        if places is None:
            places = torch.arange(batch.labels.numel(), device=batch.labels.device)
        rows = places // batch.labels.shape[1]
        is_asked = predicted_of(self._terms, batch).flatten()[places]
        found: list[Kept] = []

        def keep(predictions: Predictions) -> None:
            assert isinstance(predictions, VocabularyPredictions)
            hidden, labels = select_rows(predictions.hidden, places), batch.labels.flatten()[places]

            def of_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
                head = (hidden, weight, bias)
                if record.drawn:
                    starts = _starts(batch, rows).to(hidden.device)
                    return keep_drawn(*head, labels, self._keeping, predictions.head.rule, starts=starts)
                kept = keep_top(*head, labels, self._keeping, predictions.head.rule)
                if not self.lost[-1]:
                    written = record.rounded(kept)
                    sums = lost(*head, written, self._keeping, predictions.head.rule).tolist()
                    self.lost = [*sums, float(len(places))]
                return kept

            found.append(Kept(*predictions.head(predictions.hidden, of_head)))

        states = self._asker.run(batch, keep if record.num_kept else None)
        answers = []
        for row, sample in enumerate(samples):
            nothing = torch.zeros(record.num_layers, 0, record.dim)
            ids, numbers, task_loss = torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 1), 0.0
            if found:
                mine, (all_ids, all_numbers, losses) = rows == row, found[0]
                ids, numbers = all_ids[mine & is_asked], all_numbers[mine & is_asked]
                task_loss = float(losses[mine].sum())
            matched = [state[row][batch.matched_tokens[row]] for state in states]
            own = torch.stack(matched) if matched else nothing
            answer = Answer(ids, numbers, own, task_loss, checksum(sample.input_ids))
            answers.append(record.pack(answer))
        return answers


def _starts(batch: Batch, rows: Tensor) -> Tensor:
    """What the draws of each of the ``rows`` begin with: by the sequence's number alone, whoever asks for it."""
    found = []
    for row, count in enumerate(rows.bincount(minlength=len(batch.samples)).tolist()):
        generator = np.random.Generator(np.random.PCG64(hash_of("draws of sequence", batch.samples[row])))
        found.append(torch.from_numpy(generator.random(count)))
    return torch.cat(found)
