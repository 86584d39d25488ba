"""What a study leaves: ``study.json`` with everything, ``study.md``, and tables on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ted_ds import __version__
from ted_ds.config.redaction import without_secrets
from ted_ds.errors import CheckpointError, counted
from ted_ds.numerics.paired_draws import Share
from ted_ds.output.phase_folder import sync
from ted_ds.output.screen import Screen
from ted_ds.output.study_folder import STUDY_FILE
from ted_ds.output.study_tables import StudyTable, in_markdown
from ted_ds.output.study_words import Measure, verdict
from ted_ds.planning.phase import FINETUNE_TEACHER, PHASES
from ted_ds.planning.study_arms import Arm, as_overrides
from ted_ds.planning.study_plan import StudyPlan
from ted_ds.verbs.study.runs import StudyRun
from ted_ds.verbs.study.scores import PartScores
from ted_ds.verbs.study.search import Tried, at_an_edge

MARKDOWN_FILE = "study.md"
NOTHING = "–"


@dataclass(frozen=True)
class Conducted:
    """A study as far as it went."""

    plan: StudyPlan
    complete: Mapping[str, Sequence[StudyRun]]
    """Of each arm all whose seeds are complete."""
    failed: Mapping[str, str]
    """Runs that are not, with why."""
    parts: Sequence[PartScores]
    tried: Mapping[str, Sequence[Tried]]
    """Of each arm the settings that were tried; none where there was no search."""


def verdicts_of(study: Conducted) -> list[str]:
    """What may be said of each arm, on the part that decides, and what makes one doubt the search."""
    found = []
    for part in study.parts:
        measure, baseline = Measure(part.metric, part.higher_is_better), study.plan.baseline
        for name, arm in part.arms.items() if part.decides else ():
            if arm.difference is not None and arm.holm_p is not None:
                size = part.num_examples, len(study.plan.seeds)
                found.append(verdict(name, baseline, arm.difference, arm.holm_p, measure, size))
    if study.parts and study.plan.baseline not in study.complete:
        found.append(f"{study.plan.baseline}, which all are compared with, is not complete: nothing is compared")
    for name, tried in study.tried.items():
        found += [f"{name}: {words}" for words in at_an_edge(tried, study.plan.arms[name].changes)]
    return found


def tables_of(study: Conducted) -> list[StudyTable]:
    """Scores on each part, and what arms cost."""
    return [*_without_costs(study), _costs(study)]


def _without_costs(study: Conducted) -> list[StudyTable]:
    """Those without what is measured in seconds."""
    return [*(_scores(study.plan, part) for part in study.parts), *([_search(study)] if study.tried else [])]


def _scores(plan: StudyPlan, part: PartScores) -> StudyTable:
    measure = Measure(part.metric, part.higher_is_better)
    columns = ["arm", "mean", *(f"seed {seed}" for seed in plan.seeds)]
    columns += [f"better than {plan.baseline}, {measure.unit}", "95 % interval", "p, Holm", "gap closed"]
    rows = []
    for name, arm in part.arms.items():
        cells = [name, *(f"{value:.4g}" for value in (arm.mean, *arm.by_seed.values()))]
        if arm.difference is None:
            cells += [NOTHING] * 4
        else:
            gain, low, high = measure.gain(arm.difference)
            p_value = NOTHING if arm.holm_p is None else f"{arm.holm_p:.2g}"
            cells += [measure.signed(gain), measure.interval(low, high), p_value]
            cells.append(NOTHING if arm.gap_closed is None else _percent(arm.gap_closed))
        rows.append(cells)
    if part.teacher is not None:
        rows.append(["teacher", f"{part.teacher:.4g}", *[NOTHING] * (len(columns) - 2)])
    direction = "higher" if part.higher_is_better else "lower"
    return StudyTable(
        f"{part.metric} on {part.part}, {part.num_examples:,} examples, {direction} is better", columns, rows
    )


def _percent(share: Share) -> str:
    estimate, low, high = (round(100 * one) for one in (share.estimate, share.low, share.high))
    return f"{estimate} % [{low}, {high}]"


def _search(study: Conducted) -> StudyTable:
    rows = [
        (f"{name}, trial {one.number}", setting, steps, NOTHING if one.score is None else f"{one.score:.4g}")
        for name, tried in study.tried.items()
        for one in tried
        for setting in [", ".join(as_overrides(one.setting))]
        for steps in ["all" if one.halved == 0 else f"1/{2**one.halved}"]
    ]
    title = f"settings that were tried, with seed {study.plan.seeds[0]}, on held-out data"
    return StudyTable(title, ("trial", "setting", "steps", "score"), rows)


def _costs(study: Conducted) -> StudyTable:
    rows = []
    for name, arm in study.plan.arms.items():
        operations = arm.total_operations
        seconds = _mean_seconds(study.complete.get(name, ()))
        rows.append(
            (
                name,
                NOTHING if arm.steps is None else f"{arm.steps:,}",
                NOTHING if operations is None else f"{operations / 1e12:.4g}",
                NOTHING if seconds is None else f"{seconds:.1f}",
            )
        )
    title = f"what an arm takes, at equal {study.plan.study.equal}; the teacher's training is before it"
    return StudyTable(title, ("arm", "steps of Stage II", "10^12 operations, by the plan", "seconds, measured"), rows)


def _mean_seconds(runs: Sequence[StudyRun]) -> float | None:
    """Of a run's stages, with the phases that others did for it, without the teacher's training.

    None where a manifest does not say.
    """
    charged = {phase.name for phase in PHASES if phase.is_of_a_stage and phase is not FINETUNE_TEACHER}
    of_runs = [[value for name, value in run.seconds().items() if name in charged] for run in runs]
    known = [sum(one for one in of_run if one is not None) for of_run in of_runs if None not in of_run]
    return sum(known) / len(known) if known and len(known) == len(of_runs) else None


def as_json(study: Conducted) -> dict[str, Any]:
    """Everything; what is measured in seconds stands under keys of its own."""
    plan = study.plan
    return {
        "name": plan.recipe.name,
        "version": __version__,
        "recipe": without_secrets(plan.recipe.model_dump(mode="json", exclude_unset=True)),
        "seeds": [*plan.seeds],
        "equal": plan.study.equal,
        "baseline": plan.baseline,
        "verdicts": verdicts_of(study),
        "tables": [table._asdict() for table in _without_costs(study)],
        "parts": {part.part: {key: v for key, v in asdict(part).items() if key != "part"} for part in study.parts},
        "arms": {name: _of_arm(arm) for name, arm in plan.arms.items()},
        "failed": dict(study.failed),
        "tried": {name: [asdict(one) for one in tried] for name, tried in study.tried.items()},
        "runs": {
            run.name: {"folder": str(run.folder), "seconds": run.seconds()}
            for of_arm in study.complete.values()
            for run in of_arm
        },
    }


def _of_arm(arm: Arm) -> dict[str, Any]:
    return {
        "changes": dict(arm.changes),
        "steps": arm.steps,
        "operations": dict(arm.operations),
        "total_operations": arm.total_operations,
    }


def write(study: Conducted, output_dir: Path) -> None:
    """Leave both files.

    Raises:
        CheckpointError: They cannot be written.
    """
    plan, tables = study.plan, tables_of(study)
    arms = "; ".join(
        f"`{name}`: {', '.join(f'`{key}={json.dumps(value)}`' for key, value in arm.changes.items()) or 'as it is'}"
        for name, arm in plan.arms.items()
    )
    paragraphs = [
        f"Recipe `{plan.recipe.name}`: {counted(len(plan.arms), 'arm')} over the seeds "
        f"{', '.join(map(str, plan.seeds))}, "
        f"{counted(plan.study.ranks, 'rank')} each. {arms}.",
        "Intervals are of 95 %, over examples (drawn with replacement, the same for all runs) and seeds (Student's t).",
        *(f"Not complete: {name} ({why})." for name, why in study.failed.items()),
    ]
    try:
        for name, text in {
            STUDY_FILE: json.dumps(as_json(study), indent=2) + "\n",
            MARKDOWN_FILE: in_markdown(plan.recipe.name, paragraphs, tables, verdicts_of(study)),
        }.items():
            beside = output_dir / f".{name}"
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(output_dir / name)
    except OSError as error:
        raise CheckpointError(f"{output_dir}: cannot be written: {error}") from error


def show(study: Conducted, screen: Screen, output_dir: Path) -> None:
    """Print tables, verdicts and where everything is."""
    for table in tables_of(study):
        screen.table(table.title, table.columns, table.rows)
    for line in verdicts_of(study):
        screen.say(line)
    for name, why in study.failed.items():
        screen.say(f"WARN {name}: not complete: {why}")
    screen.say(f"study       {output_dir / STUDY_FILE}, {output_dir / MARKDOWN_FILE}")
