"""Model families: where a transformers model keeps its embeddings, blocks, final norm and head.

To add one, write a :class:`Family` and list its model types; ``tests/parity/test_families.py`` then holds it against
the plain transformers forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from ted_ds.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """Paths of the parts, as in the parameter names of the model with its head."""

    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` this family covers."""
    embeddings_path: str
    """The module whose output is layer 0."""
    blocks_path: str
    """The list of blocks; block i puts out layer i + 1 (see ``behind_first_block``)."""
    final_norm_path: str | None
    """Applied to the last block's output before the LM head; None where blocks end normalised."""
    lm_head_path: str | None
    """The LM head; None where the family is not a causal LM."""
    pooled_token: str
    """Which kept token classification reads: ``first`` or ``last``."""
    label_head_path: str | None
    """What makes logits of the state of the ``last`` token; None where the model itself reads its ``first``."""
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

    def embed(self, model: nn.Module) -> nn.Module:
        """The module whose output is hidden state 0."""
        return model.get_submodule(self.embeddings_path)

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The blocks, in order."""
        blocks = model.get_submodule(self.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def layers_of_blocks(self, model: nn.Module) -> list[nn.Module]:
        """For each block, the module that puts out its layer."""
        modules: list[nn.Module] = list(self.blocks(model))
        parent, _, name = (self.behind_first_block or "").rpartition(".")
        behind_first = getattr(model.get_submodule(parent), name) if name else None
        return modules if behind_first is None else [behind_first, *modules[1:]]

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm between the last block and the LM head."""
        return model.get_submodule(self.final_norm_path) if self.final_norm_path else nn.Identity()

    def head(self, model: nn.Module) -> nn.Module:
        """The LM head.

        Raises:
            ConfigError: The family has none.
        """
        if self.lm_head_path is None:
            raise ConfigError(f"{'/'.join(self.model_types)} has no causal LM head; use another task.kind")
        return model.get_submodule(self.lm_head_path)


FAMILIES = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        embeddings_path="model.embed_tokens",
        blocks_path="model.layers",
        final_norm_path="model.norm",
        lm_head_path="lm_head",
        pooled_token="last",
        label_head_path="score",
        arrival_path="model.embed_tokens",
        behind_blocks=("model.norm",),
    ),
    Family(
        model_types=("gpt2",),
        embeddings_path="transformer.drop",
        blocks_path="transformer.h",
        final_norm_path="transformer.ln_f",
        lm_head_path="lm_head",
        pooled_token="last",
        label_head_path="score",
        arrival_path="transformer.wte",
        before_blocks={"transformer.wpe": "added", "transformer.drop": "passed"},
        behind_blocks=("transformer.ln_f",),
    ),
    Family(
        model_types=("bert",),
        embeddings_path="bert.embeddings",
        blocks_path="bert.encoder.layer",
        final_norm_path=None,
        lm_head_path=None,
        pooled_token="first",
        label_head_path=None,
        arrival_path="bert.embeddings",
        behind_blocks=("bert.pooler",),
    ),
    Family(
        model_types=("deberta-v2",),
        embeddings_path="deberta.embeddings",
        blocks_path="deberta.encoder.layer",
        final_norm_path=None,
        lm_head_path=None,
        pooled_token="first",
        label_head_path=None,
        arrival_path="deberta.embeddings",
        behind_first_block="deberta.encoder.conv",
        behind_first_block_key="conv_kernel_size",
        blocks_return_tuples=True,
    ),
)
FAMILY_OF: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.model_types}


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        ConfigError: No family covers it.
    """
    if model_type not in FAMILY_OF:
        raise ConfigError(f"model type {model_type!r} has no family; ted_ds knows {', '.join(sorted(FAMILY_OF))}")
    return FAMILY_OF[model_type]
