"""What installed packages add: found by name, loaded when asked for, and named where it is broken."""

from __future__ import annotations

import sys

import pytest

from ted_ds.assembly.own import terms_named
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError, OwnCodeError
from ted_ds.models import plug_ins
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.family import Family
from ted_ds.models.plug_ins import FAMILIES, load_plug_in, names_of_plug_ins
from ted_ds.numerics.divergences import KullbackLeibler
from ted_ds.objectives.distill import _divergence_of

CODE = """
import dataclasses
from ted_ds import OwnTerm
from ted_ds.models.families import FAMILY_OF
from ted_ds.numerics.divergences import TotalVariation

family = dataclasses.replace(FAMILY_OF["llama"], model_types=("grown",))
divergence = TotalVariation()
term = OwnTerm("size", lambda taps: taps.filtered_student.square().mean(-1))
"""
POINTS = """
[ted_ds.families]
grown = grown_models:family
broken = grown_models_that_are_not_there:family
odd = grown_models:term
other = grown_models:family

[ted_ds.divergences]
ours = grown_models:divergence
kl = grown_models:divergence

[ted_ds.terms]
size = grown_models:term
"""


def install(folder, name="grown-models", points=POINTS):
    about = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(points)
    (folder / "grown_models.py").write_text(CODE)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package, as pip leaves one, and nothing of it afterwards."""
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plug_ins._of_group.cache_clear()
    yield tmp_path
    plug_ins._of_group.cache_clear()
    sys.modules.pop("grown_models", None)
    FAMILY_OF._own.pop("grown", None)


def test_a_package_is_loaded_when_its_name_is_asked_for(installed):
    assert names_of_plug_ins(FAMILIES) == ["broken", "grown", "odd", "other"]
    assert "llama" in FAMILY_OF
    assert "grown_models" not in sys.modules
    assert family_of("grown").model_types == ("grown",)
    assert "grown_models" in sys.modules
    with pytest.raises(ConfigError, match="model type 'poetry' has no family"):
        family_of("poetry")
    assert load_plug_in(FAMILIES, "poetry", Family) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "broken",
            "grown-models 1.2: its ted_ds.families: broken: ModuleNotFoundError: No module named "
            "'grown_models_that_are_not_there'",
        ),
        ("other", "ted_ds.families: other: is a family of grown, not of other"),
        ("odd", "grown-models 1.2: its ted_ds.families: odd: OwnTerm(name='size', "),
    ],
)
def test_a_package_that_is_broken_is_named(installed, name, text):
    with pytest.raises(OwnCodeError) as caught:
        family_of(name)
    assert str(caught.value).startswith(text)
    assert name != "odd" or str(caught.value).endswith(" is no Family")


def test_two_packages_of_one_name_are_refused(installed):
    install(installed, "other-models", "[ted_ds.families]\ngrown = grown_models:family\n")
    with pytest.raises(OwnCodeError) as caught:
        family_of("grown")
    assert str(caught.value) == (
        "ted_ds.families: grown: given by several packages (grown-models 1.2, other-models 1.2); uninstall all but one "
        "of them"
    )


def test_a_recipe_names_a_divergence_of_a_package(installed, lm_run):
    recipe = load_recipe(lm_run / "recipe.yaml", ["distill.divergence=ours"])
    assert "grown_models" not in sys.modules, "a recipe is read without code of packages"
    assert recipe.distill.deciding_values()["divergence"] == "ours"
    assert recipe.model_dump(mode="json")["distill"]["divergence"] == "ours"
    assert _divergence_of(recipe.distill).name == "tv_teacher_student"
    own = load_recipe(lm_run / "recipe.yaml", ["distill.divergence=kl"]).distill
    assert isinstance(_divergence_of(own), KullbackLeibler), "no package stands in for one of ted_ds"
    with pytest.raises(ConfigError, match=r"distill.divergence: 'theirs': use kl, .* or tv"):
        load_recipe(lm_run / "recipe.yaml", ["distill.divergence=theirs"])


def test_a_term_of_a_package_goes_by_its_name(installed):
    (term,) = terms_named(["size"])
    assert terms_named([term]) == (term,)
    with pytest.raises(ConfigError) as caught:
        terms_named(["length"])
    assert str(caught.value) == (
        "terms: 'length': no installed package has a term of this name (entry points ted_ds.terms: size); install one, "
        "or give an OwnTerm"
    )
