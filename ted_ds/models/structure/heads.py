"""The heads of labels that transformers has for a type, found and tried as the language model's is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.choices import choose_among_rows
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of
from ted_ds.models.structure.record import SHARE, Specimen, inputs_of
from ted_ds.models.structure.specimen import ARCHITECTURES, build, config_of, randomise
from ted_ds.models.structure.trace import are_close, first_tensor, trace
from ted_ds.models.structure.uses import reason_of
from ted_ds.models.taps import TappedModel

NUM_LABELS = 7
"""As many as nothing else of a small model has."""
NUM_CHOICES = 2


def with_heads(specimen: Specimen, family: Family) -> Family:
    """The record with the heads of labels that were found, and the reasons why others are refused."""
    refused = dict(family.refused)
    found: dict[str, str] = {}
    before: dict[str, None] = {}
    for architecture in ARCHITECTURES:
        if architecture in family.lacks:
            continue
        try:
            model = _model(specimen, architecture)
            path, others = _head(specimen, family, model, architecture)
            own = replace(family, label_heads=(path,))
            _refuse_other_labels(specimen, own, model, architecture)
        except Exception as error:  # whatever a class does not expect: nothing more specific
            refused[architecture] = reason_of(error)
            continue
        found[architecture] = path
        before |= dict.fromkeys(others)
    texts = found.get("SequenceClassification")
    labels = dict.fromkeys([*([texts] if texts else []), *(p for a, p in found.items() if a != "QuestionAnswering")])
    return replace(
        family,
        label_heads=tuple(labels) or family.label_heads,
        span_head=found.get("QuestionAnswering"),
        before_label_head=tuple(before),
        label_dropouts=dict(_dropouts(specimen, found)),
        refused=refused,
    )


def _model(specimen: Specimen, architecture: str) -> PreTrainedModel:
    labels = {} if architecture in ("QuestionAnswering", "MultipleChoice") else {"num_labels": NUM_LABELS}
    config = config_of(specimen.content, **labels)
    if getattr(config, "pad_token_id", None) is None:  # as a run names what its tokenizer pads with
        config.pad_token_id = 0
    model = build(config, architecture)
    randomise(model)
    return model


def _inputs(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    inputs = inputs_of(model)
    if architecture == "MultipleChoice":
        inputs = {name: one.view(1, NUM_CHOICES, -1) if hasattr(one, "view") else one for name, one in inputs.items()}
    return inputs


def _head(specimen: Specimen, family: Family, model: PreTrainedModel, architecture: str) -> tuple[str, tuple[str, ...]]:
    """The last linear map, and the other modules with weights that a body alone lacks."""
    try:
        blocks = blocks_of(model, family)
    except AttributeError as error:
        raise CheckpointError(f"transformers' {type(model).__name__} has its blocks elsewhere") from error
    run = trace(model, _inputs(model, architecture))
    if any(len(run.of(block)) != 1 for block in blocks):
        raise CheckpointError(f"transformers' {type(model).__name__} does not run each block once")
    last = run.of(blocks[-1])[0]
    wide = {"QuestionAnswering": 2, "MultipleChoice": 1}.get(architecture, NUM_LABELS)
    linear = [call for call in run.calls if call.began > last.ended and isinstance(call.module, nn.Linear)]
    heads = [call.path for call in linear if call.module.out_features == wide]
    if len(heads) != 1:
        raise CheckpointError(f"transformers' {type(model).__name__} has {len(heads)} linear maps to its labels")
    known = {name for name, _ in specimen.model.named_parameters(remove_duplicate=False)}
    parameters = (name for name, _ in model.named_parameters() if name not in known)
    others = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    others.pop(heads[0], None)
    inside = [path for path in others if path.startswith(family.blocks_path)]
    if inside:
        raise CheckpointError(f"transformers' {type(model).__name__} has {inside[0]}, which a language model lacks")
    return heads[0], tuple(others)


def _refuse_other_labels(specimen: Specimen, family: Family, model: PreTrainedModel, architecture: str) -> None:
    """Logits and states are those of a plain forward pass, of each text whatever is beside it.

    Raises:
        CheckpointError: They are not.
    """
    layers = tuple(sorted({0, 1, specimen.num_blocks}))
    inputs = inputs_of(model)
    pooled = architecture in ("SequenceClassification", "MultipleChoice")
    with torch.no_grad():
        plain = model(**_inputs(model, architecture))
        run = trace(model, _inputs(model, architecture))
        own = copy.deepcopy(model)
        if architecture == "MultipleChoice":
            choose_among_rows(own, NUM_CHOICES)
        tapped = TappedModel(own, family, layers, pooled=pooled)
        logits, states = tapped(inputs)
        _compare(f"the logits of its {architecture}", logits, _logits_of(plain))
        blocks = blocks_of(model, family)
        _compare("its first block's state", states[1], first_tensor(run.of(blocks[0])[0].output))
        if architecture == "MultipleChoice":
            return
        mask = torch.ones_like(inputs["input_ids"])
        mask[0, 15:] = 0
        pad: Any = getattr(model.config, "pad_token_id", None)
        ids = torch.where(mask == 1, inputs["input_ids"], pad if isinstance(pad, int) else 0)
        beside, _ = tapped({**inputs, "input_ids": ids, "attention_mask": mask})
        short = {**inputs, "input_ids": ids[:1, :15], "attention_mask": mask[:1, :15]}
        alone, _ = tapped(short)
        kept = slice(None) if pooled else slice(None, 15)
        own_part = beside[:1] if pooled else beside[:1, :, kept] if "start_logits" in plain else beside[:1, kept]
        _compare(f"what its {architecture} says of a text beside a longer one", own_part, alone)


def _logits_of(output: Any) -> torch.Tensor:
    if "logits" in output:
        return output.logits
    return torch.stack([output.start_logits, output.end_logits], dim=1)


def _compare(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.shape != expected.shape or not are_close(found, expected):
        raise CheckpointError(f"{what} is not what transformers says")


def _dropouts(specimen: Specimen, found: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Of each architecture, the entry of the config that its head's dropout has."""
    keys = [key for key in specimen.model.config.to_dict() if "drop" in key and ("classif" in key or "summary" in key)]
    for architecture in found:
        for key in keys:
            model = build(config_of(specimen.content, **{key: SHARE}), architecture, device="meta")
            if any(isinstance(one, nn.Dropout) and one.p == SHARE for one in model.modules()):
                yield architecture, key
                break
