"""Which student layer is matched with which teacher layer.

Layers are numbered as in transformers' ``hidden_states``: 0 is the embedding output, 1..L are the outputs of the
blocks. (Where *blocks* are cut out of a checkpoint they keep the numbers of its parameter names, from 0.)
"""

from __future__ import annotations

from collections.abc import Sequence

LayerPairs = tuple[tuple[int, int], ...]


def make_layer_map(
    kind: str,
    *,
    num_student_blocks: int,
    num_teacher_blocks: int,
    num_pairs: int | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> LayerPairs:
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
        return _checked(tuple((s, t) for s, t in pairs or ()), student, teacher)
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


def layer_names(layers: Sequence[int]) -> list[str]:
    """A name for each entry: ``layer_03``, and ``layer_03_2`` where a layer is matched a second time."""
    return [
        f"layer_{layer:02d}" + (f"_{seen + 1}" if (seen := list(layers[:index]).count(layer)) else "")
        for index, layer in enumerate(layers)
    ]


def _checked(pairs: LayerPairs, student: int, teacher: int) -> LayerPairs:
    problems = []
    for index, pair in enumerate(pairs):
        for side, layer, depth in (("student", pair[0], student), ("teacher", pair[1], teacher)):
            if not 0 <= layer <= depth:
                problems.append(
                    f"layer_map.pairs[{index}]: {side} block {layer} does not exist (the model has {depth} blocks); "
                    f"use 1..{depth}, or 0 for the embeddings"
                )
    student_layers = [s for s, _ in pairs]
    for layer in sorted({s for s in student_layers if student_layers.count(s) > 1}):
        problems.append(f"layer_map.pairs: student layer {layer} is matched twice; match it once")
    if not pairs:
        problems.append("layer_map.pairs: empty; give at least one [student_layer, teacher_layer]")
    if problems:
        raise ValueError("\n".join(problems))
    return pairs
