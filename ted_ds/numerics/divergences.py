"""How far a student's prediction q is from its teacher's p: the formulas, each twice.

Written plainly, for autograd, over whole predictions (:meth:`Divergence.of_rows`), and in place, with the gradient by
its closed formula, over a few rows of logits in buffers (:meth:`Divergence.compare`): so a vocabulary's losses need no
more than these rows in fp32 (:mod:`ted_ds.numerics.vocabulary`).

======================  ==================================================  ==========================================
``distill.divergence``  formula                                             source
======================  ==================================================  ==========================================
``kl``                  KL(p || q)                                          Hinton et al. 2015, arXiv 1503.02531
``reverse_kl``          KL(q || p)                                          Gu et al. 2024 (MiniLLM), arXiv 2306.08543
``jsd``                 b KL(p || m) + (1 - b) KL(q || m),                  Agarwal et al. 2024 (GKD), arXiv 2306.13649
                        m = b p + (1 - b) q
``skew_kl``             KL(p || a p + (1 - a) q)                            Ko et al. 2024 (DistiLLM), arXiv 2402.03898
``skew_reverse_kl``     KL(q || (1 - a) p + a q)                            the same
``tv``                  sum_v |p_v - q_v| / 2                               Wen et al. 2023, arXiv 2307.15190
======================  ==================================================  ==========================================

b is ``divergence_beta``, a is ``divergence_alpha``. All are in nats but ``tv``, which is a share of probability. With
g_v = dD/dq_v, the gradient by a softened logit is ``q_v (g_v - sum_u q_u g_u)``: what is the same of all outcomes in g
falls out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Softened(NamedTuple):
    """A prediction at a temperature: outcomes in the last dimension, which adds up to 1."""

    probabilities: Tensor
    logs: Tensor
    """Of the probabilities: finite where these are 0 by underflow."""


@dataclass(frozen=True)
class Block:
    """Logits of a few rows, ``[rows, ids]`` each, in fp32 at least."""

    student: Tensor
    """Is read and stays as it is."""
    teacher: Tensor
    """With 0 as each row's largest; is overwritten."""
    scratch: Tensor
    """Is overwritten."""
    temperature: float
    student_starts_at_0: bool
    """Whether each row of the student's has 0 as its largest: not where an id that is left out may be."""

    def soften(self) -> tuple[Tensor, Tensor]:
        """Logs of the teacher's and the student's probabilities, in place of ``teacher`` and in ``scratch``."""
        torch.mul(self.student, 1 / self.temperature, out=self.scratch)
        self.teacher.mul_(1 / self.temperature)
        for logits in (self.teacher, self.scratch):
            logits -= logits.logsumexp(-1, keepdim=True)
        return self.teacher, self.scratch


Slopes = list[tuple[Tensor, Tensor]]
"""What a gradient is the sum of: values ``[rows, ids]``, each row to be multiplied by a factor ``[rows, 1]``."""


class Divergence(ABC):
    """A distance of predictions that is 0 where they agree and never below."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its formula, as metrics are named."""

    @abstractmethod
    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """Of each row: ``[*batch, outcomes]`` to ``[*batch]``. Gradient flows to whatever has one."""

    @abstractmethod
    def compare(self, block: Block, scale: float) -> tuple[Tensor, Slopes]:
        """Each row's divergence ``[rows, 1]``, and its gradient by the student's logits times ``scale * T``."""


class KullbackLeibler(Divergence):
    """KL(p || q); g = -p / q."""

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return "kl_teacher_student"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        return (teacher.probabilities * (teacher.logs - student.logs)).sum(-1)

    def compare(self, block: Block, scale: float) -> tuple[Tensor, Slopes]:
        """See :class:`Divergence`; without logs of either side, which it can do without."""
        own, target, soft, temperature = block.student, block.teacher, block.scratch, block.temperature
        # KL = sum_v p_v (t_v - s_v) / T - log sum exp(t / T) + log sum exp(s / T), p the teacher's
        torch.sub(target, own, out=soft)
        target *= 1 / temperature
        target.exp_()
        target_norm = target.sum(-1, keepdim=True)
        soft *= target
        gap = soft.sum(-1, keepdim=True) / (temperature * target_norm)
        # the largest logit may be that of an id which is not shared: taken from it, all others could vanish
        shift = None if block.student_starts_at_0 else own.amax(-1, keepdim=True) / temperature
        torch.mul(own, 1 / temperature, out=soft)
        if shift is not None:
            soft -= shift
        soft.exp_()
        soft_norm = soft.sum(-1, keepdim=True)
        values = gap - target_norm.log() + soft_norm.log() + (0.0 if shift is None else shift)
        return values, [(soft, scale / soft_norm), (target, -scale / target_norm)]


class LogDivergence(Divergence):
    """One whose closed formulas are of logs of probabilities."""

    def compare(self, block: Block, scale: float) -> tuple[Tensor, Slopes]:
        """See :class:`Divergence`."""
        teacher, student = block.soften()
        values = self._learn(teacher, student)
        return values, [(teacher, torch.full_like(values, scale))]

    @abstractmethod
    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Of logs of probabilities: each row's value; its gradient by the student's softened logits is in ``teacher``.

        What is in ``student`` is used up.
        """


class ReverseKullbackLeibler(LogDivergence):
    """KL(q || p): seeks the teacher's modes; g = log q - log p."""

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return "kl_student_teacher"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        return (student.probabilities * (student.logs - teacher.logs)).sum(-1)

    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        torch.sub(student, teacher, out=teacher)
        teacher *= student.exp_()
        values = teacher.sum(-1, keepdim=True)
        teacher.addcmul_(student, values, value=-1)
        return values


class TotalVariation(LogDivergence):
    """``sum_v |p_v - q_v| / 2``, from 0 to 1; g = sign(q - p) / 2, and 0 where they are the same."""

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return "tv_teacher_student"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        return (teacher.probabilities - student.probabilities).abs().sum(-1) / 2

    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        torch.sub(student.exp_(), teacher.exp_(), out=teacher)
        values = teacher.abs().sum(-1, keepdim=True) / 2
        teacher.sign_().mul_(student)
        teacher.addcmul_(student, teacher.sum(-1, keepdim=True), value=-1)
        teacher /= 2
        return values


@dataclass(frozen=True)
class JensenShannon(LogDivergence):
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``; g = (1 - beta) log(q / m)."""

    beta: float

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return f"jsd_{self.beta:g}_teacher_student"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        of_teacher, of_student = logs_beside_mixture(teacher.logs - student.logs, self.beta)
        terms = self.beta * teacher.probabilities * of_teacher + (1 - self.beta) * student.probabilities * of_student
        return terms.sum(-1)

    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        of_teacher, of_student = logs_beside_mixture(teacher - student, self.beta)
        values = self.beta * of_teacher.mul_(teacher.exp_()).sum(-1, keepdim=True)
        torch.mul(of_student, student.exp_(), out=teacher)
        from_student = teacher.sum(-1, keepdim=True)
        teacher.addcmul_(student, from_student, value=-1)
        teacher *= 1 - self.beta
        return values + (1 - self.beta) * from_student


@dataclass(frozen=True)
class SkewKullbackLeibler(LogDivergence):
    """``KL(p || alpha p + (1 - alpha) q)``, at most -log(alpha); with m the mixture, g = -(1 - alpha) p / m."""

    alpha: float

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return f"skew_kl_{self.alpha:g}_teacher_student"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        of_teacher, _ = logs_beside_mixture(teacher.logs - student.logs, self.alpha)
        return (teacher.probabilities * of_teacher).sum(-1)

    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        of_teacher, of_student = logs_beside_mixture(teacher - student, self.alpha)
        values = of_teacher.mul_(teacher.exp_()).sum(-1, keepdim=True)
        # q g = -p (1 - alpha) q / m
        teacher *= of_student.exp_().mul_(self.alpha - 1)
        teacher.addcmul_(student.exp_(), teacher.sum(-1, keepdim=True), value=-1)
        return values


@dataclass(frozen=True)
class SkewReverseKullbackLeibler(LogDivergence):
    """``KL(q || (1 - alpha) p + alpha q)``, at most -log(alpha); with m the mixture, g = log(q / m) - alpha q / m."""

    alpha: float

    @property
    def name(self) -> str:
        """See :class:`Divergence`."""
        return f"skew_kl_{self.alpha:g}_student_teacher"

    def of_rows(self, teacher: Softened, student: Softened) -> Tensor:
        """See :class:`Divergence`."""
        of_student, _ = logs_beside_mixture(student.logs - teacher.logs, self.alpha)
        return (student.probabilities * of_student).sum(-1)

    def _learn(self, teacher: Tensor, student: Tensor) -> Tensor:
        of_student, _ = logs_beside_mixture(student - teacher, self.alpha)
        student.exp_()
        values = (of_student * student).sum(-1, keepdim=True)
        torch.add(of_student, math.log(self.alpha), out=teacher).exp_()  # alpha q / m, at most 1
        torch.sub(of_student, teacher, out=teacher).mul_(student)
        teacher.addcmul_(student, teacher.sum(-1, keepdim=True), value=-1)
        return values


def logs_beside_mixture(difference: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``log(x / m)`` and ``log(y / m)`` with ``m = share x + (1 - share) y``, from ``log x - log y``.

    Exact where x and y nearly agree, and finite however far they are apart: from the larger of the two, m is
    ``1 + w (exp(-|difference|) - 1)`` times it, w the share of the smaller.
    """
    x_is_larger = difference > 0
    gap = torch.where(x_is_larger, -difference, difference)

    def by_larger(if_x: float, if_y: float) -> Tensor:
        return torch.where(x_is_larger, difference.new_full((), if_x), difference.new_full((), if_y))

    near = by_larger(1 - share, share) * gap.expm1()
    # a share may be so near to 1 that w is 1 in fp32, and m all but 0: there its log is that of a sum
    of_larger, of_smaller = math.log(share), math.log1p(-share)
    far = torch.logaddexp(by_larger(of_larger, of_smaller), by_larger(of_smaller, of_larger) + gap)
    mixture = torch.where(near > -0.5, near.clamp(min=-0.5).log1p(), far)
    nothing = difference.new_zeros(())
    return torch.where(x_is_larger, nothing, difference) - mixture, torch.where(
        x_is_larger, -difference, nothing
    ) - mixture


KL = KullbackLeibler()
DIVERGENCES: Mapping[str, Callable[..., Divergence]] = {
    "kl": KullbackLeibler,
    "reverse_kl": ReverseKullbackLeibler,
    "jsd": JensenShannon,
    "skew_kl": SkewKullbackLeibler,
    "skew_reverse_kl": SkewReverseKullbackLeibler,
    "tv": TotalVariation,
}
"""By their names in a recipe; those with a parameter take it."""


def make_divergence(kind: str, parameter: float | None = None) -> Divergence:
    """One of :data:`DIVERGENCES`, with its parameter if it has one."""
    return DIVERGENCES[kind](*(() if parameter is None else (parameter,)))
