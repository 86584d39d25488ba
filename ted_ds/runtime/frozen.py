"""A frozen model beside the trainable one: whole on every rank, or in ZeRO-3 shards of an engine of its own.

It never meets an optimizer or a checkpoint; whoever needs to name it uses its path and hash.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.data.loader import Batch
from ted_ds.models.frozen_prefix import PrefixStates
from ted_ds.models.loading import num_parameters as count_parameters
from ted_ds.models.partial import passing_on
from ted_ds.models.predictions import Predictions
from ted_ds.models.sharing import share_equal
from ted_ds.models.taps import OnState, TappedModel
from ted_ds.numerics.layer_map import number_of
from ted_ds.runtime.initialize import initialize
from ted_ds.runtime.last_block import LastBlock
from ted_ds.runtime.sharding import (
    bytes_held,
    empty_parameters,
    forget_order_of_modules,
    parameters_held,
    release_engine,
)

SMALLEST_OFFLOAD_BUFFER = 1_000_000
"""Parameters."""


def run_without_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    then: Callable[[Predictions | None], None] | None,
    without_graph: AbstractContextManager[Any],
    *,
    with_predictions: bool,
    on_state: OnState | None,
) -> None:
    """Run a tapped model as a frozen one, ``without_graph``; what it finds is handed over as if that were not open.

    It may be called from within a trained model's forward, and computes in its own precision all the same, as in
    evaluation.
    """
    with_grad = torch.is_grad_enabled()
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

    with without_graph, torch.autocast(device, enabled=False):
        module(
            inputs,
            hand_over,
            with_predictions=with_predictions,
            on_state=None if on_state is None else outside(on_state),
        )


def frozen_engine_config(
    config: Mapping[str, Any], precision: str, *, offload: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The DeepSpeed config of a sharded frozen model: ZeRO-3 without an optimizer.

    Takes over the trainable engine's ZeRO-3 settings (buckets, thresholds), if it has any.

    Args:
        config: The trainable engine's.
        precision: Of the weights.
        offload: Where shards wait while they are not needed; None for on the device.
    """
    zero = dict(config.get("zero_optimization") or {}) if zero_stage(config) == 3 else {}
    zero.pop("offload_optimizer", None)
    zero.pop("offload_param", None)
    if offload is not None:
        zero["offload_param"] = dict(offload)
    how_to_read = {"aio": config["aio"]} if "aio" in config else {}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": config.get("steps_per_print", 2**31 - 1),
        # its linear map for training would take the place of torch's in this process, for good
        "zero_optimization": {**zero, "stage": 3, "memory_efficient_linear": False},
        **how_to_read,
    }
    if precision != "fp32":
        result[precision] = {"enabled": True}
    return result


def offload_to(host: str, folder: Path | None, largest_parameter: int) -> dict[str, Any] | None:
    """Where the shards of a frozen model wait on a host: DeepSpeed's ``offload_param``; None for on the device.

    Args:
        host: One of :data:`ted_ds.planning.memory.SHARDED_HOSTS`.
        folder: On a disk of each node, for ``nvme_offload``. Each process makes a folder of its own in it: DeepSpeed
            clears the one it is given, and names its files alike in every engine.
        largest_parameter: Which a buffer must hold.
    """
    accelerator: Any = get_accelerator()
    pin_memory = accelerator.device_name() != "cpu"
    if host == "cpu_offload":
        return {"device": "cpu", "pin_memory": pin_memory}
    if host != "nvme_offload":
        return None
    assert folder is not None  # as the recipe says
    return {
        "device": "nvme",
        "nvme_path": str(folder / f"ted_ds_{secrets.token_hex(8)}"),
        "pin_memory": pin_memory,
        "buffer_size": max(largest_parameter, SMALLEST_OFFLOAD_BUFFER),
    }


def _in_another_precision(on_state: OnState, dtype: torch.dtype) -> OnState:
    return lambda place, state: on_state(place, state.to(dtype))


class FrozenModel:
    """A tapped model in eval mode, without gradients."""

    def __init__(
        self,
        tapped: TappedModel,
        *,
        device: torch.device,
        engine_config: Mapping[str, Any] | None,
        num_parameters: int | None = None,
        hands_over: torch.dtype | None = None,
    ) -> None:
        """Host ``tapped``: sharded by an engine of its own, or whole where ``engine_config`` is None.

        ``num_parameters`` says what it has where its tensors do not, as they hold several numbers in one. States are
        given in ``hands_over``, where those who take them compute in another precision.
        """
        tapped.requires_grad_(False).eval()
        self._files: str | None = None
        """Where its weights are, if that is a disk."""
        self._tapped: TappedModel | None = tapped
        self._engine: Any = None
        self._hands_over = hands_over
        self._lent: PrefixStates | None = None
        """What puts out its first layers in its place."""
        self._last_block = LastBlock(tapped)
        if engine_config is None:
            self._module: nn.Module = tapped.to(device)
        else:
            self._files = engine_config["zero_optimization"].get("offload_param", {}).get("nvme_path")
            self._engine = initialize("(its zero_optimization section)", model=tapped, config=dict(engine_config))
            self._module = self._engine
            self._module.eval()
        self.fresh_parameters = tapped.fresh_parameters
        self.named_layers = tapped.named_layers()
        """Its layers by name, from input to output."""
        self.num_parameters = num_parameters or count_parameters(tapped)
        self.num_parameters_held = num_parameters or parameters_held(tapped)
        self.bytes_held = bytes_held(tapped)

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
        # ZeRO-3 gathers into tensors that live on, which inference mode would mark for good
        is_sharded = self._engine is not None
        without_graph = torch.no_grad() if is_sharded or states_are_saved else torch.inference_mode()
        with_predictions = with_predictions and then is not None
        if on_state is not None and self._hands_over is not None:
            on_state = _in_another_precision(on_state, self._hands_over)
        run_without_graph(
            self._module, inputs, then, without_graph, with_predictions=with_predictions, on_state=on_state
        )

    def teach(
        self,
        batch: Batch,
        then: Callable[[Predictions | None], None],
        *,
        with_predictions: bool,
        on_state: OnState | None,
    ) -> None:
        """Run it on a batch as a teacher reads that; see :class:`ted_ds.runtime.teacher.Teacher`.

        Predictions are made of the tokens alone that the batch says they are asked for at.
        """
        if self._lent is not None:
            self._take_lent(self._lent, batch.input_ids.shape, on_state)
        with self._last_block.read_for(batch) if with_predictions else contextlib.nullcontext():
            self(batch.read_by("teacher").inputs, then, with_predictions=with_predictions, on_state=on_state)

    def _take_lent(self, lent: PrefixStates, shape: Sequence[int], on_state: OnState | None) -> None:
        """Hand over the states of layers that are not here, and begin with the last of these."""
        states, tapped = lent.take(shape), self.tapped
        for place, layer in tapped.layers_here.items():
            if on_state is not None and number_of(layer) <= tapped.share.start:
                on_state(place, states[number_of(layer)])
        tapped.arrive(states[tapped.share.start])

    @property
    def borrows(self) -> bool:
        """Whether a model beside it lends the state that it begins with."""
        return self._lent is not None

    @property
    def tapped(self) -> TappedModel:
        """What is run."""
        assert self._tapped is not None, "released"
        return self._tapped

    def share_with(self, module: nn.Module) -> int:
        """Keep weights that equal ones ``module`` does not train only once; returns how many parameters those are."""
        return share_equal(self.tapped, module)

    @contextlib.contextmanager
    def without_blocks(self, numbers: Collection[int]) -> Iterator[None]:
        """Let blocks of these numbers, from 0, pass states on for a while. Every rank must call it."""
        tapped = self.tapped
        try:
            with passing_on(tapped.model, tapped.family, numbers):
                self._forget_order()
                yield
        finally:
            self._forget_order()

    def _forget_order(self) -> None:
        if self._engine is not None:
            forget_order_of_modules(self._engine)

    def drop_beyond_taps(self) -> int:
        """Give back what no tapped state needs; it cannot predict afterwards. Every rank must call it.

        Returns:
            The number of parameters this rank held of it.
        """
        dropped = self.tapped.drop_beyond_taps()
        count = sum(parameters_held(module) for module in dropped)
        for module in dropped:
            empty_parameters(module)
        self._forget_order()
        self.named_layers = self.tapped.named_layers()
        self.num_parameters_held -= count
        return count

    def begin_behind(self, number: int, lent: PrefixStates) -> int:
        """Give back embeddings and the first ``number`` blocks, whose states ``lent`` has. Every rank must call it.

        It can teach afterwards, and nothing else; each time the model behind ``lent`` has run on the same batch.

        Returns:
            The number of parameters this rank held of it.
        """
        before = {id(one): one for one in self.tapped.parameters()}
        self.tapped.begin_behind(number)
        left = {id(one) for one in self.tapped.parameters()}  # an LM head may share what is dropped
        dropped = nn.ParameterList([one for key, one in before.items() if key not in left])
        count = parameters_held(dropped)
        empty_parameters(dropped)
        self._forget_order()
        self.named_layers = self.tapped.named_layers()
        self.num_parameters_held -= count
        self._lent = lent
        return count

    def trained(self) -> list[str]:
        """Names of its parameters that would train or hold a gradient: none, if it is frozen."""
        return [n for n, p in self._module.named_parameters() if p.requires_grad or p.grad is not None]

    def release(self) -> None:
        """Free the engine and its hooks."""
        if self._engine is not None:
            release_engine(self._engine)
            self._engine = None
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
        self._last_block.release()
        self._module, self._tapped, self._lent = nn.Identity(), None, None
        self.named_layers = {}
