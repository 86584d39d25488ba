"""Load transformers models and tokenizers, safely and with nothing left random unnoticed."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from tokenizers import AddedToken
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ted_ds.errors import CheckpointError, ConfigError, counted
from ted_ds.models.config_agreement import classifier_rows
from ted_ds.models.config_build import build_config, try_to_build
from ted_ds.models.execution import ATTENTION
from ted_ds.models.family import Family, prefixes
from ted_ds.models.file_kinds import MODEL_PATTERNS, OTHER_PATTERNS, PAPER_PATTERNS
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.found import family_of_folder
from ted_ds.models.partial import load_with_blocks_of
from ted_ds.models.sentencepiece_model import MODEL_FILE, convert, read_sentencepiece, refuse_other_ids, special_tokens
from ted_ds.models.share import Share
from ted_ds.models.tensor_files import read_tensors
from ted_ds.models.tokenizer_files import TOKENIZER_FILE, refuse_no_vocabulary, refuse_without_padding
from ted_ds.models.tokenizer_settings import TOKENIZER_CONFIG_FILE, declared_tokens, read_settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FETCHED = [*MODEL_PATTERNS, *PAPER_PATTERNS]
"""What the model comes with goes with whatever is made of it."""
EARLY_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""Ends of names of parameters, and what early files call them."""


def fetch(path: str) -> Path:
    """The local folder of a model: ``path`` itself, or the hub model of that name, downloaded if need be.

    Raises:
        CheckpointError: It is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, allow_patterns=FETCHED, ignore_patterns=[*OTHER_PATTERNS]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(f"{path}: neither a local model folder nor {_why_not_fetched(path, error)}") from error


def _why_not_fetched(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, GatedRepoError):
        return (
            "a model the hub gives to everybody: accept its terms at "
            f"https://huggingface.co/{name} and log in on every host (hf auth login)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "a model of the hub, or it is private; correct the name, or log in on every host (hf auth login)"
    if isinstance(error, LocalEntryNotFoundError):
        cache = f"the hub's cache in {constants.HF_HUB_CACHE}"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({reason:.200})"
        return f"a model that is whole in {cache}, and {why}; fetch it (hf download {name}), or give a local folder"
    return f"a model the hub gives ({reason}); correct the path or name"


def auto_class(architecture: str) -> Any:
    """What loads models of an architecture, whatever their type: ``CausalLM``, ``SequenceClassification``, ..."""
    return getattr(transformers, f"AutoModelFor{architecture}")


@dataclass(frozen=True)
class LoadSettings:
    """How weights are read into memory."""

    dtype: torch.dtype
    """Of the weights."""
    context: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)
    """What to build under (a ZeRO-3 context shards the weights as they are read)."""
    attention: str = "auto"
    """One of :data:`~ted_ds.models.execution.ATTENTION`."""
    device: torch.device | None = None
    """Where quantised weights are to be, some of which cannot be moved later."""
    config_values: Mapping[str, Any] = field(default_factory=dict)
    """Entries of its config that are to be others than in its file."""


def load_model(
    path: Path,
    settings: LoadSettings,
    *,
    head: Mapping[str, Any] | None,
    architecture: str | None = None,
    new_head_allowed: bool = False,
    share: Share | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Load the model of a local folder from safetensors.

    Args:
        path: A transformers model folder.
        settings: How it is read.
        head: Config values of the head that predictions come from (``id2label``, ``problem_type``, ...); None for an
            LM head.
        architecture: Of the model (:func:`auto_class`); unset: a causal LM, or a classifier of texts.
        new_head_allowed: Whether a head of labels, or a masked LM's, may be missing from the files and start random.
        share: What a pipeline stage needs of it: blocks of others are not read; None for all.

    Returns:
        The model, and the names of its head's weights that the files lack: they start random.

    Raises:
        CheckpointError: A weight is missing from the files, or they cannot be read.
        ConfigError: This kind of attention is not installed.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    architecture = architecture or ("CausalLM" if head is None else "SequenceClassification")
    auto = auto_class(architecture)
    kind = f"{architecture.removesuffix('Classification').lower()} classifier"
    if head is None:
        kind = f"{architecture.removesuffix('LM').lower()} LM"
    config = build_config(path, head or {})
    for name, value in settings.config_values.items():
        setattr(config, name, value)  # transformers leaves out what the class does not name, as DeBERTa's cls_dropout
    family = family_of_folder(path)
    model_class = try_to_build(path, auto, config)
    quantisation: Any = getattr(config, "quantization_config", None)
    try:
        with settings.context:
            load = auto.from_pretrained
            if share is not None:
                load = functools.partial(load_with_blocks_of, model_class, family, share)
            model, report = load(
                path,
                config=config,
                dtype=settings.dtype,
                attn_implementation=ATTENTION[settings.attention],
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                device_map=_device_map(settings.device) if quantisation else None,
                ignore_mismatched_sizes=True,  # its own message refers to a report that nobody sees: see below
                key_mapping=_leave_out_head(path, head, family),
            )
    except (ImportError, AssertionError, AttributeError, KeyError, TypeError) as error:
        if quantisation is not None:  # methods have packages and kernels of their own, which fail in ways of their own
            raise CheckpointError(f"{path}: its weights are quantised and cannot be loaded here: {error}") from error
        if settings.attention != "flash" or not isinstance(error, ImportError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"attention: {settings.attention} does not work here: {reason}; use sdpa") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be loaded as a {kind}: {error}") from error
    other_shapes = {name: (tuple(held), tuple(wanted)) for name, held, wanted in report["mismatched_keys"]}
    head_prefixes = family.new_lm_head_prefixes if head is None else family.label_head_prefixes
    missing = sorted({*report["missing_keys"], *(name for name in other_shapes if name.startswith(head_prefixes))})
    _refuse_other_shapes(path, {name: shape for name, shape in other_shapes.items() if name not in missing})
    if share is None and quantisation is None:  # else names of other blocks, and of how weights are packed, are left
        _refuse_unused(path, config.model_type, family, report["unexpected_keys"])
    of_head = [name for name in missing if name.startswith(head_prefixes)]
    body = [name for name in missing if name not in of_head]
    if body:
        raise CheckpointError(
            f"{path}: the files lack {counted(len(body), 'weight')} ({body[0]}, ...), which would be random"
        )
    if of_head and not new_head_allowed:
        raise CheckpointError(
            f"{path}: has no trained head ({of_head[0]} is missing, or of another shape); fine-tune it first "
            "(teacher.finetune)"
        )
    _train_every_row(model)
    _write_present_names(model)
    return model, of_head


def _device_map(device: torch.device | None) -> dict[str, torch.device] | None:
    """Where transformers puts all of a model that is not to be on the CPU."""
    return {"": device} if device is not None and device.type != "cpu" else None


def _train_every_row(model: nn.Module) -> None:
    """Give the embedding of ``config.json``'s ``pad_token_id`` the gradient it has.

    torch gives a ``padding_idx`` none, and that id may be the end token's or any word's. Padding itself needs no such
    exception: it is masked, and counts in no loss.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def _write_present_names(model: PreTrainedModel) -> None:
    """Let its files have the names that parameters have, and not those of early files.

    transformers writes what it has read, and under ZeRO-3 early names, whatever it has read.
    """
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        early = {*EARLY_NAMES.values()}
        conversions[:] = [one for one in conversions if early.isdisjoint(one.source_patterns)]


def _leave_out_head(path: Path, head: Mapping[str, Any] | None, family: Family) -> dict[str, str] | None:
    """Names for what is in the files of a head for other labels, under which it is not found: it starts anew.

    (transformers would see the other shapes itself, but not where ZeRO-3 shards the weights.)
    """
    if head is None or "id2label" not in head:
        return None
    rows = classifier_rows({name: tensor.shape for name, tensor in read_tensors(path).items()}, family)
    if rows in (None, len(head["id2label"])):
        return None
    return {rf"^{re.escape(prefix)}": f"of_other_labels.{prefix}" for prefix in prefixes(family.own_heads)}


def _refuse_other_shapes(path: Path, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Name the weights whose shapes in the files are not those of the model that ``config.json`` describes."""
    if shapes:
        name, (held, wanted) = min(shapes.items())
        raise CheckpointError(
            f"{path}: {counted(len(shapes), 'weight')} of other shapes than config.json describes: {name} is "
            f"{[*held]} in the "
            f"files, {[*wanted]} by config.json; use the config.json and the weights of one and the same model"
        )


def _refuse_unused(path: Path, model_type: str, family: Family, names: Iterable[str]) -> None:
    """Weights of blocks that this type of model has no place for: whoever trained them computed something else."""
    of_blocks = (name for name in names if family.block_number(name) is not None)
    unused = sorted(name for name in of_blocks if not name.endswith(family.buffers))
    if unused:
        raise CheckpointError(
            f"{path}: the files have {counted(len(unused), 'weight')} of no use to a {model_type} ({unused[0]}, ...), "
            "and "
            "without them it would be another model; use the config.json these weights were trained with"
        )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a padding token.

    Where all the folder has is a SentencePiece model, its ids are SentencePiece's own.

    Raises:
        CheckpointError: The folder has none, or a SentencePiece model that cannot be followed.
        ConfigError: It has no token to pad with.
    """
    tokenizer = read_tokenizer(path)
    if tokenizer.pad_token_id is None:
        refuse_without_padding(None, tokenizer.eos_token, whose=f"{path}: the")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder as its files say, with or without a padding token.

    Raises:
        CheckpointError: The folder has none, or a SentencePiece model that cannot be followed.
    """
    refuse_no_vocabulary(path)
    try:
        # said aloud, as transformers would ask at the terminal whether to run a folder's own code
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file leads to: the libraries raise nothing more specific
        reason = " ".join(str(error).split()) or type(error).__name__
        if (path / CONFIG_FILE).is_file():  # which says what class of tokenizer it is, and may be what is at fault
            build_config(path, {})
        raise CheckpointError(f"{path}: no tokenizer can be loaded from this folder: {reason:.300}") from error
    model = read_sentencepiece(path) if not (path / TOKENIZER_FILE).is_file() else None
    if model is not None:
        try:
            tokenizer = _as_sentencepiece_reads(path, model, tokenizer)
        except CheckpointError as error:
            raise CheckpointError(f"{path / MODEL_FILE}: {error}") from error
    return tokenizer


def _as_sentencepiece_reads(folder: Path, model: Any, guess: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The conversion of a SentencePiece model; what transformers made of its folder gives the special tokens.

    Tokens that only the guessed class has, and no file of the folder, are left out: the model has no embeddings of
    them.
    """
    backend = convert(model)
    refuse_other_ids(model, backend)
    for index, token in declared_tokens(folder, read_settings(folder)):
        content = token["content"]
        if backend.token_to_id(content) is None:
            backend.add_tokens([AddedToken(**token)])
        if backend.token_to_id(content) != index:
            raise CheckpointError(
                f"{TOKENIZER_CONFIG_FILE} gives {content!r} the id {index}, but it would be "
                f"{backend.token_to_id(content)}; number added tokens on from the model's own, without gaps"
            )
    known = backend.get_vocab()
    named = {role: token for role, token in guess.special_tokens_map.items() if token in known}
    # a plain class: those of one family put their own reading of the vocabulary in the place of this one when reloaded
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{**special_tokens(model), **named},
        add_bos_token=getattr(guess, "add_bos_token", False),
        add_eos_token=getattr(guess, "add_eos_token", False),
        chat_template=guess.chat_template,
        model_max_length=guess.model_max_length,
        clean_up_tokenization_spaces=False,
    )


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module, also when ZeRO-3 keeps them elsewhere; shared ones count once."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())
