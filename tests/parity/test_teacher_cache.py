"""A teacher read from its cache teaches what the one that runs does, up to the rounding of what is kept."""

from __future__ import annotations

import itertools
import json
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError
from ted_ds.models.families import family_of
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.teacher_cache.cached import CachedTeacher
from ted_ds.teacher_cache.open_parts import most_open
from ted_ds.teacher_cache.parts import PartWriter, written
from ted_ds.teacher_cache.store import Reader, Record, finish, is_complete, read_about
from tests.parity.test_hosts import load
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, distill_plan, write_model

CPU, KIND, DIM = torch.device("cpu"), "sequence_classification", 6
TEACHER_LAYERS, STUDENT_LAYERS = (2, 4), (1, 2)
SAMPLES = [
    Sample(list(range(5, 5 + length)), label=length % 2, index=index) for index, length in enumerate((7, 1, 12, 3))
]


def states_of(record: Record, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    states = [torch.randn(tokens, record.dim, generator=generator) * 10**layer for layer in range(record.num_layers)]
    for one in states:
        one[0] = 0  # has no scale of its own
    return states


@pytest.mark.parametrize(("layers", "dim", "outputs"), [*itertools.product((0, 1, 3), (1, 5), (0, 1, 3))])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_record_comes_back(layers, dim, outputs, precision, tokens):
    record = Record(layers, dim, outputs, precision)
    given, states = torch.randn(outputs) if outputs else None, states_of(record, tokens)
    packed = record.pack(given, states)
    assert len(packed) == record.num_bytes(tokens)
    assert len(packed) % 8 == 0
    array = torch.frombuffer(bytearray(packed), dtype=torch.uint8).numpy() if packed else torch.empty(0).byte().numpy()
    got_outputs, got = record.unpack(array, tokens)
    assert torch.equal(got_outputs, torch.zeros(0) if given is None else given)
    assert got.shape == (layers, tokens, dim)
    for one, wanted in zip(got, states, strict=True):
        if precision == "bf16":
            assert torch.equal(one, wanted.bfloat16())
        else:  # half a step of each token's own scale
            assert bool(((one - wanted).abs() <= wanted.abs().amax(-1, keepdim=True) / 127 * 0.5001).all())


def fill(folder, record, *, num_parts=3):
    """A cache of all samples, one to a part in turn."""
    unfinished = folder / "unfinished"
    unfinished.mkdir()
    writers = [PartWriter(unfinished, rank) for rank in range(num_parts)]
    for sample in SAMPLES:
        tokens = len(sample.input_ids)
        packed = record.pack(torch.full((3,), float(sample.index)), states_of(record, tokens))
        writers[sample.index % 2].add(sample.index, packed, tokens=tokens)
    for writer in writers:
        writer.close()
    finish(unfinished, folder / "cache", record, about={"a": 1}, counts=[len(SAMPLES)])
    return folder / "cache"


def test_a_cache_is_read_in_any_order(tmp_path):
    record = Record(2, DIM, 3, "bf16")
    place = fill(tmp_path, record)
    assert is_complete(place)
    assert read_about(place) == {"a": 1}
    reader = Reader(place, record)
    assert len(reader) == len(SAMPLES)
    for index in (2, 0, 3, 1, 2):
        outputs, states = record.unpack(*reader.read(index))
        assert outputs.tolist() == [index] * 3
        assert torch.equal(states, torch.stack(states_of(record, len(SAMPLES[index].input_ids))).bfloat16())


def test_a_stopped_attempt_leaves_what_it_finished(tmp_path):
    record = Record(0, 0, 3, "bf16")
    for rank, sample in enumerate((2, 0, 3, 1)):
        writer = PartWriter(tmp_path, rank)
        writer.add(sample, record.pack(torch.zeros(3), []), tokens=5)
        if rank < 3:
            writer.close(left={"at": sample})
        else:  # killed
            writer._stream.close()
    cut_short(next(tmp_path.glob("*_00002.npz")))
    said: list[str] = []
    assert {int(part.rows[0, 0]): part.left for part in written(tmp_path, said.append)} == {2: {"at": 2}, 0: {"at": 0}}
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".bin", ".bin", ".npz", ".npz"]
    damaged, unfinished = sorted(said, key=lambda one: "lacks" in one)
    assert "_00002 is damaged (" in damaged
    assert re.search(r"_00003 lacks \w+_00003.npz, as it was not finished; it is removed, and what it held", unfinished)


def two_parts(folder):
    """One of two records, and one of a third, whose index is given back."""
    for samples in ((0, 1), (2,)):
        writer = PartWriter(folder, samples[0])
        for sample in samples:
            writer.add(sample, OUTPUTS.pack(torch.full((3,), float(sample)), []), tokens=5)
        writer.close(left={"at": samples[-1]})
    (index,) = folder.glob("*_00002.npz")
    return index


OUTPUTS = Record(0, 0, 3, "bf16")


def test_what_cannot_be_read_is_not_removed(tmp_path):
    """A disk or a server may fail to give it once; here a folder stands in the place of the index."""
    index = two_parts(tmp_path)
    content = index.read_bytes()
    index.unlink()
    index.mkdir()
    with pytest.raises(IsADirectoryError, match=r"\[Errno 21\] Is a directory: .*_00002.npz"):
        written(tmp_path, lambda said: pytest.fail(said))
    index.rmdir()
    index.write_bytes(content)
    assert len(written(tmp_path, lambda said: pytest.fail(said))) == 2


def test_no_bit_of_an_index_ends_an_attempt(tmp_path):
    """Those of an archive raise all kinds of errors; what is not for the records is no damage."""
    index = two_parts(tmp_path)
    content, records = index.read_bytes(), index.with_suffix(".bin").read_bytes()
    num_damaged = 0
    for bit in range(0, 8 * len(content), 47):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        index.write_bytes(flipped)
        index.with_suffix(".bin").write_bytes(records)
        said: list[str] = []
        found = {int(part.rows[0, 0]): part for part in written(tmp_path, said.append)}
        assert len(said) == (2 not in found)
        assert 2 not in found or (found[2].rows.shape, found[2].left) == ((1, 4), {"at": 2})
        num_damaged += len(said)
    assert num_damaged > 50


def test_records_that_are_shorter_than_their_index_says_are_asked_for_again(tmp_path):
    index = two_parts(tmp_path)
    cut_short(index.with_suffix(".bin"))
    said: list[str] = []
    assert [int(part.rows[0, 0]) for part in written(tmp_path, said.append)] == [0]
    assert "_00002.bin has 8 bytes, its index describes 16); it is removed" in said[0]


@pytest.mark.parametrize("counts", [[4], [2, 2]])
def test_a_cache_with_a_hole_is_not_finished(tmp_path, counts):
    folder = tmp_path / "begun"
    folder.mkdir()
    two_parts(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(CheckpointError, match=r"is not whole \(1 of 4 examples are not there: 3\); start the same"):
        finish(folder, tmp_path / "cache", OUTPUTS, about={}, counts=counts)
    assert sorted(folder.iterdir()) == before
    finish(folder, tmp_path / "cache", OUTPUTS, about={}, counts=[2, 1] if len(counts) == 2 else [3])
    manifest = json.loads((tmp_path / "cache" / "cache.json").read_text())
    (tmp_path / "cache" / "cache.json").write_text(json.dumps({**manifest, "counts": counts}))
    with pytest.raises(CheckpointError, match=r"damaged \(1 of 4 examples are not there: 3\); remove it"):
        Reader(tmp_path / "cache", OUTPUTS)


@contextmanager
def few_descriptors(more):
    """The system grants this process so many files beside those that are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = [*Path("/proc/self/fd").iterdir()]
    taken = {int(one.name) for one in listed if one.exists()}  # but for that of the list itself
    free = (number for number in itertools.count() if number not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, more, None)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def many_parts(folder, count):
    """A cache of so many examples, each in a part of its own."""
    (folder / "begun").mkdir()
    for sample in range(count):
        writer = PartWriter(folder / "begun", 0)
        writer.add(sample, OUTPUTS.pack(torch.full((3,), float(sample)), []), tokens=5)
        writer.close()
    finish(folder / "begun", folder / "cache", OUTPUTS, about={}, counts=[count])
    return folder / "cache"


def test_a_cache_has_more_files_than_may_be_open(tmp_path):
    place = many_parts(tmp_path, 40)
    with few_descriptors(20):
        reader = Reader(place, OUTPUTS)
        for sample in [*range(40), *range(39, -1, -3), 7, 7]:
            assert OUTPUTS.unpack(*reader.read(sample))[0].tolist() == [sample] * 3
        granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert len(reader._parts._open) == most_open() == max(4, granted // 8)
        del reader
        num_open = len([*Path("/proc/self/fd").iterdir()])
        Reader(place, OUTPUTS).read(3)  # and closed with it
        assert len([*Path("/proc/self/fd").iterdir()]) == num_open


def test_a_cache_that_cannot_be_read_is_not_called_damaged(tmp_path):
    place = many_parts(tmp_path, 2)
    reader = Reader(place, OUTPUTS)
    said = r"the teacher's cache cannot be read \(\[Errno {}: '.*{}'\); it is left as it is: mend that, and start "
    with few_descriptors(0), pytest.raises(CheckpointError, match=said.format("24] Too many open files", "cache.json")):
        Reader(place, OUTPUTS)
    with few_descriptors(0), pytest.raises(CheckpointError, match=said.format("24] Too many open files", ".bin")):
        reader.read(0)
    for part in place.glob("*.bin"):
        part.unlink()
        part.mkdir()
    with pytest.raises(CheckpointError, match=said.format("21] Is a directory", ".bin")):
        reader.read(0)
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        is_complete(place / "loop")
    assert not is_complete(place / "cache.json")
    assert not is_complete(tmp_path / "nowhere")


def test_the_first_of_two_runs_that_fill_a_cache_is_kept(tmp_path):
    record = Record(2, DIM, 3, "bf16")
    place = fill(tmp_path, record)
    inode = place.stat().st_ino
    assert fill(tmp_path, record) == place
    assert place.stat().st_ino == inode
    assert not (tmp_path / "unfinished").exists()
    (place / "cache.json").unlink()  # one that is not whole is no hindrance
    assert is_complete(fill(tmp_path, record))
    assert place.stat().st_ino != inode


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["*_00000.bin", "*_00001.npz", "cache.json"])
@pytest.mark.parametrize("damage", [cut_short, lambda file: file.unlink()], ids=["short", "gone"])
def test_a_damaged_cache_is_said(tmp_path, name, damage):
    record = Record(2, DIM, 3, "int8")
    place = fill(tmp_path, record)
    damage(next(place.glob(name)))
    with pytest.raises(CheckpointError, match=r"the teacher's cache is damaged .*remove it, and it is filled again"):
        Reader(place, record)


def test_a_bit_that_has_changed_is_said(tmp_path):
    place = fill(tmp_path, Record(2, DIM, 3, "int8"))
    file = next(place.glob("*_00000.bin"))
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(bytes(content))
    reader = Reader(place, Record(2, DIM, 3, "int8"))
    reader.read(0)
    with pytest.raises(CheckpointError, match=r"damaged \(example 2 is not what was written\); remove it, and it is "):
        reader.read(2)
    with pytest.raises(
        CheckpointError, match=r"the teacher's cache lacks example 7; remove it, and it is filled again"
    ):
        reader.read(7)


def test_a_cache_of_files_of_another_version_is_said(tmp_path):
    record = Record(2, DIM, 3, "int8")
    place = fill(tmp_path, record)
    manifest = json.loads((place / "cache.json").read_text())
    (place / "cache.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(
        CheckpointError, match=r"are of version 2, and this ted_ds reads version 3; use the ted_ds that "
    ):
        Reader(place, record)


def test_a_cache_of_another_shape_is_said(tmp_path):
    place = fill(tmp_path, Record(2, DIM, 3, "int8"))
    with pytest.raises(CheckpointError, match=r"damaged .its records are"):
        Reader(place, Record(2, DIM, 3, "bf16"))


# --- in a step --------------------------------------------------------------------------------------------------------


class Rounded:
    """A teacher that runs, with its filters, and rounds the features as the cache does."""

    def __init__(self, frozen: FrozenModel, bank: FilterBank) -> None:
        self._frozen, self._bank = frozen, bank

    def teach(self, batch, then, *, with_predictions, on_state):
        def rounded(place, state):
            on_state(place, self._bank.filters[place](state).bfloat16().to(state.dtype))

        self._frozen.teach(
            batch, then, with_predictions=with_predictions, on_state=rounded if on_state is not None else None
        )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("with_layers", [True, False], ids=["ted", "kd"])
def test_a_cached_teacher_gives_the_same_loss_and_gradients(tmp_path, side, with_layers):
    family = family_of("gpt2" if side == "left" else "bert")
    for name, blocks in (("teacher", 4), ("student", 2)):
        write_model(tmp_path / name, family.model_types[0], blocks=blocks, labels=LABELS, seed=blocks)
    layers = (TEACHER_LAYERS, STUDENT_LAYERS) if with_layers else ((), ())
    teacher = FrozenModel(
        TappedModel(load(tmp_path / "teacher", KIND), family, layers[0]), device=CPU, engine_config=None
    )
    torch.manual_seed(0)
    bank, own = (FilterBank(of_side, 16, DIM) for of_side in layers)
    bank.requires_grad_(False)
    student = FilteredModel(TappedModel(load(tmp_path / "student", KIND), family, layers[1]), own).train()
    collate = Collator(0, "class", side=side)
    rounded = Rounded(teacher, bank)
    record = Record(len(bank.layers), DIM if with_layers else 0, 2, "bf16")
    (tmp_path / "unfinished").mkdir()
    writer = PartWriter(tmp_path / "unfinished", 0)
    for sample in SAMPLES:  # each by itself: other padding than in the step
        states, outputs = {}, []
        rounded.teach(
            collate([sample]),
            lambda predictions, outputs=outputs: outputs.append(predictions.logits),
            with_predictions=True,
            on_state=states.__setitem__ if with_layers else None,
        )
        kept = [states[place][0] for place in sorted(states)]
        writer.add(sample.index, record.pack(outputs[0][0], kept), tokens=len(sample.input_ids))
    writer.close()
    finish(tmp_path / "unfinished", tmp_path / "cache", record, about={}, counts=[len(SAMPLES)])
    cached = CachedTeacher(Reader(tmp_path / "cache", record), dtype=torch.float32, side=side)

    def step(teaching, samples):
        objective = DistillObjective(
            TASK_TERMS[KIND],
            distill_plan(
                method="lwd" if with_layers else "kd",
                task_weight=1.0,
                kl_weight=0.5,
                temperature=2.0,
                feature_weight=2.0,
            ),
            teacher=teaching,
            teacher_filters=IdentityFilters(layers[0]) if with_layers else None,
            student_layers=layers[1],
        )
        batch = collate(samples)
        student.zero_grad()
        loss, _ = objective.loss(student, batch, objective.counts(batch))
        loss.backward()
        return loss.item(), [p.grad.clone() for p in student.parameters() if p.grad is not None]

    for samples in (SAMPLES[::-1], [None, SAMPLES[2], None]):
        got, wanted = step(cached, samples), step(rounded, samples)
        assert got[0] == pytest.approx(wanted[0], rel=1e-5)
        assert len(got[1]) == len(wanted[1]) > 10
        for one, other in zip(got[1], wanted[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    loss, gradients = step(cached, [None, None])
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)
