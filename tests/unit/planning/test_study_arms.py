"""What a study comes to, and every mistake in any of its arms at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.errors import ConfigError
from ted_ds.planning.study_arms import as_overrides
from ted_ds.planning.study_plan import describe_study
from tests.study_plans import planned, refusal
from tests.tiny import LABELS, write_labelled, write_letters, write_model, write_recipe, write_run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_run(tmp_path, kind="sequence_classification")


def with_study(path: Path, **study: Any) -> Path:
    return write_recipe(path, {**yaml.safe_load(path.read_text()), "study": study})


def test_any_recipe_has_a_study(recipe_file: Path) -> None:
    found = planned(recipe_file)
    assert [*found.arms] == ["sft", "kd", "lwd", "ted"]
    assert found.seeds == [0, 1, 2]
    assert found.baseline == "sft"
    assert [arm.recipe.distill.method for arm in found.arms.values()] == ["sft", "kd", "lwd", "ted"]
    assert [*planned(recipe_file, "filters=null", "distill.method=kd").arms] == ["sft", "kd", "lwd"]


def test_fine_tuning_goes_without_what_only_a_teacher_is_for(recipe_file: Path, tmp_path: Path) -> None:
    write_labelled(tmp_path / "more.jsonl", seed=3)
    more = [f"data.transfer=[{{path: {tmp_path / 'more.jsonl'}}}]", "teacher.cache={max_gib: 1}"]
    arms = planned(recipe_file, *more).arms
    assert arms["sft"].recipe.data.transfer is None
    assert arms["sft"].recipe.teacher.cache is None
    assert arms["kd"].recipe.data.transfer is not None
    assert arms["kd"].recipe.teacher.cache is not None


def test_arms_change_any_key_and_the_first_is_the_baseline_where_sft_is_not(recipe_file: Path) -> None:
    arms = {
        "cut": {
            "student.finetune": {"max_steps": 3, "learning_rate": 1e-5, "global_batch_size": 4, "micro_batch_size": 2}
        },
        "healed": {"student.heal": {}, "student.from_teacher.blocks[1]": 2, "distill.kl_weight": 3},
        "as-it-is": {},
    }
    found = planned(with_study(recipe_file, arms=arms, seeds=[7, 3]))
    assert found.baseline == "cut"
    assert found.seeds == [7, 3]
    cut, healed, unchanged = found.arms.values()
    assert cut.recipe.student.finetune is not None
    assert cut.recipe.student.finetune.learning_rate == 1e-5
    assert healed.recipe.student.from_teacher is not None
    assert healed.recipe.student.from_teacher.blocks == [0, 2]
    assert healed.recipe.distill.kl_weight == 3
    assert unchanged.recipe.distill == found.recipe.distill


def test_some_arms_alone_are_compared_as_if_there_were_no_others(recipe_file: Path) -> None:
    assert [*planned(recipe_file, "study.only=[ted,kd]").arms] == ["kd", "ted"]
    arms = {"sft": None, "kd": None, "mine": {"student.heal": {}}}
    path = with_study(recipe_file, arms=arms, equal="compute")
    chosen = {name: (arm.changes, arm.operations) for name, arm in planned(path, "study.only=[sft,kd]").arms.items()}
    alone = planned(with_study(recipe_file, arms={"sft": None, "kd": None}, equal="compute")).arms
    assert chosen == {name: (arm.changes, arm.operations) for name, arm in alone.items()}
    with_study(recipe_file, arms=arms, equal="compute")
    assert refusal(path, "study.only=[kd,mien]") == ["R: study.only: mien: no such arm; use some of sft, kd, mine"]


def test_seeds_go_on_from_the_recipes(recipe_file: Path) -> None:
    assert planned(recipe_file, "seed=17", "study.seeds=2").seeds == [17, 18]


@pytest.mark.parametrize(
    "value", [None, True, 3, 1e-5, 1e30, "a: b", "'\"\\", "über", [[1, 2]], {"a": {"b": None}}, "null", "1e-5"]
)
def test_a_value_comes_through_the_command_line_as_it_is(recipe_file: Path, value: Any) -> None:
    from ted_ds.config.load import load_draft

    (override,) = as_overrides(
        {
            "constants.x": value,
        }
    )
    draft = load_draft(recipe_file, [override, "student.from_config={changes: {x: '${constants.x}'}}"])
    assert draft.recipe is not None
    assert draft.recipe.student.from_config is not None
    assert draft.recipe.student.from_config.changes["x"] == value


# --- equal compute ----------------------------------------------------------------------------------------------------


def test_at_equal_tokens_steps_are_the_recipes(recipe_file: Path) -> None:
    assert {arm.steps for arm in planned(recipe_file).arms.values()} == {2}


def test_at_equal_compute_cheaper_arms_take_as_many_steps_as_the_dearest_allows(recipe_file: Path) -> None:
    plans = ["distill.max_steps=200", "study.equal=compute"]
    found = planned(recipe_file, *plans)
    totals = {name: arm.total_operations for name, arm in found.arms.items()}
    dearest = max(total for total in totals.values() if total is not None)
    before = planned(recipe_file, *plans[:1]).arms
    assert dearest == before["ted"].total_operations
    for name, arm in found.arms.items():
        assert arm.steps is not None
        of_step = (arm.operations["distill"] or 0) / arm.steps
        assert 0 <= dearest - (totals[name] or 0) < of_step, name
        assert arm.recipe.distill.max_steps == arm.steps
    assert found.arms["ted"].steps == 200
    assert (found.arms["sft"].steps or 0) > (found.arms["kd"].steps or 0) > 200


def test_measurements_of_gradients_are_part_of_equal_compute(recipe_file: Path) -> None:
    arms = {
        "weighed": {"distill.method": "kd", "distill.balance": "gradient_norm", "distill.balance_every_steps": 1},
        "seldom": {"distill.method": "kd", "distill.balance": "gradient_norm", "distill.balance_every_steps": 7},
        "long": {"distill.method": "ted", "distill.max_steps": 600},
    }
    found = planned(with_study(recipe_file, arms=arms, equal="compute"), "distill.max_steps=20").arms
    dearest = found["long"].total_operations or 0
    assert found["long"].steps == 600
    of_step = (found["weighed"].operations["distill"] or 0) / (found["weighed"].steps or 1)
    for arm in found.values():
        assert 0 <= dearest - (arm.total_operations or 0) < 2 * of_step, arm.name


def test_healing_and_solved_filters_are_counted_and_the_teachers_training_is_not(recipe_file: Path) -> None:
    plan = {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
    solved = {"filters.initialisation": "ridge", "filters.student": plan, "filters.teacher": plan}
    arms = {"plain": {}, "healed": {"student.heal": {}}, "tuned": {"teacher.finetune": plan}, "solved": solved}
    found = {name: arm.total_operations for name, arm in planned(with_study(recipe_file, arms=arms)).arms.items()}
    assert found["tuned"] == found["plain"]
    assert (found["healed"] or 0) > (found["plain"] or 0)
    assert (found["solved"] or 0) > (found["plain"] or 0)


def test_epochs_become_steps_where_operations_are_made_equal(recipe_file: Path) -> None:
    epochs = ["distill.max_steps=null", "distill.epochs=3"]
    assert planned(recipe_file, *epochs).arms["sft"].recipe.distill.epochs == 3
    found = planned(recipe_file, *epochs, "study.equal=compute").arms
    assert found["ted"].recipe.distill.epochs == 3
    assert found["sft"].recipe.distill.epochs is None
    assert (found["sft"].steps or 0) > (found["ted"].steps or 0)


# --- mistakes ---------------------------------------------------------------------------------------------------------

OF_ALL_ARMS = {
    "a": {"distill.kl_wight": 3, "student.from_teacher.blocks": [0, 9]},
    "b": {"distill.kl_wight": 2, "distill.max_steps": "x"},
    "sft": {"distill.task_weight": 0},
}


def test_every_mistake_of_every_arm_is_named_at_once(recipe_file: Path) -> None:
    assert refusal(with_study(recipe_file, arms=OF_ALL_ARMS)) == [
        "arms a, b of the study: R: distill.kl_wight: unknown key; did you mean 'kl_weight'?",
        "arm a of the study: R: student.from_teacher.blocks: block 9 does not exist (the teacher has 4 blocks, "
        "numbered from 0); use 0..3",
        "arm b of the study: R: distill.max_steps: 'x': use a whole number above 0, or null",
        "arm sft of the study: R: distill.task_weight: 0: method: sft trains on the task alone; use a weight above 0",
    ]


@pytest.mark.parametrize("verb", ["check", "study"])
def test_both_verbs_say_so_with_code_2_and_write_nothing(
    recipe_file: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(with_study(recipe_file, arms=OF_ALL_ARMS))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"ted-ds {verb}: error:"
    assert len(captured.err.splitlines()) == 5
    assert not (recipe_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            {"arms": {"tedd": None, "sft": None}},
            "arms.tedd: only sft, kd, lwd, ted are known by their names; did you mean 'ted'? Else give the keys that "
            "it changes, or {} for the recipe as it is",
        ),
        (
            {"arms": {"a": 3, "sft": None}},
            "arms.a: 3: use a mapping of keys of the recipe, such as student.heal, to values",
        ),
        (
            {"arms": {"a b": {}, "sft": None}},
            "arms.a b: use letters, digits, '_', '.' and '-', the first no sign; its folder is called by it",
        ),
        (
            {"arms": {"kd": {"distill.method": "ted"}, "sft": None}},
            "arms.kd: distill.method: ted: use kd in an arm so called, or another name",
        ),
        ({"arms": {"a": {"seed": 1}, "sft": None}}, "arms.a: seed: all arms have the seeds of study.seeds; remove it"),
        (
            {"arms": {"a": {"data.test[0].path": "x"}, "sft": None}},
            "arms.a: data.test[0].path: arms are scored on the same examples; remove it",
        ),
        (
            {"arms": {"a": {"evaluation.max_examples": 1}, "sft": None}},
            "arms.a: evaluation.max_examples: arms are scored alike; remove it",
        ),
        (
            {"arms": {"kd": {"distill": {"learning_rate": 0.1}}, "sft": None}},
            "arms.kd: distill: would take the place of all that is in it, distill.method with it; write its keys one "
            "by one, as distill.KEY",
        ),
        (
            {"arms": {"a": {"data": {"train": []}}, "sft": None}},
            "arms.a: data: would take the place of all that is in it, data.glue with it; write its keys one by one, as "
            "data.KEY",
        ),
        ({"arms": {"a": {"a b": 1}, "sft": None}}, "arms.a: 'a b': a key is written in full, a.b or a.b[0].c"),
        ({"arms": {"sft": None}}, "arms: sft: a study compares two or more; give them"),
        ({"arms": {}}, "arms: none: a study compares two or more; give them"),
        ({"only": ["kd"]}, "only: kd: a study compares two arms or more; name them, each once"),
        ({"only": ["kd", "kd"]}, "only: kd, kd: a study compares two arms or more; name them, each once"),
        ({"seeds": []}, "seeds: []: list one or more, each once; or say how many"),
        ({"seeds": [1, 1]}, "seeds: [1, 1]: list one or more, each once; or say how many"),
        ({"seeds": 0}, "seeds: 0: use 1 or more; differences between seeds are seen from 2 on"),
    ],
)
def test_a_mistake_in_the_section_says_what_to_do(recipe_file: Path, study: dict[str, Any], message: str) -> None:
    assert refusal(with_study(recipe_file, **study)) == [f"R: study: {message}"]


def test_keys_of_the_section_are_known(recipe_file: Path) -> None:
    assert refusal(with_study(recipe_file, seds=3)) == ["R: study.seds: unknown key; did you mean 'seeds'?"]
    assert refusal(with_study(recipe_file, equal="time")) == ["R: study.equal: 'time': use tokens or compute"]


@pytest.mark.parametrize("seeds", [True, "a", 2.5])
def test_seeds_that_are_none_are_refused(recipe_file: Path, seeds: Any) -> None:
    (line,) = refusal(with_study(recipe_file, seeds=seeds))
    assert line.startswith("R: study.seeds: ")
    assert "use a whole number" in line


def test_each_run_would_find_a_precision_of_its_own(recipe_file: Path) -> None:
    (line,) = refusal(recipe_file, "teacher.precision=auto", "study.only=[kd,lwd]")
    assert line.startswith("R: teacher.precision: auto: each run of a study would measure for itself")


def test_a_place_that_an_arm_gets_wrong_is_none_of_the_command_line(recipe_file: Path) -> None:
    (line,) = refusal(with_study(recipe_file, arms={"sft": None, "own": {"student.from_teacher.blocks[9]": 1}}))
    assert line.startswith("arm own of the study: R: ")
    assert "command line" not in line


def test_a_headline_that_has_no_interval_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, kind="regression")
    assert refusal(path, "task.headline=spearman") == [
        "R: task.headline: spearman: does not follow from sums over examples, by which a study has its intervals; use "
        "pearson or loss"
    ]
    assert planned(path, "task.headline=loss").arms.keys() == {"sft", "kd", "lwd", "ted"}


def test_students_of_a_study_have_one_tokenizer(recipe_file: Path, tmp_path: Path) -> None:
    student = write_model(tmp_path / "own", "roberta", labels=LABELS, blocks=2, vocab=40)
    write_letters(student, encoder=True)
    plan = {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
    own = {"student": {"path": str(student), "finetune": plan}, "distill.method": "kd"}
    (line,) = refusal(with_study(recipe_file, arms={"sft": None, "kd": None, "own": own}))
    assert line == (
        f"R: study.arms: students read by different tokenizers, those of the teacher (sft, kd) and {student} (own); "
        "examples are compared by their tokens, so use students of one tokenizer in a study"
    )


def test_messages_name_the_overrides_of_the_user_and_not_those_of_the_arm(recipe_file: Path) -> None:
    # the arm's student has fewer layers than the override matches
    path = with_study(
        recipe_file, arms={"sft": None, "own": {"distill.method": "ted", "student.from_teacher.blocks": [0]}}
    )
    pairs = "layer_map={kind: explicit, pairs: [[2, 2]]}"
    with pytest.raises(ConfigError) as caught:
        planned(path, pairs)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"arm own of the study: {path}: layer_map")
    assert line.endswith(f" (given as {pairs})")


def test_batches_must_divide_over_the_ranks_of_each_run(recipe_file: Path) -> None:
    lines = refusal(with_study(recipe_file, ranks=3))
    assert lines
    assert all("micro_batch_size" in line or "global_batch_size" in line for line in lines)


def test_check_says_what_each_arm_comes_to(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_study(recipe_file, arms={"sft": None, "own": {"distill.kl_weight": 2}}, seeds=2)
    assert main(["check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == ("study     2 arms x 2 seeds = 4 runs at equal tokens, compared with sft; 1 at once of 1 rank")
    assert lines[-2].startswith("arm       sft              2 steps of Stage II, ")
    assert lines[-1].endswith(" x 10^12 operations; distill.kl_weight=2")
    assert describe_study(planned(path)).splitlines() == lines[-3:]
    main(["check", str(write_run(recipe_file.parent / "other", kind="sequence_classification"))])
    assert "study " not in capsys.readouterr().out


def test_changes_are_written_as_json() -> None:
    assert as_overrides({"a.b": None, "c": [1, "x"]}) == ["a.b=null", f"c={json.dumps([1, 'x'])}"]
