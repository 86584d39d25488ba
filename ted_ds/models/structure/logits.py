"""What a language model makes of the products of its LM head, by the entries of its config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ted_ds.models.family import Family
from ted_ds.models.structure.record import Specimen
from ted_ds.numerics.logits import LogitRule


def with_logit_rule(specimen: Specimen, family: Family) -> Family:
    """The record with what is added to products, or divides and bounds them, where logits are others.

    Where nothing explains them it stays as it is, and predictions fail when they are compared.
    """
    calls = [call for call in specimen.run.calls if call.path == family.lm_head_path]
    if not calls:
        return family
    products: Tensor = calls[0].output
    logits: Tensor = specimen.run.output.logits
    if torch.equal(products, logits):
        return family
    for name, one in _vectors(specimen):
        if torch.equal(products + one.view(-1), logits):
            return replace(family, logits_bias_path=name)
    numbers = dict(_numbers(specimen))
    for cap in (None, *numbers):
        for divisor in (None, *numbers):
            rule = LogitRule(1.0 if divisor is None else numbers[divisor], None if cap is None else numbers[cap])
            if divisor != cap and torch.allclose(rule(products), logits, rtol=1e-6, atol=1e-7):
                return replace(family, logits_divisor_key=divisor, logits_cap_key=cap)
    for factor, value in numbers.items():
        if torch.allclose(products * value, logits, rtol=1e-6, atol=1e-7):
            return replace(family, logits_factor_key=factor)
    return family


def _vectors(specimen: Specimen) -> Iterator[tuple[str, Tensor]]:
    """What has a number for each token, beside the body."""
    model = specimen.model
    vocab_size = model.config.vocab_size
    for name, one in (*model.named_parameters(), *model.named_buffers()):
        if one.numel() == vocab_size and not name.startswith(f"{model.base_model_prefix}."):
            yield name, one


def _numbers(specimen: Specimen) -> Iterator[tuple[str, float]]:
    entries = specimen.model.config.to_dict().items()
    # of several with one number, the one that is called so
    for key, value in sorted(entries, key=lambda entry: "logit" not in entry[0]):
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and value != 1:
            yield key, float(value)
