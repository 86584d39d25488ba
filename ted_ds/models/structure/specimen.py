"""Models of a type to look at: small random ones, as deep as its ``config.json`` says."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.config_build import parsed_config

ARCHITECTURES = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
"""With heads of labels: what follows ``AutoModelFor``."""
VOCAB_SIZE = 160
"""Of the small model."""
LENGTH = 24
"""Of its texts."""
WIDTHS = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "ffn_hidden_size": 96,
    "n_inner": 96,
    "dff": 96,
    "ffn_dim": 96,
    "moe_intermediate_size": 48,
    "shared_intermediate_size": 48,
    "embedding_size": 32,
    "rotary_dim": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "mamba_d_head": 16,
    "mamba_n_heads": 8,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "num_heads": 8,
    "n_groups": 1,
    "state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_dt_rank": 8,
    "time_step_rank": 8,
}
"""Of the small model, by transformers' names."""
EXPERTS = {
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
MOST_PARAMETERS = 150_000_000
"""Of the small model, where its widths could not be made smaller."""
MOST_DROP = ("layerdrop", "layer_drop", "drop_path")
"""In names of entries with the probability that whole blocks are left out."""
NOT_OF_THE_MODEL = ("quantization_config", "compression_config", "torch_dtype", "dtype", "auto_map")


def config_of(content: Mapping[str, Any], **changes: Any) -> Any:
    """What transformers reads in a ``config.json``.

    Raises:
        CheckpointError: It knows no such type, or cannot be read.
    """
    model_type = str(content.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"transformers {transformers.__version__} has no model of this type")
    plain = {key: copy.deepcopy(value) for key, value in content.items() if key not in NOT_OF_THE_MODEL}
    return parsed_config({**plain, **changes})


def refuse_other_kinds(config: Any) -> None:
    """Refuse what is no one stack of blocks that reads tokens.

    Raises:
        CheckpointError: It is not.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError("it has an encoder and a decoder, whose layers are not found by structure")
    if config.get_text_config() is not config:
        raise CheckpointError("it is made of several models, each with a config of its own")
    for key, value in config.to_dict().items():
        if any(word in key for word in MOST_DROP) and isinstance(value, float) and value > 0:
            raise CheckpointError(f"{key} is {value:g}: it leaves out blocks at random; set it to 0.0")


def class_of(config: Any, architecture: str) -> type[PreTrainedModel] | None:
    """Transformers' class of a type for an architecture, where there is one."""
    mapping: Any = getattr(transformers, f"AutoModelFor{architecture}" if architecture else "AutoModel")._model_mapping
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found


def language_model_of(config: Any) -> str:
    """What a type's language model is: ``MaskedLM`` where there is one.

    Raises:
        CheckpointError: It has none.
    """
    for architecture in ("MaskedLM", "CausalLM"):
        if class_of(config, architecture) is not None:
            return architecture
    raise CheckpointError("transformers has no language model of this type")


def build(config: Any, architecture: str, *, device: str = "cpu", attention: str | None = None) -> PreTrainedModel:
    """A model of random weights in fp32, ready to be evaluated."""
    kind: Any = class_of(config, architecture)
    own = copy.deepcopy(config)
    with torch.device(device):
        model: PreTrainedModel = kind._from_config(own, attn_implementation=attention, dtype=torch.float32)
    return model.eval()


def small_contents(content: Mapping[str, Any], config: Any) -> Iterator[dict[str, Any]]:
    """Versions of a ``config.json`` with fewer tokens, and smaller widths as far as they may be; the smallest first."""
    fewer_tokens = {**content, **dict(_fewer_tokens(config))}
    said = config.to_dict()
    width = getattr(config, "hidden_size", None)
    if isinstance(width, int) and width > WIDTHS["hidden_size"]:
        smaller = {name: value for name, value in WIDTHS.items() if isinstance(_said(config, name), int)}
        smaller["num_key_value_heads"] = _groups(config)
        of_width = {key: WIDTHS["hidden_size"] for key in said if _is_width(key) and said[key] == width}
        own = {config.attribute_map.get(name, name): value for name, value in smaller.items()}
        own = {key: value for key, value in {**of_width, **own}.items() if said.get(key) is not None}
        yield {**fewer_tokens, **own, **_of_experts(said)}
        yield {**fewer_tokens, **own}
        yield from _fewer_heads(config, fewer_tokens, width, of_width)
    yield fewer_tokens


def _said(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _is_width(key: str) -> bool:
    return not any(word in key for word in ("position", "vocab", "token", "seq", "length", "window", "layer", "block"))


def _groups(config: Any) -> int:
    heads, groups = (_said(config, name) for name in ("num_attention_heads", "num_key_value_heads"))
    if groups == heads:
        return WIDTHS["num_attention_heads"]
    return 1 if groups == 1 else 2


def _of_experts(said: Mapping[str, Any]) -> dict[str, int]:
    return {key: value for key, value in EXPERTS.items() if isinstance(said.get(key), int) and said[key] > value}


def _fewer_heads(
    config: Any, fewer_tokens: Mapping[str, Any], width: int, of_width: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Heads as wide as they are, and fewer of them."""
    heads, groups = (_said(config, name) for name in ("num_attention_heads", "num_key_value_heads"))
    groups = groups or heads
    if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups or width % heads:
        return
    few = max(2, heads // groups)
    names = config.attribute_map
    changes = dict.fromkeys([*of_width, names.get("hidden_size", "hidden_size")], width // heads * few)
    changes[names.get("num_attention_heads", "num_attention_heads")] = few
    if _said(config, "num_key_value_heads") is not None:
        changes["num_key_value_heads"] = few * groups // heads
    inner = _said(config, "intermediate_size")
    if isinstance(inner, int) and inner * few % heads == 0:
        changes[names.get("intermediate_size", "intermediate_size")] = inner * few // heads
    yield {**fewer_tokens, **changes}


def _fewer_tokens(config: Any) -> Iterator[tuple[str, Any]]:
    yield config.attribute_map.get("vocab_size", "vocab_size"), VOCAB_SIZE
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            ids = value if isinstance(value, list) else [value]
            if all(isinstance(one, int) and one < VOCAB_SIZE for one in ids):
                continue
            yield key, min(VOCAB_SIZE - 1, 3)


def small_model(content: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], PreTrainedModel]:
    """The smallest model of a ``config.json`` that transformers builds and runs, of the same depth, and its config.

    Raises:
        CheckpointError: None can be built, or it is too large to be tried.
    """
    config, why = config_of(content), ""
    for small in small_contents(content, config):
        try:
            size = size_of(build(config_of(small), architecture, device="meta"))
            if size > MOST_PARAMETERS:
                why = f"even with few tokens it has {size:,} parameters, and its widths could not be made smaller"
                continue
            model = build(config_of(small), architecture)
            randomise(model)
            with torch.no_grad():
                model(input_ids=tokens(2, LENGTH), use_cache=False) if _caches(config) else model(tokens(2, LENGTH))
        except Exception as error:  # whatever a width leads to that its class does not expect: nothing more specific
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        return small, model
    raise CheckpointError(f"no small model of it could be tried: {why}")


def _caches(config: Any) -> bool:
    return getattr(config, "use_cache", None) is not None


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights that hide nothing: no bias is 0, no norm is 1, and each state changes much."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * (parameter.shape[-1] ** -0.5 if parameter.shape[-1] > 8 else 0.3))
            else:
                parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("bias") and buffer.dim() == 1 and buffer.is_floating_point() and not buffer.any():
                buffer.add_(0.01 * torch.randn(buffer.shape, generator=generator))


def size_of(model: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def _ids(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(5, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def tokens(rows: int, length: int, *, seed: int = 0, avoid: Sequence[int] = ()) -> torch.Tensor:
    """Ids of the small model that are no special tokens, ``[rows, length]``."""
    ids = _ids(rows, length, seed).clone()
    for one in avoid:
        ids[ids == one] = 4 if one != 4 else 5
    return ids
