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

ENCODER, DECODER = STACKS = ("encoder", "decoder")
"""The stacks of blocks of an encoder-decoder, in the order in which it runs them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a transformers model has its parts, what its files and ``config.json`` call things, and what it can do."""

    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` this family covers."""

    # --- parts
    embeddings_path: str | None
    """The module whose output is layer 0; None where no module puts it out, and the first block is what takes it."""
    token_embeddings_path: str
    blocks_path: str
    """The list of blocks; block i puts out layer i + 1 (see ``behind_first_block``). Of two stacks, the encoder's."""
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
    before_lm_head: str | None = None
    """Behind the body, the module of a language model that states go through before the linear head: a linear map, an
    activation and a norm, which keep their width. Files of a body alone lack it."""
    lm_head_path: str
    """The linear LM head."""
    lm_head_switch: str | None = None
    """The entry of the config that is true, as where it is not said, where the LM head is there."""
    lm_head_in_files: str | None = None
    """What files call that head where transformers renames it as it reads and writes them."""
    logits_divisor_key: str | None = None
    """The entry of the config that the head's products are divided by."""
    divides_logits_key: str | None = None
    """The entry of the config that is true where they are divided by the root of the hidden size."""
    logits_bias_path: str | None = None
    """A buffer of the model, ``[1, vocab]``, that is added to them."""
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
    """Modules between the body's states and a head, which files of a body that never had labels lack as well."""
    pooled_token: Literal["first", "last"]
    """Which kept token a label is read at. The forward of transformers' models that read the ``first`` does that;
    where it is the ``last``, the label head's logits are read here (:mod:`ted_ds.models.taps`)."""

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
    longest: int | None = None
    """The longest sequence where nothing in the config or the weights limits it."""
    rows_before_positions: int = 0
    """How many rows it has before that of the first position, beside one for each position."""
    token_types_key: str | None = None
    """The entry of the config that says how many types of tokens it tells apart by embeddings: those of the two texts
    of a pair, as a rule; None where it has no such embeddings."""
    token_types_by_default: int = 0
    """How many where the config does not say."""

    # --- config.json
    own_names: Mapping[str, str] = field(default_factory=dict)
    """This family's names for entries that transformers calls otherwise in general (its ``attribute_map``)."""
    block_kinds: tuple[str, ...] | None = None
    """What ``layer_types`` may say of a block; None where it is not read."""
    first_blocks_keys: tuple[str, ...] = ("max_window_layers", "first_k_dense_replace")
    """Entries that say how many of the first blocks differ from the others."""
    hidden_dropouts: tuple[str, ...] = ()
    """Entries with the probabilities that states are dropped by."""
    attention_dropouts: tuple[str, ...] = ()
    """Those that attention is dropped by."""
    label_dropouts: Mapping[str, str] = field(default_factory=dict)
    """That before a head of labels, by the model's architecture (what follows ``AutoModelFor``)."""
    inverse_number_key: str | None = None
    """The entry by which a block divides its attention scores by its number, counted from 1."""
    fused_queries: tuple[str, ...] = ()
    """Of such a block, the parameters that hold its queries first, then as many keys and values."""
    must_be: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Entries that may only have this value, or none; and why, and what to do."""

    # --- mixtures of experts
    num_experts_keys: tuple[str, ...] = ()
    """The names of the entry that says how many experts a block has; none where blocks have no experts."""
    num_chosen_key: str = "num_experts_per_tok"
    """The entry that says how many of them each token goes through."""
    sparse_step_key: str | None = None
    """The entry by which only each so many-th block has experts."""
    dense_blocks_key: str | None = None
    """The entry that lists blocks without experts, whatever that says."""
    expert_marker: str = ".experts."
    """In the names of what belongs to experts, in files and in a model."""
    balance_switch: str = "output_router_logits"
    """The entry by which a language model adds its routers' auxiliary loss to its own."""
    balance_weight_key: str = "router_aux_loss_coef"
    """The entry with the weight of that loss."""
    balance_weight_by_default: float = 0.001
    """That weight where the config does not say."""

    is_stack: bool = False
    """Whether it stands for one stack of two (:attr:`stacks`)."""

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

        None, under the general name, where the file does not say.
        """
        said = ((key, config[key]) for key in self.keys(name) if config.get(key) is not None)
        return next(said, (name, None))

    def is_tied(self, config: Mapping[str, Any], names: Iterable[str] = ()) -> bool:
        """Whether an LM head is the embeddings, by a ``config.json`` and the ``names`` of what is in the files."""
        if self.is_untied_by_files:
            return self.lm_head_matrix not in names
        return config.get("tie_word_embeddings", self.ties_by_default)

    def balance_weight(self, config: Mapping[str, Any]) -> float:
        """The weight of the routers' auxiliary loss, by a ``config.json``; 0 where a language model goes without."""
        if not self.num_experts_keys or not config.get(self.balance_switch):
            return 0.0
        return float(config.get(self.balance_weight_key, self.balance_weight_by_default))

    def num_experts(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """How many experts a block of such a model has, and how many of them a token goes through; 0 without."""
        held = next((config[key] for key in self.num_experts_keys if config.get(key) is not None), 0)
        return held, config.get(self.num_chosen_key, 0) if held else 0

    def with_experts_together(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The tensors of files as a live model has them: those of a block's experts are one, ``[experts, ...]``."""
        if not self.num_experts_keys:
            return dict(shapes)
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            together, is_one = re.subn(rf"{re.escape(self.expert_marker)}\d+\.", self.expert_marker, name)
            count = found[together][0] if together in found else 0
            found[together] = (count + 1, *shape) if is_one else shape
        return found

    def num_token_types(self, config: Mapping[str, Any]) -> int:
        """How many types of tokens a model tells apart, by a ``config.json``."""
        if self.token_types_key is None:
            return 0
        return int(config.get(self.token_types_key, self.token_types_by_default))

    def dropout_keys(self, what: str, architecture: str) -> tuple[str, ...]:
        """The entries of the config with the dropout of ``hidden`` states, ``attention`` or the ``classifier``.

        None where models of this architecture have no such dropout.
        """
        if what == "classifier":
            return (self.label_dropouts[architecture],) if architecture in self.label_dropouts else ()
        return self.hidden_dropouts if what == "hidden" else self.attention_dropouts

    @property
    def lm_head_matrix(self) -> str:
        """The name of the LM head's matrix, ``[vocab, hidden]``, in files."""
        return f"{self.lm_head_in_files or self.lm_head_path}.weight"

    @property
    def new_lm_head_prefixes(self) -> tuple[str, ...]:
        """How names of parameters begin that a body alone lacks and a language model has, where such may start new."""
        return () if self.before_lm_head is None else prefixes(self.lm_heads_in_files)

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
        paths = (self.blocks_path, self.decoder_blocks_path)
        found = (_block(path, self.is_stacked or self.is_stack).search(name) for path in paths if path is not None)
        return next((int(one[1]) for one in found if one is not None), None)

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


def prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    """How the names of all that is in some modules begin."""
    return tuple(f"{path}." for path in paths)


def path_in_body(path: str) -> str:
    """A path in the body alone, without the head around it."""
    return path.split(".", 1)[1]


@functools.cache
def _block(path: str, is_stack: bool) -> re.Pattern[str]:
    end = ".".join(path.split(".")[-2 if is_stack else -1 :])
    return re.compile(rf"(?:^|\.){re.escape(end)}\.(\d+)\.")
