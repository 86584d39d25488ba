"""What the doctor says of the contracts between teacher, student and task, and of two tokenizers that read one text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.tokenizers import traits_of
from ted_ds.errors import TedError
from ted_ds.models.loading import load_tokenizer
from ted_ds.planning.contracts import broken_by_loaded, broken_contracts, doubts
from ted_ds.planning.plan import model_sides
from ted_ds.vetting.baseline import NUM_EXAMPLES
from ted_ds.vetting.verdict import Verdict


def vet_contracts(build: Assembly, teacher: Path, student: Path) -> tuple[Mapping[str, list[str]], list[Verdict]]:
    """Hold each contract against the models' files and the loaded tokenizer. Every rank must call it.

    Args:
        build: Of the recipe.
        teacher: Its folder.
        student: The student's as it is now; not looked at where the recipe makes it, with the teacher's tokenizer.

    Returns:
        Every broken contract, by its name, and a verdict on each.
    """
    recipe, facts = build.recipe, (build.plan.teacher, build.plan.student)
    of_teacher = recipe.student.path is None
    sides = model_sides(recipe, teacher, facts[0], teacher if of_teacher else student, facts[1])
    broken = {**broken_contracts(recipe, *sides)}
    tokenizers, two = build.tokenizers, build.readers.are_two
    own = traits_of(tokenizers["student"]) if two else None
    outside = broken_by_loaded(traits_of(tokenizers["teacher"]), *sides, of_student=own)
    if outside and "vocabulary" not in broken:
        broken["vocabulary"] = outside
    task = recipe.task
    sizes = {side: f"{len(tokenizer.get_vocab()):,}" for side, tokenizer in tokenizers.items()}
    tokens = f"{sizes['teacher']} and {sizes['student']} tokens" if two else f"{sizes['teacher']} tokens"
    held = {
        "tokenizers": "one and the same" if of_teacher else "the same ids for the same tokens",
        "vocabulary": f"{tokens}; embeddings "
        f"{build.teacher_facts.vocab_size:,} (teacher), {build.student_facts.vocab_size:,} (student)",
        "labels": ", ".join(task.label_names) or "none",
        "head": "as the task asks",
    }
    if two:
        held["tokenizers"] = "two: each model is read by its own"
    doubtful = {contract: [*lines] for contract, lines in doubts(recipe, *sides).items()} if not broken else {}
    if task.label_names and facts[0] and facts[0].labels is None:
        names = f"the teacher does not name its labels; taken to be {held['labels']}, in this order"
        doubtful.setdefault("labels", []).append(names)
    verdicts: list[Verdict] = []
    for contract, detail in held.items():
        if contract in broken:
            verdicts.append(Verdict(contract, "fail", "; ".join(broken[contract])))
        elif contract in doubtful:
            verdicts.append(Verdict(contract, "warn", "; ".join(doubtful[contract])))
        else:
            verdicts.append(Verdict(contract, "pass", detail))
    if not of_teacher and not two and "tokenizers" not in broken:
        verdicts += _compare_splits(build, student)
    return broken, verdicts


def _compare_splits(build: Assembly, student: Path) -> list[Verdict]:
    """Equal vocabularies may still split texts differently."""
    tokenizer = build.tokenizers["teacher"]
    texts = [str(tokenizer.decode([*one.input_ids])) for one in build.data.heldout[: NUM_EXAMPLES[0]]]

    def count_differing() -> int:
        own = load_tokenizer(student)
        return sum(own(text)["input_ids"] != tokenizer(text)["input_ids"] for text in texts)

    try:
        differing = build.world.agree(count_differing)
    except TedError as error:
        return [Verdict("tokenizers", "fail", str(error))]
    if not differing:
        return []
    detail = f"{differing} of {len(texts)} texts are split differently; the teacher's is used"
    return [Verdict("tokenizers", "warn", detail)]
