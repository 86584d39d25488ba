"""The verdict on what is in a model's weight files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ted_ds.vetting.weights import count_weights, judge_weights

SOUND = {"a": torch.ones(4, 5), "b": torch.zeros(3)}
VERDICTS = {
    "sound": ({}, "pass", "23 values, 13.04 % zeros, all finite"),
    "not finite": (
        {"c": torch.tensor([1.0, math.nan]), "d": torch.tensor([math.inf])},
        "fail",
        "2 tensors hold NaN or infinity: c, d; copy it again",
    ),
    "few zeros": ({"c": torch.zeros(1, 2)}, "pass", "25 values, 20.00 % zeros, all finite"),
    "zeros": (
        {"c": torch.zeros(1, 3)},
        "fail",
        "3 of 26 values, 23.08 % zeros are in matrices of nothing but zeros",
    ),
    "integers": ({"c": torch.zeros(2, dtype=torch.int64)}, "pass", "25 values, 20.00 % zeros, all finite"),
    "8 bits": ({"c": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)}, "fail", "1 tensors hold NaN or infinity"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_weights_are_judged_over_all_files_together(tmp_path: Path, case: str) -> None:
    more, status, detail = VERDICTS[case]
    files = []
    parts: list[dict[str, Tensor]] = [SOUND, more] if more else [SOUND]
    for number, tensors in enumerate(parts):
        files.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, files[-1])
    for counted in ([count_weights(files)], [count_weights([file]) for file in files]):
        verdict = judge_weights("teacher", counted)
        assert (verdict.check, verdict.status) == ("teacher weights", status)
        assert verdict.detail.startswith(detail)
