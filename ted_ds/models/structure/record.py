"""A first record of a family: its parts, and what else its config and its model say of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.family import Family
from ted_ds.models.structure.parts import Parts, find_parts
from ted_ds.models.structure.specimen import (
    ARCHITECTURES,
    LENGTH,
    MOST_DROP,
    build,
    class_of,
    config_of,
    language_model_of,
    refuse_other_kinds,
    small_model,
    tokens,
)
from ted_ds.models.structure.trace import Trace, trace

GENERAL_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
LENGTH_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "context_length", "seq_length")
"""Of the entry with the longest text."""
NO_LIMIT = 1 << 20
"""Tokens of a text, where the config names no most."""
SHARE = 0.3721
"""A probability that no config has."""


@dataclass(frozen=True)
class Specimen:
    """A small model of a type, and what of it is known."""

    content: Mapping[str, Any]
    """Of its ``config.json``."""
    model: PreTrainedModel
    """A language model, in evaluation."""
    architecture: str
    run: Trace
    parts: Parts
    num_blocks: int


def inputs_of(model: PreTrainedModel, rows: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Any]:
    """Texts, and no cache."""
    without = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return {"input_ids": tokens(rows, length, seed=seed, avoid=[_pad_id(model.config)]), **without}


def _pad_id(config: Any) -> int:
    found: Any = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) else 0


def make_specimen(content: Mapping[str, Any]) -> Specimen:
    """A small model of what a ``config.json`` describes, as deep as that, and its parts.

    Raises:
        CheckpointError: It has none that are understood.
    """
    config = config_of(content)
    refuse_other_kinds(config)
    architecture = language_model_of(config)
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise CheckpointError("its config.json does not say how many blocks it has (num_hidden_layers)")
    if not isinstance(content.get("vocab_size", None), int):
        raise CheckpointError("its config.json has no vocab_size")
    small, model = small_model(content, architecture)
    run = trace(model, {**inputs_of(model), "output_hidden_states": True})
    parts = find_parts(model, run, depth)
    if getattr(model.config, "hidden_size", None) != parts.width:
        raise CheckpointError(
            f"hidden_size does not say how wide the states of its blocks are: {parts.width} where it is "
            f"{getattr(model.config, 'hidden_size', None)}"
        )
    return Specimen(small, model, architecture, run, parts, depth)


def first_record(content: Mapping[str, Any], specimen: Specimen) -> Family:
    """What a family's record says before any of it is tried."""
    config, model, parts = config_of(content), specimen.model, specimen.parts
    is_causal = specimen.architecture == "CausalLM"
    names = {
        general: own for general, own in config.attribute_map.items() if general in (*GENERAL_NAMES, *LENGTH_NAMES)
    }
    longest = next((name for name in LENGTH_NAMES if isinstance(getattr(config, name, None), int)), None)
    if longest is not None and longest != "max_position_embeddings":
        names.setdefault("max_position_embeddings", longest)
    names |= dict(_width_of_embeddings(specimen))
    head_module = parts.head.path.split(".")[0]
    return Family(
        model_types=(content["model_type"],),
        embeddings_path=None if parts.layer_0_is_input else parts.embeddings,
        token_embeddings_path=parts.token_embeddings,
        blocks_path=parts.blocks,
        arrival_path=parts.arrival,
        before_blocks=parts.before_blocks,
        behind_blocks=parts.behind_blocks,
        blocks_return_tuples=parts.returns_tuples,
        language_model="CausalLM" if is_causal else "MaskedLM",
        final_norm_path=parts.final_norm,
        behind_norm_path=parts.behind_norm,
        before_lm_head=parts.head.before,
        lm_activation=parts.head.activation,
        unread_lm_bias=parts.head.unread_bias,
        lm_head_path=parts.head.path or "lm_head",
        lm_heads_in_files=(head_module or "lm_head",),
        ties_by_default=_is_tied(model),
        label_heads=("score",) if is_causal else ("classifier",),
        lacks=tuple(one for one in ARCHITECTURES if class_of(config, one) is None),
        pooled_token="last" if is_causal else "first",
        attention=tuple(_attention(specimen)),
        positions=_positions(specimen),
        position_embeddings_path=_table_path(specimen, names),
        **_token_types(config, specimen),
        own_names={general: own for general, own in names.items() if own != general},
        entries_by_default=_defaults(config, longest),
        hidden_dropouts=tuple(_dropouts(specimen, "hidden")),
        attention_dropouts=tuple(_dropouts(specimen, "attention")),
        num_experts_keys=tuple(_experts(specimen)),
        buffers=tuple(_buffers(model, parts)),
    )


def _is_tied(model: PreTrainedModel) -> bool:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    weights = [getattr(one, "weight", None) for one in (head, embeddings)]
    return weights[0] is not None and weights[0] is weights[1]


def _width_of_embeddings(specimen: Specimen) -> Iterator[tuple[str, str]]:
    """The entry that says how wide token embeddings are, where they are not as wide as the blocks."""
    embeddings: Any = specimen.model.get_input_embeddings()
    width, said = embeddings.weight.shape[1], specimen.model.config.to_dict()
    if width != specimen.parts.width and "embedding_size" not in said:
        yield from (("embedding_size", key) for key, value in said.items() if "embed" in key and value == width)


def _attention(specimen: Specimen) -> Iterator[str]:
    """What it can be built with; flash attention is not tried here."""
    for name in ("eager", "sdpa"):
        try:
            build(specimen.model.config, specimen.architecture, device="meta", attention=name)
        except (ValueError, ImportError, TypeError):  # as transformers says that a class has no such attention
            continue
        yield name


def _positions(specimen: Specimen) -> Literal["rotary", "learned", "relative"]:
    if any(name.endswith("inv_freq") for name, _ in specimen.model.named_buffers()):
        return "rotary"
    return "learned" if specimen.parts.position_table is not None else "relative"


def _table_path(specimen: Specimen, names: Mapping[str, str]) -> str | None:
    """The table of positions, where it has a row for each of the longest text and no others."""
    path = specimen.parts.position_table
    if path is None:
        return None
    table: Any = specimen.model.get_submodule(path)
    key = names.get("max_position_embeddings", "max_position_embeddings")
    is_plain = isinstance(table, nn.Embedding) and table.num_embeddings == getattr(specimen.model.config, key, None)
    return path if is_plain else None


def _token_types(config: Any, specimen: Specimen) -> dict[str, Any]:
    number = getattr(config, "type_vocab_size", None)
    takes = "token_type_ids" in inspect.signature(specimen.model.forward).parameters
    tables = [path for path, one in specimen.model.named_modules() if isinstance(one, nn.Embedding) and "type" in path]
    if not takes or not isinstance(number, int) or not tables:
        return {}
    return {"token_types_key": "type_vocab_size", "token_types_by_default": number}


def _defaults(config: Any, longest: str | None) -> dict[str, int]:
    found = {name: getattr(config, name) for name in GENERAL_NAMES if isinstance(getattr(config, name, None), int)}
    found.setdefault("num_attention_heads", 0)
    found.pop("intermediate_size", None)
    return {**found, "max_position_embeddings": NO_LIMIT if longest is None else getattr(config, longest)}


def _dropouts(specimen: Specimen, what: str) -> Iterator[str]:
    """Entries of the config whose value modules have as the probability they drop by."""
    for key, value in specimen.model.config.to_dict().items():
        if (
            "drop" not in key
            or any(word in key for word in MOST_DROP)
            or not isinstance(value, float | int)
            or isinstance(value, bool)
        ):
            continue
        kind = "attention" if "att" in key else "classifier" if "classif" in key or "summary" in key else "hidden"
        if kind != what:
            continue
        model = build(config_of(specimen.content, **{key: SHARE}), specimen.architecture, device="meta")
        values = (value for module in model.modules() for value in vars(module).values() if isinstance(value, float))
        if any(math.isclose(one, SHARE) for one in values):
            yield key


def _experts(specimen: Specimen) -> Iterator[str]:
    """Entries that say how many experts a block has, where a tensor of it has as many matrices."""
    blocks = specimen.model.get_submodule(specimen.parts.blocks)
    numbers = {parameter.shape[0] for parameter in blocks.parameters() if parameter.dim() == 3}
    for key, value in specimen.model.config.to_dict().items():
        if "expert" in key and isinstance(value, int) and value > 1 and value in numbers and "per_tok" not in key:
            yield key


def _buffers(model: PreTrainedModel, parts: Parts) -> Iterator[str]:
    """Ends of names of what is no parameter: within a block, where it stands in that."""
    within = f"{parts.blocks}."
    found = {}
    for name, _ in model.named_buffers():
        end = f".{name.removeprefix(within).split('.', 1)[1]}" if name.startswith(within) else name.split(".", 1)[-1]
        found[end] = None
    parameters = [name for name, _ in model.named_parameters()]
    yield from (end for end in found if not any(name.endswith(end) for name in parameters))
