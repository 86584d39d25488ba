"""Data or numbers that go wrong in the middle of training end it on every rank."""

from __future__ import annotations

import pytest

from ted_ds.errors import DataError, NumericsError
from ted_ds.numerics.task_terms import TASK_TERMS
from ted_ds.stages.finetune import FinetuneObjective
from tests.dist import run_ranks
from tests.distributed.training import config, load_tapped, start_engine
from tests.tiny import write_model


def step_with(world, folder, what, stage):
    """Take steps until the named failure comes; returns its class and text."""
    import torch

    from ted_ds.data.loader import Batch

    def batches():
        ids = torch.tensor([[5, 6, 7, 8]] * 2)
        yield [Batch(ids, torch.ones_like(ids), ids) for _ in range(8 // (2 * world.size))]
        if what == "data" and world.rank == 1:
            raise DataError("corpus.jsonl: row 7: no value in column 'text'")
        yield [Batch(ids, torch.ones_like(ids), ids) for _ in range(8 // (2 * world.size))]

    class Poisoned(FinetuneObjective):
        def totals(self, forward, batch):
            totals = super().totals(forward, batch)
            return {name: total * (float("nan") if world.rank == 1 else 1.0) for name, total in totals.items()}

    objective = Poisoned() if what == "numbers" else FinetuneObjective(TASK_TERMS["causal_lm"])
    ds_config = config(stage, world.size, 0.0)
    tapped = load_tapped(folder, "causal_lm", (), shard=ds_config if stage == 3 else None)
    engine = start_engine(world, tapped, ds_config)
    steps = batches()
    try:
        for _ in range(2):
            engine.step(steps, objective)
            engine.report(objective)
    except (DataError, NumericsError) as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_bad_row_on_one_rank_ends_all(tmp_path, stage):
    write_model(tmp_path, "llama", blocks=2)
    assert (
        run_ranks(step_with, 2, tmp_path, "data", stage)
        == [("DataError", "rank 1: corpus.jsonl: row 7: no value in column 'text'")] * 2
    )


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_nan_on_one_rank_is_reported_by_all(tmp_path, stage):
    write_model(tmp_path, "llama", blocks=2)
    for name, text in run_ranks(step_with, 2, tmp_path, "numbers", stage):
        assert name == "NumericsError"
        assert "loss/task: NaN or infinite after" in text
