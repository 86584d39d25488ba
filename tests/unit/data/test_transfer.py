"""Texts for Stage II whose labels are not read: settings, reading, what is held out, and how they are mixed in."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.data import Data
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import SequenceClassification
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import LabelledStream
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.transfer import Transfer, share_of
from ted_ds.errors import ConfigError, DataError
from ted_ds.planning.plan_in_words import describe
from ted_ds.tasks.kind import kind_of
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import (
    LABELS,
    recipe_dict,
    texts,
    write_labelled,
    write_pairs,
    write_recipe,
    write_rows,
    write_run,
    write_tokenizer,
)

ONE = SequenceClassification(kind="sequence_classification", labels=[*LABELS])
PAIRS = ONE.model_copy(update={"text_column": ["first", "second"]})

# --- settings ---------------------------------------------------------------------------------------------------------


def mistakes(folder: Path, *overrides: str, kind: str = "sequence_classification", method: str = "ted") -> str:
    recipe = write_recipe(folder / "recipe.yaml", recipe_dict(folder, kind=kind, method=method))
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [*overrides])
    return without_overrides(str(caught.value))


@pytest.mark.parametrize("share", ["0", "1", "1.5", "true", "sizes", "[0.5]"])
def test_a_share_is_one_of_two_things(tmp_path: Path, share: str) -> None:
    found = mistakes(tmp_path, "data.transfer=[{path: a.txt}]", f"data.transfer_share={share}")
    assert "data.transfer_share: " in found
    assert found.endswith(": must be a number above 0 and below 1, or size")


def test_a_share_of_nothing_has_no_effect(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification"))
    unused = settings_without_effect(load_recipe(recipe, ["data.transfer=null", "data.transfer_share=0.3"]))
    assert "without effect: data.transfer_share (data.transfer is not given)" in unused


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        (
            "causal_lm",
            "ted",
            "the documents of a causal_lm have no labels anyway; give these sources under data.train, with a weight",
        ),
        (
            "token_classification",
            "ted",
            "a token_classification learns from the teacher at words with a label, and none of these is read; remove "
            "it",
        ),
        (
            "sequence_classification",
            "sft",
            "distill.method: sft has no teacher, and no labels of these texts are read; remove it, or use method kd, "
            "lwd or ted",
        ),
    ],
)
def test_where_nothing_would_be_learned_it_is_refused(tmp_path: Path, kind: str, method: str, message: str) -> None:
    found = mistakes(tmp_path, "data.transfer=[{path: a.txt}]", kind=kind, method=method)
    assert found == f"{tmp_path / 'recipe.yaml'}: data.transfer: {message}"


def test_columns_are_as_many_as_the_tasks(tmp_path: Path) -> None:
    pairs, odd = "task.text_column=[a, b]", "data.transfer=[{path: x}, {path: y, text_column: c}]"
    assert mistakes(tmp_path, pairs, odd).endswith(
        "data.transfer[1].text_column: 1 column, task.text_column names 2; name as many, in the same order"
    )
    assert mistakes(tmp_path, "data.transfer=[{path: y, text_column: [c, d]}]").endswith(
        "data.transfer[0].text_column: 2 columns, task.text_column names 1; name as many, in the same order"
    )
    assert mistakes(tmp_path, "data.transfer=[{path: y, text_column: []}]").endswith(
        "must be a column, or [first, second] with two columns for texts that come in pairs"
    )


def test_check_looks_at_the_texts_and_says_how_many_come_into_a_step(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification")
    odd = write_rows(tmp_path / "odd.jsonl", [{"text": text, "label": "?"} for text in texts(5)])
    given = f"data.transfer=[{{path: {odd}, weight: 2}}]"
    for share, says in {
        "0.25": "of each step of distill, 1 of 4 texts",
        "0.3": "of each step of distill, on average 1.2 of 4 texts",
        "size": "of each step of distill, as many of its 4 texts as come among all",
    }.items():
        read, plan = plan_recipe(str(recipe), [given, f"data.transfer_share={share}"])
        lines = describe(read, plan, num_ranks=1).splitlines()
        assert f"transfer  {says}; their labels are not read" in lines
        (line,) = (line for line in lines if line.startswith("data.transfer[0] "))
        assert "first 5 rows: text (text); texts of " in line
        assert "label" not in line
        assert any("data.transfer[0].weight (task.kind: sequence_classification)" in line for line in lines)
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(recipe), [f"data.transfer=[{{path: {odd}, text_column: sentence}}, {{path: none.txt}}]"])
    assert "odd.jsonl: row 1: no column 'sentence'" in without_overrides(str(caught.value))
    assert ". Set text_column of this source of data.transfer" in without_overrides(str(caught.value))
    assert "data.transfer[1].path: none.txt: no such data file or folder" in without_overrides(str(caught.value))


# --- reading ----------------------------------------------------------------------------------------------------------


def opened(task: Any, folder: Path, train: Path, transfer: list[Any], **settings: Any) -> LabelledData:
    given = [one if isinstance(one, dict) else {"path": str(one)} for one in transfer]
    data = Data(train=[{"path": str(train)}], transfer=given, **settings)  # type: ignore[list-item]
    found: Any = kind_of(task).open_data(data, write_tokenizer(folder / "tokenizer"), list_data(data), max_heldout=3)
    return found


def test_labels_are_not_read_and_each_source_may_have_columns_of_its_own(tmp_path: Path) -> None:
    train, held = write_labelled(tmp_path / "train.jsonl", 20), write_labelled(tmp_path / "held.jsonl", 5, seed=1)
    first, second, third = texts(4, seed=5), texts(3, seed=6), texts(2, seed=7)
    wrong = write_rows(tmp_path / "wrong.jsonl", ({"text": text, "label": {"no": "label"}} for text in first))
    other = write_rows(tmp_path / "other.jsonl", ({"sentence": text} for text in second))
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(third) + "\n")
    data = opened(
        ONE,
        tmp_path,
        train,
        [wrong, {"path": str(other), "text_column": "sentence"}, plain],
        evaluation=[{"path": str(held)}],
    )
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    assert [sample.input_ids for sample in data.transfer] == tokenizer(first + second + third)["input_ids"]
    assert {sample.label for sample in data.transfer} == {None}
    assert [sample.index for sample in data.learned] == list(range(29))
    assert [sample.label is None for sample in data.train] == [False] * 20
    assert (data.num_unlabelled, data.has_labels) == (0, True)
    assert data.describe(1) == (
        "20 training examples, held by every rank; 9 transfer texts for Stage II, 0.5 of each step"
    )


def test_both_texts_of_pairs_are_read(tmp_path: Path) -> None:
    train, held = write_pairs(tmp_path / "train.jsonl", 20), write_pairs(tmp_path / "held.jsonl", 5, seed=4)
    rows = [{"q": one, "a": other, "label": 3} for one, other in zip(texts(4, seed=5), texts(4, seed=9), strict=True)]
    copied = json.loads(held.read_text().splitlines()[0])
    swapped = [(copied["second"], copied["first"]), (copied["first"], copied["second"].upper() + " ")]
    rows += [{"q": one, "a": other} for one, other in swapped]
    path = write_rows(tmp_path / "transfer.jsonl", rows)
    given = [{"path": str(path), "text_column": ["q", "a"]}]
    data = opened(PAIRS, tmp_path, train, given, evaluation=[{"path": str(held)}])
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    kept = rows[:5]  # of the last, both texts are those of a held-out pair
    expected = tokenizer([row["q"] for row in kept], [row["a"] for row in kept])["input_ids"]
    assert [sample.input_ids for sample in data.transfer] == expected
    assert data.num_transfer_heldout == 1


def test_what_is_scored_never_enters(tmp_path: Path) -> None:
    train, held = write_labelled(tmp_path / "train.jsonl", 20), write_labelled(tmp_path / "held.jsonl", 8, seed=1)
    apart = write_labelled(tmp_path / "apart.jsonl", 6, seed=2)
    fresh = texts(10, seed=5)
    scored = [json.loads(line)["text"] for file in (held, apart) for line in file.read_text().splitlines()]
    spelt = [f"  {text.upper().replace(' ', '  ')}\n" for text in scored]  # all, not only the three that are scored
    path = write_rows(tmp_path / "transfer.jsonl", ({"text": text} for text in [*scored, *fresh, *spelt]))
    sets = {"evaluation": [{"path": str(held)}], "apart": {"other": [{"path": str(apart)}]}}
    data = opened(ONE, tmp_path, train, [path], **sets)
    assert [sample.input_ids for sample in data.transfer] == write_tokenizer(tmp_path / "t")(fresh)["input_ids"]
    assert data.num_transfer_heldout == 28
    assert data.describe(1).endswith("10 transfer texts for Stage II, 0.5 of each step; 28 more are held out: left out")
    with pytest.raises(DataError) as caught:
        opened(ONE, tmp_path, train, [held], **sets)
    assert without_overrides(str(caught.value)) == (
        f"{held}: no texts to learn from, all 8 are held out; fill data.transfer, or remove it"
    )


def test_what_a_hash_holds_out_never_enters(tmp_path: Path) -> None:
    train = write_labelled(tmp_path / "train.jsonl", 60)
    own = [json.loads(line)["text"] for line in train.read_text().splitlines()]
    fresh = texts(60, seed=5)
    path = write_rows(tmp_path / "transfer.jsonl", ({"text": text} for text in own + fresh))
    data = opened(ONE, tmp_path, train, [path], heldout_fraction=0.3, transfer_share="size")
    wanted = [text for text in own + fresh if not is_heldout(text, 0.3)]
    assert 60 < len(wanted) < 110
    assert [sample.input_ids for sample in data.transfer] == write_tokenizer(tmp_path / "t")(wanted)["input_ids"]
    assert [sample.input_ids for sample in data.transfer[: len(data.train)]] == [one.input_ids for one in data.train]
    assert "transfer texts for Stage II, as they come among all texts; " in data.describe(1)


def test_texts_with_nothing_in_them_are_bad_records(tmp_path: Path) -> None:
    train = write_labelled(tmp_path / "train.jsonl", 20)
    path = write_rows(tmp_path / "transfer.jsonl", [{"text": " "}, {"text": None}, {"text": "ba be bi"}])
    data = opened(ONE, tmp_path, train, [path], heldout_fraction=0.2, bad_records={"max_fraction": 0.1})
    assert sorted(record.position for record in data.bad_records) == ["row 1", "row 2"]
    assert len(data.transfer) == 1
    with pytest.raises(DataError, match=r"2 of 23 records cannot be used, more than data.bad_records allows"):
        opened(ONE, tmp_path, train, [path], heldout_fraction=0.2, bad_records={"max_fraction": 0.05})
    blank = write_rows(tmp_path / "blank.jsonl", [{"text": " "}])
    with pytest.raises(DataError) as caught:
        opened(ONE, tmp_path, train, [blank], heldout_fraction=0.2, bad_records={"max_fraction": 0.1})
    assert without_overrides(str(caught.value)) == (
        f"{blank}: no texts to learn from, none of its rows can be used; fill data.transfer, or remove it"
    )


# --- steps ------------------------------------------------------------------------------------------------------------

LABELLED = [Sample([1 + index, *[7] * (index % 23)], index % 2) for index in range(50)]
TRANSFER = [Sample([101 + index, *[7] * (index % 31)]) for index in range(70)]


def stream_of(share: str, *, rank: int = 0, world_size: int = 1, state: Any = None, **options: Any) -> LabelledStream:
    division = StepDivision(
        12, None if "micro_batch_tokens" in options else 2, options.pop("micro_batch_tokens", None), rank, world_size
    )
    settings: Any = {"seed": 3, "grouping_window_steps": 1, "transfer": Transfer(TRANSFER, Fraction(share)), **options}
    return LabelledStream(LABELLED, Collator(0, "class"), division, state=state, **settings)


def numbers_in(batches: list[Batch]) -> list[int]:
    return [
        int(ids[kept][0]) - 1
        for batch in batches
        for ids, kept in zip(batch.input_ids, batch.kept_tokens, strict=True)
        if kept.any()
    ]


def global_steps(share: str, count: int, world_size: int, **options: Any) -> Iterator[list[int]]:
    """What each step holds over all ranks."""
    ranks = [stream_of(share, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for _ in range(count):
        yield sorted(number for rank in ranks for number in numbers_in(next(rank)))


def permutations(name: str, count: int, epochs: int) -> list[int]:
    orders: list[int] = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{name} {epoch}").shuffle(order)
        orders += order
    return orders


OPTIONS: list[dict[str, int]] = [
    {},
    {"grouping_window_steps": 4},
    {"micro_batch_tokens": 64, "grouping_window_steps": 4},
]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("share", ["1/2", "0.3", "0.01", "0.95"])
def test_each_step_has_its_share_and_both_sets_go_through_their_epochs(
    share: str, options: dict[str, int], world_size: int
) -> None:
    steps = list(global_steps(share, 16, world_size, **options))
    counts = [sum(number >= 100 for number in step) for step in steps]
    assert {len(step) for step in steps} == {12}
    exact = 12 * Fraction(share)
    assert all(abs(count - exact) < 1 for count in counts)
    assert sum(counts) == 16 * exact // 1
    window = options.get("grouping_window_steps", 1)
    order = {False: permutations("3", 50, 4), True: [100 + one for one in permutations("3 transfer", 70, 4)]}
    for number in range(0, 16, window):
        held = [one for step in steps[number : number + window] for one in step]
        for is_transfer in (False, True):
            before, after = (
                int(exact * step) if is_transfer else 12 * step - int(exact * step)
                for step in (number, number + window)
            )
            assert Counter(one for one in held if (one >= 100) == is_transfer) == Counter(
                order[is_transfer][before:after]
            )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("stop", [0, 1, 7, 11])
def test_it_goes_on_from_any_step_on_any_number_of_ranks(options: dict[str, int], stop: int) -> None:
    whole = list(global_steps("0.3", stop + 6, 1, **options))
    stopped = stream_of("0.3", rank=1, world_size=2, **options)
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state_dict()))
    assert list(global_steps("0.3", 6, 3, state=state, **options)) == whole[stop:]
    gone_on = stream_of("0.3", rank=1, world_size=2, state=state, **options)
    assert gone_on.progress() == stopped.progress()
    for mine, theirs in zip(next(stopped), next(gone_on), strict=True):
        assert mine.input_ids.equal(theirs.input_ids)
        assert mine.labels.equal(theirs.labels)


def test_the_labelled_rows_alone_are_those_of_a_run_without() -> None:
    mixed, alone = stream_of("1/2"), stream_of("1/2", transfer=None)
    seen = [number for _ in range(8) for number in numbers_in(next(mixed)) if number < 100]
    assert seen == [number for _ in range(4) for number in numbers_in(next(alone))]


def test_progress_tells_the_epochs_of_both() -> None:
    streams = [stream_of("0.3", rank=rank, world_size=2) for rank in range(2)]
    for _ in range(10):
        for stream in streams:
            next(stream)
    found = sum((Counter(stream.progress()) for stream in streams), Counter())
    assert found["data/epoch"] == pytest.approx(84 / 50)
    assert found["data/transfer_epoch"] == pytest.approx(36 / 70)


def test_a_state_of_another_mixture_is_refused_with_what_differs() -> None:
    state = stream_of("0.3").state_dict()
    others: list[tuple[Any, str]] = [
        (Transfer(TRANSFER, Fraction("0.4")), "transfer_share was '3/10' and is '2/5'. "),
        (Transfer(TRANSFER[1:], Fraction("0.3")), "num_transfer was 70 and is 69; transfer_sha256 was "),
        (None, "num_transfer was 70 and is None; transfer_sha256 was "),
    ]
    for transfer, text in others:
        with pytest.raises(DataError) as caught:
            stream_of("0.3", transfer=transfer, state=state)
        assert text in without_overrides(str(caught.value))
    with pytest.raises(DataError, match="num_transfer was None and is 70; transfer_sha256 was None and is '"):
        stream_of("0.3", state=stream_of("0.3", transfer=None).state_dict())


def test_a_share_is_taken_as_it_is_written() -> None:
    """As 0.29 * 100 is 28.999999999999996."""
    assert Transfer(TRANSFER, share_of(0.29)).rows_before(1, 100) == 29


@pytest.mark.parametrize("share", [0.25, "size"])
def test_stage_two_alone_sees_them(tmp_path: Path, share: float | str) -> None:
    train, held = write_labelled(tmp_path / "train.jsonl", 20), write_labelled(tmp_path / "held.jsonl", 5, seed=1)
    transfer = write_labelled(tmp_path / "transfer.jsonl", 30, seed=2)
    data = opened(ONE, tmp_path, train, [transfer], evaluation=[{"path": str(held)}], transfer_share=share)

    def seen(*, with_transfer: bool) -> list[int]:
        stream = data.stream(
            kind_of(ONE).collator(0, data._data.padding),
            StepDivision(10, 5),
            seed=0,
            num_workers=0,
            timeout_s=1,
            with_transfer=with_transfer,
        )
        return [sample for _ in range(10) for batch in next(stream) for sample in batch.samples]

    assert Counter(seen(with_transfer=False)) == Counter(5 * [*range(20)])
    mixed = seen(with_transfer=True)
    if share == "size":  # two epochs of all
        assert Counter(mixed) == Counter(2 * [*range(50)])
    else:
        assert sum(index >= 20 for index in mixed) == 25
        assert [index for index in mixed if index < 20] == seen(with_transfer=False)[:75]
