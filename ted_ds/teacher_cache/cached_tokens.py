"""A teacher of a language model that is read from a cache instead of being run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ted_ds.config.kept_rows import KeptRows
from ted_ds.data.loader import Batch
from ted_ds.data.microbatch import to_device
from ted_ds.errors import CheckpointError
from ted_ds.models.cached_predictions import CachedPredictions
from ted_ds.models.predictions import Taught
from ted_ds.numerics.chunks import select_rows
from ted_ds.teacher_cache.store import REFILLED, Reader
from ted_ds.teacher_cache.token_record import Answer, TokenRecord


class CachedTokens:
    """Gives what the cache has of the tokens of a batch's sequences: predictions, and *filtered* states."""

    def __init__(
        self,
        reader: Reader[TokenRecord],
        *,
        dtype: torch.dtype,
        temperature: float,
        of_rows: KeptRows | None = None,
        ahead: int | None = None,
    ) -> None:
        """Read through ``reader``, and give states of ``dtype``; predictions were kept at ``temperature``.

        ``of_rows`` says what is known of them, where it was rows of data that held them, and no teacher ran. What comes
        in the place of a sequence in the next step is so many sequences ``ahead``, and the system is told to fetch it;
        None where that is not known.
        """
        self._ahead = ahead
        self._reader, self._dtype, self._temperature, self._of_rows = reader, dtype, temperature, of_rows

    @property
    def bytes_per_token(self) -> float:
        """On the disk, of all tokens of the sequences."""
        return self._reader.num_bytes / max(self._reader.num_tokens, 1)

    @property
    def in_words(self) -> str:
        """What a token takes, and what was seen to be lost of predictions."""
        size = f"{self.bytes_per_token:.4g} bytes a token"
        nats, rest, count = self._reader.lost.tolist()
        if not count:
            return size
        return (
            f"{size}; of {count:,.0f} predictions that were looked at, what is kept is {nats / count:.3g} nats (KL) "
            f"from the whole, and the rest has {rest / count:.2%} of the probability"
        )

    def teach(
        self,
        batch: Batch,
        then: Callable[[Taught | None], None],
        *,
        with_predictions: bool,
        on_state: Callable[[int, Tensor], None] | None,
    ) -> None:
        """See :class:`ted_ds.runtime.teacher.Teacher`."""
        record = self._reader.record
        wanted = {row: sample for row, sample in enumerate(batch.samples) if sample >= 0}
        answers = {row: record.unpack(self._reader.read(sample)[0]) for row, sample in wanted.items()}
        self._refuse_other_tokens(batch, answers)
        if self._ahead is not None:
            for sample in wanted.values():
                self._reader.expect(sample + self._ahead)
        found = [*answers.values()]
        if on_state is not None:
            for place in range(record.num_layers):
                own = [answer.states[place].to(self._dtype) for answer in found]
                on_state(place, _at_rows(batch, torch.cat([torch.zeros(0, record.dim, dtype=self._dtype), *own])))
        then(self._predictions(batch, found) if with_predictions else None)

    def _predictions(self, batch: Batch, found: Sequence[Answer]) -> CachedPredictions:
        device, record = batch.input_ids.device, self._reader.record
        width = max((answer.ids.shape[1] for answer in found), default=0)
        ids, numbers = torch.zeros(0, width, dtype=torch.long), torch.zeros(0, width + 1)
        if found:
            ids, numbers = map(torch.cat, zip(*(_widened(answer, width) for answer in found), strict=True))
        ids, numbers = (to_device(one, device) for one in (ids, numbers))
        if batch.predicted is not None:  # of the rows where logits are wanted, some have a label alone
            asked = select_rows(batch.predicted.unsqueeze(-1), batch.output_rows).squeeze(-1)
            if not len(ids):
                ids, numbers = ids.new_zeros(1, width), numbers.new_zeros(1, width + 1)
            place = (asked.cumsum(0) - 1).clamp(min=0)
            ids, numbers = ids[place], numbers[place]
        if self._of_rows is not None:
            among_kept = not self._of_rows.rest_is_known
            return CachedPredictions(ids, numbers, record.drawn, self._temperature, None, among_kept)
        task_loss = to_device(torch.tensor(sum(answer.task_loss for answer in found)), device)
        return CachedPredictions(ids, numbers, record.drawn, self._temperature, task_loss)

    def _refuse_other_tokens(self, batch: Batch, answers: Mapping[int, Answer]) -> None:
        """Make sure that what was kept is of the sequences that the student reads."""
        for row, answer in answers.items():
            if batch.checksums[row] != answer.tokens:
                raise CheckpointError(
                    f"{self._reader.place}: the teacher's cache has other tokens than sequence {batch.samples[row]} of "
                    f"the data; {REFILLED}"
                )


def _widened(answer: Answer, width: int) -> tuple[Tensor, Tensor]:
    """Ids and numbers with room for so many ids, of which those that are not there were never drawn."""
    missing = (0, width - answer.ids.shape[1])
    counts, last = answer.numbers.split([answer.ids.shape[1], 1], dim=-1)
    return functional.pad(answer.ids, missing), torch.cat([functional.pad(counts, missing), last], -1)


def _at_rows(batch: Batch, values: Tensor) -> Tensor:
    """States of the tokens that are matched, where they stand in the batch: ``[batch, seq, dim]``, 0 elsewhere."""
    shape, values = (*batch.input_ids.shape, values.shape[-1]), to_device(values, batch.input_ids.device)
    if batch.token_rows is None:
        return values.reshape(shape)
    states = values.new_zeros(shape)
    states.view(-1, shape[-1]).index_copy_(0, batch.token_rows, values)
    return states
