"""A teacher in ZeRO-3 shards whose last block runs on few tokens: another number of them on each rank, and none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import VocabularyPredictions
from ted_ds.runtime import last_block
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from tests.dist import run_ranks
from tests.distributed.training import config, load_tapped
from tests.tiny import write_model


def ask(world: Any, folder: Path) -> list[float]:
    """How far what is read is from that of the whole block, for batches with other labels on each rank."""
    shard = frozen_engine_config(config(2, world.size, 0.0), "fp32")
    shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    tapped = load_tapped(folder, "causal_lm", (), shard=shard)
    teacher = FrozenModel(tapped, device=world.device, engine_config=shard)
    last_block.SKIPPED = torch.nan
    found, ids = [], torch.randint(5, 90, (2, 8), generator=torch.Generator().manual_seed(world.rank))
    for step in range(4):
        # all, some, none and one of the tokens: in another order on the other rank
        has_label = torch.arange(16).view(2, 8) < (16, 5, 0, 1)[(step + world.rank) % 4]
        kept = torch.ones_like(ids, dtype=torch.bool)
        one = Batch(ids, kept.long(), torch.where(has_label, ids, -100), kept)
        states: list[torch.Tensor] = []

        def read(predictions: Any, states: list[torch.Tensor] = states) -> None:
            assert isinstance(predictions, VocabularyPredictions)
            states.append(predictions.hidden)

        teacher(one.inputs, read)
        teacher.teach(one, read, with_predictions=True, on_state=None)
        whole, read_alone = (state[has_label] for state in states)
        found.append(float((whole - read_alone).abs().max()) if has_label.any() else 0.0)
        is_few = 0 < int(has_label.sum()) < 16
        assert bool(states[1].isnan().any()) == is_few, "what is left out is not there"
    teacher.release()
    return found


def test_ranks_read_other_numbers_of_tokens(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "teacher", "llama", blocks=2)
    for found in run_ranks(ask, 2, folder):
        assert max(found) <= 2e-6, found
