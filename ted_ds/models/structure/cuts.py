"""A family cut by blocks, as a run cuts it: from files to files, and held against the model it was cut from."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ted_ds.errors import CheckpointError
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.family import Family
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.loading import auto_class
from ted_ds.models.partial import AbsentBlock
from ted_ds.models.parts import blocks_of
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.specimen import NOT_OF_THE_MODEL


def refuse_other_cuts(specimen: Specimen, family: Family) -> None:
    """A model cut out of the files does what the whole does without the other blocks; reading its files loses nothing.

    Raises:
        CheckpointError: It does not; or no choice of blocks could be cut out.
    """
    count = specimen.num_blocks
    if count < 2:
        raise CheckpointError("it was not tried, as it has only one block")
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        _save(specimen, whole)
        _refuse_other_files(specimen, family, whole)
        why: Exception | None = None
        for number, blocks in enumerate(_choices(count)):
            student = Path(place) / f"cut{number}"
            try:
                cut(whole, student, blocks=blocks, family=family, origins=Origins(whole, None))
            except CheckpointError as error:  # a block that hangs on its number: other choices may do
                why = error
                continue
            _compare(specimen, family, blocks, _load(student, specimen))
            why = None
            break
        if why is not None:
            raise why


def _choices(count: int) -> list[tuple[int, ...]]:
    """Blocks to try, the most telling first."""
    spread = tuple(sorted({0, count // 2, count - 1}))
    period = tuple(range(0, count, 2))
    return list(dict.fromkeys([spread if len(spread) < count else (count - 1,), period, tuple(range(count // 2 or 1))]))


def _save(specimen: Specimen, folder: Path) -> None:
    copy.deepcopy(specimen.model).save_pretrained(folder)
    file = folder / CONFIG_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    # what its file says, and not what transformers makes of that as it writes it
    said = {key: value for key, value in specimen.content.items() if key not in NOT_OF_THE_MODEL}
    file.write_text(json.dumps({**content, **said}), encoding="utf-8")


def _load(folder: Path, specimen: Specimen) -> PreTrainedModel:
    model, report = auto_class(specimen.architecture).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if report["missing_keys"]:
        raise CheckpointError(f"{next(iter(report['missing_keys']))} is missing from the files of a cut model")
    for name, held, wanted in report["mismatched_keys"]:
        raise CheckpointError(f"{name} is {[*held]}, and in a model of fewer blocks {[*wanted]}")
    return model.eval()


def _refuse_other_files(specimen: Specimen, family: Family, folder: Path) -> None:
    """Every weight of a block is known as one of it by its name in files."""
    model = _load(folder, specimen)
    with torch.no_grad():
        if not torch.equal(model(**inputs_of(model)).logits, specimen.model(**inputs_of(model)).logits):
            raise CheckpointError("it is another model once it was written to files and read again")
    from safetensors import safe_open

    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as weights:
        names = [*weights.keys()]
    found = {number for name in names if (number := family.block_number(name)) is not None}
    if found != set(range(specimen.num_blocks)):
        raise CheckpointError("its files call its blocks otherwise than transformers' model does")


def _compare(specimen: Specimen, family: Family, blocks: tuple[int, ...], student: PreTrainedModel) -> None:
    without = copy.deepcopy(specimen.model)
    own = blocks_of(without, family)
    for index in range(len(own)):
        if index not in blocks:
            own[index] = AbsentBlock(own[index], returns_tuple=family.blocks_return_tuples)
    with torch.no_grad():
        expected = without(**inputs_of(without)).logits
        if not torch.equal(student(**inputs_of(student)).logits, expected):
            raise CheckpointError(f"cut to blocks {[*blocks]} it is another model than with these blocks alone")
