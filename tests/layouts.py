"""A run that changes its layout each time it is stopped, against one on the first layout to its end."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from tests.faults import signal_at
from tests.runs import run, traces
from tests.tiny import ROOT, write_run

STOPPED = 75
FILTER_STEPS = 2
"""Of each model's filters in a tiny run."""
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-3}
"""Of reports, relative; worst seen: 9e-6 (the KL, itself 1e-2) and 2e-3 (the norm of the gradient), see
docs/checkpoints.md."""
TOLERANCE_OF_WEIGHTS = {"fp32": 2e-6, "bf16": 1e-2}
"""In parts of each tensor's largest number; worst seen: 8e-8 and 5e-3, a unit in the last place of bf16."""
NOISE = ("attn.c_attn.bias",)
"""The gradient of the bias of attention's keys is zero but for rounding, which Adam makes as large as any other."""


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
    micro = [f"{phase}.micro_batch_size=1" for phase in ("distill", "filters.teacher", "filters.student")]
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
    report = _worst_report(expected["reports"], found["reports"])
    assert expected["weights"].keys() == found["weights"].keys()
    weight = max(_worst_weight(folder / "expected" / name, folder / "run" / name) for name in expected["weights"])
    print(f"{precision} {[tuple(one) for one in chain]}: reports {report:.1e}, weights {weight:.1e}")
    assert report <= TOLERANCE[precision]
    assert weight <= TOLERANCE_OF_WEIGHTS[precision]


def _worst_report(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    assert [(one["phase"], one["step"]) for one in found] == [(one["phase"], one["step"]) for one in expected]
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        for name in one.keys() & other.keys():
            if name.startswith(("data/", "train/tokens", "train/total")):
                assert one[name] == other[name], name  # the data itself is exact
            elif isinstance(one[name], float):
                worst = max(worst, abs(one[name] - other[name]) / max(abs(one[name]), 1e-6))
    return worst


def _worst_weight(expected: Path, found: Path) -> float:
    one, other = load_file(expected), load_file(found)
    assert [(name, t.dtype, t.shape) for name, t in one.items()] == [(n, t.dtype, t.shape) for n, t in other.items()]
    return max(
        float((one[name].float() - other[name].float()).abs().max() / max(float(one[name].abs().max()), 1e-6))
        for name in one
        if not name.endswith(NOISE)
    )
