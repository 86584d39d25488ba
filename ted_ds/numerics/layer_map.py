"""Which student layer is matched with which teacher layer.

Layers are numbered as in transformers' ``hidden_states``: 0 is the embedding output, 1..L are the outputs of the
blocks. (Where *blocks* are cut out of a checkpoint they keep the numbers of its parameter names, from 0.) Those of an
encoder-decoder are named by their stack as well: ``encoder.0`` is what the encoder's embeddings put out, ``decoder.5``
the output of the decoder's fifth block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

Layer = int | str
"""A number; of an encoder-decoder, the name of a stack, a dot and a number."""
EMPTY = "layer_map.pairs: empty; give at least one [student_layer, teacher_layer]"
LayerPairs = tuple[tuple[Layer, Layer], ...]


def make_layer_map(
    kind: str,
    *,
    num_student_blocks: int,
    num_teacher_blocks: int,
    num_pairs: int | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> tuple[tuple[int, int], ...]:
    """The ordered ``(student layer, teacher layer)`` pairs of a strategy.

    * ``uniform``: pair k of K is ``(k * S // K, k * T // K)``, k = 1..K, K = ``num_pairs`` or S: the released code's
      interval map, which always holds both last blocks.
    * ``distilgpt2``: the first release's map, 12 -> 6 = teacher blocks {0, 2, 4, 7, 9, 11} counted from 0: the first
      of each interval in the lower half, the last of it in the upper half.
    * ``last``: the two last blocks.
    * ``explicit``: ``pairs`` as given.

    Raises:
        ValueError: One message per line; a pair outside the models, a repeated student layer, or a strategy
            that does not fit these depths.
    """
    student, teacher = num_student_blocks, num_teacher_blocks
    if kind == "last":
        return ((student, teacher),)
    if kind == "explicit":
        if not pairs:
            raise ValueError(EMPTY)
        return _checked(dict(enumerate(pairs)), student, teacher)
    if kind == "uniform":
        count = num_pairs or student
        if count > min(student, teacher):
            raise ValueError(
                f"layer_map: uniform with {count} pairs does not fit {student} student and {teacher} teacher blocks; "
                f"set num_pairs to at most {min(student, teacher)}"
            )
        return tuple((k * student // count, k * teacher // count) for k in range(1, count + 1))
    if kind == "distilgpt2":
        interval, rest = divmod(teacher, student)
        if rest or student % 2 or interval < 2:
            raise ValueError(
                f"layer_map: distilgpt2 needs an even number of student blocks and at least twice as many teacher "
                f"blocks, a multiple of them; the models have {student} and {teacher}: use uniform or explicit"
            )
        chosen = [b for b in range(teacher) if b % interval == (0 if b < teacher // 2 else interval - 1)]
        return tuple(zip(range(1, student + 1), (b + 1 for b in chosen), strict=True))
    raise ValueError(f"layer_map.kind: {kind!r} is not a strategy; use uniform, distilgpt2, last or explicit")


def make_layer_map_of_stacks(
    kind: str,
    *,
    student_blocks: Mapping[str, int],
    teacher_blocks: Mapping[str, int],
    num_pairs: int | None = None,
    pairs: Sequence[tuple[Layer, Layer]] | None = None,
) -> LayerPairs:
    """The pairs of two models of one stack, or of two encoder-decoders: a strategy's of each stack in turn.

    Args:
        kind: See :func:`make_layer_map`.
        student_blocks: How many each of the student's stacks has, by its name; under no name where it is the only one.
        teacher_blocks: Those of the teacher.
        num_pairs: Of each stack.
        pairs: For ``explicit``, as given.

    Raises:
        ValueError: One message per line; also where a pair is of two stacks, or one model has other stacks.
    """
    if student_blocks.keys() != teacher_blocks.keys():
        what = {
            side: "an encoder-decoder" if "" not in one else "of one stack of blocks"
            for side, one in (("student", student_blocks), ("teacher", teacher_blocks))
        }
        raise ValueError(
            f"layer_map: the student is {what['student']} and the teacher {what['teacher']}; layers are matched "
            "between models of the same make"
        )
    of_stacks = _by_stack(pairs or (), [*student_blocks])
    if kind == "explicit" and not pairs:
        raise ValueError(EMPTY)
    found: list[tuple[Layer, Layer]] = []
    problems: list[str] = []
    for stack, depth in student_blocks.items():
        own = of_stacks[stack]
        try:
            if kind == "explicit":
                matched = _checked(own, depth, teacher_blocks[stack])
            else:
                matched = make_layer_map(
                    kind, num_student_blocks=depth, num_teacher_blocks=teacher_blocks[stack], num_pairs=num_pairs
                )
        except ValueError as error:
            problems += [f"{line}{f' (of the {stack})' if stack else ''}" for line in str(error).splitlines()]
            continue
        found += [(_named(stack, s), _named(stack, t)) for s, t in matched]
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(found)


def _named(stack: str, number: int) -> Layer:
    return f"{stack}.{number}" if stack else number


def stack_of(layer: Layer) -> str:
    """The stack that a layer is of; nothing in a model of one."""
    return "" if isinstance(layer, int) else layer.partition(".")[0]


def number_of(layer: Layer) -> int:
    """A layer's number in its stack."""
    return layer if isinstance(layer, int) else int(layer.partition(".")[2])


def _by_stack(
    pairs: Sequence[tuple[Layer, Layer]], stacks: Sequence[str]
) -> Mapping[str, Mapping[int, tuple[int, int]]]:
    """The pairs of each stack, in numbers, by their place in the recipe."""
    found: dict[str, dict[int, tuple[int, int]]] = {stack: {} for stack in stacks}
    for index, (student, teacher) in enumerate(pairs):
        where = f"layer_map.pairs[{index}]"
        for layer in (student, teacher):
            if stack_of(layer) not in stacks:
                rule = "the models are encoder-decoders: name its stack as well, as in encoder.3 or decoder.5"
                if stacks == [""]:
                    rule = "the models have one stack of blocks: give its number alone"
                raise ValueError(f"{where}: {layer!r} is no layer here; {rule}")
        if stack_of(student) != stack_of(teacher):
            raise ValueError(
                f"{where}: {student} and {teacher} are of different stacks, which read different tokens; match a layer "
                "of the encoder with one of the encoder, and one of the decoder with one of the decoder"
            )
        if student == "decoder.0" or teacher == "decoder.0":
            raise ValueError(f"{where}: what the decoder's embeddings put out is not matched; use decoder.1 or above")
        found[stack_of(student)][index] = (number_of(student), number_of(teacher))
    return found


def layer_names(layers: Sequence[Layer]) -> list[str]:
    """A name for each entry: ``layer_03``, ``encoder_03``, and ``layer_03_2`` where a layer is matched again."""
    return [
        f"{stack_of(layer) or 'layer'}_{number_of(layer):02d}"
        + (f"_{seen + 1}" if (seen := list(layers[:index]).count(layer)) else "")
        for index, layer in enumerate(layers)
    ]


def layers_outside(pairs: Sequence[tuple[Layer, Layer]], side: str, blocks: Mapping[str, int]) -> Iterator[str]:
    """Of given pairs, the layers that one side's model has not, in lines of the recipe.

    Args:
        pairs: As given.
        side: ``student`` or ``teacher``.
        blocks: How many each of its stacks has; layers of another stack are not looked at.
    """
    for index, pair in enumerate(pairs):
        layer = pair[0 if side == "student" else 1]
        if stack_of(layer) in blocks:
            yield from _outside(index, side, number_of(layer), blocks[stack_of(layer)])


def _outside(index: int, side: str, layer: int, depth: int) -> list[str]:
    if 0 <= layer <= depth:
        return []
    blocks = "1 block" if depth == 1 else f"{depth} blocks"
    return [
        f"layer_map.pairs[{index}]: {side} block {layer} does not exist (the model has {blocks}); "
        f"use {'1' if depth == 1 else f'1..{depth}'}, or 0 for the embeddings"
    ]


def _checked(pairs: Mapping[int, tuple[int, int]], student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """The pairs of one stack, which are given by their place in the recipe."""
    problems = []
    for index, pair in pairs.items():
        for side, layer, depth in (("student", pair[0], student), ("teacher", pair[1], teacher)):
            problems += _outside(index, side, layer, depth)
    student_layers = [s for s, _ in pairs.values()]
    for layer in sorted({s for s in student_layers if student_layers.count(s) > 1}):
        problems.append(f"layer_map.pairs: student layer {layer} is matched twice; match it once")
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(pairs.values())
