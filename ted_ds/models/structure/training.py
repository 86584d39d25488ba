"""What a training step does with a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ted_ds.models.predictions import LossWeights, VocabularyPredictions
from ted_ds.models.taps import TappedModel


def weighted_loss(tapped: TappedModel, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """The sum of the cross-entropies of all labels, as the chunked losses compute it, with graph."""
    batch: Any = SimpleNamespace(labels=labels, label_rows=None)
    terms: Any = None  # which only a teacher's predictions are compared by

    def read(predictions: Any, _states: Any) -> Tensor:
        assert isinstance(predictions, VocabularyPredictions)
        return predictions.losses(terms, batch, LossWeights()).weighted

    return tapped(inputs, read)


class _Watch(TorchFunctionMode):
    """Notes which parameters are used while no module that holds them runs."""

    def __init__(self, holders: Mapping[int, tuple[str, set[nn.Module]]], running: list[nn.Module]) -> None:
        super().__init__()
        self._holders, self._running = holders, running
        self.found: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, nn.Parameter) and id(value) in self._holders:
                name, holders = self._holders[id(value)]
                # its dtype or shape may be asked for at any time
                is_read = getattr(func, "__name__", "") not in ("__get__", "size", "dim", "numel", "data_ptr")
                if is_read and holders.isdisjoint(self._running):
                    self.found[name] = None
        return func(*args, **(kwargs or {}))


def weights_used_elsewhere(model: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """Names of parameters that a forward pass uses while none of the modules that hold them directly runs."""
    holders: dict[int, tuple[str, set[nn.Module]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), (f"{path}.{name}", set()))[1].add(module)
    running: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda one, _: running.append(one), prepend=True)
        module.register_forward_hook(lambda *_: running.pop() and None)
    with torch.no_grad(), _Watch(holders, running) as watch:
        model(**inputs)
    return [*watch.found]
