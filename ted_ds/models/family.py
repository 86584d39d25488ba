"""What is true of a model family whatever its weights: one record, without torch.

Paths are those of the parameter names of the model with its head. Files of a bare body lack the first part of them
(``bert.``), so names in files are compared without it. :mod:`ted_ds.models.parts` finds them in a live model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a transformers model has its parts, what its files and ``config.json`` call things, and what it can do."""

    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` this family covers."""

    # --- parts
    embeddings_path: str
    """The module whose output is layer 0."""
    token_embeddings_path: str
    blocks_path: str
    """The list of blocks; block i puts out layer i + 1 (see ``behind_first_block``)."""
    arrival_path: str
    """The module in whose place the state from the pipeline stage before is put in (:mod:`ted_ds.models.partial`)."""
    before_blocks: Mapping[str, Literal["added", "passed"]] = field(default_factory=dict)
    """Other modules that only a model with embeddings runs: what they put out is added to the state, or they pass it on
    changed."""
    behind_first_block: str | None = None
    """A module that some have: it changes what the first block puts out, and puts out layer 1 itself."""
    behind_first_block_key: str | None = None
    """The entry of the config that is 0 without it."""
    behind_blocks: tuple[str, ...] = ()
    """Modules of the body that only a model with its output runs."""
    blocks_return_tuples: bool = False
    """Whether a block returns its state as the first of a tuple."""

    # --- from the last block's output to predictions
    language_model: Literal["CausalLM", "MaskedLM"] = "CausalLM"
    """What its language model is to transformers: what follows ``AutoModelFor``."""
    final_norm_path: str | None
    """Applied before the LM head; None where blocks end normalised."""
    before_lm_head: str | None = None
    """Behind the body, the module of a language model that states go through before the linear head: a linear map, an
    activation and a norm, which keep their width. Files of a body alone lack it."""
    lm_head_path: str
    """The linear LM head."""
    lm_head_switch: str | None = None
    """The entry of the config that is true, as where it is not said, where the LM head is there."""
    lm_heads_in_files: tuple[str, ...]
    """Modules that files may hold as the head of a language model."""
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
    positions: Literal["rotary", "learned", "relative"]
    """How a block knows them: by turning pairs of numbers, from a table that is added to the embeddings, or from each
    token's distance to the others (beside a table, where the files hold one)."""
    position_embeddings_path: str | None = None
    """The table."""
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

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether an LM head is the embeddings, by a ``config.json``."""
        return config.get("tie_word_embeddings", self.ties_by_default)

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
        return f"{self.lm_head_path}.weight"

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
        """The number, from 0, of the block that a parameter belongs to, in files of a bare body as well; else None."""
        found = _block(self.blocks_path).search(name)
        return None if found is None else int(found[1])

    def name_in_block(self, name: str) -> str:
        """The name of a module or parameter of a block within it."""
        found = _block(self.blocks_path).search(name)
        assert found is not None, f"{name} is in no block"
        return name[found.end() :]


def prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    """How the names of all that is in some modules begin."""
    return tuple(f"{path}." for path in paths)


def path_in_body(path: str) -> str:
    """A path in the body alone, without the head around it."""
    return path.split(".", 1)[1]


@functools.cache
def _block(path: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.){re.escape(path.rpartition('.')[2])}\.(\d+)\.")
