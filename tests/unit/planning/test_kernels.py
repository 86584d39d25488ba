"""``distill.kernels``: what it is refused with, and that a run may go on with another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.config import distill
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.kernels import kernel_mistakes
from ted_ds.runtime.kernels import interpreted_kernels, refuse_kernels
from tests.task_kinds import make_plan

TRITON = "distill.kernels=triton"
CPU = torch.device("cpu")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton is installed, as far as plans look, and DeepSpeed is not told to use the CPU."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: "there" if name == "triton" else find(name, *rest)
    )
    monkeypatch.delenv("DS_ACCELERATOR")


def mistakes(run: Path, *overrides: str) -> list[str]:
    return [*kernel_mistakes(load_recipe(run / "recipe.yaml", [TRITON, *overrides]))]


@pytest.mark.usefixtures("there")
def test_with_a_vocabulary_and_a_teacher_at_hand_nothing_is_wrong(lm_run: Path) -> None:
    assert mistakes(lm_run) == []
    for kind in ("jsd", "tv", "reverse_kl", "skew_kl", "skew_reverse_kl"):
        assert mistakes(lm_run, f"distill.divergence={kind}") == []
    assert mistakes(lm_run, "distill.kl_weight=0", "teacher.cache={max_gib: 1}") == []  # which keeps states alone


@pytest.mark.usefixtures("there")
def test_what_has_no_kernel_is_refused(lm_run: Path, classification_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mistakes(classification_run) == [
        "distill.kernels: triton computes with the logits of a vocabulary, and sequence_classification has none; "
        "remove it"
    ]
    assert mistakes(lm_run, "teacher.cache={max_gib: 1}") == [
        "distill.kernels: triton compares with all logits of a teacher, and teacher.cache keeps some of them; remove "
        "one of the two"
    ]

    class Found:
        names = ("mine",)

    monkeypatch.setattr(distill, "entry_points", lambda **_: Found)
    assert mistakes(lm_run, "distill.divergence=mine") == [
        "distill.kernels: triton has no kernel for distill.divergence: mine, which is of a package; remove one of the "
        "two"
    ]


def test_what_is_not_here_is_said_by_a_plan(lm_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(lm_run / "recipe.yaml", [TRITON]), source="tiny.yaml")
    assert str(caught.value) == (
        "tiny.yaml: distill.kernels: triton needs the package triton, which is not installed here (torch for CUDA "
        "brings it): pip install 'ted_ds[triton]'; or use torch"
    )


def test_a_cpu_is_refused_but_for_the_interpreter(lm_run: Path, there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert mistakes(lm_run) == ["distill.kernels: triton needs a GPU, but $DS_ACCELERATOR is cpu; use torch"]
    refuse_kernels("torch", CPU)
    with pytest.raises(
        ConfigError, match=r"^distill\.kernels: triton needs a GPU, and this rank computes on a cpu; use"
    ):
        refuse_kernels("triton", CPU)
    assert interpreted_kernels("triton") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert mistakes(lm_run) == []
    assert interpreted_kernels("torch") is None
    said = interpreted_kernels("triton")
    assert said == (
        "distill.kernels: triton: $TRITON_INTERPRET is set: kernels run step by step on a CPU, thousands of times "
        "slower"
    )


def test_a_package_that_does_not_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> None:
        raise OSError("libtriton.so: cannot open\nmore")

    monkeypatch.setattr("ted_ds.runtime.kernels.importlib.import_module", broken)
    with pytest.raises(
        ConfigError, match=r"^distill\.kernels: triton does not work here: libtriton\.so: cannot open; use"
    ):
        refuse_kernels("triton", torch.device("cuda"))


def test_a_run_may_go_on_with_others(lm_run: Path) -> None:
    plain, other = (load_recipe(lm_run / "recipe.yaml", one) for one in ([], [TRITON]))
    assert plain.distill.deciding_values() == other.distill.deciding_values()
    assert plain != other
