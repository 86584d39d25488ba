"""Runs from Python: in one process, again and again, and on the ranks of a launcher."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
from collections.abc import Callable as Function
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import ConfigError, OwnCodeError, StoppedOnRequest, TedError
from tests.dist import run_ranks
from tests.python_docs import names_of
from tests.runs import differences, run, traces, with_dropout
from tests.tiny import recipe_dict, write_run

OUT = {"tracking.to": [], "distill.max_steps": 4, "evaluation.every_steps": 2, "checkpoint.every_steps": 2}
SHORT = {"distill.method": "sft", "filters": None}
LAYERS = {"distill.method": "lwd", "filters": None, "data.padding.multiple_of": 8}
STAGED = {"pipeline.stages": 2, "distill.global_batch_size": 4, "distill.micro_batch_size": 1}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


def process_facts() -> dict[str, Any]:
    """What a run must leave as it was."""
    import torch
    from torch import distributed

    return {
        "environment": dict(os.environ),
        "handlers": {number: signal.getsignal(number) for number in STOP_SIGNALS},
        "wakeup": signal.set_wakeup_fd(-1),
        "group": distributed.is_initialized(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "threads": {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"},
    }


def failure(work: Function[[], Any]) -> tuple[str, str, str]:
    """The error of some work: its class, its text, and its cause's class."""
    try:
        work()
    except (TedError, KeyboardInterrupt) as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__
    return "", "", ""


def listener(events: list[Any], **answers: Function[[Any], Any]) -> Any:
    """A callback that keeps all it hears, draws random numbers, and answers as it is told."""
    import torch

    from ted_ds import Callback

    def keep(_: Any, event: Any) -> Any:
        random.random()
        torch.rand(3)
        events.append(event)
        return answers.get(event.hook, lambda _: None)(event)

    hooks = dict.fromkeys(("on_phase", "on_step", "on_report", "on_evaluate", "on_checkpoint"), keep)
    return type("Listener", (Callback,), hooks)()


def stop_at(step: int) -> Function[[Any], Any]:
    from ted_ds import Stop

    return lambda event: Stop("seen enough") if (event.phase, event.step) == ("distill", step) else None


def change(event: Any) -> list[str]:
    """How an event resists."""
    found = []
    for name in ("phase", "values"):
        try:
            setattr(event, name, None)
        except dataclasses.FrozenInstanceError:
            found.append(name)
    try:
        event.values["loss/total"] = 0.0
    except TypeError:
        found.append("values of a report")
    return found


def in_one_process(recipe: str) -> dict[str, Any]:
    """What happens to calls in a process that nobody started for them."""
    from ted_ds import distill

    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background has it ignored
    folder = Path(recipe).parent
    values = recipe_dict(folder, kind="sequence_classification")
    found: dict[str, Any] = {"facts": [process_facts()]}

    def call(name: str, **arguments: Any) -> Any:
        given = {**OUT, "output_dir": folder / name}
        return distill(
            arguments.pop("recipe", values), overrides={**given, **arguments.pop("overrides", {})}, **arguments
        )

    found["mistakes"] = [
        failure(lambda: call("none", recipe=recipe, overrides={"distill.max_stepps": 3})),
        failure(lambda: call("none", overrides={"distill.max_stepps": 3})),
        failure(lambda: call("none", recipe=3)),
        failure(lambda: call("none", recipe={**values, "extends": "base.yaml"})),
        failure(lambda: call("none", callbacks=[print])),
        failure(lambda: call("none", verb="fly")),
    ]
    found["nothing written"] = not (folder / "none").exists()

    events: list[Any] = []
    found["result"] = call("whole", callbacks=[listener(events)])
    found["events"] = [
        (type(one).__name__, one.phase, getattr(one, "step", getattr(one, "state", None))) for one in events
    ]
    report = next(one for one in events if one.hook == "on_report" and one.phase == "distill")
    found["report"] = dict(report.values)
    found["resists"] = change(report)
    found["scores"] = {k: dict(v) for k, v in events[-4].scores.items()}
    found["folder"] = next(one.folder for one in events if one.hook == "on_checkpoint")
    found["facts"].append(process_facts())
    again: list[Any] = []
    found["again"] = call("whole", callbacks=[listener(again)])
    found["skipped"] = [(one.phase, one.state) for one in again]
    found["evaluated"] = [*call("whole", verb="evaluate").phases]

    found["stopped"] = failure(lambda: call("stopped", callbacks=[listener([], on_step=stop_at(1))]))
    found["stopped file"] = (folder / "stopped" / "stopped.json").is_file()
    call("stopped")
    found["facts"].append(process_facts())

    from datasets import Dataset

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    given = {"overrides": SHORT, "callbacks": [listener([], on_step=stop_at(1))]}
    found["rows"] = [
        failure(lambda: call("rows", train_data=iter(rows), **given)),
        failure(lambda: call("rows", train_data=rows[1:], overrides=SHORT)),
        failure(lambda: call("faulty", train_data=rows, overrides={**SHORT, "task.text_column": "word"})),
    ]
    for name, data in (("rows", rows), ("table", Dataset.from_list(rows)), ("file", None)):
        call(name, train_data=data, overrides=SHORT)

    from ted_ds import OwnScorer

    documented = names_of("count_errors", "error_rate")
    scorer = OwnScorer("error_rate", documented["count_errors"], documented["error_rate"], higher_is_better=False)
    found["scored"] = call("scored", overrides={**SHORT, "export": "best"}, scorer=scorer)
    found["other scorers"] = [
        failure(lambda other=other: call("scored", overrides={**SHORT, "export": "best"}, scorer=other))
        for other in (dataclasses.replace(scorer, version=2), None)
    ]
    found["wrong scorer"] = failure(lambda: call("none", overrides=SHORT, scorer="f1"))

    def broken(_: Any) -> Any:
        raise ValueError("no such thing")

    found["broken"] = failure(lambda: call("broken", overrides=SHORT, callbacks=[listener([], on_report=broken)]))
    found["answer"] = failure(
        lambda: call("broken", overrides=SHORT, callbacks=[listener([], on_report=lambda _: True)])
    )

    def interrupt(times: int) -> Function[[Any], None]:
        def ask(event: Any) -> None:
            for _ in range(times if event.step == 1 and event.phase == "distill" else 0):
                os.kill(os.getpid(), signal.SIGINT)

        return ask

    found["interrupted"] = failure(
        lambda: call("interrupted", overrides=SHORT, callbacks=[listener([], on_step=interrupt(1))])
    )
    found["interrupted twice"] = failure(
        lambda: call("twice", overrides=SHORT, callbacks=[listener([], on_step=interrupt(2))])
    )
    thread = threading.Thread(target=lambda: found.update(thread=call("whole").student_score))
    thread.start()
    thread.join()
    found["facts"].append(process_facts())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    recipe = with_dropout(write_run(tmp_path_factory.mktemp("alone"), kind="sequence_classification"))
    (found,) = run_ranks(in_one_process, 1, str(recipe), joins=False)
    return recipe.parent, found


def test_a_result_says_what_the_files_of_a_run_do(alone):
    folder, found = alone
    result = found["result"]
    scores = traces(folder / "whole")["scores"]
    assert {name: one.metrics["accuracy"] for name, one in result.scores.items()} == {
        name: one["accuracy"] for name, one in scores.items()
    }
    assert (result.headline, result.higher_is_better) == ("accuracy", True)
    assert result.student_score == scores["student after"]["accuracy"]
    assert result.teacher_score == scores["teacher"]["accuracy"]
    assert result.student == folder / "whole" / "export"
    assert (result.student / "model.safetensors").is_file()
    distilled = result.phases["distill"]
    assert (distilled.steps, distilled.folder) == (4, folder / "whole" / "distill")
    assert distilled.tokens == distilled.values["train/total_tokens"] > 0
    assert result.tokens == sum(
        result.phases[name].tokens for name in ("filters_teacher", "filters_student", "distill")
    )
    assert result.phases["export"].steps is None
    assert 0 < distilled.seconds < result.seconds


def test_rows_that_are_handed_over_are_trained_on_as_those_of_a_file(alone):
    """Stopped on the way, too; and other rows are refused."""
    folder, found = alone
    stopped, others, faulty = found["rows"]
    assert "after step 1 of distill" in stopped[1]
    assert others[:1] == ("CheckpointError",)
    assert others[1].startswith("train_data: other rows than those this run began with")
    assert "word" in faulty[1]
    assert not (folder / "faulty").exists()
    whole = traces(folder / "file")
    assert differences(traces(folder / "rows"), whole) == []
    assert differences(traces(folder / "table"), whole) == []


def test_a_scorer_of_ones_own_stands_beside_the_tasks(alone):
    _, found = alone
    result = found["scored"]
    assert (result.headline, result.higher_is_better) == ("error_rate", False)
    for one in result.scores.values():
        assert one.headline == one.metrics["error_rate"] == pytest.approx(1 - one.metrics["accuracy"])
    assert result.phases["distill"].values["best"]["metric"] == "error_rate"
    for other in found["other scorers"]:
        assert other[0] == "CheckpointError"
        assert "export.own_scorer" in other[1]
    assert found["wrong scorer"][:2] == ("ConfigError", "recipe: scorer: 'f1': use a ted_ds.OwnScorer")


def test_a_call_that_is_made_again_skips_what_is_complete(alone):
    _, found = alone
    names = [*found["result"].phases]
    assert found["skipped"] == [(name, "skipped") for name in names]
    assert found["evaluated"] == names
    assert dataclasses.replace(found["again"], seconds=0.0) == dataclasses.replace(found["result"], seconds=0.0)
    assert found["thread"] == found["result"].student_score, "on another thread than the main one, too"


def test_mistakes_are_errors_in_the_words_of_the_command_line(alone):
    folder, found = alone
    by_file, by_values, no_recipe, extends, no_callback, no_verb = found["mistakes"]
    line = "distill.max_stepps: unknown key; did you mean 'max_steps'?"
    line += " (given as distill.max_stepps=3)"
    assert by_file[:2] == ("ConfigError", f"{folder / 'recipe.yaml'}: {line}")
    assert by_values[:2] == ("ConfigError", f"recipe: {line}")
    assert no_recipe[1] == "recipe: 3: use the path of a recipe, a mapping with its keys, or a Recipe"
    assert extends[1] == (
        "recipe: extends: 'base.yaml': only the file of a recipe extends another; give the path of that file, and what "
        "is to change as overrides"
    )
    assert no_callback[:2] == (
        "OwnCodeError",
        "callbacks: <built-in function print> is no callback; give an object of a class that is made from "
        "ted_ds.Callback",
    )
    assert no_verb[1] == "verb: 'fly': use one of run, finetune, filters, distill, evaluate, export, lm_eval"
    assert found["nothing written"]


def test_the_process_is_left_as_it_was_found(alone):
    _, found = alone
    first, *others = found["facts"]
    assert first["group"] is False
    for facts in others:
        assert facts == first


def test_callbacks_hear_of_everything_in_order(alone):
    _, found = alone
    events = found["events"]
    saved = ("CheckpointEvent", "distill", 2)  # when it is on the disk
    assert saved in events
    assert [one for one in events if one[1] == "distill" and one[0] != "CheckpointEvent"] == [
        ("PhaseEvent", "distill", "begins"),
        ("StepEvent", "distill", 1),
        ("ReportEvent", "distill", 1),
        ("StepEvent", "distill", 2),
        ("ReportEvent", "distill", 2),
        ("EvaluateEvent", "distill", 2),
        ("StepEvent", "distill", 3),
        ("ReportEvent", "distill", 3),
        ("StepEvent", "distill", 4),
        ("ReportEvent", "distill", 4),
        ("EvaluateEvent", "distill", 4),
        ("PhaseEvent", "distill", "ends"),
    ]
    assert [one for one in events if one[0] == "PhaseEvent"] == [
        ("PhaseEvent", name, state) for name in found["result"].phases for state in ("begins", "ends")
    ]
    assert events[-4] == ("EvaluateEvent", "evaluate", 0)
    assert found["scores"]["student after"]["accuracy"] == found["result"].student_score


def test_callbacks_cannot_change_a_run(alone):
    """Not its objects, and not its random numbers: it has dropout, and is the same to the last bit without them."""
    folder, found = alone
    assert found["resists"] == ["phase", "values", "values of a report"]
    assert found["report"]["loss/total"] > 0
    given = [f"{key}={value if value else '[]'}" for key, value in OUT.items()]
    run(["run", str(folder / "recipe.yaml"), *given, f"output_dir={folder / 'command'}"], num_ranks=1)
    command = traces(folder / "command")
    assert differences(traces(folder / "whole"), command) == []
    assert differences(traces(folder / "stopped"), command) == [], "nor where one of them stopped it on the way"


def test_a_callback_stops_a_run_as_a_request_does(alone):
    folder, found = alone
    kind, text, _ = found["stopped"]
    assert kind == StoppedOnRequest.__name__
    assert text.startswith(
        f"stopped on callback Listener: seen enough (rank 0) after step 1 of distill. The state is in "
        f"{folder / 'stopped' / 'checkpoints' / 'distill'}"
    )
    assert text.endswith("Start the same command again to go on")
    assert found["stopped file"]


def test_an_error_of_a_callback_ends_the_run_in_words(alone):
    _, found = alone
    assert found["broken"] == (
        OwnCodeError.__name__,
        "callback Listener.on_report: ValueError: no such thing",
        OwnCodeError.__name__,  # each rank's own, and behind it what was raised
    )
    assert found["answer"][:2] == (
        OwnCodeError.__name__,
        "callback Listener.on_report returned True: use None, or ted_ds.Stop(reason) to stop the run",
    )


def test_an_interrupt_saves_and_a_second_one_is_the_processs_own(alone):
    folder, found = alone
    kind, text, _ = found["interrupted"]
    assert kind == StoppedOnRequest.__name__
    assert text.startswith("stopped on SIGINT (rank 0) after step 1 of distill. The state is in ")
    assert found["interrupted twice"][0] == "KeyboardInterrupt"
    assert not (folder / "twice" / "distill").exists()


# --- under a launcher -------------------------------------------------------------------------------------------------


def on_ranks(recipe: str, texts: str) -> dict[str, Any]:
    """Calls of each rank: only one of them listens, and stops the first; then some with terms of their own."""
    from ted_ds import distill

    folder = Path(texts).parent
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}
    with pytest.raises(ConfigError) as caught:
        distill(recipe, overrides=["distill.global_batch_size=3"])
    found["mistake"] = str(caught.value)

    def broken(_: Any) -> Any:
        raise ValueError("only here")

    for name, hook in (("stopped", {"on_report": stop_at(2)}), ("broken", {"on_phase": broken})):
        callbacks = [listener([], **hook)] if rank else []
        given = {**OUT, "output_dir": Path(recipe).parent / name}
        found[name] = failure(
            lambda given=given, callbacks=callbacks: distill(recipe, overrides=given, callbacks=callbacks)
        )
    events: list[Any] = []
    given = {**OUT, "output_dir": Path(recipe).parent / "stopped"}
    found["result"] = distill(recipe, overrides=given, callbacks=[listener(events)])
    found["ranks"] = {one.rank for one in events}

    def reports(name: str, **arguments: Any) -> list[dict[str, float]]:
        heard: list[Any] = []
        changes = {**OUT, **LAYERS, "output_dir": folder / name, **arguments.pop("overrides", {})}
        distill(texts, overrides=changes, verb="finetune")  # which cuts the student
        distill(texts, overrides=changes, verb="distill", callbacks=[listener(heard)], **arguments)
        return [dict(one.values) for one in heard if one.hook == "on_report" and one.phase == "distill"]

    from ted_ds import OwnTerm

    terms = [
        OwnTerm("own", squares, weight=0.25),
        OwnTerm("tokens", one_each),
        OwnTerm("texts", one_of_texts, per="text"),
        OwnTerm("angle", names_of("angle")["angle"], weight=1e-9),
    ]
    half = {"distill.feature_weight": 0.75}
    found["plain"] = reports("plain")
    found["own"] = reports("own", overrides=half, terms=terms)
    found["sharded"] = reports("sharded", overrides={**half, "deepspeed": "zero3"}, terms=terms)
    found["staged"] = reports("staged", overrides={**half, **STAGED}, terms=terms)
    changed = {**OUT, **LAYERS, **half, "output_dir": folder / "own"}
    others = [[], terms[1:], [dataclasses.replace(terms[0], version=2), *terms[1:]]]
    found["other terms"] = [
        failure(lambda other=other: distill(texts, overrides=changed, verb="distill", terms=other)) for other in others
    ]
    found["no layers"] = failure(
        lambda: distill(texts, overrides={**changed, "distill.method": "kd"}, verb="distill", terms=terms[:1])
    )
    return found


def squares(taps: Any) -> Any:
    """What ``loss/feature_mse`` is of, written by a user."""
    return (taps.filtered_student - taps.filtered_teacher).square().mean(-1)


def one_each(taps: Any) -> Any:
    """1, and no number where nothing is compared."""
    import torch

    return torch.where(taps.kept, 1.0, torch.nan)


def one_of_texts(taps: Any) -> Any:
    return 0 * taps.student[:, 0, 0] + 1.0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    recipe = write_run(tmp_path_factory.mktemp("ranks"))
    texts = write_run(tmp_path_factory.mktemp("texts"), kind="sequence_classification")
    return recipe.parent, run_ranks(on_ranks, 2, str(recipe), str(texts), joins=False)


def test_ranks_stop_together_and_meet_again(ranks):
    _, (first, second) = ranks
    assert first["mistake"] == second["mistake"]
    assert first["stopped"] == second["stopped"]
    assert first["stopped"][1].startswith("stopped on callback Listener: seen enough (rank 1) after step 2 of distill")
    for one in (first, second):
        assert one["broken"][:2] == ("OwnCodeError", "rank 1: callback Listener.on_phase: ValueError: only here")
    assert dataclasses.replace(first["result"], seconds=0.0) == dataclasses.replace(second["result"], seconds=0.0)
    assert (first["ranks"], second["ranks"]) == ({0}, {1})


def test_ranks_compute_what_those_of_the_command_line_do(ranks):
    folder, _ = ranks
    given = [f"{key}={value if value else '[]'}" for key, value in OUT.items()]
    run(["run", str(folder / "recipe.yaml"), *given, f"output_dir={folder / 'command'}"])
    assert differences(traces(folder / "stopped"), traces(folder / "command")) == []


def close(one: dict[str, float], other: dict[str, float], *names: str) -> None:
    for name in names:
        assert one[name] == pytest.approx(other[name], rel=2e-5), name


@pytest.mark.parametrize("layout", ["own", "sharded", "staged"])
def test_a_term_of_ones_own_is_what_ted_ds_would_have_made_of_it(ranks, layout):
    """A quarter of the layer-wise term as a user writes it: the same loss and gradient, on any layout.

    All optimizer steps hang on the raw gradient of the first: its norm is compared, beside the terms.
    """
    _, (found, _) = ranks
    assert len(found["plain"]) == len(found[layout]) == OUT["distill.max_steps"]
    for plain, own in zip(found["plain"], found[layout], strict=True):
        for layer in ("", "/layer_01", "/layer_02"):
            assert own[f"loss/own{layer}"] == pytest.approx(own[f"loss/feature_mse{layer}"], rel=1e-5)
            assert own[f"loss/tokens{layer}"] == 1
            assert own[f"loss/texts{layer}"] == 1
            assert 0 < own[f"loss/angle{layer}"] < 2
        close(plain, own, "loss/task", "loss/feature_mse/layer_01", "loss/feature_mse/layer_02", "train/gradient_norm")
        # of the two that are 1, the gradient is 0
        assert own["loss/total"] - 2 == pytest.approx(plain["loss/total"], rel=2e-5)


def test_a_phase_with_other_terms_is_refused(ranks):
    _, (found, _) = ranks
    for kind, text, _ in found["other terms"]:
        assert kind == "CheckpointError"
        assert "own_terms was" in text
    assert found["no layers"][1].endswith(
        "terms: distill.method: kd compares no layers, of which terms are made; use lwd or ted, or remove them"
    )
