"""Teacher and student are scored on held-out data, and on test data where there is some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ted_ds.config.schema import Recipe
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.results import OUTCOMES, RESULTS_FILE, SAMPLES_FILE, STUDENT, TEACHER, outcomes_file
from ted_ds.output.run_folders import RunFolders
from ted_ds.phases.callbacks import EvaluateEvent, unchangeable
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.shown_examples import Writer, changed_examples
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import EVALUATE, Phase
from ted_ds.planning.plan import Plan
from ted_ds.runtime.outputs import frozen_outputs, row_outputs
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.tasks.outcomes import Columns
from ted_ds.tasks.scoring import Recorder

PREDICTIONS = "predictions"
"""The folder with what models predict, where their kind of task has files for it."""


def results_file(folders: RunFolders) -> Path:
    """Where the scores are."""
    return folders.place(EVALUATE) / RESULTS_FILE


def read_results(folders: RunFolders) -> dict[str, dict[str, float]] | None:
    """The scores of each model, by its name; None before they are computed."""
    file = results_file(folders)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _scored(folders: RunFolders, recipe: Recipe, plan: Plan) -> dict[str, Path]:
    """The models that are scored, by name: a teacher only where it runs at all, and has read what is held out."""
    models = folders.evaluated_paths()
    if (plan.two_tokenizers and not recipe.task.pooled) or recipe.teacher.speaks_from_rows:
        del models[TEACHER]
    return models if recipe.evaluation.models == "all" else {STUDENT: models[STUDENT]}


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    models = _scored(inputs.folders, inputs.recipe, inputs.plan)
    return {
        "models": {name: inputs.folders.identity(path) for name, path in models.items()},
        **inputs.fewer_bits(),
        **inputs.own_of_scores(),
        **({"outcomes": True} if inputs.recipe.evaluation.outcomes else {}),
        **inputs.data_files(),
        **inputs.test_data(),
        **inputs.language_tests(),
        **inputs.recipe_values("evaluation", "data", "task"),
    }


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build = kit.build
    results: dict[str, dict[str, float]] = {}
    files: dict[Path, Any] = {}
    outcomes: dict[Path, Any] = {}
    columns: dict[str, Columns | None] = {}
    writer = build.world.agree(lambda: Writer(build))
    tests = build.world.agree(build.language_tests)
    for name, path in _scored(kit.folders, build.recipe, build.plan).items():
        side = "teacher" if name == TEACHER else "student"
        model = build.models.frozen(side, path, new_head_allowed=True)
        recorder = Recorder(build.kind, num_ranks=build.world.size, with_outcomes=build.recipe.evaluation.outcomes)
        outputs = frozen_outputs(model, recorder.look)
        model_name = name.replace(" ", "_")
        metrics, tokens_per_s = build.evaluate(outputs, scorer=recorder, sides=[side])
        results[name] = {**metrics[0], "perf/tokens_per_s": tokens_per_s, "num_parameters": model.num_parameters}
        files |= {Path(PREDICTIONS, model_name, file): content for file, content in recorder.files.items()}
        outcomes[outcomes_file(name)] = recorder.outcomes
        columns[name] = recorder.columns
        for part, samples in build.readers.of(side).data.beside.items():
            (of_part,), _ = build.evaluate(outputs, samples, scorer=recorder, sides=[side])
            results[name] |= {f"{part}/{metric}": value for metric, value in of_part.items()}
            of_set = f"{model_name}.{part}"
            files |= {Path(PREDICTIONS, of_set, file): content for file, content in recorder.files.items()}
            outcomes[outcomes_file(name, part)] = recorder.outcomes
        for test in tests:
            results[name] |= build.run_test(row_outputs(model), test)
        if name in (TEACHER, STUDENT):
            writer.write(name, model)
        model.release()
        del model
        collect_garbage()
    kit.journal.rewind(phase.name, -1)
    for name, values in results.items():
        kit.journal.track(phase.name, 0, {f"{name.replace(' ', '_')}/{key}": v for key, v in values.items()})
    kit.listeners.tell(
        EvaluateEvent(
            phase=phase.name,
            step=0,
            scores=unchangeable(results),
            headline=build.kind.headline,
            higher_is_better=build.kind.higher_is_better,
        )
    )

    samples = {"changed": changed_examples(build, columns), "written": writer.texts()}

    def write(place: Path) -> dict[str, Any]:
        if any(samples.values()):
            files[Path(SAMPLES_FILE)] = samples
        for file, content in {Path(RESULTS_FILE): results, **files}.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file, of_examples in outcomes.items():
            if of_examples is not None:
                (place / OUTCOMES).mkdir(exist_ok=True)
                (place / file).write_text(json.dumps(of_examples) + "\n", encoding="utf-8")
        return results

    kit.write(folder, write)


WORK = Work(_inputs, _run)
