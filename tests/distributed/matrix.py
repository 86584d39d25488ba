"""The invariance matrix: the same global batch gives the same loss terms and gradients, however it is cut up.

Every case runs on real ranks under DeepSpeed and is held against one fp64 process that sees all documents at once, each
in a row of its own, through the formulas and torch's own losses. ``python -m tests.distributed.matrix`` writes the
table of ``docs/invariance.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ted_ds.assembly.shared_prefix import num_equal
from ted_ds.config.data import Padding
from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.samples import Sample
from ted_ds.models.choices import choice_probes
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.models.family import DECODER, STACKS
from ted_ds.models.frozen_prefix import PrefixStates, freeze_prefix
from ted_ds.models.heads import FilterProbes, classification_probes, lm_probes, span_probes
from ted_ds.models.loading import DTYPES
from ted_ds.models.readers import seq2seq_probes
from ted_ds.models.relation_taps import RelationTap
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.numerics.layer_map import Layer, layer_names, stack_of
from ted_ds.numerics.likeness import FEWEST_TOKENS, SAMPLED_TOKENS
from ted_ds.numerics.task_terms import WeighedCrossEntropy
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.learn_filters import FilterObjective
from ted_ds.objectives.relations import Relations
from ted_ds.objectives.teacher_view import STUDENT_TASK, TEACHER_TASK
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.teacher_cache.cached_tokens import CachedTokens
from ted_ds.teacher_cache.token_record import Answer, TokenRecord
from tests.dist import run_ranks
from tests.distributed.kept_answers import (
    NUM_KEPT,
    WAYS,
    Spoken,
    answer_of,
    joined,
    open_cache,
    plain_divergences,
    record_of,
    rounded,
    write_cache,
)
from tests.distributed.steps import training_steps
from tests.distributed.training import (
    FILTER_DIM,
    HIDDEN,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    load_tapped,
    raw_config,
    start_engine,
)
from tests.plain import (
    DIVERGENCES,
    divergence_settings,
    plain_cka,
    plain_divergence,
    plain_relations,
    probe_logits,
)
from tests.task_kinds import MASKED_ON_ALL, OF_NAME, TASK_TERMS
from tests.tiny import ENCODER_DECODERS, LABELS, MAX_POSITIONS, ROOT, VOCAB_SIZE, distill_plan, write_model

GLOBAL_BATCH = 16
SEPARATOR, PAD = 1, 0
MASKED = ("masked_lm", MASKED_ON_ALL)
TEMPERATURE = 2.0
RELATED, RELATION_HEADS = (1, 2), 4
"""Blocks of student and teacher, and into how many heads they are cut: other ones than their own two."""
SPREAD = {("multiple_choice", "fp32"): 0.3}
"""Of weights: where choices are hardly told apart, gradients are differences of numbers that are nearly equal. (In bf16
a plain pass says what is left of them.)"""
SPREAD_KEYS = {"bart": "init_std"}
"""What the config calls it, where it has another name. (A T5 reads none: its own fit the widths.)"""
NUM_FROZEN, CUT_BLOCKS = 1, [0, 3]
"""Blocks of a student that are frozen, and the teacher's blocks that such a student is made of."""
OF_FROZEN_TERMS = ("kl", "all")
"""Of ``WEIGHTS``: what such students learn from."""
CLASS_WEIGHTS, SMOOTHING = (0.3, 1.9), 0.2
Steps = tuple[tuple[tuple[int, ...], ...], ...]
"""Of each step, and of each of its rows when packed, the lengths of documents, their separator included."""


class Size(NamedTuple):
    """How large models and batches are."""

    hidden: int
    filter_dim: int
    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    """The last of both is a model's last block; in an encoder-decoder, these of each stack."""
    positions: int
    steps: Steps


SIZES = {
    HIDDEN: Size(
        HIDDEN,
        FILTER_DIM,
        STUDENT_LAYERS,
        TEACHER_LAYERS,
        MAX_POSITIONS,
        (
            # uneven; one has no next token at all
            ((5, 11), (16,), (3, 4, 9), (1, 15), (8, 8), (2, 14), (10, 6), (7,)),
            ((1,) * 16,),  # every label ignored
            ((6, 10), (4, 12), (3,)),  # the last, ragged step: most rows are empty
        ),
    ),
    # 2,048 tokens in a step, the width of the smallest models in use: sums of more than a million squares
    768: Size(
        768,
        768,
        (1,),
        (2,),
        272,  # a choice has a word before it, and rows are padded to a multiple
        (((80, 176), (256,), (48, 64, 144), (1, 255), (128, 128), (32, 224), (160, 96), (112, 144)),),
    ),
}
"""By width."""
OF_THE_VOCABULARY = tuple(kind for kind, one in OF_NAME.items() if one.task.architecture == "CausalLM")
"""Kinds with an LM head."""
WEIGHTS = {
    "task": {"task_weight": 0.7, "kl_weight": 1e-30, "feature_weight": 0.0},
    "kl": {"task_weight": 0.0, "kl_weight": 1.3, "feature_weight": 0.0},
    "features": {"task_weight": 0.0, "kl_weight": 1e-30, "feature_weight": 3.0},
    "all": {"task_weight": 0.7, "kl_weight": 1.3, "feature_weight": 3.0},
}
# Twice the worst seen in the full matrix (docs/invariance.md). fp32 carries 24 bits; its worst gradient is that of a KL
# alone between two classifiers that nearly agree, a difference of probabilities of size one. bf16 carries 8 bits
# through four blocks forward and two back, on both sides, while the reference starts from the same rounded weights.
# Where gradients of a parameter nearly cancel, 8 bits leave less: there a plain bf16 pass of the whole batch, in one
# process and without the product, says how much, and ours may be off by twice that.
TOLERANCE = {"fp32": {"loss": 1e-5, "gradient": 6e-5}, "bf16": {"loss": 1.5e-2, "gradient": 8e-2}}
NOTHING = 1e-12
"""A gradient in fp64 below this share of the whole is none."""
FLOOR = 0.01
"""A KL below it is a difference of much larger numbers, with their absolute error."""


class Setup(NamedTuple):
    """What an engine is started for."""

    what: str
    """``filters`` is Stage I; the others are Stage II with that term's weight alone, or with ``all``."""
    kind: str
    family: str
    ranks: int
    accumulation: int
    stage: int
    precision: str
    hosting: str
    divergence: str = "kl"
    width: int = HIDDEN
    loss: str = "plain"
    """The task loss; ``weighed`` has class weights and label smoothing."""
    distance: str = "mse"
    """What is measured between filtered states."""
    relation_weight: float = 0.0
    """Of the attention relations of ``RELATED`` blocks."""
    cache: str = ""
    """How what the teacher says is kept on a disk (:data:`tests.distributed.kept_answers.WAYS`); it runs otherwise."""
    frozen: int = 0
    """Of a student cut out of its teacher: first blocks that do not train, and that both models run once."""

    @property
    def size(self) -> Size:
        return SIZES[self.width]

    def layers(self, side: str) -> tuple[Layer, ...]:
        """Those that are compared of the teacher or the student."""
        numbers: tuple[int, ...] = getattr(self.size, f"{side}_layers")
        if self.kind != "seq2seq":
            return numbers
        return tuple(f"{stack}.{number}" for stack in STACKS for number in numbers)


class Layout(NamedTuple):
    """How documents become rows."""

    side: str
    multiple_of: int
    packed: bool


class Case(NamedTuple):
    setup: Setup
    layout: Layout

    def __str__(self) -> str:
        return "-".join(str(value) for value in (*self.setup, *self.layout))


FACTORS: dict[str, tuple[Any, ...]] = {
    "what": ("filters", *WEIGHTS),
    "kind": tuple(TASK_TERMS),
    "family": ("llama", "gpt2", "bert", "t5", "bart"),
    "ranks": (1, 2, 4),
    "accumulation": (1, 2, 4),
    "stage": (0, 1, 2, 3),
    "precision": ("fp32", "bf16"),
    "hosting": ("replicated", "sharded"),
    "side": ("right", "left"),
    "multiple_of": (1, 8),
    "packed": (False, True),
}


def is_allowed(values: dict[str, Any]) -> bool:
    """Whether values of (some) factors go together; the others are refused by the product itself."""
    encoder, stacked = values.get("family") == "bert", values.get("family") in ENCODER_DECODERS
    padded_on_the_right = stacked or values.get("kind") == "seq2seq"
    return not (
        (values.get("stage") == 0 and values.get("precision") == "bf16")  # DeepSpeed steps Adam at start-up there
        or (encoder and values.get("side") == "left")  # reads position 0
        or ("kind" in values and "family" in values and stacked != (values["kind"] == "seq2seq"))
        or (padded_on_the_right and (values.get("side") == "left" or values.get("packed")))
        or (encoder and values.get("kind") in OF_THE_VOCABULARY)
        or (not encoder and values.get("kind") in MASKED and "family" in values)
        or (values.get("side") == "left" and values.get("kind") in MASKED)
        or (values.get("family", "bert") != "bert" and values.get("kind") == "multiple_choice")
        or (values.get("side") == "left" and values.get("kind") == "multiple_choice")  # encoders alone have such heads
        or (values.get("family") == "llama" and values.get("kind") == "question_answering")
        or (values.get("packed") and values.get("kind", "causal_lm") not in OF_THE_VOCABULARY)
        or (values.get("packed") and encoder)
    )


def make_case(values: dict[str, Any]) -> Case:
    return Case(*(kind(**{n: values[n] for n in kind._fields if n in values}) for kind in (Setup, Layout)))


def pairwise(seed: int = 0) -> list[Case]:
    """Few cases that hold every allowed pair of values of any two factors; found greedily."""
    generator = random.Random(seed)
    names = list(FACTORS)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
        if is_allowed({a: x, b: y})
    }
    cases: list[Case] = []
    while missing:
        best: tuple[set[Any], dict[str, Any]] = (set(), {})
        for _ in range(20):
            values = dict(generator.choice(sorted(missing, key=str)))
            for name in generator.sample(names, len(names)):
                options = [values[name]] if name in values else list(FACTORS[name])
                options = [one for one in options if is_allowed({**values, name: one})]
                if not options:
                    break
                gain = {one: len(missing & pairs_with(name, one, values)) for one in options}
                values[name] = generator.choice([one for one in options if gain[one] == max(gain.values())])
            else:
                covered = {pair for name in names for pair in missing & pairs_with(name, values[name], values)}
                if len(covered) > len(best[0]):
                    best = (covered, values)
        missing -= best[0]
        cases.append(make_case(best[1]))
    return cases


def pairs_with(name: str, value: Any, values: dict[str, Any]) -> set[Any]:
    """The pairs of one factor's value with those of the others, in the order of the factors."""
    others = [(other, values[other]) for other in values if other != name]
    place = list(FACTORS).index
    return {tuple(sorted(((name, value), other), key=lambda one: place(one[0]))) for other in others}


def pair_covered(pair: Any, values: dict[str, Any]) -> bool:
    return all(name in values and values[name] == value for name, value in pair)


def sample(companies: int = 2) -> list[Case]:
    """Every allowed pair of values, in so many different companies."""
    return list(dict.fromkeys(case for seed in range(companies) for case in pairwise(seed=seed)))


def of_divergences() -> list[Case]:
    """Every divergence but the KL under every ZeRO stage, alone or with all terms, in company drawn at random."""
    generator = random.Random(0)
    cases = []
    for divergence, stage in itertools.product([one for one in DIVERGENCES if one != "kl"], FACTORS["stage"]):
        values: dict[str, Any] = {}
        while not values or values["kind"] == "regression" or not is_allowed(values):
            values = {name: generator.choice(options) for name, options in FACTORS.items()}
            values |= {"stage": stage, "what": generator.choice(("kl", "all"))}
        case = make_case(values)
        cases.append(case._replace(setup=case.setup._replace(divergence=divergence)))
    return cases


def of_weighed_losses() -> list[Case]:
    """Class weights and label smoothing under every ZeRO stage, in company drawn at random."""
    generator = random.Random(1)
    cases = []
    for stage, what in zip(FACTORS["stage"], ("task", "all", "filters", "task"), strict=True):
        values: dict[str, Any] = {}
        while not values or not is_allowed(values):
            values = {name: generator.choice(options) for name, options in FACTORS.items()}
            values |= {"stage": stage, "what": what, "precision": "fp32", "packed": False}
            values["kind"] = generator.choice(("sequence_classification", "token_classification"))
        case = make_case(values)
        cases.append(case._replace(setup=case.setup._replace(loss="weighed")))
    return cases


def of_distances() -> list[Case]:
    """How tokens lie and attend to each other, which is of texts and no sum over tokens, under every ZeRO stage."""
    generator = random.Random(2)
    cases = []
    for stage, packed in zip(FACTORS["stage"], (True, False, True, False), strict=True):
        values: dict[str, Any] = {}
        while not values or values["kind"] == "seq2seq" or not is_allowed(values):
            values = {name: generator.choice(options) for name, options in FACTORS.items()}
            values |= {"stage": stage, "packed": packed, "what": generator.choice(("features", "all"))}
        case = make_case(values)
        cases.append(case._replace(setup=case.setup._replace(distance="cka", relation_weight=0.9)))
    return cases


def of_caches() -> list[Case]:
    """Each way to keep what a teacher says under every ZeRO stage, by 1, 2 and 4 ranks, in company drawn at random."""
    generator = random.Random(3)
    kinds, ranks = itertools.cycle((*OF_THE_VOCABULARY, *MASKED)), itertools.cycle((2, 1, 2, 4, 1))
    terms = itertools.cycle(("all", "kl", "features"))
    cases = []
    for cache, stage in itertools.product(WAYS, FACTORS["stage"]):
        fixed = {
            "stage": stage,
            "kind": next(kinds),
            "ranks": next(ranks),
            "what": next(terms),
            "hosting": "replicated",
        }
        values: dict[str, Any] = {}
        while not values or not is_allowed(values):
            values = {name: generator.choice(options) for name, options in FACTORS.items()} | fixed
        case = make_case(values)
        cases.append(case._replace(setup=case.setup._replace(cache=cache)))
    return cases


def of_frozen_blocks() -> list[Case]:
    """Students whose first block is the teacher's and frozen: under every ZeRO stage, otherwise at random."""
    generator = random.Random(4)
    cases, ranks = [], itertools.cycle((2, 1, 2, 1, 4))
    for what, stage in itertools.product(OF_FROZEN_TERMS, FACTORS["stage"]):
        fixed = {"stage": stage, "what": what, "ranks": next(ranks)}
        values: dict[str, Any] = {}
        while not values or values["kind"] == "seq2seq" or not is_allowed(values):
            values = {name: generator.choice(options) for name, options in FACTORS.items()} | fixed
        case = make_case(values)
        cases.append(case._replace(setup=case.setup._replace(frozen=NUM_FROZEN)))
    return cases


def full_product() -> list[Case]:
    """Every term, number of ranks, accumulation, padding, packing, stage and precision, for both kinds of batch."""
    chosen = {
        **FACTORS,
        "what": ("filters", "all"),
        "kind": ("causal_lm", "sequence_classification"),
        "family": ("llama",),
        "hosting": ("replicated",),
    }
    products = (dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values()))
    return [make_case(values) for values in products if is_allowed(values)]


def wide(setups: Sequence[Case]) -> list[Case]:
    """The same cases with a real width and as many tokens as a step has with it."""
    return [case._replace(setup=case.setup._replace(width=768)) for case in setups]


def wide_product() -> list[Case]:
    """Every allowed pair of values at a real width."""
    return wide(pairwise(seed=2))


def wide_sample() -> list[Case]:
    """One of them that packs, accumulates and has all terms, in the precision that shows the least drift."""
    setup = Setup("all", "causal_lm", "llama", 2, 2, 1, "fp32", "replicated")
    return wide([Case(setup, Layout("right", 1, packed=True))])


# --- data and models ------------------------------------------------------------------------------------------------


def documents(steps: Steps, step: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(step)
    return [
        [*torch.randint(5, VOCAB_SIZE, (length - 1,), generator=generator).tolist(), SEPARATOR]
        for row in steps[step]
        for length in row
    ]


def label_of(kind: str, index: int, length: int) -> Any:
    """A label for a document of so many tokens; the second of each step has none, but for the spans of a chat."""
    if kind == "chat":
        return spans_of(index, length)
    if kind == "seq2seq":  # its target, of about half as many tokens
        return [5 + (11 * index + 3 * place) % 90 for place in range(1 + length // 2)]
    if index == 1:
        return None
    share = (index % 7) / 7
    return {
        "causal_lm": None,
        "sequence_classification": index % 2,
        "multiple_choice": index % 2,
        "soft_label_classification": [share, 1 - share],
        "multi_label_classification": [float(index % 2), float(index % 3 == 0)],
        "regression": [share - 0.3, 2.0 * share],
        "masked_lm": [-100 if place % 3 == 1 else 5 + (7 * index + place) % 90 for place in range(length)],
        "token_classification": [-100 if place % 3 == 1 else (index + place // 2) % 2 for place in range(length)],
        "question_answering": [0, 0] if index % 3 == 0 else [length // 2, length - 1],
    }[kind.partition(" ")[0]]


def spans_of(index: int, length: int) -> list[int]:
    """The completions of a conversation: its first token may be of one, and its last."""
    middle = length // 2
    return [[0, length], [middle, length], [0, middle, middle + 1, length], []][index % 4 if length > 3 else 1]


def label_in_step(kind: str, step: int, index: int, length: int) -> Any:
    """The label of a document where its step has any."""
    if kind in OF_THE_VOCABULARY or (step != 1 and index != 1):
        return label_of(kind, index, length)
    return [] if kind == "seq2seq" else None


def samples(kind: str, packed: bool, steps: Steps) -> Iterator[list[Sample]]:
    """The samples of each step."""
    for step, rows in enumerate(steps):
        texts = documents(steps, step)
        if packed:
            remaining = iter(texts)
            grouped = [list(itertools.islice(remaining, len(row))) for row in rows]
            yield list(packed_samples(kind, grouped))
            continue
        labels = [label_in_step(kind, step, index, len(text)) for index, text in enumerate(texts)]
        rows = [
            Sample(text, None, [len(text)], token_types=types_of(text), candidates=candidates_of(len(text)))
            for text in texts
        ]
        if kind == "multiple_choice":  # each document, and the next one behind a word, as two of them may be equal
            longer = [[5, *text] for text in (*texts[1:], texts[0])]
            others = [Sample(text, token_types=types_of(text)) for text in longer]
            pairs = zip(rows, others, strict=True)
            yield [replace(pair[0], label=label, choices=pair) for pair, label in zip(pairs, labels, strict=True)]
        else:
            yield [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]


def types_of(text: list[int]) -> list[int]:
    """Token types, as if the second half of a document were the other text of a pair; BERT alone takes them."""
    return [int(2 * place >= len(text)) for place in range(len(text))]


def candidates_of(length: int) -> tuple[range, range]:
    """Where an answer may stand: at the first token, for none, and in that second half."""
    return range(1), range(max(length // 2, 1), length)


def packed_samples(kind: str, rows: list[list[list[int]]]) -> Iterator[Sample]:
    """Several documents in each; they are numbered through."""
    numbers = itertools.count()
    for row in rows:
        label, start = [], 0
        for text, number in zip(row, numbers, strict=False):  # in this order: none is lost at a row's end
            label += [start + place for place in spans_of(number, len(text))]
            start += len(text)
        yield Sample([*itertools.chain(*row)], label if kind == "chat" else None, [len(text) for text in row])


def place_of(folder: Path, setup: Setup) -> Path:
    return (
        folder
        / f"{setup.family}_{setup.width}_{OF_NAME[setup.kind].task.architecture}_{spread_of(setup)}_{setup.frozen}"
    )


def move_away(student: Path, setup: Setup) -> None:
    """Change what trains of a student that was cut: of two models that all but agree, the KL's gradient is rounding."""
    tapped = load_tapped(student, setup.kind, layers=setup.layers("student"))
    freeze_prefix(tapped.model, tapped.family, setup.frozen)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tapped.model.parameters():
            if parameter.requires_grad:
                parameter += spread_of(setup) * torch.randn(parameter.shape, generator=generator)
    tapped.model.save_pretrained(student)


def spread_of(setup: Setup) -> float:
    """A standard deviation of weights of the smallest width."""
    return SPREAD.get((setup.kind, setup.precision), 0.1)


def write_models(folder: Path, setup: Setup, layouts: Sequence[Layout] = ()) -> Path:
    """Those of a setup, and what their caches hold in these layouts."""
    place, size = place_of(folder, setup), setup.size
    if not place.exists():
        # two outputs serve every kind of task with a head
        labels = None if OF_NAME[setup.kind].task.has_lm_head else LABELS
        longest = {"n_positions" if setup.family == "gpt2" else "max_position_embeddings": size.positions}
        # a standard deviation of 0.1 suits the tiny; what a block adds grows with the width
        spread = {SPREAD_KEYS.get(setup.family, "initializer_range"): spread_of(setup) * (HIDDEN / size.hidden) ** 0.5}
        for name, layers, seed in (("teacher", size.teacher_layers, 1), ("student", size.student_layers, 2)):
            model = place / name
            if setup.frozen and name == "student":
                teacher, family = place / "teacher", family_of(setup.family)
                cut(teacher, model, blocks=CUT_BLOCKS, family=family, origins=Origins(teacher, None))
                move_away(model, setup)
                continue
            depth_key = family_of(setup.family).decoder_depth_key
            of_decoder = {} if depth_key is None else {depth_key: layers[-1]}
            write_model(
                model,
                setup.family,
                blocks=layers[-1],
                hidden=size.hidden,
                labels=labels,
                architecture=OF_NAME[setup.kind].task.architecture,
                seed=seed,
                **longest,
                **spread,
                **of_decoder,
            )
    for packed in {layout.packed for layout in layouts} if setup.cache else ():
        write_answers(place, setup, packed=packed)
    return place


def cache_of(place: Path, setup: Setup, *, packed: bool) -> Path:
    return place / "caches" / f"{setup.kind} {setup.precision} {setup.cache} {packed}"


def record_of_setup(setup: Setup) -> TokenRecord:
    layers, dim = len(setup.layers("teacher")), setup.size.filter_dim
    return record_of(setup.cache, num_layers=layers, dim=dim, num_ids=VOCAB_SIZE)


@functools.cache
def answers(place: Path, kind: str, family: str, precision: str, width: int, cache: str) -> list[list[Answer]]:
    """What is kept of each document of each step: by the teacher in fp64, each document by itself."""
    setup = Setup("all", kind, family, 1, 1, 0, precision, "replicated", width=width, cache=cache)
    size, layers = setup.size, setup.layers("teacher")
    teacher = load_tapped(place / "teacher", kind=kind, precision=precision, layers=layers).double().eval()
    bank = make_bank(size, layers, 12).to(DTYPES[precision]).double()
    found = []
    for step, rows in enumerate(samples(kind, packed=False, steps=size.steps)):
        found.append([])
        for index, row in enumerate(rows):
            inputs, labels, token = one_batch(kind, [row])
            with torch.no_grad():
                logits, states = teacher(inputs)
                filtered = torch.stack(bank(states))[:, 0]
            is_labelled = labels[0] != -100
            follows = torch.arange(len(row.input_ids)) < len(row.input_ids) - 1
            is_asked = {"chat": follows, MASKED_ON_ALL: token[0]}.get(kind, is_labelled)
            loss = F.cross_entropy(logits[0], labels[0], reduction="sum", ignore_index=-100).item()
            spoken = Spoken(logits[0], is_asked, filtered, is_labelled if kind == "chat" else token[0], loss)
            seed = step * GLOBAL_BATCH + index
            found[-1].append(answer_of(spoken, record_of_setup(setup), temperature=TEMPERATURE, seed=seed))
    return found


def write_answers(place: Path, setup: Setup, *, packed: bool) -> None:
    """The cache of a setup, in which rows hold one document, or several."""
    folder = cache_of(place, setup, packed=packed)
    if folder.exists():
        return
    spoken = answers(place, setup.kind, setup.family, setup.precision, setup.width, setup.cache)
    kept = {}
    for step, rows in enumerate(samples(setup.kind, packed, setup.size.steps)):
        of_step = iter(spoken[step])
        for index, row in enumerate(rows):
            own = joined([next(of_step) for _ in range(len(row.document_lengths) if packed else 1)])
            kept[step * GLOBAL_BATCH + index] = (own, row.input_ids)
    write_cache(folder, record_of_setup(setup), kept)


def make_bank(size: Size, layers: Sequence[Layer], seed: int) -> FilterBank:
    torch.manual_seed(seed)
    return FilterBank(layers, size.hidden, size.filter_dim)


def make_probes(place: Path, setup: Setup) -> Any:
    size = setup.size
    bank = make_bank(size, setup.layers("teacher"), 13)
    if OF_NAME[setup.kind].task.has_lm_head:
        probes = seq2seq_probes if setup.kind == "seq2seq" else lm_probes
        return probes(
            bank, dim=size.filter_dim, model_path=place / "teacher", kind="frozen", dtype=DTYPES[setup.precision]
        )
    if setup.kind == "token_classification":
        heads = [torch.nn.Linear(size.filter_dim, 2) for _ in bank.layers]
        return FilterProbes(bank, heads, pooling=None)
    if setup.kind == "question_answering":
        return span_probes(bank, dim=size.filter_dim)
    pooling = family_of(setup.family).pooled_token
    if setup.kind == "multiple_choice":
        return choice_probes(bank, dim=size.filter_dim, num_choices=2, pooling=pooling)
    return classification_probes(bank, dim=size.filter_dim, num_labels=2, pooling=pooling)


# --- on the ranks ---------------------------------------------------------------------------------------------------


def engine_config(setup: Setup) -> dict[str, Any]:
    plan = PhasePlan(
        max_steps=len(setup.size.steps) * 8,
        learning_rate=1e-30,  # the weights stay as they are: gradients of all steps are of the same weights
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=GLOBAL_BATCH // (setup.ranks * setup.accumulation),
        schedule="constant",
        gradient_clipping=0.0,
    )
    raw, source = raw_config(setup.stage)
    return complete(raw, plan, plan_path="distill", precision=setup.precision, world_size=setup.ranks, source=source)


def run_setup(world: Any, place: Path, setup: Setup, layouts: Sequence[Layout]) -> list[list[Any]]:
    """For each layout and step: the reported terms, and the gradient by parameter (rank 0) or its sum (others)."""
    config, dtype, size = engine_config(setup), DTYPES[setup.precision], setup.size
    of_teacher, of_student = setup.layers("teacher"), setup.layers("student")
    shard = None
    if setup.hosting == "sharded":
        shard = frozen_engine_config(config, setup.precision)
        shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    load = functools.partial(load_tapped, kind=setup.kind, precision=setup.precision)
    teacher = None
    if not setup.cache:
        tapped = load(place / "teacher", layers=of_teacher, shard=shard)
        teacher = FrozenModel(tapped, device=world.device, engine_config=shard)
    terms = TASK_TERMS[setup.kind]
    if setup.loss == "weighed":
        terms = replace(terms, loss_sum=WeighedCrossEntropy(CLASS_WEIGHTS, SMOOTHING))
    if setup.what == "filters":
        module: Any = make_probes(place, setup)
        assert teacher is not None
        objective: Any = FilterObjective(terms, teacher, of_teacher)
    else:
        student = load(place / "student", layers=of_student, shard=config if setup.stage == 3 else None)
        if setup.frozen:
            assert teacher is not None
            share_first_blocks(student, teacher, setup.frozen)
        module = FilteredModel(student, make_bank(size, of_student, 11))
        objective = DistillObjective(
            terms,
            distill_plan(
                temperature=TEMPERATURE,
                **WEIGHTS[setup.what],
                **divergence_settings(setup.divergence),
                feature_distance=setup.distance,
                relation_weight=setup.relation_weight,
            ),
            teacher=teacher or read_answers(place, setup, layouts),
            teacher_filters=IdentityFilters(of_teacher)
            if setup.cache
            else make_bank(size, of_teacher, 12).to(dtype).requires_grad_(False),
            student_layers=of_student,
        )
        if setup.relation_weight:
            assert teacher is not None
            taps = RelationTap(student, RELATED[0]), RelationTap(teacher.tapped, RELATED[1])
            objective.relations = Relations(*taps, num_heads=RELATION_HEADS)
    engine = start_engine(world, module, config, precision=setup.precision, max_steps=len(size.steps) * 8)
    results = [run_layout(world, engine, objective, setup, layout) for layout in layouts]
    engine.release()
    if teacher is not None:
        teacher.release()
    return results


def share_first_blocks(student: TappedModel, teacher: FrozenModel, number: int) -> None:
    """Freeze so many first blocks of the student, and let the teacher begin behind them."""
    freeze_prefix(student.model, student.family, number)
    assert num_equal(student, teacher.tapped, number) == (number, None)
    teacher.begin_behind(number, PrefixStates(student, [number]))


def read_answers(place: Path, setup: Setup, layouts: Sequence[Layout]) -> CachedTokens:
    """The teacher from its cache."""
    (packed,) = {layout.packed for layout in layouts}
    reader = open_cache(cache_of(place, setup, packed=packed), record_of_setup(setup))
    return CachedTokens(reader, dtype=DTYPES[setup.precision], temperature=TEMPERATURE)


def run_layout(world: Any, engine: Any, objective: Any, setup: Setup, layout: Layout) -> list[Any]:
    padding = Padding(side=layout.side, multiple_of=layout.multiple_of)
    of_kind = OF_NAME[setup.kind].collator(PAD, padding)
    collate = dataclasses.replace(
        of_kind, num_outputs=2, isolate_documents=layout.packed, with_token_types=not layout.packed
    )
    steps = []
    for step, rows in enumerate(samples(setup.kind, layout.packed, setup.size.steps)):
        numbered = [replace(row, index=step * GLOBAL_BATCH + index) for index, row in enumerate(rows)]
        batches = training_steps(
            iter(numbered),
            collate,
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=GLOBAL_BATCH // (setup.ranks * setup.accumulation),
            rank=world.rank,
            world_size=world.size,
        )
        objective.watch(True)
        engine.accumulate(batches, objective)
        gradients = dict(engine.gradients())
        skipped = engine.update()
        assert skipped is None, skipped
        total = float(sum(gradient.double().sum() for gradient in gradients.values()))
        steps.append((engine.report(objective), gradients if world.is_main else None, total))
    return steps


def run_all(world: Any, folder: Path, groups: list[tuple[Setup, list[Layout]]]) -> list[list[list[Any]]]:
    return [run_setup(world, place_of(folder, setup), setup, layouts) for setup, layouts in groups]


# --- the reference ---------------------------------------------------------------------------------------------------


OF_CLASSES = (
    *OF_THE_VOCABULARY,
    *MASKED,
    "seq2seq",
    "sequence_classification",
    "token_classification",
    "multiple_choice",
    "question_answering",
)


def plain_task(kind: str, loss: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The task loss of the whole batch, by torch's own losses; 0 where every label is ignored."""
    if loss == "weighed":
        weights = torch.tensor(CLASS_WEIGHTS, dtype=logits.dtype)
        kept = labels != -100
        total = F.cross_entropy(logits[kept], labels[kept], weight=weights, label_smoothing=SMOOTHING, reduction="sum")
        return total / kept.sum() if kept.any() else logits.sum() * 0
    if kind in OF_CLASSES:
        kept = labels != -100
        return F.cross_entropy(logits[kept], labels[kept]) if kept.any() else logits.sum() * 0
    kept = ~labels.isnan().any(-1)
    if not kept.any():
        return logits.sum() * 0
    loss = {
        "soft_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[kind]
    return loss(logits[kept], labels[kept].to(logits.dtype))


def plain_prediction(
    kind: str, divergence: str, student: torch.Tensor, teacher: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """The prediction term of the whole batch, from torch.distributions."""
    student, teacher = student[kept], teacher[kept]
    if not kept.any():
        return student.sum() * 0
    if kind == "regression":
        return F.mse_loss(student, teacher)
    pair = [teacher / TEMPERATURE, student / TEMPERATURE]
    if kind == "multi_label_classification":  # a yes or no each
        pair = [torch.stack([one, torch.zeros_like(one)], -1) for one in pair]
    return plain_divergence(divergence, DIVERGENCES[divergence], *pair).mean()


def name_of(kind: str, divergence: str) -> str:
    """What the prediction term is called."""
    if kind == "regression":
        return "loss/squared_teacher_student"
    name = {
        "kl": "kl_teacher_student",
        "reverse_kl": "kl_student_teacher",
        "jsd": "jsd_0.3_teacher_student",
        "skew_kl": "skew_kl_0.1_teacher_student",
        "skew_reverse_kl": "skew_kl_0.2_student_teacher",
        "tv": "tv_teacher_student",
    }[divergence]
    return f"loss/{'bernoulli_' if kind == 'multi_label_classification' else ''}{name}"


@functools.cache
def reference(
    place: Path,
    what: str,
    kind: str,
    family: str,
    precision: str,
    divergence: str,
    width: int,
    loss: str,
    distance: str,
    relation_weight: float,
    cache: str,
    frozen: int,
    arithmetic: torch.dtype = torch.float64,
) -> list[tuple[dict[str, float], Any, dict[str, float]]]:
    """Terms, gradients and what is looked at in each step: one process, one batch, one document a row.

    Losses are in fp64 either way.
    """
    terms_of = (divergence, width, loss, distance, relation_weight, cache, frozen)
    setup = Setup(what, kind, family, 1, 1, 0, precision, "replicated", *terms_of)
    size, of_teacher, of_student = setup.size, setup.layers("teacher"), setup.layers("student")
    dtype = DTYPES[precision]
    load = functools.partial(load_tapped, kind=kind, precision=precision)
    teacher = load(place / "teacher", layers=of_teacher).to(arithmetic).eval()
    if what == "filters":
        module: Any = make_probes(place, setup).to(dtype).to(arithmetic)
    else:
        module = FilteredModel(load(place / "student", layers=of_student), make_bank(size, of_student, 11))
        if frozen:  # the teacher here runs by itself, whole
            freeze_prefix(module.tapped.model, module.tapped.family, frozen)
        module = module.to(dtype).to(arithmetic).train()
        taps = [RelationTap(*one) for one in zip((module.tapped, teacher), RELATED, strict=True)]
        teacher_bank = make_bank(size, of_teacher, 12).to(dtype).to(arithmetic)
    results = []
    beside: dict[str, float] = {}
    for step, rows in enumerate(samples(kind, packed=False, steps=size.steps)):
        inputs, labels, token = one_batch(kind, rows)
        if kind == "chat":  # layer-wise terms are of what completions are predicted from, the KL of all that follows
            token = labels != -100
        for tap in taps if relation_weight else ():
            tap.listen()
        with torch.no_grad():
            teacher_logits, states = teacher(inputs)
            teacher_logits = read(kind, teacher_logits, rows)
        module.zero_grad()
        if what == "filters":
            of_filters = [read(kind, logits, rows) for logits in probe_logits(module, states, inputs)]
            losses = [plain_task(kind, loss, logits.double(), labels) for logits in of_filters]
            values = {f"loss/task/{own}": one for own, one in zip(layer_names(of_teacher), losses, strict=True)}
            weights = dict.fromkeys(values, 1 / len(values))
        else:
            logits, features = module(inputs)
            logits = read(kind, logits, rows)
            # a text without a label still learns from the teacher
            of_tokens = kind in ("causal_lm", "masked_lm", "token_classification", "seq2seq")
            shape = labels.shape[: 2 if kind == "question_answering" else 1]
            kept = labels != -100 if of_tokens else torch.ones(shape, dtype=torch.bool)
            kept = token if kind == MASKED_ON_ALL else kept
            if kind == "chat":
                kept = torch.nn.functional.pad(inputs["attention_mask"][:, 1:], (0, 1)).bool()
            with torch.no_grad():
                wanted = teacher_bank(states)
            spoken = answers(place, kind, family, precision, width, cache)[step] if cache else []
            spoken = [rounded(one, record_of_setup(setup)) for one in spoken]
            if cache:
                wanted = states_of(spoken, token)
            name, scale = name_of(kind, divergence), 1.0 if kind == "regression" else TEMPERATURE**2
            predictions = [one.double() for one in (logits, teacher_logits)]
            values = {
                "loss/task": plain_task(kind, loss, logits.double(), labels),
                name: plain_prediction(kind, divergence, *predictions, kept),
            }
            if cache:
                values[name] = plain_kept(cache, logits.double(), kept, spoken)
            compared = [kept if stack_of(layer) == DECODER else token for layer in of_student]
            values |= {
                f"loss/feature_{distance}/{own}": plain_feature(distance, mine.double(), theirs.double(), rows)
                for own, mine, theirs, rows in zip(layer_names(of_student), features, wanted, compared, strict=True)
            }
            chosen = WEIGHTS[what]
            sides = dict(zip(layer_names(of_student), zip(features, wanted, strict=True), strict=True))
            beside = plain_likeness(sides, compared)
            if values["loss/task"]:  # of labels that are all ignored, nothing is said
                beside[TEACHER_TASK] = plain_task(kind, loss, predictions[1], labels).item()
                if cache:
                    beside[TEACHER_TASK] = sum(one.task_loss for one in spoken) / float((labels != -100).sum())
                beside[STUDENT_TASK] = values["loss/task"].item()
            weights = dict.fromkeys(values, chosen["feature_weight"] / len(features))
            if relation_weight:
                both = zip(*(tap.take() for tap in taps), strict=True)
                values["loss/relation_kl"] = sum(plain_relations(*one, token, RELATION_HEADS) for one in both)
                weights["loss/relation_kl"] = relation_weight
            weights |= {"loss/task": chosen["task_weight"], name: chosen["kl_weight"] * scale}
        sum(weights[name] * value for name, value in values.items()).backward()
        gradients = {
            name: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        terms = {name: value.item() for name, value in values.items()}
        results.append((terms, {n: g.clone() for n, g in gradients.items()}, beside))
    return results


def states_of(spoken: Sequence[Answer], token: torch.Tensor) -> list[torch.Tensor]:
    """Kept states where they stand in a rectangle of all documents, 0 elsewhere."""
    found = [torch.zeros(*token.shape, spoken[0].states.shape[-1], dtype=torch.float64) for _ in spoken[0].states]
    for row, one in enumerate(spoken):
        for of_layer, states in zip(found, one.states, strict=True):
            of_layer[row, token[row]] = states.double()
    return found


def plain_kept(cache: str, student: torch.Tensor, kept: torch.Tensor, spoken: Sequence[Answer]) -> torch.Tensor:
    """The prediction term beside what was kept of a teacher."""
    drawn, total = cache.startswith("sampled"), student.sum() * 0
    for row, one in enumerate(spoken):
        own = student[row, kept[row]][:, :VOCAB_SIZE]
        total = total + plain_divergences(own, one, drawn=drawn, temperature=TEMPERATURE).sum()
    return total / max(int(kept.sum()), 1)


def plain_likeness(sides: dict[str, Any], compared: Sequence[torch.Tensor]) -> dict[str, float]:
    """Relative error and CKA of each layer: Song et al. (2012), equation 5, text by text."""
    found = {}
    for (name, (mine, theirs)), keep in zip(sides.items(), compared, strict=True):
        own, other = mine.detach().double(), theirs.double()
        if keep.any():  # of a step in which nothing is compared, nothing is said
            error = (own - other)[keep].square().sum() / other[keep].square().sum()
            found[f"match/relative_error/{name}"] = float(error)
        sums = torch.zeros(3, dtype=torch.float64)
        for text in range(len(keep)):
            places = keep[text].nonzero().flatten().tolist()
            if len(places) > SAMPLED_TOKENS:
                places = [places[-(-j * len(places) // SAMPLED_TOKENS)] for j in range(SAMPLED_TOKENS)]
            if len(places) >= FEWEST_TOKENS:
                a, b = own[text, places], other[text, places]
                sums += torch.stack([plain_hsic(a, b), plain_hsic(a, a), plain_hsic(b, b)])
        if (sums[1:] > 0).all():
            found[f"match/cka/{name}"] = float(sums[0] / (sums[1] * sums[2]).sqrt())
    return found


def plain_hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Unbiased, of linear kernels, ``[tokens, features]`` each."""
    n = len(one)
    a, b = (side @ side.T for side in (one, other))
    a, b = a - a.diag().diag(), b - b.diag().diag()
    whole = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) * b.sum(0)).sum()
    return whole / (n * (n - 3))


def plain_feature(distance: str, mine: torch.Tensor, theirs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The layer-wise term of a pair, over the tokens that are kept; 0 of nothing at all."""
    if distance == "mse":
        difference = mine[kept] - theirs[kept]
        return difference.square().sum() / max(difference.numel(), 1)
    of_texts = [plain_cka(own[rows], other[rows]) for own, other, rows in zip(mine, theirs, kept, strict=True)]
    return sum(of_texts[1:], of_texts[0]) / max(int(kept.sum()), 1)


def read(kind: str, logits: torch.Tensor, rows: list[Sample]) -> torch.Tensor:
    """Logits as they are compared: of positions, those where no answer may stand are nowhere near the others."""
    if kind != "question_answering":
        return logits
    allowed = torch.zeros(logits.shape, dtype=torch.bool)
    for own, row in zip(allowed, rows, strict=True):
        own[:, [place for places in candidates_of(len(row.input_ids)) for place in places]] = True
    return torch.where(allowed, logits, -1e6)


def one_batch(kind: str, rows: list[Sample]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A rectangle of all documents, padded on the right, built without the loader."""
    questions = rows
    rows = [one for row in rows for one in row.choices or (row,)]
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [PAD] * (longest - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows])
    if kind in OF_THE_VOCABULARY:
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = torch.where(mask[:, 1:].bool(), ids[:, 1:], -100)
        if kind == "chat":
            for own, row in zip(labels, rows, strict=True):
                spans = zip(row.label[::2], row.label[1::2], strict=True)
                completed = {place for first, behind in spans for place in range(first, behind)}
                own[[place for place in range(longest) if place + 1 not in completed]] = -100
    elif kind == "seq2seq":
        labels = torch.full((len(rows), max(1, *(len(row.label) for row in rows))), -100)
        for own, row in zip(labels, rows, strict=True):
            own[: len(row.label)] = torch.tensor(row.label)
    elif kind in (*MASKED, "token_classification"):
        labels = torch.full_like(ids, -100)
        for own, row in zip(labels, rows, strict=True):
            own[: len(row.input_ids)] = torch.tensor(-100 if row.label is None else row.label)
    elif kind in ("sequence_classification", "multiple_choice"):
        labels = torch.tensor([-100 if row.label is None else row.label for row in questions])
    elif kind == "question_answering":
        labels = torch.tensor([[-100] * 2 if row.label is None else row.label for row in rows])
    else:
        labels = torch.tensor([[torch.nan] * 2 if row.label is None else row.label for row in rows])
    types = torch.tensor([types_of(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows])
    targets = {"target_ids": labels.clamp(min=PAD)} if kind == "seq2seq" else {}
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, **targets}, labels, mask.bool()


# --- comparison ------------------------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """Worst relative errors of a case."""

    terms: dict[str, float]
    gradient: float
    plain: float
    """That of a plain pass in the same precision: 0 in fp32, which is held against fp64 alone."""
    beside: dict[str, float]
    """Of what is only looked at."""


def errors_of(case: Case, place: Path, by_rank: list[list[Any]]) -> Errors:
    """Compare every step of a case, on every rank, with the reference.

    A term's error is relative to its value, or to ``FLOOR``. A parameter's gradient error is the norm of the
    difference, relative to the norm of the parameter's gradient plus 1/1000 of the whole gradient's (some are 0).
    """
    setup = case.setup
    named = (setup.what, setup.kind, setup.family, setup.precision, setup.divergence, setup.width, setup.loss)
    named = (*named, setup.distance, setup.relation_weight, setup.cache, setup.frozen)
    of_place = (place, *named)
    expected = reference(*of_place)
    plain = reference(*of_place, torch.bfloat16) if setup.precision == "bf16" else expected
    terms: dict[str, float] = {}
    worst = worst_plain = 0.0
    beside: dict[str, float] = {}
    for step, (values, gradients, looked_at) in enumerate(expected):
        for of_rank in by_rank:
            report, _, total = of_rank[step]
            assert total == by_rank[0][step][2], f"rank gradients differ: {total} and {by_rank[0][step][2]}"
            for name, value in values.items():
                error = abs(report[name] - value) / max(abs(value), FLOOR)
                assert math.isfinite(error), f"{case}, step {step}: {name} is {report[name]}"  # max passes over NaN
                terms[name] = max(terms.get(name, 0.0), error)
            for name, value in looked_at.items():
                if not (case.layout.packed and "/cka/" in name):  # there, a text is another row
                    assert name in report, f"{case}, step {step}: {name} is missing: {report}"
                    scale = 1.0 if "/cka/" in name else max(abs(value), FLOOR)
                    error = abs(report[name] - value) / scale
                    beside[name] = max(beside.get(name, 0.0), error)
        got = by_rank[0][step][1]
        assert got.keys() == gradients.keys(), got.keys() ^ gradients.keys()
        worst = max(worst, gradient_error(got, gradients))
        worst_plain = max(worst_plain, gradient_error(plain[step][1], gradients))
    return Errors(terms, worst, worst_plain, beside)


def gradient_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest of a parameter.

    Of one that has none in fp64 there is nothing but rounding, which is held against the whole gradient: the bias of a
    head of positions moves the logits of all of them alike, and their distribution not at all.
    """
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()

    def error(name: str, gradient: torch.Tensor) -> float:
        difference, norm = (got[name].double() - gradient).norm(), gradient.norm()
        if difference == 0:
            return 0.0
        return float(difference / (whole if norm < NOTHING * whole else norm + 1e-3 * whole))

    errors = {name: error(name, gradient) for name, gradient in expected.items()}
    assert all(map(math.isfinite, errors.values())), errors
    return max(errors.values())


def run_cases(folder: Path, cases: Sequence[Case], *, timeout_s: float = 240.0) -> dict[Case, Errors]:
    """Run cases of one number of ranks in one group of processes."""
    (world_size,) = {case.setup.ranks for case in cases}
    groups = [
        (setup, [case.layout for case in cases if case.setup == setup])
        for setup in dict.fromkeys(case.setup for case in cases)
    ]
    places = {setup: write_models(folder, setup, layouts) for setup, layouts in groups}
    by_rank = run_ranks(run_all, world_size, folder, groups, timeout_s=timeout_s)
    return {
        Case(setup, layout): errors_of(Case(setup, layout), places[setup], [of_rank[i][j] for of_rank in by_rank])
        for i, (setup, layouts) in enumerate(groups)
        for j, layout in enumerate(layouts)
    }


# --- the document ----------------------------------------------------------------------------------------------------

DOCUMENT = ROOT / "docs" / "invariance.md"
MORE_FACTORS: dict[str, tuple[Any, ...]] = {
    "divergence": (*DIVERGENCES,),
    "loss": ("plain", "weighed"),
    "distance": ("mse", "cka"),
    "relation_weight": (0.0, 0.9),
    "width": (*SIZES,),
}
"""Those that some cases alone have another value of."""
HEADING = """# The same batch, however it is cut up

The same global batch gives the same loss terms and the same gradients, on any number of ranks, with any accumulation,
padding, packing and ZeRO stage. Each case below ran on real ranks under DeepSpeed and was held against one fp64 process
that saw all documents at once, each in a row of its own, with the losses of torch and `torch.distributions`. Tiny
models; three steps each: documents of uneven length, a step in which every label is ignored, and a ragged last step
whose missing rows leave some ranks without any token. And every pair of values once more at width 768, with 2,048
tokens in a step. Written by `python -m tests.distributed.matrix{option}`.

Errors are the worst seen. A term's is relative to its value, or to {floor} where it is smaller; a parameter's gradient
error is the norm of the difference over the norm of its gradient plus 1/1000 of the whole gradient's.
In bf16 the reference is fp64 too, from the same rounded weights: what is seen there is the rounding of activations to
8 bits, through all blocks of teacher and student. Where a parameter's gradients nearly cancel, little is left of 8
bits, whoever computes them: the last column has the same errors of a plain bf16 pass over the whole batch, in one
process and without DeepSpeed. The bounds the tests hold:
{bounds}, or twice the plain pass's.

{cases} cases, {hardware}, commit {commit}.
"""


OF_CACHES = """
## A teacher that is read from a disk

Steps of language models whose teacher is a cache: of each prediction the {top} most probable ids, or {drawn} draws, and
filtered states in 16 or 8 bits. It is written once, from an fp64 pass over each document by itself; the fp64 process
that steps are held against learns from the same numbers as they are read again. Written by
`python -m tests.distributed.matrix --caches`; {cases} cases, {hardware}, commit {commit}.

"""


OF_FROZEN = """
## First blocks that do not train

Students that are cut out of their teacher, whose embeddings and first block stay as they are and are run once for both
models; the fp64 process that steps are held against runs each model by itself. Written by
`python -m tests.distributed.matrix --frozen`; {cases} cases, {hardware}, commit {commit}.

"""


def render_caches(results: dict[Case, Errors], *, hardware: str, commit: str) -> str:
    """The results of :func:`of_caches` as Markdown."""
    counts = {"top": NUM_KEPT["top_k"], "drawn": NUM_KEPT["sampled"], "cases": len(results)}
    factors = {"cache": WAYS, **{name: FACTORS[name] for name in ("ranks", "accumulation", "stage", "packed")}}
    factors["kind"] = (*OF_THE_VOCABULARY, *MASKED)
    return OF_CACHES.format(**counts, hardware=hardware, commit=commit) + table_of(results, factors)


def render_frozen(results: dict[Case, Errors], *, hardware: str, commit: str) -> str:
    """The results of :func:`of_frozen_blocks` likewise."""
    names = ("ranks", "accumulation", "stage", "hosting", "packed")
    factors: dict[str, tuple[Any, ...]] = {"what": OF_FROZEN_TERMS, **{name: FACTORS[name] for name in names}}
    factors["family"] = tuple(name for name in FACTORS["family"] if name not in ENCODER_DECODERS)
    text = OF_FROZEN.format(cases=len(results), hardware=hardware, commit=commit)
    return text + table_of(results, factors)


def table_of(results: dict[Case, Errors], factors: dict[str, tuple[Any, ...]]) -> str:
    """The worst errors of each value of each factor."""
    columns = ("terms, fp32", "gradient, fp32", "terms, bf16", "gradient, bf16", "gradient, plain bf16")
    lines = [f"| | | cases | {' | '.join(columns)} |", "|---" * 8 + "|"]
    for factor, values in factors.items():
        for value in values:
            having = {c: e for c, e in results.items() if {**c.setup._asdict(), **c.layout._asdict()}[factor] == value}
            lines.append(f"| {factor} | {value} | {len(having)} | {' | '.join(cells_of(having))} |")
    return "\n".join(lines) + "\n"


RENDERED = {"caches": render_caches, "frozen": render_frozen}
"""What makes each section behind the matrix itself, in their order."""


def sections_of(text: str) -> dict[str, str]:
    """The parts of the document, by their names; the matrix itself is the ``whole``."""
    heads = {"caches": OF_CACHES.splitlines()[1], "frozen": OF_FROZEN.splitlines()[1]}
    starts = {"whole": 0} | {name: text.index(head) for name, head in heads.items() if head in text}
    ends = [*[*starts.values()][1:], len(text)]
    return {name: text[start:end] for (name, start), end in zip(starts.items(), ends, strict=True)}


def cells_of(having: dict[Case, Errors]) -> list[str]:
    """The worst errors of some cases, by precision."""
    cells = []
    for precision in TOLERANCE:
        chosen = [errors for case, errors in having.items() if case.setup.precision == precision]
        cells += [worst([max(e.terms.values()) for e in chosen]), worst([e.gradient for e in chosen])]
    return [*cells, worst([e.plain for case, e in having.items() if case.setup.precision == "bf16"])]


def worst(chosen: Sequence[float]) -> str:
    return f"{max(chosen):.1e}" if chosen else "–"


def bounds_in_words() -> str:
    return "; ".join(f"{p}: terms {b['loss']:.1e}, gradients {b['gradient']:.1e}" for p, b in TOLERANCE.items())


def render(results: dict[Case, Errors], *, option: str, hardware: str, commit: str) -> str:
    """The results as Markdown."""
    lines = [
        HEADING.format(
            option=option, floor=FLOOR, bounds=bounds_in_words(), cases=len(results), hardware=hardware, commit=commit
        )
    ]

    names = sorted({name for errors in results.values() for name in errors.terms})
    lines += ["| term | cases | fp32 | bf16 |", "|---|---|---|---|"]
    for name in names:
        having = {case: errors.terms[name] for case, errors in results.items() if name in errors.terms}
        by_precision = [[e for case, e in having.items() if case.setup.precision == p] for p in TOLERANCE]
        lines.append(f"| `{name}` | {len(having)} | {' | '.join(map(worst, by_precision))} |")
    lines += ["", "| | | cases | terms, fp32 | gradient, fp32 | terms, bf16 | gradient, bf16 | gradient, plain bf16 |"]
    lines += ["|---" * 8 + "|"]
    for factor, values in {**FACTORS, **MORE_FACTORS}.items():
        for value in values:
            having = {c: e for c, e in results.items() if {**c.setup._asdict(), **c.layout._asdict()}[factor] == value}
            lines.append(f"| {factor.replace('_', ' ')} | {value} | {len(having)} | {' | '.join(cells_of(having))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also the full product: half an hour in all")
    parser.add_argument("--hardware", required=True, help="where this runs, for the document")
    parser.add_argument("--caches", action="store_true", help="only the section of caches, and leave the rest as it is")
    parser.add_argument("--frozen", action="store_true", help="likewise, that of frozen blocks")
    options = parser.parse_args()
    whole = [*sample(), *of_divergences(), *of_weighed_losses(), *of_distances()]
    whole = list(dict.fromkeys([*whole, *(full_product() if options.full else []), *wide_product()]))
    of_section = {"caches": of_caches(), "frozen": of_frozen_blocks()}
    asked = [name for name in of_section if getattr(options, name)]
    cases = [case for name in asked or of_section for case in of_section[name]] + ([] if asked else whole)
    results: dict[Case, Errors] = {}
    for world_size in FACTORS["ranks"]:
        with tempfile.TemporaryDirectory() as folder:
            chosen = [case for case in cases if case.setup.ranks == world_size]
            results |= run_cases(Path(folder), chosen, timeout_s=3600)
        reference.cache_clear()
        answers.cache_clear()
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    facts = {"hardware": options.hardware, "commit": commit}
    own = {name: {case: results[case] for case in of_section[name]} for name in asked or of_section}
    sections = sections_of(DOCUMENT.read_text(encoding="utf-8")) if asked else {}
    if not asked:
        option = " --full" if options.full else ""
        sections["whole"] = render({case: results[case] for case in whole}, option=option, **facts)
    sections |= {name: RENDERED[name](of_name, **facts) for name, of_name in own.items()}
    written = "\n".join(sections[name].strip() + "\n" for name in ("whole", *RENDERED) if name in sections)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(written, encoding="utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
