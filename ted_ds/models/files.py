"""What a model folder's files say about the model, read without torch."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.config_agreement import Shape, classifier_rows, refuse_other_shapes, token_ids
from ted_ds.models.config_values import refuse_odd_values
from ted_ds.models.family import DECODER, ENCODER, Family, prefixes
from ted_ds.models.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, no_weights, read_config
from ted_ds.models.found import family_of_config
from ted_ds.models.model_file import read_json, refuse_pointer
from ted_ds.models.packed import Quantisation, Stored, read_quantisation, unpack
from ted_ds.models.parameters import Parameters, behind_the_body, sort_parameters
from ted_ds.models.rope_rules import rope_rules

MAX_HEADER_BYTES = 100_000_000
READ_AT_ONCE = 1 << 24
GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True)
class ModelFacts:
    """The part of ``config.json`` that a plan needs."""

    model_type: str
    num_blocks: int
    """Of both stacks together, where there are two."""
    hidden_size: int
    num_heads: int
    vocab_size: int
    embedding_width: int
    """Of the token embeddings."""
    max_positions: int
    """How many tokens a sequence may have."""
    labels: tuple[str, ...] | None
    """Label names by id; None where they are the meaningless LABEL_0, LABEL_1, ..."""
    num_labels: int | None
    """None where the config does not say."""
    architectures: tuple[str, ...]
    parameters: Parameters
    family: Family
    """What is true of all models of its type, or of those with its config."""
    has_classifier: bool = True
    """Whether the weights hold a head for whole texts."""
    classifier_rows: int | None = None
    """For how many labels; None where it has no matrix of a known name."""
    has_lm_head: bool = True
    """Whether they hold an LM head with all that belongs to it, or the embeddings are one."""
    is_tied: bool = True
    """Whether the matrix of an LM head is the embeddings."""
    has_other_lm_head: bool = False
    """Whether its config says that the LM head is its family's other one."""
    behind_body: tuple[Shape, ...] = ()
    """What it has behind its body as a masked LM, but for the matrix of its LM head."""
    token_ids: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    """Ids of special tokens that ``config.json`` and ``generation_config.json`` name, by file and key."""
    num_encoder_blocks: int | None = None
    """Those of the first stack, where there are two; None in others."""
    decoder_start_id: int | None = None
    """The token with which a decoder starts; None where the config does not say."""
    rope_rules: tuple[str, ...] = ()
    """How rotary positions come about."""
    num_token_types: int = 0
    """How many types of tokens it tells apart; see :attr:`~ted_ds.models.family.Family.token_types_key`."""
    num_experts: int = 0
    """Of a block that is a mixture of experts."""
    num_chosen_experts: int = 0
    """Of these, those that a token goes through."""
    balance_weight: float = 0.0
    """Of its routers' auxiliary loss, in a language model (:meth:`~ted_ds.models.family.Family.balance_weight`)."""
    quantisation: Quantisation | None = None
    """How the files hold the weights of blocks; None where every number is in 16 or 32 bits."""

    @property
    def blocks_of_stacks(self) -> dict[str, int]:
        """How many blocks the encoder and the decoder of an encoder-decoder have; of others, all, under no name."""
        if self.num_encoder_blocks is None:
            return {"": self.num_blocks}
        return {ENCODER: self.num_encoder_blocks, DECODER: self.num_blocks - self.num_encoder_blocks}

    @property
    def as_language_model(self) -> Parameters:
        """Its parameters as a language model, which may begin with a new head."""
        if not self.family.before_lm_head:
            return self.parameters
        matrix = (self.vocab_size, self.embedding_width)
        return self.parameters.as_masked_lm(self.behind_body, matrix=matrix, is_tied=self.is_tied)

    @property
    def as_classifier(self) -> Parameters:
        """Its parameters as a model with labels, but for a head that its files lack."""
        shared = {*self.family.before_lm_head} & {*self.family.before_label_head}
        return self.parameters.as_classifier(keeps_transform=bool(shared))


def read_model_facts(folder: Path) -> ModelFacts:
    """Read ``config.json`` and make sure that the weight files are whole.

    Raises:
        CheckpointError: This is no folder of a known model; a file is missing or damaged, or the config is of another
            model than the weights.
    """
    config = read_config(folder)
    family = family_of_config(config, folder / CONFIG_FILE)
    with placed_in(folder / CONFIG_FILE):
        quantisation = read_quantisation(config)
        facts_by(config, {}, family)  # what is wrong with it comes before what is wrong with the weights
        refuse_odd_values(config, family)
    tensors = read_tensors(folder)
    shapes, packed, outside = unpack(tensors, quantisation, family)
    facts = facts_by(config, shapes, family)
    plain = {name: shape for name, shape in shapes.items() if name not in outside}
    refuse_other_shapes(config, plain, family, folder=folder)
    label_heads = prefixes(family.own_heads)
    ids = {CONFIG_FILE: token_ids(config), GENERATION_CONFIG_FILE: token_ids(read_generation_config(folder))}
    return replace(
        facts,
        parameters=replace(facts.parameters, packed=packed),
        quantisation=quantisation and replace(quantisation, outside_blocks=outside),
        has_classifier=any(name.startswith(label_heads) for name in shapes),
        classifier_rows=classifier_rows(shapes, family),
        has_lm_head=_has_lm_head(shapes, family, is_tied=facts.is_tied),
        token_ids=ids,
    )


@contextlib.contextmanager
def placed_in(file: Path) -> Iterator[None]:
    """Put the file before each line of what is wrong in it.

    Raises:
        CheckpointError: Something is, or it is no config of a model.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a transformers model config ({error!r})") from error


def _has_lm_head(shapes: Mapping[str, Shape], family: Family, *, is_tied: bool) -> bool:
    if not family.before_lm_head:
        return is_tied or any(name.startswith(prefixes(family.lm_heads_in_files)) for name in shapes)
    has_matrix = is_tied or family.lm_head_matrix in shapes
    return has_matrix and any(name.startswith(prefixes(family.before_lm_head)) for name in shapes)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of ``generation_config.json``; empty where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    file = folder / GENERATION_CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error}); copy it again, or remove it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not an object; copy it again, or remove it")
    return content


def facts_by(config: dict[str, Any], shapes: Mapping[str, Shape], family: Family) -> ModelFacts:
    """What a config says of a model with parameters of these shapes.

    Raises:
        KeyError: The config lacks what every model has.
    """

    def said(name: str) -> Any:
        _, value = family.entry(config, name)
        if value is None:
            raise KeyError("depth, width, attention heads or longest sequence is missing")
        return value

    said("num_hidden_layers")
    depths = {name: int(depth or 0) for name, depth in family.depths(config).items()}
    labels = _labels(config.get("id2label"))
    row_of_padding = family.row_of_padding(config)
    before_first_position = 0 if row_of_padding is None else row_of_padding + 1
    classifies = any("Classification" in name for name in config.get("architectures") or ())
    width, vocab_size = int(said("hidden_size")), int(config["vocab_size"])
    matrix = (vocab_size, int(family.width_of_embeddings(config) or width))
    parameters = sort_parameters(shapes, config, family)
    return ModelFacts(
        model_type=config["model_type"],
        num_blocks=sum(depths.values()),
        hidden_size=width,
        num_heads=int(said("num_attention_heads")),
        vocab_size=vocab_size,
        embedding_width=matrix[1],
        max_positions=int(said("max_position_embeddings")) - before_first_position - family.positions_lost,
        labels=labels if labels and any(name != f"LABEL_{i}" for i, name in enumerate(labels)) else None,
        num_labels=len(labels) or (2 if classifies else None),  # transformers leaves its default of two out
        architectures=tuple(config.get("architectures") or ()),
        parameters=parameters,
        behind_body=behind_the_body(config, family, parameters.before_lm_head, width=width, matrix=matrix),
        family=family,
        is_tied=family.is_tied(config, shapes),
        has_other_lm_head=config.get(family.lm_head_switch or "", True) is False,
        num_encoder_blocks=depths.get(ENCODER),
        decoder_start_id=config.get("decoder_start_token_id"),
        rope_rules=rope_rules(config),
        num_token_types=family.num_token_types(config),
        num_experts=family.num_experts(config)[0],
        num_chosen_experts=family.num_experts(config)[1],
        balance_weight=family.balance_weight(config),
    )


def _labels(id2label: Any) -> tuple[str, ...]:
    """Label names by id.

    Raises:
        CheckpointError: They are not given as ``{"0": NAME, "1": NAME, ...}``.
    """
    rule = 'and has to name the labels by ids from 0 without gaps, as {"0": NAME, "1": NAME, ...}; correct it'
    if id2label is None:
        return ()
    if not isinstance(id2label, Mapping):
        raise CheckpointError(f"id2label is {id2label!r:.200}, {rule}")
    by_id: dict[int, str] = {}
    for key, name in id2label.items():
        if not (key.isascii() and key.isdigit() and isinstance(name, str)) or int(key) in by_id:
            raise CheckpointError(f"id2label has {key!r}: {name!r}, {rule}")
        by_id[int(key)] = name
    missing = next((index for index in range(len(by_id)) if index not in by_id), None)
    if missing is not None:
        raise CheckpointError(f"id2label has no {missing}, but {max(by_id)}, {rule}")
    return tuple(by_id[index] for index in range(len(by_id)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a model, as transformers chooses them: ``model.safetensors``, or the index's.

    (Some hub folders hold the same weights once more in another naming.)

    Raises:
        CheckpointError: There are none, or the index is damaged or names a missing file.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    files = sorted({folder / name for name in _read_index(folder).values()})
    if not files:
        raise CheckpointError(f"{folder}: {no_weights(folder)}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, but {INDEX_FILE} names it")
    return files


def _read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index says; empty where there is none, or no need for one."""
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        return {}
    try:
        weight_map = dict(read_json(index)["weight_map"])
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: damaged ({error!r}); copy it again") from error
    return weight_map


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model; makes sure that its files are whole and hold what the index says."""
    of_files = {file.name: _read_header(file) for file in weight_files(folder)}
    for name, file in _read_index(folder).items():
        if name not in of_files[file]:
            raise CheckpointError(
                f"{folder / INDEX_FILE}: says that {name} is in {file}, which has no such tensor; copy both again"
            )
    return {name: tensor for tensors in of_files.values() for name, tensor in tensors.items()}


def read_ahead(folder: Path, most_bytes: int) -> None:
    """Bring a model's weights into the system's memory of files, where the ranks of a host then find them.

    Nothing is read if they are larger than ``most_bytes``: the first would be gone before the last came.
    """
    files = weight_files(folder)
    if sum(file.stat().st_size for file in files) > most_bytes:
        return
    for file in files:
        with file.open("rb", buffering=0) as weights:
            while weights.read(READ_AT_ONCE):
                pass


def _read_header(file: Path) -> dict[str, Stored]:
    """A file's tensors; makes sure that it is whole."""
    refuse_pointer(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as weights:
            (header_size,) = struct.unpack("<Q", weights.read(8))
            if not 0 < header_size <= min(size, MAX_HEADER_BYTES):
                raise ValueError("impossible header size")
            header = json.loads(weights.read(header_size))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {name: Stored(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error})") from error
    if size != 8 + header_size + end:
        raise CheckpointError(
            f"{file}: {size} bytes, but its header describes {8 + header_size + end}; it is damaged: copy it again"
        )
    return tensors
