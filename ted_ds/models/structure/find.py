"""From a ``config.json`` to a family's record: found, tried, and said in words."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from ted_ds.errors import CheckpointError, counted
from ted_ds.models.family import Family
from ted_ds.models.structure.adapters import refuse_other_maps
from ted_ds.models.structure.checks import (
    refuse_other_long_states,
    refuse_other_predictions,
    refuse_other_states,
    refuse_padding_seen,
)
from ted_ds.models.structure.cuts import refuse_other_cuts
from ted_ds.models.structure.heads import with_heads
from ted_ds.models.structure.logits import with_logit_rule
from ted_ds.models.structure.output_map import with_output_map
from ted_ds.models.structure.record import Specimen, first_record, make_specimen
from ted_ds.models.structure.uses import MAY, reason_of, try_uses, with_documents, with_factor

OF_DECODERS = ("isolated documents", "padding on the left")
"""Uses that nobody may make of an encoder anyway."""
NOT_TRIED = {"torch_compile": "it is not tried with families that are found by structure"}


def find_family(content: Mapping[str, Any]) -> Family:
    """The record of the family of a ``config.json``, as far as it could be held against transformers.

    Raises:
        CheckpointError: Its parts are not found, or are not what they seem; says what is missing.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings(), _seeded():
        warnings.simplefilter("ignore")
        specimen = make_specimen(content)
        family = first_record(content, specimen)
        for check in (refuse_other_states, refuse_padding_seen):
            _attempt(check, specimen, family)
        family = _with_longest(specimen, family)
        family = with_factor(specimen, with_documents(specimen, with_logit_rule(specimen, family)))
        left_out = () if family.language_model == "CausalLM" else OF_DECODERS
        checks = {family.language_model: refuse_other_predictions, **MAY, "cut": refuse_other_cuts}
        checks |= {"adapters": refuse_other_maps}
        checks = {use: check for use, check in checks.items() if use not in left_out}
        family = try_uses(specimen, replace(family, refused=NOT_TRIED), checks)
        family = with_output_map(specimen, with_heads(specimen, family))
    return replace(family, found=tuple(_in_words(specimen, family)))


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _attempt(check: Any, specimen: Specimen, family: Family) -> None:
    try:
        check(specimen, family)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a class does not expect: nothing more specific
        raise CheckpointError(reason_of(error)) from error


def _with_longest(specimen: Specimen, family: Family) -> Family:
    """The record with the longest text there is, once one was tried."""
    config = specimen.model.config
    _, said = family.entry(config.to_dict(), "max_position_embeddings")
    path = specimen.parts.position_table
    lost = 0
    if path is not None:
        table: Any = specimen.model.get_submodule(path)
        rows = table.num_embeddings if isinstance(table, nn.Embedding) else said
        ids = [call.state for call in specimen.run.calls if call.path == path]
        length = specimen.run.inputs["input_ids"].shape[1]
        offset = max(0, int(ids[0].max()) + 1 - length) if type(table) is nn.Embedding else 0
        lost = max(0, said + offset - rows)
    refuse_other_long_states(specimen, said - lost)
    return replace(family, positions_lost=lost)


def _in_words(specimen: Specimen, family: Family) -> Iterator[str]:
    yield (
        f"{counted(specimen.num_blocks, 'block')} at {family.blocks_path}, embeddings at {family.token_embeddings_path}"
    )
    norm = family.final_norm_path or "none"
    before = f", {' and '.join(family.before_lm_head)} before it" if family.before_lm_head else ""
    yield f"final norm: {norm}; LM head: {family.lm_head_path}{before}, {family.language_model}"
    for use, why in family.refused.items():
        yield f"not for {use}: {why}"
