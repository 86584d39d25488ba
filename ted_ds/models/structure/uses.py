"""What a family may be used for beyond states and predictions, tried on a small model: else it is refused for that."""

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

from ted_ds.errors import CheckpointError, counted
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of
from ted_ds.models.share import Share
from ted_ds.models.structure.checks import padding_seen, refuse_other_gradients, some_layers
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.specimen import tokens
from ted_ds.models.structure.trace import are_close
from ted_ds.models.structure.training import weights_used_elsewhere
from ted_ds.models.taps import TappedModel


def refuse_left_padding_seen(specimen: Specimen, family: Family) -> None:
    """A text is the same with padding on its left, where it has positions of its own.

    Raises:
        CheckpointError: It is not.
    """
    difference = padding_seen(specimen, family, side="left")
    if difference is not None:
        raise CheckpointError(f"a text has other states with padding on its left ({difference})")


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
        tapped = TappedModel(model, family, some_layers(specimen))
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
        raise CheckpointError(f"it was not tried, as it has only {counted(count, 'block')}")
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
            checkpoint_activations(model, family)
        tapped = TappedModel(model, family, some_layers(specimen))
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


def refuse_weights_elsewhere(specimen: Specimen, family: Family) -> None:
    """Weights are used while their own module runs, when ZeRO-3 has them whole.

    Raises:
        CheckpointError: One is used beside it.
    """
    found = weights_used_elsewhere(copy.deepcopy(specimen.model), inputs_of(specimen.model))
    if family.logits_bias_path is not None:
        found.append(family.logits_bias_path)  # the module it belongs to is the whole head, of which the parts are run
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
