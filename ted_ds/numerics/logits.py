"""What a model makes of the products of its LM head, one by one, to get logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitRule:
    """``logits = c tanh(products / (d c))``, with a divisor ``d`` and a bound ``c``; without a bound, ``products / d``.

    Granite divides (its ``logits_scaling``), Gemma 2 has a bound (its ``final_logit_softcapping``; Gemma Team 2024,
    arXiv:2408.00118, section 2).
    """

    divisor: float = 1.0
    bound: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the products are the logits."""
        return self.divisor == 1 and self.bound is None

    def __call__(self, products: Tensor) -> Tensor:
        """The logits, with graph."""
        logits = products if self.divisor == 1 else products / self.divisor
        return logits if self.bound is None else torch.tanh(logits / self.bound) * self.bound

    def write(self, products: Tensor) -> Tensor:
        """The logits in the place of the products."""
        if self.divisor != 1:
            products /= self.divisor
        if self.bound is not None:
            products.div_(self.bound).tanh_().mul_(self.bound)
        return products

    def write_slopes(self, products: Tensor) -> Tensor:
        """The derivative of each logit by its product, in the place of that: ``(1 - tanh^2) / d``."""
        if self.bound is None:
            return products.fill_(1 / self.divisor)
        products.div_(self.divisor * self.bound).tanh_()
        return products.mul_(products).sub_(1).div_(-self.divisor)


PLAIN = LogitRule()
