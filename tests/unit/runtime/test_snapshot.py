"""What a checkpoint is written from: a copy that later steps do not change."""

from __future__ import annotations

import torch

from ted_ds.runtime.checkpoints.writer import snapshot


def test_a_copy_keeps_its_values_and_what_shares_memory_still_does() -> None:
    weight = torch.arange(6.0).view(2, 3)
    weight.requires_grad_()
    state = {
        "weight": weight,
        "tied": weight,
        "flat": weight.view(6),
        "row": weight[1],
        "empty": [torch.empty(0), torch.empty(0, 4)],
        "rest": {"scale": [1.0, 2]},
    }
    taken = snapshot(state)
    with torch.no_grad():
        weight.add_(100)
    state["rest"]["scale"].append(3)
    assert taken["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert taken["tied"] is taken["weight"]
    assert not taken["weight"].requires_grad
    assert taken["flat"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert taken["row"].tolist() == [3.0, 4.0, 5.0]
    assert [one.shape for one in taken["empty"]] == [(0,), (0, 4)]
    assert taken["rest"] == {"scale": [1.0, 2]}
