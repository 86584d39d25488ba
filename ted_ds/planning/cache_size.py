"""What a teacher's cache keeps of a token, and what that of a corpus comes to, in bytes; without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.planning.memory import gib

ID_BYTES, LOG_BYTES, REST_BYTES = 2, 2, 4
COUNT_BYTES = 2
"""Of how many ids of a prediction were drawn, and how often each was."""
SCALE_BYTES = 4
STATE_BYTES = {"bf16": 2, "int8": 1}


def num_planes(num_ids: int) -> int:
    """The bits of an id beyond its 16 lowest."""
    return max((num_ids - 1).bit_length() - 8 * ID_BYTES, 0)


@dataclass(frozen=True)
class TokenSizes:
    """What is kept of each token of a language model."""

    num_layers: int
    dim: int
    """Of a filtered state."""
    precision: str
    """Of filtered states: ``bf16``, or ``int8`` with a scale per token."""
    num_kept: int
    """Ids of each prediction, or draws from it; 0 where nobody asks for them."""
    num_ids: int
    """Of the vocabulary that predictions are over."""
    drawn: bool = False
    """Whether ids are drawn; else those most probable are kept."""

    @property
    def of_prediction(self) -> float:
        """Bytes of what a token is predicted to be; at most, where ids are drawn."""
        if not self.num_kept:
            return 0.0
        number, once = (COUNT_BYTES, COUNT_BYTES + REST_BYTES) if self.drawn else (LOG_BYTES, REST_BYTES)
        return self.num_kept * (ID_BYTES + number + num_planes(self.num_ids) / 8) + once

    @property
    def of_states(self) -> int:
        """Bytes of its states."""
        scale = SCALE_BYTES if self.precision == "int8" else 0
        return self.num_layers * (self.dim * STATE_BYTES[self.precision] + scale)


def corpus_sizes(recipe: Recipe, teacher: ModelFacts, *, num_layers: int, dim: int) -> TokenSizes | None:
    """Of the cache of a corpus that a recipe asks for; None where it asks for none."""
    settings, vocab_size = recipe.teacher.cache, teacher.vocab_size
    if settings is None or not recipe.task.packed:
        return None
    num_kept = settings.num_kept if recipe.distill.needs.predictions else 0
    num_kept = num_kept if settings.sampled is not None else min(num_kept, vocab_size)
    of_states = (num_layers, dim if num_layers else 0, settings.precision)
    return TokenSizes(*of_states, num_kept, vocab_size, drawn=settings.sampled is not None)


def corpus_bytes(recipe: Recipe, sizes: TokenSizes) -> int:
    """Of all steps of Stage II, but for less than 50 of each sequence; of draws, at most."""
    tokens = recipe.distill.steps * recipe.distill.global_batch_size * recipe.task.sequence_length
    return int(tokens * (sizes.of_prediction * recipe.task.predicted_share + sizes.of_states))


def cache_mistakes(recipe: Recipe, teacher: ModelFacts, *, num_layers: int, dim: int) -> Iterator[str]:
    """What is wrong with the size of a corpus' cache."""
    settings, sizes = recipe.teacher.cache, corpus_sizes(recipe, teacher, num_layers=num_layers, dim=dim)
    if settings is None or sizes is None or recipe.distill.max_steps is None:
        return
    num_bytes = corpus_bytes(recipe, sizes)
    if num_bytes > settings.max_gib * 2**30:
        remedies = ["raise it"]
        remedies += [f"use a smaller teacher.cache.{'sampled' if sizes.drawn else 'top_k'}"] if sizes.num_kept else []
        remedies += ["precision: int8"] if num_layers and settings.precision == "bf16" else []
        remedies += ["a smaller filters.dim or fewer layers"] if num_layers else []
        yield (
            f"teacher.cache.max_gib: {settings.max_gib:g} is less than the {gib(num_bytes)} that "
            f"{recipe.distill.steps * recipe.distill.global_batch_size:,} sequences of "
            f"{recipe.task.sequence_length:,} tokens take; {', '.join(remedies)}, or remove teacher.cache"
        )


def describe_cache(recipe: Recipe, teacher: ModelFacts | None, *, num_layers: int, dim: int) -> str:
    """What a corpus' cache comes to, in words, for ``ted-ds check``; nothing where there is none."""
    sizes = None if teacher is None else corpus_sizes(recipe, teacher, num_layers=num_layers, dim=dim)
    if sizes is None:
        return ""
    of_prediction = f"{'at most ' if sizes.drawn else ''}{sizes.of_prediction:.4g} bytes"
    return (
        f"cache     about {gib(corpus_bytes(recipe, sizes))}: {of_prediction} for each token that is predicted, "
        f"{sizes.of_states:,} for the states of each\n"
    )
