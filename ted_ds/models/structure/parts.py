"""Where a model has its parts, by what its forward pass does: by the tensors that go from one to the next.

Names say nothing here. The blocks are a list of modules of which each takes what the one before put out; what comes
before the first and behind the last follows from that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.structure.lm_head import Head, find_head
from ted_ds.models.structure.trace import Call, Trace, first_tensor, is_same


@dataclass(frozen=True)
class Parts:
    """Paths in a language model, as in :class:`~ted_ds.models.family.Family`."""

    embeddings: str
    layer_0_is_input: bool
    token_embeddings: str
    blocks: str
    arrival: str
    before_blocks: dict[str, Literal["added", "passed"]]
    behind_blocks: tuple[str, ...]
    returns_tuples: bool
    final_norm: str | None
    behind_norm: str | None
    head: Head
    position_table: str | None
    width: int


def find_parts(model: PreTrainedModel, run: Trace, num_blocks: int) -> Parts:
    """The parts of a language model, by a traced forward pass of it with ``output_hidden_states``.

    Raises:
        CheckpointError: They could not be found, or states do not go from one to the next.
    """
    prefix = model.base_model_prefix
    if not isinstance(getattr(model, prefix, None), nn.Module):
        raise CheckpointError(f"the body is not at {prefix or 'a path of its own'} in transformers' {_kind(model)}")
    path, calls = _blocks(model, run, num_blocks)
    if not path.startswith(f"{prefix}."):
        raise CheckpointError(f"the blocks, {path}, are outside of the body, {prefix}")
    _compare_hidden_states(run, calls)
    shape = tuple(run.inputs["input_ids"].shape)
    if tuple(calls[0].state.shape[:2]) != shape:
        raise CheckpointError(
            f"its blocks take {[*calls[0].state.shape[:2]]} states for {[*shape]} tokens, and not one for each token"
        )
    state = calls[0].state
    token_path = _path_of(model, model.get_input_embeddings())
    before = _siblings(run, calls[0])
    maker = next((call for call in reversed(before) if is_same(first_tensor(call.output), state)), None)
    embeddings = token_path if maker is None else maker.path
    # the innermost place that holds all that is before the blocks
    holds_tokens = maker is not None and (maker.path == token_path or token_path.startswith(f"{maker.path}."))
    table = _position_table(run, calls[0], token_path)
    final_norm, behind_norm = _behind_last(model, run, calls[-1])
    body = _body(run, calls[-1], prefix)
    head = find_head(model, run, body, _last_state(body))
    return Parts(
        embeddings=embeddings,
        layer_0_is_input=maker is None,
        token_embeddings=token_path,
        blocks=path,
        arrival=maker.path if holds_tokens and maker is not None else token_path,
        before_blocks={} if holds_tokens else _before_blocks(before, token_path, state),
        behind_blocks=_behind_blocks(run, calls[-1], prefix),
        returns_tuples=isinstance(calls[0].output, tuple | list),
        final_norm=final_norm,
        behind_norm=behind_norm,
        head=head,
        position_table=table,
        width=state.shape[-1],
    )


def _kind(model: nn.Module) -> str:
    return type(model).__name__


def _path_of(model: nn.Module, module: Any) -> str:
    found = next((path for path, one in model.named_modules() if one is module), None)
    if found is None:
        raise CheckpointError(f"transformers' {_kind(model)} does not say where its token embeddings are")
    return found


def _blocks(model: nn.Module, run: Trace, num_blocks: int) -> tuple[str, list[Call]]:
    """The longest list of modules that hand their states on, and the calls of them."""
    best: tuple[str, list[Call]] | None = None
    why = f"it has no list of {num_blocks} modules (num_hidden_layers)"
    for path, modules in model.named_modules():
        if not isinstance(modules, nn.ModuleList) or len(modules) != num_blocks:
            continue
        if best is not None and path.startswith(f"{best[0]}."):
            continue
        calls = [run.of(module) for module in modules]
        reason = _broken_chain(path, calls)
        if reason is None:
            best = best or (path, [one for (one,) in calls])
        else:
            why = reason
    if best is None:
        raise CheckpointError(f"its blocks were not found: {why}")
    return best


def _broken_chain(path: str, calls: Sequence[Sequence[Call]]) -> str | None:
    for index, of_one in enumerate(calls):
        if len(of_one) != 1:
            return f"{path}.{index} is called {len(of_one)} times in a forward pass"
        state = of_one[0].state
        if not isinstance(state, Tensor) or state.dim() != 3 or not isinstance(first_tensor(of_one[0].output), Tensor):
            return f"{path}.{index} takes or gives no state of each token"
    for index, ((one,), (other,)) in enumerate(itertools.pairwise(calls)):
        if not is_same(first_tensor(one.output), other.state):
            return (
                f"what {path}.{index} puts out is not what {path}.{index + 1} takes: the model does something of its "
                "own between them"
            )
    shapes = {tuple(first_tensor(one.output).shape) for (one,) in calls} | {tuple(calls[0][0].state.shape)}
    return None if len(shapes) == 1 else f"states of {path} differ in shape ({sorted(shapes)})"


def _compare_hidden_states(run: Trace, calls: Sequence[Call]) -> None:
    """Hold states against ``output_hidden_states``: the same tensors, but for the last, which may be normed."""
    hidden = run.output.get("hidden_states")
    if hidden is None:
        return
    states = [calls[0].state, *(first_tensor(call.output) for call in calls)]
    if len(hidden) == len(states) and is_same(hidden[0], states[1]):  # some leave the embeddings out, and count on
        hidden = [states[0], *hidden[:-1]]
    if len(hidden) != len(states):
        raise CheckpointError(f"transformers has {len(hidden)} hidden_states of it, and {len(states)} were found")
    for layer, (own, given) in enumerate(zip(states[:-1], hidden[:-1], strict=True)):
        if not is_same(own, given):
            raise CheckpointError(f"layer {layer} is not what transformers calls hidden_states[{layer}]")


def _ancestors(run: Trace, call: Call) -> list[Call]:
    return [one for one in run.calls if one.began < call.began and one.ended > call.ended]


def _siblings(run: Trace, call: Call) -> list[Call]:
    """What is over before a call begins, within what it is in: the outermost of those."""
    inside = [one for one in run.calls if one.ended < call.began and one.ended != -1]
    return [one for one in inside if not any(o.began < one.began and one.ended < o.ended for o in inside)]


def _before_blocks(before: Sequence[Call], token_path: str, state: Tensor) -> dict[str, Literal["added", "passed"]]:
    found: dict[str, Literal["added", "passed"]] = {}
    for call in before:
        output = first_tensor(call.output)
        if call.path == token_path or not isinstance(output, Tensor) or output.shape[-1:] != state.shape[-1:]:
            continue
        if isinstance(call.module, nn.Embedding):
            found[call.path] = "added"
        elif isinstance(call.state, Tensor) and call.state.is_floating_point():
            found[call.path] = "passed"
    return found


def _body(run: Trace, last: Call, prefix: str) -> Call:
    """The call of the body, or of what is all of it."""
    return next(one for one in _ancestors(run, last) if one.path == prefix or one.path.startswith(f"{prefix}."))


def _behind_blocks(run: Trace, last: Call, prefix: str) -> tuple[str, ...]:
    end = _body(run, last, prefix).ended
    inside = [one for one in run.calls if last.ended < one.began and one.ended < end]
    outer = [one for one in inside if not any(o.began < one.began and one.ended < o.ended for o in inside)]
    return tuple(dict.fromkeys(one.path for one in outer))


def _position_table(run: Trace, first: Call, token_path: str) -> str | None:
    """The embeddings that are looked up by numbers of places: the largest beside the token embeddings."""
    tables = [
        call
        for call in run.calls
        if call.ended < first.began and isinstance(call.module, nn.Embedding) and call.path != token_path
    ]
    named = [call.path for call in tables if "position" in call.path or call.path.rpartition(".")[2] in ("wpe",)]
    return named[0] if named else None


def _behind_last(model: PreTrainedModel, run: Trace, last: Call) -> tuple[str | None, str | None]:
    """What the body does behind its last block: a norm, and a map behind that."""
    body = _body(run, last, model.base_model_prefix)
    state, final = first_tensor(last.output), _last_state(body)
    if is_same(final, state):
        return None, None
    inside = [call for call in run.calls if call.began > last.ended and call.ended < body.ended]
    for norm in inside:
        if not is_same(norm.state, state):
            continue
        if is_same(norm.output, final):
            return norm.path, None
        for behind in inside:
            if is_same(behind.state, norm.output) and is_same(behind.output, final):
                return norm.path, behind.path
    raise CheckpointError(
        "what is between its last block and its last hidden state is neither a module nor two (a final norm, a map)"
    )


def _last_state(body: Call) -> Any:
    return first_tensor(list(body.output.values()) if hasattr(body.output, "values") else body.output)
