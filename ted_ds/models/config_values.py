"""Whether the values of a ``config.json`` make a model at all, as far as they alone can tell; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ted_ds.errors import CheckpointError, counted
from ted_ds.models.family import Family

WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "max_window_layers",
    "sliding_window",
)
SMALLEST: Mapping[str, int] = {"max_window_layers": 0}
"""Of those that may be less than 1."""
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
ACTIVATION_KEYS = (
    "hidden_act",
    "activation",
    "activation_function",
    "hidden_activation",
    "pooler_hidden_act",
    "classifier_activation",
)
ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "prelu",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
    "xielu",
)
"""Transformers' own."""


def refuse_odd_values(config: Mapping[str, Any], family: Family) -> None:
    """Make sure that a model of a family can be built of a config's values.

    Raises:
        CheckpointError: It cannot; lists all that is wrong.
    """
    wrong = [*_other_kinds(config, family), *_impossible(config, family)]
    wrong = wrong or [*_heads(config, family), *_layers(config, family), *_names(config)]
    if wrong:
        raise CheckpointError("\n".join(wrong))


def _other_kinds(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    for key in (*WHOLE_NUMBERS, *family.own_names.values()):
        value, smallest = config.get(key), SMALLEST.get(key, 1)
        if key == "sliding_window" and config.get("use_sliding_window", True) is False:
            continue  # not used
        if value is not None and (type(value) is not int or value < smallest):
            yield f"{key} is {value!r}, and has to be a whole number of at least {smallest}; {_correct(key)}"
    for key in TOKEN_IDS:
        value = config.get(key)
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(one) is int for one in ids):
            yield f"{key} is {value!r}, and has to be a whole number, without quotes; {_correct(key)}"
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is not None and not isinstance(value, Mapping):
            example = '{"rope_type": "linear", "factor": 4.0}'
            yield f"{key} is {value!r}, and has to be an object such as {example}, or null; {_correct(key)}"


def _impossible(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    for key, (only, reason) in family.must_be.items():
        value = config.get(key)
        if value is not None and value != only:
            yield f"{key} is {value!r}: {reason}"


def _heads(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    width_key, width = family.entry(config, "hidden_size")
    heads_key, heads = family.entry(config, "num_attention_heads")
    groups, size = config.get("num_key_value_heads"), config.get("head_dim")
    if not heads:  # not said, or blocks without attention
        return
    if width is not None and size is None and width % heads:
        yield f"{heads_key} is {heads}, which does not divide {width_key}, {width}; {_correct(heads_key)}"
    if groups is not None and heads % groups:
        yield (
            f"num_key_value_heads is {groups}, which does not divide {heads_key}, {heads}: as many heads read each of "
            f"them; {_correct('num_key_value_heads')}"
        )
    if size is not None and size % 2 and family.positions == "rotary":
        yield f"head_dim is {size}, and has to be even, as positions turn pairs of numbers; {_correct('head_dim')}"


def _layers(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    layers, (key, count) = config.get("layer_types"), family.entry(config, "num_hidden_layers")
    if layers is None:
        return
    if not isinstance(layers, list) or (count is not None and len(layers) != count):
        given = counted(len(layers), "entry", "entries") if isinstance(layers, list) else repr(layers)
        yield f"layer_types has {given}, and {key} is {count}; give one for each block, or remove layer_types"
        return
    known = family.block_kinds
    other = next((one for one in layers if known is not None and one not in known), None)
    if known is not None and other is not None:
        yield f"layer_types has {other!r}; a {config['model_type']} has {' and '.join(known)}"


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ACTIVATION_KEYS:
        value = config.get(key)
        if value is not None and value not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            yield f"{key} is {value!r}, which transformers does not know (known: {known}); {_correct(key)}"


def _correct(key: str) -> str:
    return f"give the {key} that the weights were trained with"
