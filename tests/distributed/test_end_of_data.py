"""Where the data ends before the steps do: every rank ends the phase there, with what it has."""

from __future__ import annotations

import pytest
import torch

from ted_ds.data.loader import Collator
from ted_ds.errors import DataError, NumericsError
from ted_ds.objectives.finetune import FinetuneObjective
from tests.dist import run_ranks
from tests.distributed.test_nonfinite import one_sample
from tests.distributed.training import Recorder, config, load_tapped, start_engine, train_on
from tests.task_kinds import TASK_TERMS
from tests.tiny import write_model

MAX_STEPS = 9


def steps_then_filler(world, num_steps):
    """Rank 0 has a text in each step; the other ranks have none, and after the last step nobody has."""
    collate = Collator(pad_id=0, labels="tokens")
    for step in range(num_steps):
        yield [collate([one_sample(step) if world.rank == 0 else None, None])] * 2
    while True:
        yield [collate([None, None])] * 2


def train_to_the_end(world, folder, stage, num_steps, log_every_steps, bad_from, broken_weights):
    ds_config = config(stage, world.size, 0.0)
    shard = ds_config if stage == 3 else None
    module = load_tapped(folder, "causal_lm", (), shard=shard)
    engine = start_engine(world, module, ds_config, max_steps=MAX_STEPS)
    objective = FinetuneObjective(TASK_TERMS["causal_lm"])
    plain, passes = objective.loss, []

    def loss(*arguments):
        passes.append(1)
        share, terms = plain(*arguments)
        factor = torch.nan if len(passes) > 2 * bad_from else 1.0
        return share * factor, {name: total * factor for name, total in terms.items()}

    objective.loss = loss  # type: ignore[method-assign]
    if broken_weights:
        with torch.no_grad():
            next(module.parameters()).fill_(torch.nan)
    recorder = Recorder(engine, folder / "last_good")
    failure, agreed = None, None
    speed = 0.0
    try:
        speed = train_on(
            engine,
            steps_then_filler(world, num_steps),
            objective,
            recorder,
            max_steps=MAX_STEPS,
            log_every_steps=log_every_steps,
            max_consecutive_skips=MAX_STEPS,
        )
    except (DataError, NumericsError) as error:
        failure, agreed = str(error), error.agreed
    logged = [(step, values["train/tokens"]) for step, values in recorder.reports]
    return recorder.said, logged, speed, len(passes), failure, agreed


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(
    ("log_every_steps", "reports"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (4, [3])], ids=["1", "2", "3", "4"]
)
def test_a_phase_ends_with_its_data_and_reports_what_is_pending(tmp_path, stage, log_every_steps, reports):
    write_model(tmp_path, "llama", blocks=1)
    tokens = [len(one_sample(step).input_ids) for step in range(3)]
    for said, logged, speed, passes, failure, _ in run_ranks(
        train_to_the_end, 2, tmp_path, stage, 3, log_every_steps, MAX_STEPS, False
    ):
        assert failure is None
        assert said == [f"  data exhausted after step 3 of {MAX_STEPS}"]
        bounds = [0, *reports]
        assert logged == [(b, 2 * sum(tokens[a:b])) for a, b in zip(bounds[:-1], reports, strict=True)]
        assert speed > 0
        assert passes == 6, "no forward pass on filler alone"


def test_data_without_a_single_step_is_an_error_on_every_rank(tmp_path):
    write_model(tmp_path, "llama", blocks=1)
    for said, logged, _, passes, failure, agreed in run_ranks(train_to_the_end, 2, tmp_path, 0, 0, 1, MAX_STEPS, False):
        assert failure == "data.train: no rank has anything left to train on; give it more data, or lower max_steps"
        assert agreed
        assert said == logged == []
        assert passes == 0


@pytest.mark.parametrize(("bad_from", "broken"), [(0, False), (1, False), (0, True)])
def test_data_that_ends_in_skipped_steps_is_held_to_the_same_rule(tmp_path, bad_from, broken):
    write_model(tmp_path, "llama", blocks=1)
    for said, logged, _, _, failure, _ in run_ranks(train_to_the_end, 2, tmp_path, 2, 2, 1, bad_from, broken):
        assert f"  data exhausted after step 2 of {MAX_STEPS}" in said
        if bad_from:  # a step was taken, and the weights are sound
            assert failure is None
            assert [step for step, _ in logged] == [1, 2]
        else:
            assert failure is not None
            assert failure.startswith("skipped 2 steps in a row; step 2: loss/task not finite")
            assert ("were not saved" if broken else f"is in {tmp_path / 'last_good'}") in failure
