"""TF32 and determinism: what is set, what contradicts it, and what is said where it does nothing."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import psutil
import pytest
import torch

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError, TopologyError
from ted_ds.models import document_attention
from ted_ds.runtime import arithmetic
from ted_ds.runtime.arithmetic import EMPTY_TENSORS, deterministic_variables, set_arithmetic, without_effect
from ted_ds.runtime.visit import visiting
from ted_ds.runtime.world import World
from tests.dist import run_ranks


def _set(_world, tf32, deterministic, attention):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        os.environ.pop(name, None)
    set_arithmetic(tf32=tf32, deterministic=deterministic, attention=attention)
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        os.environ.get("FLASH_ATTENTION_DETERMINISTIC"),
    )


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ((False, False, "auto"), (False, False, False, None, None)),
        ((True, False, "sdpa"), (True, True, False, None, None)),
        ((False, True, "sdpa"), (False, False, True, ":4096:8", None)),
        ((True, True, "flash"), (True, True, True, ":4096:8", "1")),
    ],
)
def test_a_process_computes_as_the_recipe_says(settings, found):
    assert run_ranks(_set, 1, *settings) == [found]


def test_what_was_chosen_by_hand_stays_if_it_will_do():
    given = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    assert deterministic_variables(given, attention="flash") == given
    assert deterministic_variables({"FLASH_ATTENTION_DETERMINISTIC": "0"}, attention="sdpa") == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8"
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:2"},
            "$CUBLAS_WORKSPACE_CONFIG is ':4096:2': use :4096:8 or :16:8, or unset",
        ),
        ({"FLASH_ATTENTION_DETERMINISTIC": "0"}, "$FLASH_ATTENTION_DETERMINISTIC is '0': use 1, or unset it"),
    ],
)
def test_what_contradicts_it_is_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        deterministic_variables(given, attention="flash")
    assert str(caught.value).startswith(f"deterministic: true, but {message}")


@pytest.mark.parametrize(
    ("installed", "will_do"), [("2.4.0", False), ("1.0.9", False), ("2.4.1", True), ("2.8.3+cu12", True)]
)
def test_a_flash_attn_that_cannot_repeat_itself_is_refused(monkeypatch, installed, will_do):
    monkeypatch.setattr(arithmetic, "version", lambda _: installed)
    if will_do:
        return arithmetic._refuse_old_flash()
    with pytest.raises(ConfigError, match=rf"flash-attn {installed} cannot repeat itself .*; install 2.4.1 or newer"):
        arithmetic._refuse_old_flash()
    return None


def test_a_flash_attn_that_is_missing_is_for_whoever_loads_the_model_to_say():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    arithmetic._refuse_old_flash()


def test_what_does_nothing_is_said():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    in_full = "tf32: true has no effect on a cpu: it computes fp32 in full"
    assert without_effect(tf32=True, attention="sdpa", dtype=torch.float32, device=cpu) == in_full
    assert without_effect(tf32=True, attention="sdpa", dtype=torch.float32, device=gpu) is None
    by_masks = "attention: packed is sdpa here, as the kernel computes in 16 bits"
    assert without_effect(tf32=False, attention="packed", dtype=torch.float32, device=gpu) == by_masks
    assert without_effect(tf32=False, attention="packed", dtype=torch.float32, device=cpu) is None


def _memory_of_an_empty_tensor(_world):
    set_arithmetic(tf32=False, deterministic=True, attention="auto")
    before = psutil.Process().memory_info().rss
    bucket = torch.empty(2**28)
    return psutil.Process().memory_info().rss - before, bucket.numel()


def test_what_deepspeed_makes_empty_is_not_written_over():
    ((taken, number),) = run_ranks(_memory_of_an_empty_tensor, 1)
    assert taken < 4 * number / 100


def _warned_of(_world):
    torch.use_deterministic_algorithms(True, warn_only=True)
    with visiting():
        set_arithmetic(tf32=False, deterministic=True, attention="auto")
        found = [torch.is_deterministic_algorithms_warn_only_enabled()]
    return [*found, torch.is_deterministic_algorithms_warn_only_enabled()]


def test_a_visit_leaves_what_a_process_was_only_warned_of():
    assert run_ranks(_warned_of, 1) == [[False, True]]


def _deterministic_for_a_while(_world):
    found = []
    with visiting():
        set_arithmetic(tf32=False, deterministic=True, attention="auto")
        found.append((torch.are_deterministic_algorithms_enabled(), EMPTY_TENSORS.fill_uninitialized_memory))
    return [*found, (torch.are_deterministic_algorithms_enabled(), EMPTY_TENSORS.fill_uninitialized_memory)]


def test_a_visit_leaves_no_determinism_behind():
    assert run_ranks(_deterministic_for_a_while, 1) == [[(True, False), (False, True)]]


def _chosen_by_the_newer_way(_world):
    matmul: Any = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        _ = matmul.allow_tf32
    found = []
    with visiting():
        set_arithmetic(tf32=False, deterministic=False, attention="auto")
        found.append(matmul.fp32_precision)
    return [*found, matmul.fp32_precision]


def test_how_a_process_computes_is_put_back_however_it_was_chosen():
    assert run_ranks(_chosen_by_the_newer_way, 1, joins=True) == [["ieee", "tf32"]]


def test_bf16_that_a_gpu_only_imitates_is_refused(monkeypatch):
    old = World(0, 1, torch.device("cuda"), None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda imitated=True: imitated)
    with pytest.raises(TopologyError, match="on NVIDIA's before Ampere, and many times slower; use fp16 or fp32"):
        old.check_precision("bf16")
    old.check_precision("fp32")


def test_torch_has_the_kernel_of_documents():
    assert document_attention._has_kernel()


def test_neither_is_the_default(lm_run):
    recipe = load_recipe(lm_run / "recipe.yaml")
    assert (recipe.tf32, recipe.deterministic) == (False, False)
