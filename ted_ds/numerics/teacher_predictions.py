"""What a teacher predicts of a vocabulary: whole, before its LM head, or what was kept of it on a disk.

Of a prediction p whose k most probable ids K are kept, all other ids are one more outcome, the rest R. Both models'
predictions are compared over these k + 1 outcomes, p_R and q_R the sums over the rest::

    D_K(p, q) = D((p_v of v in K, p_R), (q_v of v in K, q_R))

Every divergence of :mod:`ted_ds.numerics.divergences` is an f-divergence, which outcomes that are put together can only
lower: ``0 <= D_K <= D`` (Csiszár 1967), equal where K is the vocabulary. For the KL the difference is known:
``D - D_K = p_R KL(p(. | R) || q(. | R))``, and its gradient by the student's softened logits is the whole one in K, and
beyond it differs by ``p_v - p_R q_v / q_R``: by at most ``2 p_R`` summed over ids, as both add up to p_R.

Where nothing is known of the rest, both are compared among the kept ids alone, each made to add up to 1 there, and the
gradient does not reach other ids: ``D(p(. | K), q(. | K))``. Of the KL it is the middle one of three parts::

    KL(p || q) = KL((p_K, p_R) || (q_K, q_R)) + p_K KL(p(. | K) || q(. | K)) + p_R KL(p(. | R) || q(. | R))

Of one of which n ids were drawn, v as often as c_v, the KL alone is learned: ``- sum_v c_v / n log q_v - H(p)``, with
the entropy of the whole, which was kept. It is linear in the counts: where these are n p_v on average, so are value and
gradient those of the whole KL (Anshumann et al. 2025, "Sparse Logit Sampling", arXiv 2503.16870).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ted_ds.numerics.divergences import KL, Block, Divergence, Slopes
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.losses import NO_CANDIDATE


@dataclass(frozen=True)
class TeacherPredictions:
    """What the teacher predicts, before its LM head."""

    hidden: Float[Tensor, "*batch hidden"]
    """Its last hidden states, as its head takes them."""
    head_weight: Float[Tensor, "vocab hidden"]
    """Of its LM head."""
    head_bias: Float[Tensor, " vocab"] | None
    temperature: float
    weight: float | Float[Tensor, ""]
    """Of the divergence in the weighted sum; a tensor where it hangs on the counts of a step."""
    num_shared_ids: int | None = None
    """The divergence is over the first so many ids: vocabularies of one family are padded to different sizes."""
    divergence: Divergence = KL
    rule: LogitRule = PLAIN
    """What it makes of its head's products."""
    on_task_loss: Callable[[Tensor], None] | None = None
    """Gets the sum of the teacher's own cross-entropies over kept labels; None: they are not computed."""


class OfKept(NamedTuple):
    """What rows are held against predictions that were kept come to."""

    values: Float[Tensor, "rows 1"]
    """The divergences."""
    slopes: Slopes
    """Of all ids, as :meth:`ted_ds.numerics.divergences.Divergence.compare` gives them."""
    ids: Int[Tensor, "rows kept"]
    at_ids: Float[Tensor, "rows kept"]
    """What the gradient has beside, at these."""
    is_exponential: bool = False
    """Whether the student's logits were replaced by e to them, which came along."""


@dataclass(frozen=True)
class KeptPredictions:
    """The most probable ids of each row's prediction, softened as they are compared."""

    ids: Int[Tensor, "rows kept"]
    """Different ones, all below ``num_shared_ids``."""
    logs: Float[Tensor, "rows kept_and_rest"]
    """Logs of their probabilities at the temperature, and of that of the rest, which is the last."""
    temperature: float
    weight: float | Float[Tensor, ""]
    """As those of :class:`TeacherPredictions`."""
    num_shared_ids: int | None = None
    divergence: Divergence = KL
    among_kept: bool = False
    """Whether nothing is known of the rest: what is compared adds up to 1 over the kept ids."""

    def compare(
        self, student: Float[Tensor, "rows ids"], scratch: Float[Tensor, "rows ids"], rows: slice, scale: float
    ) -> OfKept:
        """Hold logits of a student against some of the rows.

        Args:
            student: Its logits of the shared ids, of at most 0: they stay as they are, or become e to them.
            scratch: Is overwritten.
            rows: Which of the rows kept these are.
            scale: What the gradient by the logits, times the temperature, is multiplied by.
        """
        ids, temperature = self.ids[rows], self.temperature
        if self.among_kept:
            return self._compare_kept(student.gather(-1, ids), rows, scale)
        picked = student.gather(-1, ids)

        def soften() -> Tensor:
            # without the kept ones, and not as a difference, of which little is left where the student is sure
            return torch.mul(student, 1 / temperature, out=scratch).scatter_(-1, ids, -torch.inf)

        rest, total, shift = _exponentials(soften)
        own = torch.cat([picked, (shift + total.log()) * temperature], -1)
        is_exponential = isinstance(shift, float) and _take_over(rest, student, temperature)
        if is_exponential:
            student.scatter_(-1, ids, picked.exp())
        target = self.logs[rows].to(own.dtype) * temperature
        target -= target.amax(-1, keepdim=True)
        block = Block(own, target, torch.empty_like(own), temperature, student_starts_at_0=False)
        values, slopes = self.divergence.compare(block, scale)
        gradient = torch.stack([one * factors for one, factors in slopes]).sum(0)
        return OfKept(values, [(rest, gradient[:, -1:] / total)], ids, gradient[:, :-1], is_exponential)

    def _compare_kept(self, own: Float[Tensor, "rows kept"], rows: slice, scale: float) -> OfKept:
        """Without the rest."""
        own = own - own.amax(-1, keepdim=True)
        target = self.logs[rows, :-1].to(own.dtype) * self.temperature
        target -= target.amax(-1, keepdim=True)
        block = Block(own, target, torch.empty_like(own), self.temperature, student_starts_at_0=True)
        values, slopes = self.divergence.compare(block, scale)
        return OfKept(values, [], self.ids[rows], torch.stack([one * factors for one, factors in slopes]).sum(0))


@dataclass(frozen=True)
class DrawnPredictions:
    """Ids that were drawn from each row's prediction, softened as they are compared."""

    ids: Int[Tensor, "rows drawn"]
    """Of the draws, each once, all below ``num_shared_ids``; any where there are no more."""
    numbers: Float[Tensor, "rows drawn_and_one"]
    """How often each was drawn, 0 where there are no more, and the entropy of the whole prediction in nats."""
    temperature: float
    weight: float | Float[Tensor, ""]
    """As those of :class:`TeacherPredictions`."""
    num_shared_ids: int | None = None

    def compare(
        self, student: Float[Tensor, "rows ids"], scratch: Float[Tensor, "rows ids"], rows: slice, scale: float
    ) -> OfKept:
        """See :meth:`KeptPredictions.compare`."""
        ids, numbers = self.ids[rows], self.numbers[rows].to(student.dtype)
        shares = numbers[:, :-1] / numbers[:, :-1].sum(-1, keepdim=True).clamp(min=1)
        picked = student.gather(-1, ids) / self.temperature
        soft, norm, shift = _exponentials(lambda: torch.mul(student, 1 / self.temperature, out=scratch))
        values = shift + norm.log() - (shares * picked).sum(-1, keepdim=True) - numbers[:, -1:]
        is_exponential = isinstance(shift, float) and _take_over(soft, student, self.temperature)
        return OfKept(values, [(soft, scale / norm)], ids, shares * -scale, is_exponential)


LEAST_SUM = 1e-20
"""Of powers of e; less is taken together only after the largest was taken off."""


def _exponentials(soften: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor | float]:
    """E to softened logits in their place, the sum of each row, and what was taken off the logits before.

    They are at most 0, and as a rule nothing is taken off, which saves two passes over them; where a sum is all but 0,
    the row's largest is. (On a GPU it always is: to ask for the sums there would be to wait.)
    """
    soft = soften()
    if soft.device.type == "cpu":
        total = soft.exp_().sum(-1, keepdim=True)
        if len(total) and float(total.min()) > LEAST_SUM:
            return soft, total, 0.0
        soft = soften()
    largest = soft.amax(-1, keepdim=True).clamp(min=NO_CANDIDATE)
    soft -= largest
    return soft, soft.exp_().sum(-1, keepdim=True).clamp(min=torch.finfo(soft.dtype).tiny), largest


def _take_over(exponentials: Tensor, student: Tensor, temperature: float) -> bool:
    """Put e to the student's logits in their place, where it follows from e to the softened ones without another e."""
    if temperature == 2.0:
        torch.mul(exponentials, exponentials, out=student)
    elif temperature == 1.0:
        student.copy_(exponentials)
    return temperature in (1.0, 2.0)


OnDisk = KeptPredictions | DrawnPredictions
"""What was kept."""
