"""Which tokens are hidden from a masked LM: shares, words, and that nothing but a sequence's name decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ted_ds.config.tasks import Masking
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.masking import Masker, make_masker, make_sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.corpus_stream import CorpusStream, merge_states
from ted_ds.data.stream.settings import StreamSettings
from ted_ds.data.tokenizers import traits_of
from ted_ds.errors import ConfigError, DataError
from tests.tiny import SPECIAL_TOKENS, VOCAB_SIZE, WORDS, write_tokenizer
from tests.unit.data.test_stream import Bytes, make_settings, numbered, write_texts

MASK = VOCAB_SIZE - 1
ROLES = {**SPECIAL_TOKENS, "mask_token": "[MASK]"}
TEXT = np.random.default_rng(0).integers(5, MASK, size=200).tolist()
"""Ids of words."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), encoder=True, masks=True)


def masker_of(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Masker:
    return make_masker(traits_of(tokenizer), Masking(**settings))


def drawn(masker: Masker, ids: list[int], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """So many masks of one sequence: what is read, and where it is predicted."""
    for number in range(count):
        masked = masker(ids, "draw", number)
        assert masked is not None
        read, labels = map(np.asarray, masked)
        is_chosen = labels != -100
        assert (labels[is_chosen] == np.asarray(ids)[is_chosen]).all()
        assert (read[~is_chosen] == np.asarray(ids)[~is_chosen]).all()
        yield read, is_chosen


def test_labels_are_the_tokens_that_stood_there_and_others_are_read_as_they_are(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert sum(1 for _ in drawn(masker_of(tokenizer), TEXT, 20)) == 20


def test_the_shares_are_those_of_the_settings(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = masker_of(tokenizer, probability=0.3, to_mask=0.6, to_random=0.3)
    seen = [*drawn(masker, TEXT, 200)]
    counts = [int(chosen.sum()) for _, chosen in seen]
    assert {*counts} == {60}  # 0.3 * 200
    places = np.concatenate([np.flatnonzero(chosen) for _, chosen in seen])
    # 12,000 over 200 places: 60 each, with a standard deviation of 6.5
    assert np.bincount(places, minlength=200).min() > 30
    assert np.bincount(places, minlength=200).max() < 90
    read = np.concatenate([ids[chosen] for ids, chosen in seen])
    stood = np.asarray(TEXT)[places]
    as_mask, as_it_was = (read == MASK).mean(), (read == stood).mean()
    assert as_mask == pytest.approx(0.6, abs=0.02)
    assert as_it_was == pytest.approx(0.1 + 0.3 / (MASK - 5), abs=0.01)
    others = read[(read != MASK) & (read != stood)]
    assert {*others.tolist()} == {*range(5, MASK)}  # every word, and no special token


def test_short_sequences_are_masked_as_often_as_long_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = masker_of(tokenizer, probability=0.15)
    counts = [int(chosen.sum()) for _, chosen in drawn(masker, TEXT[:11], 2000)]
    assert {*counts} == {1, 2}
    assert np.mean(counts) == pytest.approx(0.15 * 11, abs=0.05)
    assert {int(chosen.sum()) for _, chosen in drawn(masker, TEXT[:3], 50)} == {1}  # never without any


def test_special_tokens_are_neither_hidden_nor_read_in_the_place_of_others(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [3, *TEXT[:5], MASK, 2, 4, 3, *TEXT[5:9], 4, 0]
    for read, chosen in drawn(masker_of(tokenizer, probability=0.9, to_mask=0.0, to_random=1.0), ids, 100):
        is_text = np.isin(np.arange(len(ids)), [*range(1, 6), *range(10, 14)])
        assert not chosen[~is_text].any()
        assert (read[is_text] >= 5).all()
        assert (read[is_text] != MASK).all()


def test_a_sequence_of_special_tokens_predicts_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = masker_of(tokenizer)
    assert masker([3, 2, 4], "any") is None
    assert make_sample(([3, 4], [2]), "any", isolate_documents=False, masker=masker) is None
    sample = make_sample(([3, 7, 4], [3]), "any", isolate_documents=False, masker=masker)
    assert sample is not None
    assert sample.label == [-100, 7, -100]
    assert sample.document_lengths == [3]


def test_masks_hang_on_the_name_of_a_sequence_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = masker_of(tokenizer)
    first = masker(TEXT, 1, "lane", 2)
    # what numpy and the hash gave when this was written: held-out masks are to be the same for ever
    assert first is not None
    assert [place for place, label in enumerate(first[1]) if label != -100][:6] == [2, 4, 8, 29, 33, 42]
    assert masker_of(tokenizer)(TEXT, 1, "lane", 2) == first
    assert masker(TEXT, 1, "lane", 3) != first
    assert masker_of(tokenizer, probability=0.2)(TEXT, 1, "lane", 2) != first


# --- whole words ------------------------------------------------------------------------------------------------------

PIECES = ["[PAD]", "[EOS]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def subwords(model: Any, *, pre: Any = None, normalizer: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre or pre_tokenizers.Whitespace()
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


def numbered_ids(*pieces: str) -> dict[str, int]:
    return {piece: index for index, piece in enumerate([*PIECES, *pieces])}


WORDPIECE = ("play", "##ing", "##s", "well", ",", "so")
MARKED = ("{}play", "ing", "s", "{}well", ",", "{}so")
GROUPS = [[1, 2, 3], [4], [5], [6]]
"""play ing s | well | , | so, behind a special token."""


def tokenizers_of_words() -> Iterator[Any]:
    yield pytest.param(models.WordPiece(numbered_ids(*WORDPIECE), unk_token="[UNK]"), {}, id="prefix")
    for name, mark, steps in (
        ("bytes", "Ġ", {"pre": pre_tokenizers.ByteLevel()}),
        ("metaspace", "▁", {"pre": pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])}),
        ("replaced", "▁", {"normalizer": normalizers.Sequence([normalizers.Replace(" ", "▁")])}),
    ):
        pieces = numbered_ids(*(piece.format(mark) for piece in MARKED))
        yield pytest.param(models.BPE(pieces, [], unk_token="[UNK]"), steps, id=name)


@pytest.mark.parametrize(("model", "steps"), [*tokenizers_of_words()])
def test_whole_words_are_hidden_with_all_their_tokens(model: Any, steps: dict[str, Any]) -> None:
    masker = masker_of(subwords(model, **steps), probability=0.5, whole_words=True)
    ids = [3, *range(6, 12), 4]
    times = np.zeros(len(GROUPS))
    for _, chosen in drawn(masker, ids, 400):
        whole = [chosen[group] for group in GROUPS]
        assert all(one.all() or not one.any() for one in whole)
        assert sum(one.all() for one in whole) == 2  # half of the words, not of the tokens
        times += [one.all() for one in whole]
    assert times / 400 == pytest.approx(0.5, abs=0.1)  # long words as often as short ones


def test_what_goes_on_behind_a_special_token_is_a_word_of_its_own() -> None:
    masker = masker_of(subwords(models.WordPiece(numbered_ids(*WORDPIECE), unk_token="[UNK]")), whole_words=True)
    chosen = {tuple(np.flatnonzero(one)) for _, one in drawn(masker, [7, 8, 4, 3, 7, 8, 9], 100)}
    assert chosen == {(0, 1), (4, 5), (6,)}


def test_each_token_of_a_tokenizer_of_words_is_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    assert masker_of(tokenizer, whole_words=True)(TEXT, 1) == masker_of(tokenizer)(TEXT, 1)


# --- what a tokenizer must have ---------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^its tokenizer has no mask token to hide others behind; use a model that"):
        masker_of(write_tokenizer(tmp_path, encoder=True))


def test_a_tokenizer_that_does_not_tell_where_words_begin_is_refused() -> None:
    pieces = subwords(models.BPE(numbered_ids(*WORDS), [], unk_token="[UNK]"))
    assert masker_of(pieces)([7, 8, 9], 1) is not None
    with pytest.raises(
        ConfigError, match=r"^its tokenizer does not tell where words begin .*task\.masking\.whole_words asks for"
    ):
        masker_of(pieces, whole_words=True)


# --- in a stream ------------------------------------------------------------------------------------------------------


@pytest.fixture
def masked_stream(tmp_path: Path) -> StreamSettings:
    """Of 12 lanes over one file of bytes; id 400 hides."""
    settings = make_settings([write_texts(tmp_path / "a.jsonl", numbered(300, length=20))], num_lanes=12)
    is_ordinary = np.arange(401) < 400
    is_ordinary[:2] = False
    return replace(settings, masker=Masker(Masking(), 400, is_ordinary, None))


class Ranks:
    """All ranks of a stream: of each step, ids and labels by lane."""

    def __init__(self, of: StreamSettings, world_size: int, *, state: Any = None, workers: int = 0) -> None:
        collate = Collator(0, "token_classes")
        self._streams = [
            CorpusStream(
                of,
                Bytes(),
                collate,
                StepDivision(of.num_lanes, 1, rank=rank, world_size=world_size),
                num_workers=workers,
                timeout_s=60,
                state=state,
            )
            for rank in range(world_size)
        ]
        self._of = of

    def step(self) -> list[tuple[Any, Any]]:
        rows: list[Any] = [None] * self._of.num_lanes
        for rank, stream in enumerate(self._streams):
            rows[rank :: len(self._streams)] = [self._row(batch) for batch in next(stream)]
        return rows

    @staticmethod
    def _row(batch: Batch) -> tuple[Any, Any]:
        assert torch.equal(batch.kept_tokens, batch.attention_mask.bool())
        return batch.input_ids.tolist(), batch.labels.tolist()

    def state(self) -> Any:
        return merge_states([stream.state_dict() for stream in self._streams])

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def test_masks_are_the_same_on_any_number_of_ranks_and_after_a_stop(masked_stream: StreamSettings) -> None:
    one = Ranks(masked_stream, 1)
    expected = [one.step() for _ in range(6)]
    assert any(400 in ids[0] for ids, _ in expected[0])
    assert len({str(labels) for step in expected for _, labels in step}) > 60
    places = [np.flatnonzero(np.asarray(step[0][1][0]) != -100).tolist() for step in expected]
    assert len({str(one) for one in places}) == 6
    for world_size, stop, resumed in ((2, 2, 4), (3, 5, 1), (4, 1, 3)):
        before = Ranks(masked_stream, world_size)
        assert [before.step() for _ in range(stop)] == expected[:stop]
        after = Ranks(masked_stream, resumed, state=before.state())
        assert [after.step() for _ in range(6 - stop)] == expected[stop:]
    ahead = Ranks(masked_stream, 2, workers=1)
    assert [ahead.step() for _ in range(6)] == expected
    ahead.close()


def test_another_seed_gives_other_masks_and_no_masker_the_plain_tokens(masked_stream: StreamSettings) -> None:
    plain = Ranks(replace(masked_stream, masker=None), 1).step()
    masked = Ranks(masked_stream, 1).step()
    for (ids, _), (read, labels) in zip(plain, masked, strict=True):
        original = np.where(np.asarray(labels) == -100, read, labels)
        assert original.tolist() == ids
    assert "masking" not in replace(masked_stream, masker=None).fingerprint()


def test_a_stream_does_not_go_on_with_other_masks(masked_stream: StreamSettings) -> None:
    state = Ranks(masked_stream, 1).state()
    assert masked_stream.masker is not None
    other = replace(masked_stream, masker=replace(masked_stream.masker, settings=Masking(probability=0.2)))
    with pytest.raises(DataError, match=r"saved with other data settings, so it cannot go on: masking was \{"):
        Ranks(other, 1, state=state)
