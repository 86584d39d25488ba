"""Batches that ``ted-ds init`` writes, by memory, and steps, by passes over the data and by time."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.planning.deepspeed_choice import candidates
from ted_ds.planning.hosting import USABLE
from ted_ds.planning.operations import operations_of_phases
from ted_ds.planning.plan import plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.init import begin
from ted_ds.verbs.init.means import Means, find_means
from tests.tiny import write_model, write_rows

ROWS = [{"text": f"the cat sat {row}", "label": ["bad", "good"][row % 2]} for row in range(600)]
GPUS = Means(2, 2**40, "that are free on each GPU", False, 400.0, bf16=True)
CPU = Means(1, 2**40, "that are free here", True, 1.0, bf16=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "bert", "bert", blocks=4, max_position_embeddings=512)
    write_model(folder / "llama", "llama", blocks=4, max_position_embeddings=2048)
    write_rows(folder / "labels.jsonl", ROWS)
    write_rows(folder / "documents.jsonl", [{"text": f"{row} {'the cat sat ' * 3000}"} for row in range(40)])
    (folder / "books").mkdir()
    for part in range(2):
        (folder / "books" / f"{part}.txt").write_text(
            "".join(f"the cat sat\nthe {part} {row}\n\n" for row in range(30))
        )
    (folder / "lines.txt").write_text("".join(f"the cat {row}\n" for row in range(60)) + "\n")
    return folder


@pytest.fixture
def written(place, tmp_path, monkeypatch, capsys):
    """What is written with some means, as text and as values, and what is said."""

    def write(means, teacher="llama", data="documents.jsonl", *words):
        monkeypatch.setattr(begin, "find_means", lambda *_: means)
        out = tmp_path / "r.yaml"
        out.unlink(missing_ok=True)
        given = ["--teacher", str(place / teacher), "--data", str(place / data), "--out", str(out)]
        assert main(["init", *given, *words]) == 0, capsys.readouterr().err
        text = out.read_text(encoding="utf-8")
        return text, yaml.safe_load(text), capsys.readouterr().out

    write.out = tmp_path / "r.yaml"
    return write


def needed(file, means, micro, **changes):
    """Bytes of a rank by the file that takes least."""
    overrides = [f"distill.micro_batch_size={micro}", *(f"{key}={value}" for key, value in changes.items())]
    recipe, plan = plan_recipe(str(file), overrides, kind_of, num_ranks=means.num_ranks)
    found = candidates(recipe, plan, num_ranks=means.num_ranks, device_is_host=means.is_cpu)
    return min(one.needed for one in found)


def test_microbatches_are_the_largest_that_fit(written):
    _, values, _ = written(GPUS)
    assert values["distill"]["micro_batch_size"] == 16, "all of a rank's share"
    for size, larger in ((8, 16), (4, 8), (2, 4), (1, 2)):
        between = (needed(written.out, GPUS, size) + needed(written.out, GPUS, larger)) / 2 / USABLE
        text, values, _ = written(replace(GPUS, free=int(between)))
        assert values["distill"]["micro_batch_size"] == size
        assert "activation_checkpointing" not in values
        assert re.search(
            rf"micro_batch_size: {size}  # takes about [\d.]+ MiB of [\d.]+ [MG]iB that are free on each", text
        )


def test_activations_are_computed_again_where_not_one_sequence_fits(written):
    _, _, _ = written(GPUS)
    one = needed(written.out, GPUS, 1)
    again = needed(written.out, GPUS, 1, activation_checkpointing="true")
    assert again < one
    text, values, _ = written(replace(GPUS, free=int((one + again) / 2 / USABLE)))
    assert values["activation_checkpointing"] is True
    assert values["distill"]["micro_batch_size"] == 1
    assert "activation_checkpointing: true  # else not even one sequence would fit" in text


def test_what_does_not_fit_is_said(written):
    text, values, _ = written(replace(GPUS, free=2**20))
    assert values["distill"]["micro_batch_size"] == 1
    assert ", and does not fit into 1 MiB that are free on each GPU: give it more ranks, or a GPU" in text


def test_steps_go_by_passes_over_a_corpus(written, place):
    text, values, _ = written(GPUS)
    tokens = (place / "documents.jsonl").stat().st_size / 4
    assert values["task"]["sequence_length"] == 1024
    assert values["distill"]["max_steps"] == int(3 * tokens / 1024 / 32)
    assert f"# about {values['distill']['max_steps'] * 1024 * 32 / tokens:.2g} passes over the data\n" in text
    assert "global_batch_size" not in values["distill"]


def test_of_a_small_corpus_there_are_as_many_passes_as_steps_want(written, place):
    text, values, _ = written(GPUS, "llama", "books")
    tokens = sum(file.stat().st_size for file in (place / "books").iterdir()) / 4
    assert values["distill"]["max_steps"] == 20
    passes = round(20 * 1024 * 32 / tokens, -2)
    assert passes > 1000
    assert f"# about {passes:,.0f} passes over the data\n" in text


def test_without_a_gpu_a_first_run_comes_to_its_end(written):
    text, values, said = written(CPU)
    assert (values["task"]["sequence_length"], values["distill"]["global_batch_size"]) == (256, 8)
    assert values["evaluation"] == {"max_examples": 64}
    whole = values["distill"]["max_steps"]
    assert re.search(r"# about (3|2\.9) passes over the data\n", text)
    assert "computes 1 TFLOP/s" in said
    recipe, plan = plan_recipe(str(written.out), (), kind_of)
    operations = operations_of_phases(recipe, plan)["distill"]
    an_hour_and_a_half = operations / 1e12 / 5400
    text, values, said = written(replace(CPU, tflops=an_hour_and_a_half))
    assert values["distill"]["max_steps"] == pytest.approx(whole / 3, abs=1)
    assert re.search(r"# about (1|0\.99) pass(es)? over the data, as many as fit into 30 minutes on this CPU\n", text)
    assert float(re.search(r"([\d.]+) h of training", said)[1]) == pytest.approx(0.5, rel=0.05)
    text, values, said = written(replace(CPU, tflops=an_hour_and_a_half / 1000))
    assert values["distill"]["max_steps"] == 20
    assert " over the data, as fewer than 20 steps teach nothing\n" in text


def test_without_a_gpu_rows_are_seen_as_often_as_there_is_time(written):
    _, values, _ = written(CPU, "bert", "labels.jsonl")
    assert (values["distill"]["epochs"], values["teacher"]["finetune"]) == (3, {})
    text, values, said = written(replace(CPU, tflops=1e-6), "bert", "labels.jsonl")
    share = values["distill"]["epochs"]
    assert 0 < share < 3
    assert values["teacher"]["finetune"] == {"epochs": share}
    assert "# passes over the rows, as many as fit into 30 minutes on this CPU" in text
    hours = sum(map(float, re.findall(r"([\d.]+) h of training", said)))
    assert hours == pytest.approx(0.5, rel=0.1)


def test_a_cpu_without_bf16_gets_fp32(written):
    assert "precision" not in written(CPU)[1]
    assert written(replace(CPU, bf16=False))[1]["precision"] == "fp32"


def test_texts_with_blank_lines_between_are_divided_by_them(written):
    text, values, _ = written(GPUS, "llama", "books")
    assert values["data"]["train"][0]["documents"] == "block"
    assert "documents: block}]  # one ends at a blank line" in text
    assert "documents" not in written(GPUS, "llama", "lines.txt")[1]["data"]["train"][0]


def test_ranks_on_a_cpu_are_started_as_such(written):
    said = written(replace(CPU, num_ranks=2), "bert", "labels.jsonl")[2]
    assert "start it    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 --module ted_ds run " in said


def test_a_gpu_elsewhere_is_taken_at_its_word():
    means = find_means(4, 80.0)
    assert (means.num_ranks, means.free, means.is_cpu) == (4, 80 * 2**30, False)
    assert means.memory_in_words == "80 GiB of its GPU (--gpu)"


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = find_means(None, None), find_means(2, None)
    assert one.is_cpu
    assert (one.num_ranks, two.num_ranks) == (1, 2)
    assert two.free == pytest.approx(one.free / 2, rel=0.2)
    assert 1e-3 < one.tflops < 10
    assert one.memory_in_words.endswith(" that are free here")
    assert two.memory_in_words.endswith(" that are free here, shared by 2 ranks")


def test_minutes_are_those_that_are_asked_for(written, capsys):
    written(CPU)
    recipe, plan = plan_recipe(str(written.out), (), kind_of)
    an_hour = replace(CPU, tflops=operations_of_phases(recipe, plan)["distill"] / 1e12 / 3600)
    by_default, by_ten = (written(an_hour, "llama", "documents.jsonl", *words) for words in ((), ("--minutes", "10")))
    whole = recipe.distill.max_steps
    steps = [values["distill"]["max_steps"] for _, values, _ in (by_default, by_ten)]
    assert steps == pytest.approx([whole / 2, whole / 6], abs=1)
    assert "as many as fit into 10 minutes on this CPU" in by_ten[0]
    slow = replace(GPUS, tflops=1e-6)
    text, values, _ = written(slow, "llama", "documents.jsonl", "--minutes", "2.5")
    assert values["distill"]["max_steps"] == 20
    assert "as fewer than 20 steps teach nothing" in text
    text, _, _ = written(slow, "bert", "labels.jsonl", "--minutes", "2.5")
    assert "# passes over the rows, as many as fit into 2.5 minutes at 1e-06 TFLOP/s a GPU" in text
    with pytest.raises(SystemExit):
        main(["init", "--minutes", "0"])
    assert "--minutes: 0: use more than 0" in capsys.readouterr().err
