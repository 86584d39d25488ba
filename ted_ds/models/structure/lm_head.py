"""What a language model does between its body's last state and its LM head, by the tensors that are handed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ted_ds.models.structure.trace import Call, Trace, first_tensor, is_same

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "tanh")
"""Transformers' names of those that are tried beside what the config names."""


class Head(NamedTuple):
    """Paths, as in :class:`~ted_ds.models.family.Family`."""

    before: tuple[str, ...]
    activation: str | None
    path: str
    unread_bias: str | None
    mistake: str | None
    """Why what lies between the last state and the logits is not understood."""


def find_head(model: PreTrainedModel, run: Trace, body: Call, final: Any) -> Head:
    """The linear LM head, and the modules that states go through before it, behind the call of the ``body``.

    Args:
        model: A language model.
        run: A traced forward pass of it.
        body: Of that pass.
        final: The last state that the body put out.
    """
    head: Any = model.get_output_embeddings()
    nothing = Head((), None, "", None, None)
    if head is None:
        return nothing._replace(mistake="transformers does not say where its LM head is (get_output_embeddings)")
    path = next(one for one, module in model.named_modules() if module is head)
    found, calls = nothing._replace(path=path), run.of(head)
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return found._replace(mistake=f"its LM head is a {type(head).__name__}, no linear layer")
    if len(calls) != 1:
        return found._replace(mistake=f"its LM head, {path}, is called {len(calls)} times")
    found = found._replace(unread_bias=_second_bias(model, head, body.path))
    between = [call for call in run.calls if body.ended < call.began and call.ended < calls[0].began]
    chain = _chain(between, final, calls[0].state)
    if chain is not None:
        return found._replace(before=_paths(chain))
    said = [one for one in model.config.to_dict().values() if isinstance(one, str) and one in ACT2FN]
    with_activation = _with_activation(between, final, calls[0].state, [*said, *ACTIVATIONS])
    if with_activation is not None:
        chain, name = with_activation
        return found._replace(before=_paths(chain), activation=name)
    return found._replace(
        mistake="what is between its last hidden state and its LM head is neither modules, one after the other, nor "
        "modules with an activation behind the first"
    )


def _paths(chain: Sequence[Call]) -> tuple[str, ...]:
    return tuple(call.path for call in chain)


def _chain(calls: Sequence[Call], state: Any, goal: Any) -> list[Call] | None:
    """The calls, the outermost where there is a choice, by which a state becomes what the head takes."""
    if is_same(state, goal):
        return []
    for call in calls:
        if is_same(call.state, state):
            later = [other for other in calls if other.began > call.ended]
            rest = _chain(later, first_tensor(call.output), goal)
            if rest is not None:
                return [call, *rest]
    return None


def _with_activation(
    calls: Sequence[Call], state: Any, goal: Any, names: Iterable[str]
) -> tuple[list[Call], str] | None:
    """Such calls where a function that is no module is between the first and the second; and its name."""
    for first in (call for call in calls if is_same(call.state, state)):
        product = first_tensor(first.output)
        for second in (call for call in calls if call.began > first.ended):
            rest = _chain([call for call in calls if call.began >= second.began], second.state, goal)
            if not rest or not isinstance(second.state, Tensor) or second.state.shape != product.shape:
                continue
            for name in names:
                # what differs least among these differs by 5e-4
                if torch.allclose(ACT2FN[name](product), second.state, rtol=1e-5, atol=1e-6):
                    return [first, *rest], name
    return None


def _second_bias(model: PreTrainedModel, head: nn.Linear, body: str) -> str | None:
    """Another vector for each token outside of the body, which some have beside the head's own bias."""
    if head.bias is None:
        return None
    for name, one in model.named_parameters(remove_duplicate=False):
        holder, _, last = name.rpartition(".")
        is_beside = not name.startswith(f"{body}.") and holder and model.get_submodule(holder) is not head
        if is_beside and last == "bias" and one.shape == head.bias.shape:
            return name
    return None
