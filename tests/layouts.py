"""A run that changes its layout each time it is stopped, against one on the first layout to its end."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from tests.faults import signal_at
from tests.runs import is_looked_at, run, traces
from tests.tiny import ROOT, write_run

STOPPED = 75
FILTER_STEPS = 2
"""Of each model's filters in a tiny run."""
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-3}
"""Of reports, relative; worst seen: 9e-6 (the KL, itself 1e-2) and 2e-3 (the norm of the gradient), see
docs/checkpoints.md."""
TOLERANCE_OF_WEIGHTS = {"fp32": 2e-6, "bf16": 1e-2}
"""In parts of each tensor's largest number; worst seen: 8e-8 and 5e-3, a unit in the last place of bf16."""
KEY_BIASES = "attn.c_attn.bias"
"""Of GPT-2, the middle third. Their gradient is zero but for rounding, which Adam makes as large as any other."""


class Layout(NamedTuple):
    """Where a run goes on for a while."""

    num_ranks: int
    zero: int
    stages: int = 1


def zero_stage(number: int) -> str:
    """The override that chooses a ZeRO stage."""
    return f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{number}.json'}"


def change_layouts(
    folder: Path,
    precision: str,
    chain: Sequence[Layout],
    *changes: str,
    stops: Sequence[int] = (),
) -> None:
    """Go through ``chain``, stopping before each change of layout, and compare reports, weights and export.

    ``stops`` are the steps, of any phase, until each stop; without it, three of the last phase.
    """
    recipe = write_run(folder, family="gpt2")
    in_one_pass = any(change.startswith("filters={both") for change in changes)
    phases = ("distill", *(() if in_one_pass else ("filters.teacher", "filters.student")))
    micro = [f"{phase}.micro_batch_size=1" for phase in phases]
    base = ["run", str(recipe), f"precision={precision}", "distill.weight_decay=0.1", *micro, *changes]
    base += [f"distill.max_steps={3 * len(chain)}"]
    stops = stops or [2 * FILTER_STEPS + 3, *[3] * (len(chain) - 2)]

    def on(layout: Layout, **options: Any) -> str:
        own = [zero_stage(layout.zero), f"pipeline.stages={layout.stages}"]
        return run([*base, *own], num_ranks=layout.num_ranks, **options)

    on(chain[0])
    shutil.move(folder / "run", folder / "expected")
    for turn, layout in enumerate(chain):
        stop: dict[str, Any] = {}
        if turn < len(stops):
            stop = {"codes": STOPPED, "fault": signal_at, "fault_arguments": ("step", stops[turn], signal.SIGTERM)}
        output = on(layout, **stop)
        assert ("another layout than the checkpoint's" in output) == (turn > 0)
    expected, found = traces(folder / "expected"), traces(folder / "run")
    for name in ("config.json", "tokenizer.json"):
        one, other = (json.loads((folder / which / "export" / name).read_text()) for which in ("expected", "run"))
        assert one == other, name
    report = _worst_report(expected["reports"], found["reports"], precision)
    assert expected["weights"].keys() == found["weights"].keys()
    weight = max(_worst_weight(folder / "expected" / name, folder / "run" / name) for name in expected["weights"])
    print(f"{precision} {[tuple(one) for one in chain]}: reports {report:.1e}, weights {weight:.1e}")
    assert report <= TOLERANCE[precision]
    assert weight <= TOLERANCE_OF_WEIGHTS[precision]


def _worst_report(expected: list[dict[str, Any]], found: list[dict[str, Any]], precision: str) -> float:
    assert [(one["phase"], one["step"]) for one in found] == [(one["phase"], one["step"]) for one in expected]
    differences = [0.0]
    for one, other in zip(expected, found, strict=True):
        assert one.keys() ^ other.keys() <= {"train/gradient_norm"}  # which ZeRO-0 computes only to clip by it
        for name in one.keys() & other.keys():
            value = one[name]
            if not isinstance(value, float) or name.startswith(("data/", "train/tokens", "train/total")):
                assert value == other[name], name  # the data itself is exact
            elif not is_looked_at(name, value, other[name], precision):
                differences.append(abs(value - other[name]) / max(abs(value), 1e-6))
    assert all(map(math.isfinite, differences))
    return max(differences)


def _worst_weight(expected: Path, found: Path) -> float:
    one, other = load_file(expected), load_file(found)
    assert [(name, t.dtype, t.shape) for name, t in one.items()] == [(n, t.dtype, t.shape) for n, t in other.items()]
    differences = []
    for name in one:
        pair = [tensor.float() for tensor in (one[name], other[name])]
        if name.endswith(KEY_BIASES):
            pair = [torch.cat([tensor.chunk(3)[part] for part in (0, 2)]) for tensor in pair]
        differences.append(float((pair[0] - pair[1]).abs().max() / max(float(pair[0].abs().max()), 1e-6)))
    assert all(map(math.isfinite, differences))
    return max(differences)
