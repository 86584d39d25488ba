"""A user's own term: what it sums and counts, and what is refused of it."""

from __future__ import annotations

import pytest
import torch

from ted_ds.assembly.own import Own
from ted_ds.config.load import load_recipe
from ted_ds.errors import OwnCodeError
from ted_ds.objectives.own_term import OwnTerm, Taps, own_mistakes

KEPT = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def taps():
    states = torch.arange(18.0, dtype=torch.float64).reshape(3, 3, 2).requires_grad_()
    return Taps(1, states, states.detach() + 1, KEPT, filter_student=lambda: states * 2, filter_teacher=lambda: states)


def length(given):
    return (given.filtered_student - given.teacher).square().sum(-1)


def test_values_of_tokens_are_summed_where_they_are_kept():
    given, term = taps(), OwnTerm("length", length)
    total = term.sum(given)
    expected = sum(
        (2 * given.student[row, token] - given.teacher[row, token]).square().sum() for row, token in KEPT.nonzero()
    )
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected)
    assert int(term.count(KEPT)) == 3
    gradient, plain = (torch.autograd.grad(one, given.student, retain_graph=True)[0] for one in (total, expected))
    torch.testing.assert_close(gradient, plain)


def test_values_of_texts_count_where_a_text_has_a_token():
    term = OwnTerm("first", lambda given: given.student[:, 0, 0], per="text")
    assert float(term.sum(taps()).detach()) == 0 + 6
    assert int(term.count(KEPT)) == 2


def test_what_padding_gives_is_never_seen():
    term = OwnTerm("sharp", lambda given: torch.where(given.kept, 1.0, torch.nan))
    assert float(term.sum(taps())) == 3


def fails(_):
    raise KeyError("none")


@pytest.mark.parametrize(
    ("function", "per", "text"),
    [
        (fails, "token", "term odd: KeyError: 'none'"),
        (
            lambda given: length(given).mean(),
            "token",
            "term odd: its function gave torch.float64 []: use a floating-point tensor [3, 3], a value of each token",
        ),
        (
            length,
            "text",
            "term odd: its function gave torch.float64 [3, 3]: use a floating-point tensor [3], a value of each text",
        ),
        (
            lambda given: given.kept,
            "token",
            "term odd: its function gave torch.bool [3, 3]: use a floating-point tensor ",
        ),
        (lambda given: 3.0, "token", "term odd: its function gave a float: use a floating-point tensor [3, 3]"),
    ],
)
def test_what_is_no_value_is_said(function, per, text):
    with pytest.raises(OwnCodeError) as caught:
        OwnTerm("odd", function, per=per).sum(taps())
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"name": "feature_mse"},
            "terms: name 'feature_mse': use small letters, digits and _, beginning with a letter, and "
            "no name that a term of ted_ds has",
        ),
        ({"name": "Odd/one"}, "terms: name 'Odd/one': use small letters"),
        ({"name": "kl_teacher_student"}, "terms: name 'kl_teacher_student': use small letters"),
        ({"function": 3}, "terms: odd: function 3: use a function of ted_ds.Taps"),
        ({"weight": 0}, "terms: odd: weight 0: use a number above 0"),
        ({"weight": float("nan")}, "terms: odd: weight nan: use a number above 0"),
        ({"per": "row"}, "terms: odd: per 'row': use 'token' or 'text'"),
    ],
)
def test_a_term_that_is_wrong_is_refused(given, text):
    (line,) = own_mistakes([OwnTerm(**{"name": "odd", "function": length, **given})])
    assert line.startswith(text)


def test_terms_have_names_of_their_own():
    term = OwnTerm("odd", length)
    assert own_mistakes([term, term]) == ["terms: odd: given twice; use a name for each"]
    assert own_mistakes([length])[0].endswith("use a ted_ds.OwnTerm")


@pytest.mark.parametrize(
    ("overrides", "two_tokenizers", "text"),
    [
        (
            ["distill.method=kd"],
            False,
            "terms: distill.method: kd compares no layers, of which terms are made; use lwd or ted, or remove them",
        ),
        (
            [],
            True,
            "terms: tokens of two tokenizers do not pair; let the student read by the teacher's, or remove them",
        ),
        (
            ["distill.balance=gradient_norm"],
            False,
            "terms: distill.balance: gradient_norm is of the terms of ted_ds alone; remove one of the two",
        ),
        ([], False, None),
    ],
)
def test_terms_go_with_the_recipe(lm_run, overrides, two_tokenizers, text):
    recipe = load_recipe(lm_run / "recipe.yaml", overrides)
    found = [*Own([OwnTerm("odd", length)]).mistakes(recipe, two_tokenizers=two_tokenizers)]
    assert found == ([] if text is None else [text])
    assert [*Own().mistakes(recipe, two_tokenizers=two_tokenizers)] == []


def test_a_cached_teacher_has_no_states_to_make_terms_of(classification_run):
    recipe = load_recipe(classification_run / "recipe.yaml", ["teacher.cache.max_gib=1"])
    found = [*Own([OwnTerm("odd", length)]).mistakes(recipe, two_tokenizers=False)]
    assert found == ["terms: teacher.cache keeps no states that terms could be made of; remove one of the two"]


def test_a_phase_knows_its_terms_whatever_their_order():
    one, two = OwnTerm("one", length), OwnTerm("two", length, weight=2.0, per="text", version=3)
    assert (
        Own([two, one]).of_stage_two()
        == Own([one, two]).of_stage_two()
        == {
            "own_terms": [
                {"name": "one", "weight": 1.0, "per": "token", "version": 1},
                {"name": "two", "weight": 2.0, "per": "text", "version": 3},
            ]
        }
    )
    assert Own().of_stage_two() == {}
