"""Runs tasks of lm-eval on a model's folder, in a process of its own, which knows nothing of ranks.

    python -m ted_ds.phases.lm_eval_job SETTINGS.json

The settings are those of :class:`ted_ds.phases.lm_eval_tasks.Job`; the scores are left in its ``results`` file.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """lm-eval's results as ``task/metric``, with the filter behind it where there is one."""
    found = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if comma and isinstance(value, int | float):
                found[f"{task}/{metric}" if name == "none" else f"{task}/{metric}/{name}"] = float(value)
    return found


def main() -> None:
    """Run them."""
    import yaml

    lm_eval, tasks = (importlib.import_module(name) for name in ("lm_eval", "lm_eval.tasks"))  # an extra
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    files = [Path(task) for task in job["tasks"] if task.endswith(".yaml")]
    names = [task for task in job["tasks"] if not task.endswith(".yaml")]
    # nothing but text comes of this loader, which passes over lm-eval's own tags
    own = [yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["task"] for file in files]  # noqa: S506
    folders = sorted({str(file.resolve().parent) for file in files})
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": job["model"], "dtype": job["dtype"]},
        tasks=[*names, *own],
        task_manager=tasks.TaskManager(include_path=folders or None, include_defaults=bool(names)),
        device=job["device"],
        batch_size=job["batch_size"],
    )
    assert results is not None, "only other ranks get none"
    Path(job["results"]).write_text(json.dumps(flat(results["results"])), encoding="utf-8")


if __name__ == "__main__":
    main()
