"""Stage II's teacher from a cache: what it holds, how large that gets, and what it depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import samples_sha256
from ted_ds.errors import ConfigError
from ted_ds.planning.memory import gib
from ted_ds.teacher_cache.kept_rows import RowReader, TeacherRows, rows_of
from ted_ds.teacher_cache.parts import Part
from ted_ds.teacher_cache.questions import Questions, SetQuestions, StreamQuestions
from ted_ds.teacher_cache.store import Record, read_about
from ted_ds.teacher_cache.token_record import TokenRecord

CACHE_FOLDER = "teacher_cache"
READING = 3
"""The way in which texts are read, their positions and last tokens; a cache that was filled in another is not used."""


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold."""

    record: Record | TokenRecord
    num_examples: int
    of: str
    """What examples are, in words."""
    num_bytes: int
    passes: float
    """How often Stage II sees each example, on average."""
    root: Path
    """Where caches are."""
    of_texts: bool
    """Whether a state of each text is kept, in the place of one of each token."""
    content: Mapping[str, Any]
    """What decides the examples."""
    ask: Callable[[Collection[Part]], Questions]
    """What this rank asks where parts are written."""
    ahead: int | None = None
    """How many sequences on the one is that a lane gives in the next step; None where the order is another."""
    rows: TeacherRows | None = None
    """What holds the answers; None where the teacher gives them."""

    def __str__(self) -> str:
        size = gib(self.num_bytes)
        if isinstance(self.record, TokenRecord):
            of_token = self.record.of_prediction + self.record.of_states
            size = f"about {size} ({of_token:.4g} bytes for a token of which all is kept)"
        return (
            f"teacher cache: {self.num_examples:,} {self.of}, {size} in {self.root}, each seen {self.passes:.1f} times"
        )


def plan_cache(build: Assembly) -> CachePlan | None:
    """The cache that the recipe asks for; None where it asks for none."""
    recipe, settings = build.recipe, build.recipe.teacher.cache
    if settings is None:
        return None
    data = build.readers.of("teacher").data
    record, of_texts = _record(build), build.readers.are_two
    root = settings.dir or recipe.output_dir / CACHE_FOLDER
    shares: dict[str, Any] = {
        "size": recipe.evaluation.micro_batch_size,
        "rank": build.world.rank,
        "num_ranks": build.world.size,
    }
    plan, num_lanes = recipe.distill, recipe.distill.global_batch_size
    if isinstance(data, LabelledData):
        samples = data.learned
        lengths = [1 if of_texts else len(sample.input_ids) for sample in samples]
        rows, ask = None, lambda done: SetQuestions(samples, done, **shares)
        if settings.rows is not None:
            assert isinstance(record, TokenRecord)
            rows = rows_of(build, settings.rows, record.num_kept)
            ask = functools.partial(RowReader, rows, record, build=build)
        return CachePlan(
            record,
            len(samples),
            "examples",
            sum(map(record.num_bytes, lengths)),
            plan.steps * num_lanes / len(samples),
            root,
            of_texts,
            {"samples_sha256": samples_sha256(samples), **({"rows": rows.content} if rows else {})},
            ask,
            rows=rows,
        )
    assert isinstance(data, CorpusData)
    assert isinstance(record, TokenRecord)
    reading: dict[str, Any] = {
        "seed": recipe.order_seed,
        "num_lanes": num_lanes,
        "num_workers": recipe.data.workers,
        "timeout_s": recipe.collective_timeout_s,
    }
    stream = data.settings(seed=recipe.order_seed, num_lanes=num_lanes).fingerprint()
    return CachePlan(
        record,
        plan.steps * num_lanes,
        "sequences",
        plan.steps * num_lanes * record.num_bytes(recipe.task.sequence_length, recipe.task.predicted_share),
        1.0,
        root,
        of_texts,
        {"stream": stream, "steps": plan.steps},
        lambda done: StreamQuestions(data, done, steps=plan.steps, **shares, **reading),
        ahead=num_lanes,
    )


def _record(build: Assembly) -> Record | TokenRecord:
    recipe, settings = build.recipe, build.recipe.teacher.cache
    assert settings is not None
    layers = len(build.plan.layer_pairs)
    dim, asked = build.plan.filter_dim if layers else 0, recipe.distill.needs.predictions
    if build.num_shared_ids is None:
        return Record(layers, dim, recipe.task.num_outputs if asked else 0, settings.precision)
    drawn, num_kept = settings.sampled is not None, settings.num_kept if asked else 0
    num_kept = num_kept if drawn else min(num_kept, build.num_shared_ids)
    return TokenRecord(layers, dim, settings.precision, num_kept, build.num_shared_ids, drawn)


def refuse_useless_cache(build: Assembly) -> None:
    """Make sure, before anything starts, that the cache will be used, may be as large as it gets, and fits on the disk.

    Raises:
        ConfigError: It will not, may not, or does not.
    """
    plan, settings = plan_cache(build), build.recipe.teacher.cache
    if plan is None or settings is None:
        return
    if plan.rows is None and plan.passes <= 1 and settings.dir is None:  # a folder of its own may serve other runs
        if build.recipe.task.packed:
            raise ConfigError(
                f"teacher.cache: Stage II reads each of {plan.num_examples:,} sequences once; give it a dir, where it "
                "stays for other runs, or remove it"
            )
        raise ConfigError(
            f"teacher.cache: Stage II sees {plan.passes:.2g} of {plan.num_examples:,} examples, none of them twice; "
            "remove it, raise distill.max_steps or distill.epochs, or give it a dir that runs share"
        )
    if plan.num_bytes > settings.max_gib * 2**30:
        fewer = "precision: int8, " if settings.precision == "bf16" and plan.record.num_layers else ""
        if isinstance(plan.record, TokenRecord):
            fewer += f"a smaller teacher.cache.{'sampled' if plan.record.drawn else 'top_k'}, "
        raise ConfigError(
            f"teacher.cache.max_gib: {settings.max_gib:g} is less than the {gib(plan.num_bytes)} that "
            f"{plan.num_examples:,} {plan.of} need; raise it, use {fewer}a smaller filters.dim or fewer layers, or "
            "remove teacher.cache"
        )
    there = next(folder for folder in (plan.root, *plan.root.absolute().parents) if folder.is_dir())
    own = sum(file.stat().st_size for folder in unfinished(build, plan.root) for file in folder.iterdir())
    free = shutil.disk_usage(there).free + own
    if plan.num_bytes > free and not any(_same_examples(plan, read_about(place)) for place in plan.root.glob("*")):
        raise ConfigError(f"teacher.cache: {gib(plan.num_bytes)} do not fit into the {gib(free)} free in {there}")


def unfinished(build: Assembly, root: Path) -> list[Path]:
    """What this run began to fill."""
    return list(root.glob(f".*.{build.run.run_id}"))


def _same_examples(plan: CachePlan, about: Mapping[str, Any]) -> bool:
    wanted = {**plan.content, "record": str(plan.record)}
    return all(about.get(name) == value for name, value in wanted.items())


def about_cache(build: Assembly, plan: CachePlan, depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is in a cache: the examples are the data as the tokenizer reads it."""
    recipe = build.recipe
    of_tokens: dict[str, Any] = {}
    if isinstance(plan.record, TokenRecord):
        # which tokens are predicted, and matched
        of_tokens["task"] = recipe.task.model_dump(mode="json", exclude={"headline", "chat_template"})
        of_tokens |= {"temperature": recipe.distill.temperature} if plan.record.num_kept else {}
    return {
        **plan.content,
        "reading": READING,
        "layers": list(build.layers("teacher")),
        "record": str(plan.record),
        "precision": recipe.precision,
        "method": recipe.distill.method,
        "preflight": recipe.preflight,  # a teacher that was only warned of is not for a run that would refuse it
        **({"of_texts": recipe.filters.pooling if recipe.filters else "model"} if plan.of_texts else {}),
        **of_tokens,
        **depends_on,
    }


def place_of(plan: CachePlan, about: Mapping[str, Any]) -> Path:
    """The folder of a cache, which is named by what decides it."""
    return plan.root / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
