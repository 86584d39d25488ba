"""What every family must be: taps, padding, predictions and gradients, held against transformers.

Each check runs what the product runs on a small random model, and transformers' own model beside it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ted_ds.errors import CheckpointError
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of
from ted_ds.models.structure.parts import find_parts
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.specimen import build, config_of, tokens
from ted_ds.models.structure.trace import are_close, first_tensor, trace
from ted_ds.models.structure.training import weighted_loss
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
        # a new one: a pass over short texts may have changed how it goes on
        model = build(config_of(specimen.content), specimen.architecture)
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
    difference = padding_seen(specimen, family, side="right")
    if difference is not None:
        raise CheckpointError(f"a text's states hang on what is beside it in a batch ({difference})")


def padding_seen(specimen: Specimen, family: Family, *, side: str) -> str | None:
    """How states of texts differ from those that each has alone, once they are padded; None where they do not.

    In fp64 as well where they do in fp32: behind many blocks a difference of rounding may choose another expert.
    """
    single = _padding_seen(specimen, family, side, torch.float32)
    return single and _padding_seen(specimen, family, side, torch.float64)


def _padding_seen(specimen: Specimen, family: Family, side: str, dtype: torch.dtype) -> str | None:
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
    model: Any = copy.deepcopy(specimen.model)
    tapped = TappedModel(model.to(dtype), family, some_layers(specimen))
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


def some_layers(specimen: Specimen) -> tuple[int, ...]:
    """The first layers, one in the middle and the last."""
    count = specimen.num_blocks
    return tuple(sorted({0, 1, count // 2, count}))


def refuse_other_predictions(specimen: Specimen, family: Family) -> None:
    """Cross-entropies of the chunked losses, their gradients and the model's own loss are those of plain logits.

    Raises:
        CheckpointError: They are not.
    """
    if specimen.parts.head.mistake is not None:
        raise CheckpointError(specimen.parts.head.mistake)
    if family.is_tied(specimen.content) != family.ties_by_default:  # which is what the model does
        does = "its embeddings" if family.ties_by_default else "not its embeddings"
        raise CheckpointError(f"its LM head is {does}, whatever tie_word_embeddings in its config.json says")
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
