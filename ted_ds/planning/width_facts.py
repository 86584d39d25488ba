"""A student narrower than its teacher, which it is cut out of: which widths go together, and what it then is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.models.adapter_folder import read_adapter
from ted_ds.models.built_shapes import built_shapes
from ted_ds.models.files import ModelFacts, facts_by
from ted_ds.models.folder import INDEX_FILE, WEIGHTS_FILE, read_config
from ted_ds.models.tensor_files import read_tensors
from ted_ds.models.units import (
    HEADS,
    HIDDEN,
    INNER,
    KEY_VALUE_HEADS,
    Shape,
    Widths,
    narrowed_config,
    narrowed_shape,
    widths_of,
)

KIND_OF_KEY = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
}
"""The units that a key of ``student.from_teacher`` is about."""
WHERE = "student.from_teacher"


def student_widths(wanted: Mapping[str, int], teacher: ModelFacts, folder: Path) -> tuple[Widths, Widths]:
    """The teacher's widths, and the student's.

    Args:
        wanted: The student's, by the keys of the recipe.
        teacher: What is known of the teacher.
        folder: Where its ``config.json`` is.

    Raises:
        ConfigError: A student of its family cannot have these; lists all that is wrong.
    """
    if not teacher.family.units_of_maps:
        raise ConfigError(
            f"{WHERE}.{next(iter(wanted))}: a {teacher.model_type} is not cut in width here; remove it, or give "
            "student.path"
        )
    before = widths_of(teacher.parameters.maps[0], read_config(_base(folder)), teacher.family)
    given = {KIND_OF_KEY[key]: number for key, number in wanted.items()}
    if HEADS in given and KEY_VALUE_HEADS not in given and before.heads == before.key_value_heads:
        given[KEY_VALUE_HEADS] = given[HEADS]
    after = replace(before, **given)
    wrong = [*_not_left_out(wanted, teacher, before)] or [*_not_together(wanted, teacher, before, after)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return before, after


def narrow_facts(wanted: Mapping[str, int], teacher: ModelFacts, folder: Path) -> ModelFacts:
    """What a model is that has all of the teacher's blocks, and these widths.

    Raises:
        ConfigError: See :func:`student_widths`.
    """
    before, after = student_widths(wanted, teacher, folder)
    family, config = teacher.family, read_config(_base(folder))
    shapes = {name: narrowed_shape(name, shape, family, before, after) for name, shape in _shapes(folder).items()}
    narrow = facts_by(narrowed_config(config, family, after), shapes, family)
    return replace(
        teacher,
        hidden_size=narrow.hidden_size,
        num_heads=narrow.num_heads,
        embedding_width=narrow.embedding_width,
        parameters=narrow.parameters,
        behind_body=narrow.behind_body,
    )


def _base(folder: Path) -> Path:
    """Where the weights are: of an adapter's folder, its base's."""
    adapter = read_adapter(folder)
    return folder if adapter is None else adapter.base


def _shapes(folder: Path) -> Mapping[str, Shape]:
    base = _base(folder)
    if any((base / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)):
        return {name: tensor.shape for name, tensor in read_tensors(base).items()}
    (shapes,) = built_shapes(read_config(base))
    return shapes


def _not_left_out(wanted: Mapping[str, int], teacher: ModelFacts, before: Widths) -> Iterator[str]:
    """What is wrong with each of a student's widths, in lines of the recipe."""
    family, kind_of = teacher.family, KIND_OF_KEY
    for key, number in wanted.items():
        kind, held = kind_of[key], before.number(kind_of[key])
        if kind == KEY_VALUE_HEADS and not family.shares_keys:
            yield f"{WHERE}.{key}: a {teacher.model_type} has as many as heads; remove it, num_heads says it"
        elif kind in family.fixed_widths and number != held:
            yield f"{WHERE}.{key}: {number}: not of a {teacher.model_type}: {family.fixed_widths[kind]}; remove it"
        elif number > held:
            yield f"{WHERE}.{key}: {number}: the teacher has {held}; use as many or fewer"


def _not_together(wanted: Mapping[str, int], teacher: ModelFacts, before: Widths, after: Widths) -> Iterator[str]:
    """What is wrong among them."""
    heads, shared, most = after.heads, after.key_value_heads, before.heads // before.key_value_heads
    place = f"{WHERE}.{'num_heads' if 'num_heads' in wanted else 'num_key_value_heads'}"
    if heads % shared:
        yield (
            f"{place}: {heads} heads do not divide over {shared} heads of keys and values; use a multiple of {shared}, "
            "or another num_key_value_heads"
        )
    elif heads > most * shared:
        yield (
            f"{place}: {heads} heads with {shared} of keys and values are {heads // shared} to each, and the teacher "
            f"has {most}; use num_heads: {most * shared} or fewer"
        )
    if teacher.family.heads_fill_hidden and after.hidden != heads * before.head_dim:
        yield (
            f"{WHERE}.{'hidden_size' if 'hidden_size' in wanted else 'num_heads'}: in a {teacher.model_type} all heads "
            f"together are as wide as the states, and each of this teacher's is {before.head_dim} wide: hidden_size "
            f"{after.hidden} would be {after.hidden / before.head_dim:g} heads, not {heads}; give hidden_size and "
            f"num_heads that go together, as {heads * before.head_dim} and {heads}"
        )
