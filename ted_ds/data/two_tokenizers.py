"""Texts that each model reads by a tokenizer of its own: a sample holds both readings, and gives each side its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ted_ds.data.samples import Sample

Encoded = Sequence[Sequence[Sample] | str]
"""Each example in one sample or several; or what is wrong with it."""
BOTH = ("student", "teacher")


def paired(own: Encoded, of_teacher: Encoded) -> Iterator[list[Sample] | str]:
    """What the student's tokenizer made of examples, with what the teacher's made of the same; or what is wrong."""
    for mine, theirs in zip(own, of_teacher, strict=True):
        if isinstance(mine, str) or isinstance(theirs, str):
            yield mine if isinstance(mine, str) else str(theirs)
        else:
            yield [replace(one, of_teacher=other) for one, other in zip(mine, theirs, strict=True)]


def read_by(samples: Sequence[Sample], sides: Sequence[str]) -> list[Sample]:
    """The same samples as models of one side, or of both together, read them; known by their places all the same."""
    if "teacher" not in sides:
        return [replace(one, of_teacher=None) for one in samples]
    of_teacher = [replace(one.of_teacher, index=one.index) for one in samples if one.of_teacher is not None]
    if "student" not in sides:
        return of_teacher
    return [replace(one, of_teacher=other) for one, other in zip(samples, of_teacher, strict=True)]
