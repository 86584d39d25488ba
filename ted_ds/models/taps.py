"""A transformers model whose forward pass also returns the states of chosen layers, and of no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.models.families import Family
from ted_ds.numerics.layer_map import layer_names


class TappedModel(nn.Module):
    """Runs ``model`` unchanged and captures the outputs of ``layers``.

    Layers are numbered as in :mod:`ted_ds.numerics.layer_map`: 0 is the embedding output, i the output of block i
    counted from 1. The last block's state is taken *before* the final norm. Transformers places activation
    checkpointing inside a block's call, so a tap fires once per forward pass, outside the recomputation.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        layers: Sequence[int] = (),
        *,
        fresh_parameters: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.fresh_parameters = tuple(fresh_parameters)
        """Names of weights that no file holds: they start random."""
        self.layers = tuple(layers)
        self._captured: dict[int, Tensor] = {}
        self._family = family
        modules = list(self.named_layers().values())
        for layer in sorted(set(self.layers)):
            modules[layer].register_forward_hook(self._capture(layer))

    def named_layers(self) -> dict[str, nn.Module]:
        """Every layer's module by its name, from the embeddings to the last block."""
        modules = [self._family.embed(self.model), *self._family.blocks(self.model)]
        return dict(zip(layer_names(range(len(modules))), modules, strict=True))

    def _capture(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._captured[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def forward(
        self, inputs: Mapping[str, Tensor], with_logits: bool = True
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Run the model on ``inputs``: ``input_ids`` and what goes with them, all ``[batch, seq]``.

        Returns:
            The logits (``[batch, seq, vocab]`` or ``[batch, labels]``), None without ``with_logits``; and the
            states ``[batch, seq, hidden]`` in the order of ``layers``.
        """
        arguments: dict[str, Any] = dict(inputs)
        if getattr(self.model.config, "use_cache", False):
            arguments["use_cache"] = False
        logits = None
        try:
            if with_logits:
                logits = self.model(**arguments).logits
            else:
                self.model.base_model(**arguments)
            return logits, tuple(self._captured[layer] for layer in self.layers)
        finally:
            self._captured.clear()
