"""Attention relations: their KL against torch.distributions in fp64, and where families' queries, keys, values are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.data.text_sizes import text_sizes
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.loading import auto_class
from ted_ds.models.relation_taps import RelationTap
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.fused import filter_distance_sum
from ted_ds.numerics.relations import RelationDistance
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.relations import Relations
from ted_ds.runtime.frozen import FrozenModel
from tests.parity.test_families import batch
from tests.parity.test_vocabulary import gradcheck
from tests.plain import plain_relations
from tests.task_kinds import OF_NAME
from tests.tiny import distill_plan, model_config

KEEP = torch.tensor([[True] * 5 + [False] * 2, [True] * 7, [False, True] + [False] * 5, [False] * 7])
HEADS = 3
TYPES = tuple(name for name, family in FAMILY_OF.items() if family.attention_maps)
WITH_PLAIN_SCORES = ("bert", "roberta", "electra", "distilbert", "gpt2", "opt")
"""Whose scores are products of queries and keys and nothing else."""


def vectors(seed: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 7, width, generator=generator, dtype=torch.float64) * 1.5


def in_chunks(student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
    rows, sizes = kept_rows(keep), text_sizes(keep)
    distance = RelationDistance(num_heads=HEADS)
    return filter_distance_sum(
        student, teacher, student_filter=(), teacher_filter=(), rows=rows, sizes=sizes, distance=distance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_relations_are_of_the_tokens_of_a_text_whatever_the_widths(dtype, tolerance):
    student, teacher = vectors(0, 12).to(dtype).requires_grad_(), vectors(1, 18).to(dtype).requires_grad_()
    exact = student.detach().double().requires_grad_()
    expected = plain_relations(exact, teacher.detach().double(), KEEP, HEADS) * KEEP.sum()
    expected.backward()
    for total in (
        in_chunks(student, teacher, KEEP),
        RelationDistance(num_heads=HEADS).sum(student, teacher, keep=KEEP),
    ):
        student.grad = None
        total.backward()
        torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(student.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
        assert teacher.grad is None
    assert in_chunks(teacher, teacher, KEEP).abs() < 1e-6
    assert RelationDistance().is_of_texts
    assert not RelationDistance().is_plain_mse


def test_gradcheck():
    student, teacher = vectors(0, 6)[:2].requires_grad_(), vectors(1, 9)[:2]
    assert gradcheck(lambda one: in_chunks(one, teacher, KEEP[:2]), (student,))


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_what_is_not_kept_has_no_part_in_it(garbage):
    dropped = ~KEEP.unsqueeze(-1)
    for total in (in_chunks, lambda *given: RelationDistance(num_heads=HEADS).sum(*given[:2], keep=given[2])):
        found = []
        for value in (0.0, garbage):
            student = vectors(0, 12).masked_fill(dropped, value).requires_grad_()
            total(student, vectors(1, 18).masked_fill(dropped, -value), KEEP).backward()
            found.append(student.grad)
        assert torch.equal(*found)
        assert not found[1][~KEEP].any()


def tapped(model_type: str) -> TappedModel:
    torch.manual_seed(0)
    config = model_config(model_type, blocks=2)
    config.use_cache = False
    model = auto_class(family_of(model_type).language_model).from_config(config).eval()
    return TappedModel(model, family_of(model_type), [1])


@pytest.mark.parametrize("model_type", TYPES)
def test_queries_keys_and_values_are_those_of_the_tokens(model_type):
    model = tapped(model_type)
    tap = RelationTap(model, 2)
    inputs = batch(family_of(model_type).row_of_padding(model.model.config.to_dict()) or 0)
    with torch.no_grad():
        model(inputs)
        tap.listen()
        model(inputs)
        queries, keys, values = tap.take()
        for one in (queries, keys, values):
            assert one.shape[:2] == inputs["input_ids"].shape
        assert len({float(one.sum()) for one in (queries, keys, values)}) == 3
        with pytest.raises(AssertionError, match="nobody listened"):
            tap.take()
        if model_type not in WITH_PLAIN_SCORES:
            return
        # what transformers itself makes of them, with heads of its own
        model.model.set_attn_implementation("eager")
        attentions = model.model(**inputs, output_attentions=True).attentions[1]
    count = attentions.shape[1]
    own = [one.unflatten(-1, (count, -1)).transpose(1, 2) for one in (queries, keys)]
    scores = own[0] @ own[1].mT / own[0].shape[-1] ** 0.5
    unseen = attentions == 0
    torch.testing.assert_close(scores.masked_fill(unseen, -1e9).softmax(-1), attentions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "computed_again"), [("right", False), ("left", False), ("right", True)])
def test_the_term_is_of_the_blocks_that_were_chosen(side, computed_again):
    """In Stage II, beside the others, and with gradients of the term alone."""
    student, teacher = FilteredModel(tapped("gpt2"), FilterBank((), 16, 16)).train(), tapped("llama")
    if computed_again:
        checkpoint_activations(student.tapped.model, student.tapped.family)
    taps = RelationTap(student.tapped, 1), RelationTap(teacher, 2)
    frozen = FrozenModel(teacher, device=torch.device("cpu"), engine_config=None)
    plan = distill_plan(method="kd", task_weight=0, kl_weight=0, relation_weight=0.7, relation_heads=4)
    objective = DistillObjective(
        OF_NAME["causal_lm"].terms, plan, teacher=frozen, teacher_filters=None, student_layers=()
    )
    objective.relations = Relations(*taps, num_heads=4)
    texts = [Sample([7, 8, 9, 10, 11], None), Sample([12, 13], None), None]
    given = Collator(pad_id=0, labels="tokens", side=side)(texts)
    counts = objective.counts(given)
    assert counts["loss/relation_kl"] == 7
    loss, totals = objective.loss(student, given, counts)
    loss.backward()
    got = {name: one.grad.clone() for name, one in student.named_parameters() if one.grad is not None}
    student.zero_grad()
    for tap in taps:
        tap.listen()
    with torch.no_grad():
        teacher(given.inputs)
    student.tapped(given.inputs)
    both = [[one.double() for one in tap.take()] for tap in taps]
    expected = sum(plain_relations(*one, given.kept_tokens, 4) for one in zip(*both, strict=True))
    (0.7 * expected).backward()
    torch.testing.assert_close(totals["loss/relation_kl"].double() / 7, expected, rtol=1e-6, atol=1e-7)
    wanted = {name: one.grad for name, one in student.named_parameters() if one.grad is not None}
    assert any(one.any() for one in wanted.values())
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, wanted.get(name, torch.zeros(())).expand_as(gradient), rtol=1e-4, atol=1e-7
        )
