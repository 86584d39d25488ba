"""Which modules a forward pass calls, in which order, and which tensors go in and come out, by identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of a module; its tensors stay alive, so that they can be told apart."""

    path: str
    module: nn.Module
    began: int
    """When, among all beginnings and ends of the pass."""
    state: Any
    """Its first argument."""
    ended: int = -1
    output: Any = None


@dataclass
class Trace:
    """A forward pass."""

    calls: list[Call] = field(default_factory=list)
    """In the order of their beginnings."""
    output: Any = None
    """What the model returned."""
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of a module."""
        return [call for call in self.calls if call.module is module]


def first_tensor(value: Any) -> Any:
    """A block's state, or what a module makes of it: the output, or the first of several."""
    return value[0] if isinstance(value, tuple | list) and value else value


def is_same(one: Any, other: Any) -> bool:
    """Whether two are the same numbers in the same place, as they are behind a slice of all."""
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def are_close(one: Tensor, other: Tensor) -> bool:
    """Whether two are the same but for the order of sums, in fp32, behind many blocks of random weights.

    What is wrong differs by a hundredth of the largest and more.
    """
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * max(1.0, float(other.abs().max())))


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run a model and note each call.

    Raises:
        Exception: Whatever the forward pass raises.
    """
    found = Trace(inputs=inputs)
    open_calls: list[Call] = []
    clock = iter(range(1 << 60))
    handles = []

    def before(path: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        state = arguments[0] if arguments else next((one for one in named.values() if isinstance(one, Tensor)), None)
        open_calls.append(Call(path, module, next(clock), state))
        found.calls.append(open_calls[-1])

    def behind(_module: nn.Module, _arguments: Any, output: Any) -> None:
        call = open_calls.pop()
        call.ended, call.output = next(clock), output

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_with_path(before, path), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(behind))
    try:
        with torch.no_grad():
            found.output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with_path(before: Any, path: str) -> Any:
    return lambda module, arguments, named: before(path, module, arguments, named)
