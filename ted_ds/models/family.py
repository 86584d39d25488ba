"""What is true of a model family whatever its weights: one record, without torch.

Paths are those of the parameter names of the model with its head. Files of a bare body lack the first part of them
(``bert.``), so names in files are compared without it. :mod:`ted_ds.models.parts` finds them in a live model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ted_ds.models.family_traits import AttentionMaps, Dropouts, Mixtures, OutputMaps, TokenTypes
from ted_ds.models.units import Units

ENCODER, DECODER = STACKS = ("encoder", "decoder")
"""The stacks of blocks of an encoder-decoder, in the order in which it runs them."""
USES = (
    "cut",
    "zero3",
    "pipeline",
    "isolated documents",
    "padding on the left",
    "activation checkpointing",
    "int8",
    "adapters",
    "torch_compile",
    "heal",
    "drop",
)
"""What a family may be refused for (:attr:`Family.refused`). To ``drop``, which nobody asks for and is then not done,
is to leave out the blocks above the last that is matched."""


@dataclass(frozen=True, kw_only=True)
class Family(AttentionMaps, Mixtures, Dropouts, OutputMaps, TokenTypes, Units):
    """Where a transformers model has its parts, what its files and ``config.json`` call things, and what it can do."""

    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` this family covers."""

    # --- parts
    embeddings_path: str | None
    """The module whose output is layer 0 (but see ``behind_embeddings``); None where no module puts it out, and the
    first block is what takes it."""
    behind_embeddings: str | None = None
    """A module that some have: it takes embeddings to the width of the blocks, and puts out layer 0 itself."""
    token_embeddings_path: str
    blocks_path: str
    """The list of blocks; block i puts out layer i + 1 (see ``behind_first_block`` and ``num_shared_key``). Of two
    stacks, the encoder's."""
    decoder_blocks_path: str | None = None
    """The list of the decoder's blocks in an encoder-decoder; None in models of one stack."""
    decoder_depth_key: str | None = None
    """The entry of the config with the number of these; as many as the encoder's where it does not say."""
    body_has_own_name: bool = True
    """Whether all of the body lies in one module of a model with a head, whose name begins all of its paths."""
    parts_of_first_block: tuple[str, ...] = ()
    """Modules of a block that the first of a stack alone has, and computes for all of them."""
    flags_of_first_block: tuple[str, ...] = ()
    """What its modules say of that."""
    is_stack: bool = False
    """Whether it stands for one stack of two (:attr:`stacks`)."""
    num_shared_key: str | None = None
    """The entry of the config that says how many blocks there are where several layers are put out by each, one after
    the other (:meth:`block_of_layers`); None where each layer has a block of its own."""
    has_short_first_block: bool = False
    """Whether the first block lacks a part that all others have, so that none of them can stand in its place."""
    unstaged: str | None = None
    """Why a model cannot be cut into stages of a pipeline; None where it can."""
    arrival_path: str
    """The module in whose place the state from the pipeline stage before is put in (:mod:`ted_ds.models.partial`)."""
    before_blocks: Mapping[str, Literal["added", "passed"]] = field(default_factory=dict)
    """Other modules that only a model with embeddings runs: what they put out is added to the state, or they pass it on
    changed."""
    embeddings_factor_path: str | None = None
    """The number of the body by which it multiplies what the embeddings put out: 1 where the state arrives."""
    behind_first_block: str | None = None
    """A module that some have: it changes what the first block puts out, and puts out layer 1 itself."""
    behind_first_block_key: str | None = None
    """The entry of the config that is 0 without it."""
    behind_blocks: tuple[str, ...] = ()
    """Modules of the body that only a model with its output runs."""
    blocks_return_tuples: bool = False
    """Whether a block returns its state as the first of a tuple."""

    # --- from the last block's output to predictions
    language_model: Literal["CausalLM", "MaskedLM", "Seq2SeqLM"] = "CausalLM"
    """What its language model is to transformers: what follows ``AutoModelFor``."""
    final_norm_path: str | None
    """Applied before the LM head; None where blocks end normalised. Some models of a family may lack it."""
    behind_norm_path: str | None = None
    """A map of the body behind that norm, which some models have: to the width of their embeddings."""
    before_lm_head: tuple[str, ...] = ()
    """Behind the body, the modules of a language model that states go through, one after the other, before the linear
    head: a linear map (to the width of the token embeddings), an activation and a norm, or one module of all three.
    Files of a body alone lack them."""
    lm_activation: str | None = None
    """Transformers' name of the activation behind the first of these modules, where it is no module itself."""
    lm_head_path: str
    """The linear LM head."""
    unread_lm_bias: str | None = None
    """A second bias of that head which is the first one where the head is tied to the embeddings, and unread else."""
    lm_head_bias: str | None = None
    """Where the LM head is no module: its bias, beside the matrix of the token embeddings. The head then stands at
    ``lm_head_path`` all the same, once :func:`ted_ds.models.parts.give_lm_head` has put it there."""
    lm_head_switch: str | None = None
    """The entry of the config that is false where the LM head is another one."""
    switched_off: Mapping[str, Any] = field(default_factory=dict)
    """What is otherwise then, by the names of these fields."""
    lm_bias_keys: Mapping[str, bool] = field(default_factory=dict)
    """The entries of the config that say whether a masked LM's linear map behind its body, the norm there and its LM
    head have biases, and what goes where it does not say; empty where all have."""
    lm_head_in_files: str | None = None
    """What files call that head where transformers renames it as it reads and writes them."""
    logits_divisor_key: str | None = None
    """The entry of the config that the head's products are divided by."""
    divides_logits_key: str | None = None
    """The entry of the config that is true where they are divided by the root of the hidden size."""
    logits_bias_path: str | None = None
    """What is added to them: a buffer of the model, ``[1, vocab]``, or a parameter beside its LM head, ``[vocab]``."""
    logits_factor_key: str | None = None
    """The entry of the config that they are multiplied by."""
    logits_cap_key: str | None = None
    """The entry of the config with the bound ``c`` that logits are brought under: ``c tanh(logits / c)``; none where it
    is null."""
    lm_heads_in_files: tuple[str, ...]
    """Modules that files may hold as the head of a language model."""
    is_untied_by_files: bool = False
    """Whether transformers ties them anyhow, unless the files hold an LM head of its own."""
    ties_by_default: bool
    """Whether the embeddings are the LM head where the config does not say."""
    label_heads: tuple[str, ...]
    """The modules that put out logits of labels: a text's, and a token's where transformers calls that otherwise."""
    span_head: str | None = None
    """The module that puts out where an answer starts and ends; None where transformers has no such model of the
    family, or one in which other modules are not where they are here."""
    before_label_head: tuple[str, ...] = ()
    """Modules between the body's states and a head, which files of a body that never had labels lack as well. Some may
    stand before the LM head, too."""
    pooled_token: Literal["first", "last"]
    """Which kept token a label is read at. The forward of transformers' models that read the ``first`` does that;
    where it is the ``last``, the label head's logits are read here (:mod:`ted_ds.models.taps`)."""
    pooling_key: str | None = None
    """The entry of the config that is ``mean`` where transformers' forward reads a label at the mean of all tokens."""

    lacks: tuple[str, ...] = ()
    """Heads that transformers has no class of with this family (what follows ``AutoModelFor``)."""

    # --- what it does
    attention: tuple[str, ...] = ("eager", "sdpa", "flash")
    """The implementations it has, by the recipe's words."""
    finds_documents: bool = True
    """Whether its masks keep apart documents of a row by where positions start again."""
    positions: Literal["rotary", "learned", "relative"]
    """How a block knows them: by turning pairs of numbers, from a table that is added to the embeddings, or from each
    token's distance to the others (beside a table, where the files hold one)."""
    position_embeddings_path: str | None = None
    """The table."""
    positions_lost: int = 0
    """How many of the positions that the config names no text has, as rows of the table before them are not used."""
    rows_before_positions: int = 0
    """How many rows it has before that of the first position, beside one for each position."""
    padding_row: int | None = None
    """Of that table, the row of padding, where the first token has the row behind it; None where it has row 0."""
    padding_row_key: str | None = None
    """The entry of the config that says which row it is instead."""

    # --- config.json
    own_names: Mapping[str, str] = field(default_factory=dict)
    """This family's names for entries that transformers calls otherwise in general (its ``attribute_map``)."""
    block_kinds: tuple[str, ...] | None = None
    """What ``layer_types`` may say of a block; None where it is not read."""
    embedding_width: int | None = None
    """How wide token embeddings are where the config does not say (``embedding_size``); None: as wide as the blocks."""
    first_blocks_keys: tuple[str, ...] = ("max_window_layers", "first_k_dense_replace")
    """Entries that say how many of the first blocks differ from the others."""
    inverse_number_key: str | None = None
    """The entry by which a block divides its attention scores by its number, counted from 1."""
    fused_queries: tuple[str, ...] = ()
    """Of such a block, the parameters that hold its queries first, then as many keys and values."""
    must_be: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Entries that may only have this value, or none; and why, and what to do."""
    entries_by_default: Mapping[str, int] = field(default_factory=dict)
    """What entries come to where the config does not say, by transformers' general names."""

    # --- what it is not used for
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why not, by what it would be used for: a word of :data:`USES`, or an architecture (what follows
    ``AutoModelFor``)."""
    found: tuple[str, ...] = ()
    """What was found of a family that has no record in :mod:`ted_ds.models.families`, in lines."""

    # --- other files
    buffers: tuple[str, ...] = ()
    """Ends of names of what is in many files, but no parameter."""
    tokenizer_class: str | None = None
    """The class of transformers that loads the tokenizer, where its files name none and that class has tokens of its
    own (:mod:`ted_ds.models.tokenizer_files`)."""
    believes_tokenizer_files: bool = True
    """Whether transformers takes the class that the tokenizer's files name."""

    def keys(self, name: str) -> tuple[str, ...]:
        """The names that an entry may have in ``config.json``: transformers' general one first, then the family's."""
        return (name, self.own_names[name]) if name in self.own_names else (name,)

    def entry(self, config: Mapping[str, Any], name: str) -> tuple[str, Any]:
        """An entry of a ``config.json`` by transformers' general name: the name it has there, and its value.

        Under the general name the family's default, or None, where the file does not say.
        """
        said = ((key, config[key]) for key in self.keys(name) if config.get(key) is not None)
        return next(said, (name, self.entries_by_default.get(name)))

    def as_configured(self, config: Mapping[str, Any]) -> Family:
        """What is true of a model with this ``config.json``: the family, or with another LM head."""
        is_off = self.lm_head_switch is not None and config.get(self.lm_head_switch) is False
        return replace(self, **self.switched_off) if is_off else self

    def is_tied(self, config: Mapping[str, Any], names: Iterable[str] = ()) -> bool:
        """Whether an LM head is the embeddings, by a ``config.json`` and the ``names`` of what is in the files."""
        if self.is_untied_by_files:
            return self.lm_head_matrix not in names
        return self.lm_head_bias is not None or config.get("tie_word_embeddings", self.ties_by_default)

    def row_of_padding(self, config: Mapping[str, Any]) -> int | None:
        """Of the table of positions, the row behind which the first token's stands, by a ``config.json``."""
        said = config.get(self.padding_row_key or "")
        return self.padding_row if said is None else int(said)

    def width_of_embeddings(self, config: Mapping[str, Any]) -> int | None:
        """How wide the token embeddings are, by a ``config.json``; None where it does not say."""
        return self.entry(config, "embedding_size")[1] or self.embedding_width or self.entry(config, "hidden_size")[1]

    def block_of_layers(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The number, from 0, of the block that puts out each layer behind the embeddings, by a ``config.json``.

        Those of a decoder follow those of its encoder. Where ``G`` blocks put out ``L`` layers, layer ``i`` (from 0) is
        that of block ``int(i / (L / G))``, as transformers reckons for ALBERT (Lan et al. 2020, section 3.1, is where
        blocks are shared).
        """
        depth = sum(int(one) for one in self.depths(config).values() if one is not None)
        held = depth if self.num_shared_key is None else int(config.get(self.num_shared_key) or 1)
        return blocks_by_layer(depth, held)

    def lm_biases(self, config: Mapping[str, Any]) -> tuple[bool, ...]:
        """Whether a masked LM's linear map behind its body, the norm there and its LM head have biases."""
        return tuple(config.get(key, default) for key, default in self.lm_bias_keys.items()) or (True, True, True)

    @property
    def lm_head_matrix(self) -> str:
        """The name of the LM head's matrix, ``[vocab, hidden]``, in files."""
        return f"{self.lm_head_in_files or self.lm_head_path}.weight"

    @property
    def new_lm_head_prefixes(self) -> tuple[str, ...]:
        """How names of parameters begin that a body alone lacks and a language model has, where such may start new."""
        return prefixes(self.lm_heads_in_files) if self.before_lm_head else ()

    @property
    def label_head_prefixes(self) -> tuple[str, ...]:
        """How names of parameters begin that a body without labels lacks."""
        return prefixes((*self.own_heads, *self.before_label_head))

    @property
    def own_heads(self) -> tuple[str, ...]:
        """Every module that may be a head of a task's own."""
        return (*self.label_heads, *([] if self.span_head is None else [self.span_head]))

    def block_number(self, name: str) -> int | None:
        """The number, from 0, of the block that a parameter belongs to, in files of a bare body as well; else None.

        Of an encoder-decoder, its number in its own stack.
        """
        found = self._beginning_in_block(name)
        return None if found is None else int(found[1])

    @property
    def is_stacked(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return self.decoder_blocks_path is not None

    @property
    def stacks(self) -> dict[str, Family]:
        """Of an encoder-decoder, by the names of its stacks: the same with that stack's blocks alone.

        Of a model of one stack, itself, without a name.
        """
        if self.decoder_blocks_path is None or self.decoder_depth_key is None:
            return {"": self}
        one = replace(self, decoder_blocks_path=None, decoder_depth_key=None, is_stack=True)
        depths = {**self.own_names, "num_hidden_layers": self.decoder_depth_key}
        return {ENCODER: one, DECODER: replace(one, blocks_path=self.decoder_blocks_path, own_names=depths)}

    def depths(self, config: Mapping[str, Any]) -> dict[str, int | None]:
        """How many blocks each stack has, by a ``config.json``; None where it does not say."""
        said: dict[str, int | None] = {}
        for name, stack in self.stacks.items():
            key = stack.own_names.get("num_hidden_layers", "num_hidden_layers")
            said[name] = config.get(key) if stack.is_stack else stack.entry(config, "num_hidden_layers")[1]
        if said.get(DECODER, 0) is None:
            said[DECODER] = said[ENCODER]
        return said

    def path_in_body(self, path: str) -> str:
        """A path in the body alone, without the head around it."""
        return path_in_body(path) if self.body_has_own_name else path

    def name_in_block(self, name: str) -> str:
        """The name of a module or parameter of a block within it."""
        found = self._beginning_in_block(name)
        assert found is not None, f"{name} is in no block"
        return name[found.end() :]

    def _beginning_in_block(self, name: str) -> re.Match[str] | None:
        paths = (self.blocks_path, self.decoder_blocks_path)
        found = (_block(path, self.is_stacked or self.is_stack).search(name) for path in paths if path is not None)
        return next((one for one in found if one is not None), None)


def prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    """How the names of all that is in some modules begin."""
    return tuple(f"{path}." for path in paths)


def blocks_by_layer(num_layers: int, num_blocks: int) -> tuple[int, ...]:
    """The number of the block that puts out each layer, where several layers may be put out by one."""
    return tuple(int(layer / (num_layers / num_blocks)) for layer in range(num_layers))


def path_in_body(path: str) -> str:
    """A path in the body alone, without the head around it."""
    return path.split(".", 1)[1]


@functools.cache
def _block(path: str, is_stack: bool) -> re.Pattern[str]:
    end = ".".join(path.split(".")[-2 if is_stack else -1 :])
    return re.compile(rf"(?:^|\.){re.escape(end)}\.(\d+)\.")
