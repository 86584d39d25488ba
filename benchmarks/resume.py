"""How long a stream takes to go on from a state, after few steps and after very many that were really taken."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import median

import torch

from benchmarks.contenders import Spec
from benchmarks.contenders.ted_stream import open_data, open_stream
from ted_ds.data.stream.corpus_stream import merge_states


def resume_seconds(spec: Spec, steps: Sequence[int], *, repeats: int) -> dict[int, float]:
    """Of each number of steps, in ascending order: seconds from the state after it to the next batch, the median.

    Every batch that comes after a resume is compared with that of the run that was never interrupted.
    """
    data = open_data(spec)
    stream = open_stream(data, spec)
    states, expected, taken = {}, {}, 0
    for number in steps:
        while taken < number:
            next(stream)
            taken += 1
        states[number] = json.loads(json.dumps(merge_states([stream.state_dict()])))
        expected[number] = next(stream)[0].input_ids
        taken += 1
    seconds: dict[int, list[float]] = {number: [] for number in steps}
    for repeat in range(repeats + 1):
        for number, state in states.items():
            started = time.perf_counter()
            batch = next(open_stream(data, spec, state))[0]
            if repeat > 0:  # the first warms up
                seconds[number].append(time.perf_counter() - started)
            if not torch.equal(batch.input_ids, expected[number]):
                raise RuntimeError(f"after step {number}: the resumed stream gives other tokens")
    return {number: median(times) for number, times in seconds.items()}
