"""A record held against transformers: taps, predictions, gradients and whatever else a run does with a family.

Each check runs what the product runs on a small random model, and transformers' own model beside it. What must hold is
raised; what a family may lack becomes a reason why it is refused for that.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ted_ds.errors import CheckpointError
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of
from ted_ds.models.share import Share
from ted_ds.models.structure.parts import find_parts
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.specimen import tokens
from ted_ds.models.structure.trace import are_close, first_tensor, trace
from ted_ds.models.structure.training import weighted_loss, weights_used_elsewhere
from ted_ds.models.taps import TappedModel

LONG = 1000
"""Tokens of a long text: no multiple of any block or window."""


def refuse_other_states(specimen: Specimen, family: Family) -> None:
    """Taps are the states of a plain forward pass, which they leave alone, also while the model trains.

    Raises:
        CheckpointError: They are not.
    """
    layers = tuple(range(specimen.num_blocks + 1))
    inputs = inputs_of(specimen.model)
    run = trace(specimen.model, inputs)
    calls = [run.of(block)[0] for block in blocks_of(specimen.model, family)]
    expected = [calls[0].state, *(first_tensor(call.output) for call in calls)]
    with torch.no_grad():
        logits, states = TappedModel(copy.deepcopy(specimen.model), family, layers)(inputs)
    for layer, (state, other) in enumerate(zip(states, expected, strict=True)):
        if not torch.equal(state, other):
            raise CheckpointError(f"the state of layer {layer} as it is tapped is not that of a plain forward pass")
    if not torch.equal(logits, run.output.logits):
        raise CheckpointError("its logits change when its layers are tapped")
    training = copy.deepcopy(specimen.model).train()
    find_parts(training, trace(training, {**inputs, "output_hidden_states": True}), specimen.num_blocks)


def refuse_other_long_states(specimen: Specimen, longest: int) -> None:
    """States go on from block to block in a long text as in a short one.

    Raises:
        CheckpointError: They do not.
    """
    length = min(LONG, longest - 1)
    inputs = inputs_of(specimen.model, rows=1, length=length)
    try:
        model = copy.deepcopy(specimen.model)
        parts = find_parts(model, trace(model, {**inputs, "output_hidden_states": True}), specimen.num_blocks)
        if parts.blocks != specimen.parts.blocks:
            raise CheckpointError(f"the blocks are {parts.blocks}, and not {specimen.parts.blocks}")
    except (CheckpointError, RuntimeError, IndexError, ValueError) as error:
        raise CheckpointError(f"at {length} tokens it is not what it is at few: {error}") from error


def refuse_padding_seen(specimen: Specimen, family: Family) -> None:
    """A text is the same with and without padding and other texts beside it.

    Raises:
        CheckpointError: It is not.
    """
    difference = _padding_seen(specimen, family, side="right")
    if difference is not None:
        raise CheckpointError(f"a text's states hang on what is beside it in a batch ({difference})")


def refuse_left_padding_seen(specimen: Specimen, family: Family) -> None:
    """The same with padding on the left, each text with positions of its own.

    Raises:
        CheckpointError: It is not.
    """
    difference = _padding_seen(specimen, family, side="left")
    if difference is not None:
        raise CheckpointError(f"a text has other states with padding on its left ({difference})")


def _padding_seen(specimen: Specimen, family: Family, *, side: str) -> str | None:
    lengths = (24, 13, 19)
    whole = inputs_of(specimen.model, rows=3)
    pad: Any = getattr(specimen.model.config, "pad_token_id", None)
    ids, mask = whole["input_ids"].clone(), torch.ones(3, 24, dtype=torch.long)
    for row, length in enumerate(lengths):
        beside = slice(length, None) if side == "right" else slice(None, 24 - length)
        if side == "left":
            ids[row] = ids[row].roll(24 - length)
        ids[row, beside], mask[row, beside] = pad if isinstance(pad, int) else 0, 0
    inputs = {**whole, "input_ids": ids, "attention_mask": mask}
    if side == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    tapped = TappedModel(copy.deepcopy(specimen.model), family, _some_layers(specimen))
    with torch.no_grad():
        _, states = tapped(inputs)
        for row, length in enumerate(lengths):
            alone = {**whole, "input_ids": whole["input_ids"][row : row + 1, :length]}
            alone["attention_mask"] = torch.ones(1, length, dtype=torch.long)
            kept = slice(None, length) if side == "right" else slice(24 - length, None)
            for own, other in zip(states, tapped(alone)[1], strict=True):
                if not are_close(own[row, kept], other[0]):
                    return f"they differ by {float((own[row, kept] - other[0]).abs().max()):.2g}"
    return None


def _some_layers(specimen: Specimen) -> tuple[int, ...]:
    count = specimen.num_blocks
    return tuple(sorted({0, 1, count // 2, count}))


def refuse_other_predictions(specimen: Specimen, family: Family) -> None:
    """Cross-entropies of the chunked losses, their gradients and the model's own loss are those of plain logits.

    Raises:
        CheckpointError: They are not.
    """
    if specimen.parts.lm_head_mistake is not None:
        raise CheckpointError(specimen.parts.lm_head_mistake)
    inputs = inputs_of(specimen.model)
    labels = tokens(2, 24, seed=1)
    plain = copy.deepcopy(specimen.model)
    logits = plain(**inputs).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 24).sum(1)
    expected.sum().backward()
    model = copy.deepcopy(specimen.model)
    tapped = TappedModel(model, family, ())
    scores = tapped(inputs, lambda predictions, _: predictions.row_scores(labels))
    _compare("the cross-entropy of its predictions", scores[:, 0], expected.detach())
    weighted_loss(tapped, inputs, labels).backward()
    refuse_other_gradients(model, plain)
    shifted = logits.detach()[:, :-1] if family.language_model == "CausalLM" else logits.detach()
    own = labels[:, 1:] if family.language_model == "CausalLM" else labels
    mean = functional.cross_entropy(shifted.flatten(0, 1), own.flatten())
    with torch.no_grad():
        _compare(
            "its own loss (which may have an auxiliary term; switch that off in its config.json)",
            specimen.model(**inputs, labels=labels).loss,
            mean,
        )
    if family.language_model == "CausalLM":
        changed = inputs["input_ids"].clone()
        changed[:, 12:] = tokens(2, 12, seed=2)
        with torch.no_grad():
            other = specimen.model(**{**inputs, "input_ids": changed}).logits
        _compare("what is predicted of the tokens before others", other[:, :12], logits.detach()[:, :12])


def refuse_other_gradients(model: nn.Module, plain: nn.Module) -> None:
    """Every parameter has the gradient that it has in a plain training step.

    Raises:
        CheckpointError: One has not.
    """
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    # of a bias that no prediction hangs on, all there is is noise
    noise = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for name, parameter in model.named_parameters():
        other = expected[name]
        if (parameter.grad is None) != (other is None):
            raise CheckpointError(
                f"{name} has {'no' if parameter.grad is None else 'a'} gradient, unlike in transformers"
            )
        if parameter.grad is not None and other is not None:
            scale = float(other.abs().max())
            if not torch.allclose(parameter.grad, other, rtol=1e-2, atol=1e-3 * scale + noise):
                raise CheckpointError(f"the gradient of {name} is not the one it has in transformers")


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if not are_close(found, expected):
        difference = float((found - expected).abs().max())
        raise CheckpointError(f"{what} is not what transformers' logits come to (it differs by {difference:.2g})")


def with_documents(specimen: Specimen, family: Family) -> Family:
    """The record with who tells documents apart: the model by their positions, or a mask that it is given."""
    try:
        refuse_mixed_documents(specimen, family)
    except (CheckpointError, RuntimeError, ValueError, TypeError):
        by_mask = replace(family, finds_documents=False)
        with contextlib.suppress(CheckpointError, RuntimeError, ValueError, TypeError):
            refuse_mixed_documents(specimen, by_mask)
            return by_mask
    return family


def with_factor(specimen: Specimen, family: Family) -> Family:
    """The record with the number of the body by which embeddings are multiplied, where stages need to know it."""
    body: Any = specimen.model.base_model
    names = [name for name, value in vars(body).items() if isinstance(value, float) and value not in (0.0, 1.0)]
    for factor in (None, *names):
        path = None if factor is None else f"{specimen.model.base_model_prefix}.{factor}"
        own = replace(family, embeddings_factor_path=path)
        with contextlib.suppress(Exception):  # whatever a class does not expect: the record stays as it is
            refuse_other_shares(specimen, own)
            return own
    return family


def refuse_mixed_documents(specimen: Specimen, family: Family) -> None:
    """Documents in one row are what each is on its own.

    Raises:
        CheckpointError: They are not.
    """
    if "position_ids" not in inspect.signature(specimen.model.forward).parameters:
        raise CheckpointError("it takes no positions (position_ids), by which documents are told apart")
    lengths = (7, 11, 6)
    whole = inputs_of(specimen.model)
    row = {**whole, "position_ids": torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)}
    for attention in family.attention:
        model = copy.deepcopy(specimen.model)
        model.set_attn_implementation(attention)
        tapped = TappedModel(model, family, _some_layers(specimen))
        with torch.no_grad():
            logits, states = tapped(row)
            start = 0
            for length in lengths:
                part = slice(start, start + length)
                alone, own = tapped({**whole, "input_ids": whole["input_ids"][:, part]})
                for one, other in zip((logits, *states), (alone, *own), strict=True):
                    if not are_close(one[:, part], other):
                        raise CheckpointError(f"documents in one sequence see each other ({attention} attention)")
                start += length


def refuse_other_shares(specimen: Specimen, family: Family) -> None:
    """Stages of a pipeline in a row are the whole model, to the last bit.

    Raises:
        CheckpointError: They are not.
    """
    count = specimen.num_blocks
    if count < 3:
        raise CheckpointError(f"it was not tried, as it has only {count} blocks")
    inputs, layers = inputs_of(specimen.model), tuple(range(count + 1))
    whole = TappedModel(copy.deepcopy(specimen.model), family, layers)
    labels = tokens(2, 24, seed=1)
    with torch.no_grad():
        expected_scores, expected = whole(inputs, lambda own, states: (own.row_scores(labels), states))
        for cuts in ((1,), (count // 2, count - 1), (count,)):
            borders = [0, *dict.fromkeys(cuts), count]
            shares = [
                Share(start, stop, has_embeddings=index == 0, has_output=index == len(borders) - 2)
                for index, (start, stop) in enumerate(itertools.pairwise(borders))
            ]
            state: Any = None
            for share in shares:
                places = [
                    one for one in layers if share.start < one <= share.stop or (one == 0 and share.has_embeddings)
                ]
                model = copy.deepcopy(specimen.model)
                part = TappedModel(model, family, layers, share=share, places=places)
                if state is not None:
                    part.arrive(state)
                found: dict[int, Tensor] = {}
                scores = part(
                    inputs,
                    lambda own, _: None if own is None else own.row_scores(labels),
                    on_state=found.__setitem__,
                )
                for place, own in found.items():
                    if not torch.equal(own, expected[place]):
                        raise CheckpointError(f"layer {place} is another one in a stage from block {share.start} on")
                state = part.leave()
                if share.has_output and not torch.equal(scores, expected_scores):
                    raise CheckpointError("the last stage predicts otherwise than the whole model")


def refuse_other_recomputation(specimen: Specimen, family: Family) -> None:
    """With activations computed again, taps fire once, and gradients are the same.

    Raises:
        CheckpointError: They do not, or transformers cannot do it.
    """
    inputs = inputs_of(specimen.model)
    models = []
    for recomputes in (False, True):
        model = copy.deepcopy(specimen.model)
        without_dropout(model)
        model.train()
        if recomputes:
            checkpoint_activations(model)
        tapped = TappedModel(model, family, _some_layers(specimen))
        fired: list[int] = []
        blocks_of(model, family)[0].register_forward_hook(lambda *_, fired=fired: fired.append(1))
        logits, states = tapped(inputs)
        torch.manual_seed(0)
        (logits.square().mean() + sum(state.square().mean() for state in states)).backward()
        if len(fired) != 1:
            raise CheckpointError("its blocks are called again as a whole, with all that listens to them")
        models.append(model)
    refuse_other_gradients(models[1], models[0])


def without_dropout(model: nn.Module) -> None:
    """Let nothing be dropped while a model trains."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def refuse_weights_elsewhere(specimen: Specimen, family: Family) -> None:  # noqa: ARG001 - as the others
    """Weights are used while their own module runs, when ZeRO-3 has them whole.

    Raises:
        CheckpointError: One is used beside it.
    """
    found = weights_used_elsewhere(copy.deepcopy(specimen.model), inputs_of(specimen.model))
    if found:
        raise CheckpointError(f"{found[0]} is used while the module it belongs to does not run, when ZeRO-3 lacks it")


def refuse_other_matrices(specimen: Specimen, family: Family) -> None:
    """The matrices of blocks are plain linear maps, which torchao quantises.

    Raises:
        CheckpointError: Some are not.
    """
    for path, module in blocks_of(specimen.model, family).named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D" or isinstance(module, nn.Conv1d)
            if parameter.dim() > 1 and min(parameter.shape) > 1 and not plain:
                raise CheckpointError(
                    f"{path}.{name} of its blocks belongs to a {type(module).__name__}, no linear map"
                )


def refuse_other_rest(specimen: Specimen, family: Family) -> None:
    """The first blocks are what they were once those above are left out.

    Raises:
        CheckpointError: They are not.
    """
    kept = max(1, specimen.num_blocks // 2)
    inputs = inputs_of(specimen.model)
    with torch.no_grad():
        whole = TappedModel(copy.deepcopy(specimen.model), family, (0, kept))
        expected = whole(inputs, lambda _, states: states, with_predictions=False)
        less = TappedModel(copy.deepcopy(specimen.model), family, (0, kept))
        less.drop_beyond_taps()
        for own, other in zip(less(inputs, lambda _, states: states, with_predictions=False), expected, strict=True):
            if not torch.equal(own, other):
                raise CheckpointError("states differ once the blocks above the last tapped one are left out")


Check = Callable[[Specimen, Family], None]
MUST: Mapping[str, Check] = {"states": refuse_other_states, "padding": refuse_padding_seen}
MAY: Mapping[str, Check] = {
    "padding on the left": refuse_left_padding_seen,
    "isolated documents": refuse_mixed_documents,
    "pipeline": refuse_other_shares,
    "activation checkpointing": refuse_other_recomputation,
    "zero3": refuse_weights_elsewhere,
    "int8": refuse_other_matrices,
    "drop": refuse_other_rest,
}
"""By :data:`ted_ds.models.family.USES`."""


def try_uses(specimen: Specimen, family: Family, checks: Mapping[str, Check]) -> Family:
    """The record with a reason for each use that failed."""
    refused = dict(family.refused)
    for use, check in checks.items():
        try:
            check(specimen, family)
        except Exception as error:  # whatever a class does not expect: nothing more specific
            refused[use] = reason_of(error)
    return replace(family, refused=refused)


def reason_of(error: Exception) -> str:
    """Why something failed, in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, CheckpointError) else f"transformers fails: {type(error).__name__}: {text}"
