"""What a model folder's files say about the model, read without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.adapter_folder import ADAPTER_WEIGHTS, BEFORE_ADAPTED, AdapterFolder, read_adapter
from ted_ds.models.config_agreement import Shape, classifier_rows, refuse_other_shapes, token_ids
from ted_ds.models.config_values import refuse_odd_values
from ted_ds.models.family import DECODER, ENCODER, Family, prefixes
from ted_ds.models.folder import CONFIG_FILE, read_config
from ted_ds.models.found import family_of_config
from ted_ds.models.model_file import read_json
from ted_ds.models.packed import Quantisation, read_quantisation, unpack
from ted_ds.models.parameters import Parameters, behind_the_body, sort_parameters
from ted_ds.models.rope_rules import rope_rules
from ted_ds.models.tensor_files import read_header, read_tensors

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
    """Of the token embeddings, or of what an LM head of its own takes."""
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
    dropped: Mapping[str, float] = field(default_factory=dict)
    """The probabilities of dropout that its config names, by their keys there."""
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
    """Read ``config.json`` and make sure that the weight files are whole; of an adapter's folder, those of its base.

    Raises:
        CheckpointError: This is no folder of a known model; a file is missing or damaged, or the config is of another
            model than the weights.
    """
    adapter = read_adapter(folder)
    if adapter is not None:
        return _with_adapter(adapter)
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
        has_lm_head=has_lm_head(shapes, family, is_tied=facts.is_tied),
        token_ids=ids,
    )


def _with_adapter(adapter: AdapterFolder) -> ModelFacts:
    """Of what an adapter and its base will be once they are merged."""
    base, saved = read_model_facts(adapter.base), read_header(adapter.folder / ADAPTER_WEIGHTS)
    if base.quantisation is not None:
        raise CheckpointError(
            f"{adapter.folder}: an adapter beside quantised weights ({base.quantisation}), into which none is merged; "
            "give base_model_name_or_path in its adapter_config.json the model in 16 or 32 bits they were made from"
        )
    names = {name.removeprefix(BEFORE_ADAPTED): tensor.shape for name, tensor in saved.items()}
    head = {name: shape for name, shape in names.items() if name.startswith(prefixes(base.family.own_heads))}
    if not head:
        return base
    parameters = base.parameters
    if not parameters.label_heads:
        parameters = replace(parameters, others=(*parameters.others, *head.values()), label_heads=tuple(head.values()))
    rows = classifier_rows(head, base.family)
    return replace(
        base,
        parameters=parameters,
        has_classifier=True,
        classifier_rows=rows,
        num_labels=rows,
        labels=None,
        architectures=(),
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


def has_lm_head(shapes: Mapping[str, Shape], family: Family, *, is_tied: bool) -> bool:
    """Whether parameters of these names hold an LM head with all that belongs to it, or the embeddings are one."""
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
    is_tied = family.is_tied(config, shapes)
    # an LM head of its own may be of another width than the embeddings
    of_head = None if is_tied else shapes.get(family.lm_head_matrix)
    matrix = (vocab_size, int(of_head[1] if of_head else family.width_of_embeddings(config) or width))
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
        is_tied=is_tied,
        has_other_lm_head=config.get(family.lm_head_switch or "", True) is False,
        num_encoder_blocks=depths.get(ENCODER),
        decoder_start_id=config.get("decoder_start_token_id"),
        rope_rules=rope_rules(config),
        num_token_types=family.num_token_types(config),
        num_experts=family.num_experts(config)[0],
        num_chosen_experts=family.num_experts(config)[1],
        balance_weight=family.balance_weight(config),
        dropped={key: float(config[key]) for key in family.block_dropouts if config.get(key)},
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
