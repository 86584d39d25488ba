"""What a teacher needs beside it while it fills its cache; without torch."""

from __future__ import annotations

from dataclasses import replace

from ted_ds.config.schema import Recipe
from ted_ds.planning.memory import ITEM_BYTES, Trained, activation_bytes
from ted_ds.planning.phase_memory import PhaseMemory, filter_sizes, keeps_scores
from ted_ds.planning.plan import Plan

MIB = 2**20
CHUNK_BYTES = 1024 * MIB
"""At most, of logits in the run's precision (:func:`ted_ds.numerics.chunks.chunk_bytes`)."""
BLOCK_BYTES = 64 * MIB
"""At most, of logits in fp32 (:data:`ted_ds.numerics.keeping.BLOCK_BYTES`)."""
BLOCKS = 12
"""As many of these are there at once while ids are drawn, the most probable ones being found with fewer."""


def filling_memory(recipe: Recipe, plan: Plan) -> PhaseMemory | None:
    """What is beside the teacher while it fills its cache; None where it does not, or is not fetched yet.

    Nothing is kept for a backward pass: a block's activations are there at a time, with the states of matched layers.
    """
    cache, facts = recipe.teacher.cache, plan.teacher
    if cache is None or cache.rows is not None or facts is None or plan.student is None:
        return None
    task, needs = recipe.task, recipe.distill.needs
    tokens = recipe.evaluation.micro_batch_size * task.sequence_length * task.rows_per_example
    activations = activation_bytes(
        replace(facts, num_blocks=1),
        tokens=tokens,
        row_tokens=task.sequence_length,
        precision=recipe.precision,
        keeps_scores=keeps_scores(recipe, facts),
        checkpointing=False,
    )
    item_bytes, num_layers = ITEM_BYTES[recipe.precision], len(plan.layer_pairs)
    activations += num_layers * tokens * plan.filter_dim * item_bytes if num_layers else 0
    if task.has_lm_head and needs.predictions:
        logits = tokens * facts.vocab_size
        activations += min(logits * item_bytes, CHUNK_BYTES) + BLOCKS * min(logits * ITEM_BYTES["fp32"], BLOCK_BYTES)
    filters = sum(filter_sizes(recipe, plan, "teacher")) * num_layers * item_bytes if needs.filters else 0
    return PhaseMemory("filling", 0, Trained(0, 0, 0), activations, hosts_teacher=True, frozen=filters, buckets=0)
