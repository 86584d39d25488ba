"""The kernels of Triton: the tests of the vocabulary's losses once more, in its interpreter; and its compiler.

In processes of their own, as torch looks whether Triton is installed. (On a GPU: ``python -m benchmarks.gpu --only
triton``.)
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.device import KERNELS, KERNELS_VARIABLE, OF_KERNELS, VARIABLE
from tests.optional import NO_TRITON, TRITON

ROOT = Path(__file__).parents[2]
IS_HERE = importlib.util.find_spec("triton") is not None
pytestmark = [
    pytest.mark.skipif(not (IS_HERE or TRITON.is_dir()), reason=NO_TRITON),
    pytest.mark.skipif(KERNELS == "triton", reason="this is one of the processes that it starts"),
]
QUICK = (
    "padded_differently or does_not_hide or head_with_a_bias or different_rows[weights2 or all_logits[3-some or "
    "asked_for or without_a_teacher or neither_of_two or (all_else_differs and 0.4 and jsd) or "
    "(over_a_vocabulary and None-rule1) or (one_vocabulary_alone and jsd) or (far_apart and 60) or "
    "(nearly_agree and 0.01])"
)
"""Of the tests, those that take an interpreter little time: each branch of the kernels is in one."""


def run(*words: str, timeout_s: float, **more: str) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), *([] if IS_HERE else [str(TRITON)]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": os.pathsep.join(path), VARIABLE: "cpu", **more}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done


def passed_by_kernels(*words: str, timeout_s: float) -> int:
    more = {KERNELS_VARIABLE: "triton", "TRITON_INTERPRET": "1"}
    done = run("pytest", "-q", *OF_KERNELS, *words, timeout_s=timeout_s, **more)
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[1])


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_the_losses_of_a_vocabulary_by_kernels() -> None:
    assert passed_by_kernels("-x", "-k", QUICK, timeout_s=580) >= 45


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_that_is_tested_of_them_by_kernels() -> None:
    assert passed_by_kernels(timeout_s=3500) >= 850


def test_the_compiler_takes_the_kernel_of_the_kl(tmp_path: Path) -> None:
    sizes = json.loads(run("tests.compile_kernels", "kl", timeout_s=240, TRITON_CACHE_DIR=str(tmp_path)).stdout)
    assert [*sizes] == ["A100", "H100"]
    assert all(number > 1000 for of_card in sizes.values() for number in of_card.values())


@pytest.mark.slow
def test_the_compiler_takes_all_kernels(tmp_path: Path) -> None:
    sizes = json.loads(run("tests.compile_kernels", timeout_s=1200, TRITON_CACHE_DIR=str(tmp_path)).stdout)
    assert len(sizes["A100"]) == 7
