"""A frozen model beside the trainable one: whole on every rank, or in ZeRO-3 shards of an engine of its own.

It never meets an optimizer or a checkpoint; whoever needs to name it uses its path and hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ted_ds.config.deepspeed import zero_stage
from ted_ds.models.loading import num_parameters
from ted_ds.models.predictions import Predictions
from ted_ds.models.taps import OnState, TappedModel
from ted_ds.runtime.sharding import empty_parameters, forget_order_of_modules, parameters_held, release_engine


def frozen_engine_config(config: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The DeepSpeed config of a sharded frozen model: ZeRO-3 without an optimizer.

    Takes over the trainable engine's ZeRO-3 settings (buckets, parameter offload), if it has any.
    """
    zero = dict(config.get("zero_optimization") or {}) if zero_stage(config) == 3 else {}
    zero.pop("offload_optimizer", None)
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": config.get("steps_per_print", 2**31 - 1),
        "zero_optimization": {**zero, "stage": 3},
    }
    if precision != "fp32":
        result[precision] = {"enabled": True}
    return result


class FrozenModel:
    """A tapped model in eval mode, without gradients."""

    def __init__(self, tapped: TappedModel, *, device: torch.device, engine_config: Mapping[str, Any] | None) -> None:
        """Host ``tapped``: sharded by an engine of its own, or whole where ``engine_config`` is None."""
        tapped.requires_grad_(False).eval()
        self._tapped: TappedModel | None = tapped
        self._engine: Any = None
        if engine_config is None:
            self._module: nn.Module = tapped.to(device)
        else:
            self._engine, *_ = deepspeed.initialize(model=tapped, config=dict(engine_config))
            self._module = self._engine
            self._module.eval()
        self.fresh_parameters = tapped.fresh_parameters
        self.named_layers = tapped.named_layers()
        """Its layers by name, from input to output."""
        self.num_parameters = num_parameters(tapped)
        self.num_parameters_held = parameters_held(tapped)

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        then: Callable[[Predictions | None], None] | None = None,
        *,
        with_predictions: bool = True,
        on_state: OnState | None = None,
        states_are_saved: bool = False,
    ) -> None:
        """Run it without gradient, and hand over what it finds, within its forward pass.

        Args:
            inputs: What the model takes.
            then: Gets the predictions.
            with_predictions: Whether to compute what those need beyond the states; else they are None.
            on_state: Gets each tapped state as soon as it exists.
            states_are_saved: Whether what it does with them saves them for a backward pass, which tensors made in
                inference mode do not allow.
        """
        with_grad = torch.is_grad_enabled()
        # called from within a trained model's forward, and still in its own precision, as in evaluation
        device = next(iter(inputs.values())).device.type
        autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}

        def outside(work: Callable[..., None]) -> Callable[..., None]:
            def run(*arguments: Any) -> None:
                with (
                    torch.inference_mode(False),
                    torch.set_grad_enabled(with_grad),
                    torch.autocast(device, **autocast),
                ):
                    work(*arguments)

            return run

        def hand_over(predictions: Predictions | None, _: Any) -> None:
            if then is not None:
                outside(then)(predictions)

        # ZeRO-3 gathers into tensors that live on, which inference mode would mark for good
        is_sharded = self._engine is not None
        without_graph = torch.no_grad() if is_sharded or states_are_saved else torch.inference_mode()
        with without_graph, torch.autocast(device, enabled=False):
            self._module(
                inputs,
                hand_over,
                with_predictions=with_predictions and then is not None,
                on_state=None if on_state is None else outside(on_state),
            )

    def drop_beyond_taps(self) -> int:
        """Give back what no tapped state needs; it cannot predict afterwards. Every rank must call it.

        Returns:
            The number of parameters this rank held of it.
        """
        assert self._tapped is not None, "released"
        dropped = self._tapped.drop_beyond_taps()
        count = sum(parameters_held(module) for module in dropped)
        for module in dropped:
            empty_parameters(module)
        if self._engine is not None:
            forget_order_of_modules(self._engine)
        self.named_layers = self._tapped.named_layers()
        self.num_parameters_held -= count
        return count

    def trained(self) -> list[str]:
        """Names of its parameters that would train or hold a gradient: none, if it is frozen."""
        return [n for n, p in self._module.named_parameters() if p.requires_grad or p.grad is not None]

    def release(self) -> None:
        """Free the engine and its hooks."""
        if self._engine is not None:
            release_engine(self._engine)
            self._engine = None
        self._module, self._tapped = nn.Identity(), None
        self.named_layers = {}
