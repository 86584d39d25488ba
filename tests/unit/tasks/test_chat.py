"""From files of conversations to batches: what is learned of each, what is left out, and how it is said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset

from ted_ds.config.data import Data, Padding, Source
from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import Chat
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.data.chat_data import ChatData, num_completed, packed_together
from ted_ds.data.first_rows import first_rows
from ted_ds.data.loader import Batch, Collator, OfCompletions
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError, ConfigError, DataError
from ted_ds.output.run_folders import RunFolders
from ted_ds.phases.inputs import Inputs, Settled
from ted_ds.planning.phase import DISTILL, FILTERS_TEACHER
from ted_ds.runtime.cargo import Waybill
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.shown import LEGEND
from ted_ds.vetting.batch_text import first_batch
from tests.task_kinds import make_plan
from tests.tiny import (
    SPECIAL_TOKENS,
    WORDS,
    recipe_dict,
    task_dict,
    write_chats,
    write_model,
    write_recipe,
    write_rows,
    write_tokenizer,
)

CHAT = Chat(**task_dict("chat"))
EOS = 1
GOOD = {"prompt": "ba be", "completion": " bi bo"}


def changed(**changes: Any) -> Chat:
    return Chat(**{**task_dict("chat"), **changes})


def open_rows(folder: Path, *rows: Any, task: Chat = CHAT, **settings: Any) -> ChatData:
    source = Source(path=str(write_rows(folder / "a.jsonl", rows)))
    return open_source(folder, source, task=task, **settings)


def open_source(folder: Path, source: Source, *, task: Chat = CHAT, **settings: Any) -> ChatData:
    data = Data(train=[source], evaluation=[source], **settings)
    tokenizer = write_tokenizer(folder / "tokenizer")
    return kind_of(task).open_data(data, tokenizer, list_data(data), max_heldout=100)  # type: ignore[return-value]


def ids(text: str) -> list[int]:
    """Of words; a full stop is the end token."""
    return [EOS if word == "." else len(SPECIAL_TOKENS) + WORDS.index(word) for word in text.split()]


# --- from files to samples --------------------------------------------------------------------------------------------


def test_rows_of_several_forms_become_samples_and_are_counted(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {"instruction": "ba", "input": "be", "output": " bi bo"},
        {"messages": [{"role": "user", "content": "ba"}, {"role": "assistant", "content": " bi"}] * 2, "id": 3},
        {"conversations": [{"from": "human", "value": "ba"}, {"from": "gpt", "value": " bo"}]},
    ]
    data = open_rows(tmp_path, *rows)
    assert [list(sample.input_ids) for sample in data.train[:2]] == [ids("ba be bi bo .")] * 2
    assert [sample.label for sample in data.train] == [[2, 5], [2, 5], [1, 3, 4, 6], [1, 3]]
    assert data.describe(1) == (
        "4 training conversations, held by every rank (of all rows read as prompt/completion 2, instruction 2, "
        "messages 2, conversations 2); 12 of their 19 tokens are of completions"
    )
    assert data.text_ends == (
        f"written by task.chat_template: {CHAT.chat_template}; its generation marks say what is completion"
    )
    shown = str(first_rows(Source(path=str(tmp_path / "a.jsonl")), kind_of(CHAT)))
    assert "; read as prompt/completion 1, instruction 1, messages 1, conversations 1" in shown
    assert "prompt (text), completion (text), instruction (text), input (text)" in shown
    assert "without a label" not in shown


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "json"])
def test_whole_rows_are_read_from_other_files_too(tmp_path: Path, form: str) -> None:
    rows = [{"id": str(number), **GOOD} for number in range(3)]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        messages = [{"role": "user", "content": "ba be"}, {"role": "assistant", "content": " bi bo", "name": "x"}]
        table = pyarrow.Table.from_pylist([{"messages": messages, "id": 1}] * 3)
        pyarrow.parquet.write_table(table, path)
    elif form == "arrow":
        Dataset.from_list(rows).save_to_disk(path)
    elif form == "csv":
        path.write_text("id,prompt,completion\n" + "".join(f"{n},ba be, bi bo\n" for n in range(3)))
    else:
        path.write_text(json.dumps(rows))
    data = open_source(tmp_path, Source(path=str(path)))
    assert [(list(sample.input_ids), sample.label) for sample in data.train] == [(ids("ba be bi bo ."), [2, 5])] * 3


def test_one_conversation_is_on_one_side_of_the_split_in_every_form(tmp_path: Path) -> None:
    pairs = [(a, b) for a, b in itertools.product(("ba", "be", "bi", "bo", "bu"), repeat=2)]
    forms = [
        [{"prompt": a, "completion": f" {b}"} for a, b in pairs],
        [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": f" {b}"}]} for a, b in pairs],
    ]
    heldout = []
    for rows in forms:
        data = Data(train=[Source(path=str(write_rows(tmp_path / "a.jsonl", rows)))], heldout_fraction=0.4)
        tokenizer = write_tokenizer(tmp_path / "tokenizer")
        opened = kind_of(CHAT).open_data(data, tokenizer, list_data(data), max_heldout=100)
        heldout.append([list(sample.input_ids) for sample in opened.heldout])
    assert 0 < len(heldout[0]) < len(pairs)
    assert heldout[0] == heldout[1]


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {"prompt": "ba", "completion": ""},
        {"messages": [{"role": "assistant", "content": "ba"}]},
        {
            "messages": [
                {"role": "user", "content": "ba"},
                {"role": "assistant", "content": [{"type": "image"}, {"text": "x"}]},
            ]
        },
    ]
    data = open_rows(tmp_path, *rows, bad_records={"max_fraction": 0.9})
    assert len(data.train) == 1
    assert [(record.position, record.fault.split(" (")[0][:40]) for record in data.bad_records[:3]] == [
        ("row 2", "an empty completion"),
        ("row 3", "roles out of order: message 1 is of assi"),
        ("row 4", "the chat template cannot write it: can o"),
    ]
    with pytest.raises(DataError, match=r"6 of 8 records cannot be used, more than data.bad_records allows"):
        open_rows(tmp_path, *rows)
    looked = first_rows(Source(path=str(tmp_path / "a.jsonl")), kind_of(CHAT))
    assert (len(looked.bad_records), looked.num_rows, looked.problems) == (2, 2, ())


def test_rows_of_no_form_are_named_before_a_run(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "ba", "id": 1}] * 3)
    (problem, *_) = first_rows(Source(path=str(path)), kind_of(CHAT)).problems
    assert problem == (
        f"{path}: row 1: no conversation in columns text, id; a row needs messages; conversations; prompt and "
        "completion; instruction and output"
    )


def test_what_is_cut_until_nothing_is_left_to_learn_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "ba be bi", "completion": " bo"}, {"prompt": "ba be bi bo", "completion": " bu"}]
    data = open_rows(tmp_path, *rows, task=changed(max_length=3))
    assert [(list(sample.input_ids), sample.label) for sample in data.train] == [(ids("ba be bi"), [2, 3])]
    assert data.describe(1).endswith("; 4 more are left out: nothing to learn is left of them within task.max_length")
    assert data.bad_records == []
    with pytest.raises(DataError) as caught:
        open_rows(tmp_path, *rows[1:], task=changed(max_length=3))
    assert str(caught.value) == (
        f"{tmp_path / 'a.jsonl'}: of all 2 rows that could be used, nothing is left to learn within task.max_length "
        "tokens; raise it"
    )


def test_a_tokenizer_that_does_not_say_where_tokens_come_from_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = write_tokenizer(tmp_path)
    slow = type("Slow", (), {"is_fast": False, "name_or_path": "slow", "chat_template": None})()
    kind: Any = kind_of(CHAT)
    assert kind.template(tokenizer).text()
    with pytest.raises(CheckpointError, match="slow: its tokenizer does not say which characters its tokens are of"):
        kind.template(slow)


# --- several in a sequence --------------------------------------------------------------------------------------------


def test_conversations_share_sequences_with_their_completions(tmp_path: Path) -> None:
    data = open_source(tmp_path, Source(path=str(write_chats(tmp_path / "a.jsonl"))), task=changed(pack=True))
    alone = open_source(tmp_path, Source(path=str(tmp_path / "a.jsonl")))
    assert len(data.train) < len(alone.train)
    assert [sample.index for sample in data.train] == [*range(len(data.train))]
    assert f"{len(alone.train)} training conversations in {len(data.train)} sequences" in data.describe(1)
    pieces = []
    for sample in data.train:
        assert len(sample.input_ids) == sum(sample.document_lengths) <= 16
        completed = completed_of(sample)
        start = 0
        for length in sample.document_lengths:
            places = [place - start for place in completed if start <= place < start + length]
            pieces.append((list(sample.input_ids[start : start + length]), places))
            start += length
    whole = [(list(sample.input_ids), completed_of(sample)) for sample in alone.train]
    assert sorted(pieces) == sorted(whole)
    assert sum(map(num_completed, data.train)) == sum(map(num_completed, alone.train))
    assert data.heldout[0].document_lengths == [len(data.heldout[0].input_ids)]


def completed_of(sample: Sample) -> list[int]:
    label: Any = sample.label
    return [place for pair in zip(label[::2], label[1::2], strict=True) for place in range(*pair)]


# --- which tokens are learned -----------------------------------------------------------------------------------------

LEARNED = {"completion": [[2, 3], [0, 4, 5]], "all": [[0, 1, 2, 3], [0, 1, 3, 4, 5]]}
"""Of each row below, where a token stands from which another one is predicted."""
SAMPLES = [
    Sample([5, 6, 7, 8, EOS], [3, 5], document_lengths=[5]),
    Sample([9, 10, EOS, 11, 12, 13, EOS], [0, 2, 5, 7], document_lengths=[3, 4]),
]


def places(mask: torch.Tensor, batch: Batch) -> list[list[int]]:
    """Where a mask is true, counted from each row's first token."""
    starts = batch.attention_mask.argmax(1)
    return [[int(place - start) for place in row.nonzero().flatten()] for row, start in zip(mask, starts, strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("task_on", "kl_on", "feature_on"), [*itertools.product(("completion", "all"), repeat=3)])
def test_each_term_runs_over_completions_or_over_all(task_on: str, kl_on: str, feature_on: str, side: Any) -> None:
    kind = kind_of(changed(task_on=task_on, kl_on=kl_on, feature_on=feature_on, pack=True))
    batch = kind.collator(0, Padding(side=side, multiple_of=4))([*SAMPLES, None])
    expected = {name: [*rows, []] for name, rows in LEARNED.items()}
    expected["all"][1] = [0, 1, 3, 4, 5]  # none predicts the first token of the next conversation
    kept = batch.labels != -100
    assert places(kept, batch) == expected[task_on]
    assert torch.equal(batch.labels[kept], batch.input_ids.roll(-1, 1)[kept])
    assert (batch.predicted is None) == (task_on == kl_on)
    if batch.predicted is not None:
        assert places(batch.predicted, batch) == expected[kl_on]
    tokens = [[*range(5)], [*range(7)], []]
    assert places(batch.matched_tokens, batch) == (expected["completion"] if feature_on == "completion" else tokens)
    assert kind.terms.counts_apart == (task_on != kl_on)
    rows = torch.zeros_like(kept) if batch.predicted is None else batch.predicted
    assert torch.equal(torch.as_tensor(batch.output_rows), (kept | rows).flatten().nonzero().flatten())


def test_the_masks_go_through_a_pipeline() -> None:
    for settings in itertools.product(("completion", "all"), repeat=3):
        kind = kind_of(changed(**dict(zip(("task_on", "kl_on", "feature_on"), settings, strict=True)), pack=True))
        collate = kind.collator(0, Padding(side="left"))
        batch = collate([*SAMPLES, None])
        waybill = Waybill(has_trained=True, labels_are_numbers=False, isolated=True, masks=collate.masks)
        arrived = waybill.batch(waybill.load(batch))
        for name in ("input_ids", "attention_mask", "labels", "kept_tokens", "position_ids", "predicted", "matched"):
            sent, got = getattr(batch, name), getattr(arrived, name)
            assert (sent is None) == (got is None), (settings, name)
            assert sent is None or torch.equal(sent, got), (settings, name)


def test_without_isolation_a_conversation_is_a_row() -> None:
    collate = Collator(0, "tokens", of_completions=OfCompletions(True, False, False))
    batch = collate(SAMPLES)
    assert places(batch.labels != -100, batch) == [[2, 3], [0, 4, 5]]
    assert batch.predicted is not None
    assert places(batch.predicted, batch) == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_a_batch_is_shown_with_what_is_learned_of_it(tmp_path: Path) -> None:
    data = open_rows(tmp_path, GOOD, GOOD)
    kind = kind_of(CHAT)
    lines = first_batch(kind.collator(0, Padding())(data.train), write_tokenizer(tmp_path / "tokenizer"), kind)
    assert lines == [
        "first microbatch: 10 tokens, 6 labels kept of 10",
        *["  ‹ba›‹ be› bi bo [EOS]"] * 2,
        f"  {LEGEND}",
    ]


# --- recipes ----------------------------------------------------------------------------------------------------------


def planned(folder: Path, task: dict[str, Any], *, template: str | None = None) -> Any:
    write_model(folder / "teacher", "llama")
    if template is not None:
        (folder / "teacher" / "chat_template.jinja").write_text(template)
    write_chats(folder / "train.jsonl")
    recipe = Recipe.model_validate({**recipe_dict(folder), "task": {"kind": "chat", "max_length": 16, **task}})
    return make_plan(recipe, source=str(write_recipe(folder / "recipe.yaml", {})))


def test_check_says_how_conversations_are_written_and_what_is_doubtful(tmp_path: Path) -> None:
    plan = planned(tmp_path, {}, template="{{ '<|user|>' + messages[0].content }}")
    assert plan.text_ends == (
        "written by the chat template of the teacher's tokenizer; renderings before and after each turn say what is "
        "completion"
    )
    assert plan.doubts[0] == ("teacher.path: its chat template names <|user|>, which its tokenizer does not have")


def test_check_refuses_a_teacher_without_a_template_and_a_template_without_its_tokens(tmp_path: Path) -> None:
    where = f"{tmp_path / 'recipe.yaml'}: task.chat_template: "
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, {})
    assert str(caught.value) == (
        f"{where}the teacher's tokenizer has no chat template; name a file with one, or one that ships: chatml, plain"
    )
    chatml = CHAT.chat_template.parent / "chatml.jinja"  # type: ignore[union-attr]
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, {"chat_template": str(chatml)})
    assert str(caught.value) == (
        f"{where}{chatml}: names <|im_start|>, <|im_end|>, which the teacher's tokenizer has not; use a template made "
        "for it, or add the tokens to tokenizer and models first"
    )


@pytest.mark.parametrize(
    ("distill", "without"),
    [
        ({"method": "ted"}, []),
        ({"method": "kd"}, ["task.feature_on"]),
        ({"method": "sft"}, ["task.kl_on", "task.feature_on"]),
        ({"method": "lwd", "kl_weight": 0}, ["task.kl_on"]),
    ],
)
def test_terms_that_are_not_there_run_over_nothing_and_it_is_said(
    tmp_path: Path, distill: dict[str, Any], without: list[str]
) -> None:
    recipe = recipe_dict(tmp_path, kind="chat")
    recipe["task"] |= {"feature_on": "all"}
    recipe["distill"] |= distill
    said = " ".join(settings_without_effect(Recipe.model_validate(recipe)))
    assert [name for name in ("task.kl_on", "task.feature_on") if name in said] == without


def test_what_filters_were_learned_on_hangs_on_no_setting_of_stage_two_and_on_no_place_of_a_template(
    tmp_path: Path,
) -> None:
    def inputs(phase: Any, **task: Any) -> Any:
        recipe = recipe_dict(tmp_path, kind="chat")
        recipe = Recipe.model_validate({**recipe, "task": {**recipe["task"], **task}})
        settled = Settled(recipe, plan, {}, list_data(recipe.data), None, in_8_bits=False, template_sha256="abc")
        return Inputs(settled, RunFolders(recipe, teacher=tmp_path, student=None)).of_training(phase)["task"]

    plan = planned(tmp_path, task_dict("chat"))
    assert inputs(DISTILL) == {
        "kind": "chat",
        "headline": None,
        "max_length": 16,
        "chat_template": "abc",
        "completions": "all",
        "task_on": "completion",
        "kl_on": "all",
        "feature_on": "completion",
        "pack": False,
    }
    other = {"kl_on": "completion", "feature_on": "all", "chat_template": "elsewhere.jinja"}
    assert inputs(FILTERS_TEACHER) == inputs(FILTERS_TEACHER, **other)
    assert inputs(DISTILL) != inputs(DISTILL, **other)
    assert inputs(FILTERS_TEACHER) != inputs(FILTERS_TEACHER, task_on="all")


def test_packing_by_best_fit_leaves_no_conversation_out() -> None:
    samples = [Sample([7] * length, [1, length], index=index) for index, length in enumerate((9, 3, 7, 16, 2, 4))]
    packed = list(packed_together(samples, 16))
    assert [sample.document_lengths for sample in packed] == [[9, 7], [3, 4, 2], [16]]
    assert packed[0].label == [1, 9, 10, 16]
