"""Training steps to compare: of a student alone, of distillation by hand, and of distillation by ted_ds.

All on models of random weights, with AdamW on the weights as they are, without DeepSpeed: what differs is the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

from ted_ds.config.distill import Distill
from ted_ds.data.loader import Batch
from ted_ds.models.families import family_of
from ted_ds.models.frozen_prefix import PrefixStates, freeze_prefix, tensors_of_prefix
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.numerics.layer_map import make_layer_map
from ted_ds.numerics.task_terms import CAUSAL_LM, SEQUENCE_CLASSIFICATION
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.teacher import Teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
METHODS = ("sft", "kd", "lwd", "ted")
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Shape:
    """A teacher, a student, and the batch of a step."""

    name: str
    teacher: PretrainedConfig
    student: PretrainedConfig
    rows: int
    tokens_per_row: int

    @property
    def tokens(self) -> str:
        """Of a step."""
        return f"{self.rows} x {self.tokens_per_row}"

    @property
    def is_lm(self) -> bool:
        """Whether it predicts tokens; else labels."""
        return self.teacher.model_type in ("gpt2", "llama")

    @property
    def is_cut(self) -> bool:
        """Whether the student could be some blocks of the teacher."""
        return self.teacher.hidden_size == self.student.hidden_size

    @property
    def without_dropout(self) -> Shape:
        """The same, of models that drop nothing in training."""
        sides = {"teacher": copy.deepcopy(self.teacher), "student": copy.deepcopy(self.student)}
        for config in sides.values():
            for key in family_of(config.model_type).block_dropouts:
                setattr(config, key, 0.0)
        return replace(self, **sides)


def gpt2(blocks: int, width: int, vocab: int) -> GPT2Config:
    """GPT-2's shape."""
    ends = {"bos_token_id": vocab - 1, "eos_token_id": vocab - 1, "loss_type": "ForCausalLM"}
    return GPT2Config(n_layer=blocks, n_embd=width, n_head=width // 64, vocab_size=vocab, **ends)


def llama(
    blocks: int, width: int, inner: int, heads: int, key_heads: int, vocab: int, *, tied: bool = True
) -> LlamaConfig:
    """A Llama's shape."""
    return LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )


def _deberta(blocks: int, width: int, vocab: int) -> DebertaV2Config:
    config: Any = DebertaV2Config  # its signature does not tell all it takes
    return config(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        vocab_size=vocab,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        num_labels=3,
    )


SHAPES = {
    False: [
        Shape("GPT-2 12>6", gpt2(12, 768, 50_257), gpt2(6, 768, 50_257), 4, 512),
        Shape(
            "SmolLM2 30>10",
            llama(30, 576, 1536, 9, 3, 49_152),
            llama(10, 576, 1536, 9, 3, 49_152),
            4,
            512,
        ),
        Shape("DeBERTa-v3 base>xsmall", _deberta(12, 768, 128_100), _deberta(12, 384, 128_100), 8, 64),
    ],
    True: [
        Shape("GPT-2 type 4>2", gpt2(4, 256, 32_000), gpt2(2, 256, 32_000), 2, 256),
        Shape("DeBERTa-v3 type 256>128", _deberta(4, 256, 8000), _deberta(4, 128, 8000), 8, 64),
    ],
}


def new_model(shape: Shape, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of random weights in training mode."""
    auto: Any = AutoModelForCausalLM if shape.is_lm else AutoModelForSequenceClassification
    with torch.device(device):
        return auto.from_config(config, dtype=dtype).train()


def new_batch(shape: Shape, device: torch.device, *, padded: bool = False) -> Batch:
    """Full rows of random tokens; or ``padded`` ones of uneven lengths, half of which are padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, shape.teacher.vocab_size, (shape.rows, shape.tokens_per_row), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    if not shape.is_lm:
        labels = torch.randint(3, (shape.rows,), generator=generator)
    kept = torch.ones_like(ids, dtype=torch.bool)
    if padded:  # so many tokens that rows have half of them on average
        lengths = shape.tokens_per_row * (2 * torch.arange(shape.rows) + 1) // (2 * shape.rows)
        kept = torch.arange(shape.tokens_per_row) < lengths[:, None]
        ids[~kept] = 0
        if shape.is_lm:
            labels[:, :-1][~kept[:, 1:]] = -100
    return Batch(ids, kept.long(), labels, kept).to(device)


def _adam(*modules: nn.Module) -> Any:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-6, fused=True)


def _step(loss: Tensor, optimizer: Any) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _layer_pairs(shape: Shape) -> tuple[tuple[int, int], ...]:
    return make_layer_map(
        "uniform",
        num_student_blocks=shape.student.num_hidden_layers,
        num_teacher_blocks=shape.teacher.num_hidden_layers,
    )


class ByHand:
    """The floor's two parts, and the plain way to distill."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, *, with_teacher: bool = True) -> None:
        self._pairs, self._is_lm = _layer_pairs(shape), shape.is_lm
        self.student = new_model(shape, shape.student, dtype, device)
        self._batch, self._padded = (new_batch(shape, device, padded=padded) for padded in (False, True))
        self._filters: list[nn.ModuleList] = []
        if with_teacher:
            self.teacher = new_model(shape, shape.teacher, dtype, device).requires_grad_(False).eval()
            dim = shape.teacher.hidden_size
            with torch.device(device):
                self._filters = [
                    nn.ModuleList(nn.Linear(width, dim) for _ in self._pairs).to(dtype)
                    for width in (shape.student.hidden_size, dim)
                ]
        self._optimizer = _adam(self.student, *self._filters[:1])

    def run_teacher(self) -> None:
        """The teacher's forward pass."""
        with torch.no_grad():
            self.teacher(**self._batch.inputs)

    def train_student(self) -> None:
        """A step of the student alone, with transformers' own loss."""
        labels = self._batch.input_ids if self._is_lm else self._batch.labels
        _step(self.student(**self._batch.inputs, labels=labels).loss, self._optimizer)

    def distill(self) -> None:
        """A step of task loss, KL and filtered layers, as one writes it down."""
        self._distill(self._batch)

    def distill_padded(self) -> None:
        """The same of a batch that is half padding, over which KL and layers are compared, too, as TED's authors do."""
        self._distill(self._padded)

    def _distill(self, batch: Batch) -> None:
        own, theirs = self._filters
        with torch.no_grad():
            teacher = self.teacher(**batch.inputs, output_hidden_states=True)
            wanted = [one(teacher.hidden_states[t]) for one, (_, t) in zip(theirs, self._pairs, strict=True)]
        student = self.student(**batch.inputs, output_hidden_states=True)
        labels = batch.labels.flatten()
        logits, teacher_logits = student.logits.flatten(0, -2).float(), teacher.logits.flatten(0, -2).float()
        loss = F.cross_entropy(logits, labels)
        loss = loss + TEMPERATURE**2 * F.kl_div(
            F.log_softmax(logits / TEMPERATURE, -1),
            F.log_softmax(teacher_logits / TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        for one, target, (s, _) in zip(own, wanted, self._pairs, strict=True):
            loss = loss + F.mse_loss(one(student.hidden_states[s]), target) / len(self._pairs)
        _step(loss, self._optimizer)


class ByTedDs:
    """Steps of each method as a run takes them, without the engine."""

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        load: Callable[[str], Any] | None = None,
        teacher_config: Mapping[str, Any] | None = None,
        num_frozen: int = 0,
    ) -> None:
        """Models of random weights, or those that ``load`` gives for "teacher" and "student".

        Of the student, ``num_frozen`` first blocks and the embeddings are the teacher's and frozen.
        """
        pairs, family = _layer_pairs(shape), family_of(shape.teacher.model_type)
        sides = {"teacher": shape.teacher, "student": shape.student}
        make = load or (lambda side: new_model(shape, sides[side], dtype, device))
        tapped_teacher = TappedModel(make("teacher"), family, [t for _, t in pairs])
        self.teacher = FrozenModel(tapped_teacher, device=device, engine_config=teacher_config)
        self.teacher_parameters = tapped_teacher.parameters
        student = TappedModel(make("student"), family, [s for s, _ in pairs])
        if num_frozen:
            prefixes = [tensors_of_prefix(one.model, family, num_frozen) for one in (student, tapped_teacher)]
            for name, own in prefixes[0].items():
                own.data.copy_(prefixes[1][name])
            freeze_prefix(student.model, family, num_frozen)
            wanted = {num_frozen, *(t for _, t in pairs if t <= num_frozen)}
            self.teacher.begin_behind(num_frozen, PrefixStates(student, wanted))
        dim = shape.teacher.hidden_size
        with torch.device(device):
            bank = FilterBank([s for s, _ in pairs], shape.student.hidden_size, dim).to(dtype)
            self.teacher_filters = FilterBank([t for _, t in pairs], dim, dim).to(dtype).requires_grad_(False)
        self.module = FilteredModel(student, bank).train()
        self.batch, self._padded = (new_batch(shape, device, padded=padded) for padded in (False, True))
        self._terms = CAUSAL_LM if shape.is_lm else SEQUENCE_CLASSIFICATION
        self._student_layers = [s for s, _ in pairs]
        self._optimizer = _adam(self.module)

    def objective(self, method: str, cached: Teacher | None = None, divergence: str = "kl") -> Any:
        """What a method trains for; ``ted`` is with the divergence. What is ``cached`` has gone through the filters."""
        if method == "sft":
            return FinetuneObjective(self._terms)
        chosen: dict[str, Any] = {"method": method, "divergence": divergence}
        plan = Distill(
            max_steps=1,
            learning_rate=1.0,
            global_batch_size=1,
            micro_batch_size=1,
            kl_weight=0.0 if method == "lwd" else 1.0,
            temperature=TEMPERATURE,
            **chosen,
        )
        return DistillObjective(
            self._terms,
            plan,
            teacher=cached or self.teacher,
            teacher_filters=None if method == "kd" else self._filters("lwd" if cached is not None else method),
            student_layers=self._student_layers,
        )

    def method(
        self,
        name: str,
        *,
        watched: bool = False,
        padded: bool = False,
        cached: Teacher | None = None,
        divergence: str = "kl",
    ) -> Callable[[], None]:
        """A step of a method, without an engine; a ``watched`` one is like that of each report.

        A ``padded`` one is of a batch that is half padding; a ``cached`` teacher is read in the place of the other.
        """
        objective, optimizer = self.objective(name, cached, divergence), self._optimizer
        objective.watch(watched)
        batch = self._padded if padded else self.batch
        counts = {name: count.float() for name, count in objective.counts(batch).items()}

        def step() -> None:
            loss, _ = objective.loss(self.module, batch, counts)
            _step(loss, optimizer)
            objective.told(objective.seen(loss.device).tolist())

        return step

    def _filters(self, method: str) -> FilterBank:
        return self.teacher_filters if method == "ted" else IdentityFilters(self.teacher_filters.layers)
