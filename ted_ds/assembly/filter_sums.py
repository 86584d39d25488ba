"""The sums over tokens by which the filters of one side are solved, and their solution.

A filter ``F`` with bias ``b`` of layer ``k`` has the least

    sum over tokens of w |F h_k + b - y|^2,   w = 1 / mean(y^2),

where ``y`` is the state behind the last block, which the model's head reads, or what the partner's filter of the
teacher puts out (:mod:`ted_ds.numerics.normal_equations` has the ridge). Heads read states behind a norm, so that a
token counts by its relative error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.errors import NumericsError
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.layer_map import layer_names
from ted_ds.numerics.normal_equations import Fit, NormalEquations, fit, inverse_mean_square


class FilterSums:
    """Sums over what the filters of a side read and what they are to put out, by their place in the layer map."""

    def __init__(self, build: Assembly, side: str) -> None:
        """Of no tokens."""
        self.side, self.layers = side, build.layers(side)
        self._build = build
        width, dim, device = build.facts(side).hidden_size, build.plan.filter_dim, build.world.device
        self._parts = [
            tuple(NormalEquations(width, dim, with_bias=True, device=device) for _ in range(2)) for _ in self.layers
        ]
        """To fit, and to judge by."""
        self._num_spoiled = torch.zeros(len(self.layers), 2, device=device)
        """How many states are not finite, and how many targets."""

    def add(self, place: int, inputs: Tensor, targets: Tensor, masks: Sequence[Tensor]) -> None:
        """Take in states and targets ``[..., width]``: those to fit, and those to judge by."""
        for equations, mask in zip(self._parts[place], masks, strict=True):
            x, y = inputs[mask], targets[mask]
            self._num_spoiled[place] += torch.stack([(~one.isfinite().all(1)).sum() for one in (x, y)])
            equations.add(x, y, inverse_mean_square(y))

    def solve(self, prefix: str, unit: str) -> tuple[FilterBank, dict[str, dict[str, Any]]]:
        """The filters, and how each was solved, which is said. Every rank must call it.

        Args:
            prefix: Before the name of a layer, in what is said.
            unit: What was counted, in words.

        Raises:
            NumericsError: A state is not finite; on every rank.
        """
        build, world = self._build, self._build.world
        filters = build.recipe.filters
        assert filters is not None
        spoiled = world.sum(self._num_spoiled).tolist()
        bank = FilterBank(self.layers, build.facts(self.side).hidden_size, build.plan.filter_dim)
        about: dict[str, dict[str, Any]] = {}
        for place, (name, one) in enumerate(zip(layer_names(self.layers), bank.filters, strict=True)):
            with world.together():
                _refuse_spoiled(f"{prefix}{name}", *spoiled[place])
            fitted, heldout = self._parts[place]
            for sums in (*fitted.tensors, *heldout.tensors):
                world.sum(sums)
            start = _unchanged(fitted)
            # by one rank: others may round in another way
            solved = world.on_main(
                lambda fitted=fitted, heldout=heldout, start=start: _on_host(
                    fit(fitted, towards=start, strengths=filters.ridge.strengths, heldout=heldout)
                )
            )
            weights = solved.weights.float()
            with torch.no_grad():
                one.get_parameter("weight").copy_(weights[:, :-1])
                one.get_parameter("bias").copy_(weights[:, -1])
            about[name] = _facts(solved, fitted, heldout, start)
            for line in _in_words(f"{prefix}{name}", unit, about[name]):
                build.screen.say(line)
        return bank, about


def _unchanged(equations: NormalEquations) -> Tensor:
    """What a filter is held to: the state as it is, or nothing, where that is of another width."""
    num_targets, num_inputs = equations.of_targets.shape
    start = torch.zeros_like(equations.of_targets)
    if num_targets == num_inputs - 1:
        start.fill_diagonal_(1)
    return start


def _on_host(solved: Fit) -> Fit:
    return replace(solved, weights=solved.weights.cpu())


def _facts(solved: Fit, fitted: NormalEquations, heldout: NormalEquations, start: Tensor) -> dict[str, Any]:
    """How a filter was solved, as JSON."""
    judges = heldout if heldout.num_tokens else fitted
    return {
        "num_tokens": fitted.num_tokens,
        "num_heldout_tokens": heldout.num_tokens,
        "num_unknowns": fitted.num_inputs,
        "strength": solved.strength,
        "was_raised": solved.was_raised,
        "errors": {f"{strength:g}": error for strength, error in solved.strengths.items()},
        "error_before": judges.relative_error(start),
        "error": solved.strengths[solved.strength],
        "condition": solved.condition,
    }


def _in_words(filter_name: str, unit: str, about: Mapping[str, Any]) -> list[str]:
    """The same for the screen; of what is doubtful, a line each."""
    lines = [
        f"  {filter_name}: solved on {about['num_tokens']:,} {unit}; relative error on {about['num_heldout_tokens']:,} "
        f"others {about['error_before']:.4g} -> {about['error']:.4g}, ridge {about['strength']:g}, condition about "
        f"{about['condition']:.2g}"
    ]
    if about["num_tokens"] < about["num_unknowns"]:
        lines.append(
            f"  WARN {filter_name}: {about['num_tokens']:,} {unit} for {about['num_unknowns']:,} unknowns of each "
            "dimension: the ridge decides the rest; raise student.calibration.tokens"
        )
    if about["was_raised"]:
        lines.append(
            f"  WARN {filter_name}: its sums are singular, and the ridge was raised to {about['strength']:g}, where "
            "they can be solved; give filters.ridge.strengths from there on"
        )
    return lines


def _refuse_spoiled(filter_name: str, num_states: float, num_targets: float) -> None:
    """Make sure that all states were finite.

    Raises:
        NumericsError: They were not.
    """
    if num_states or num_targets:
        what = "the state it reads" if num_states else "what it is solved towards"
        raise NumericsError(
            f"{filter_name}: {what} is not finite at {int(num_states or num_targets):,} tokens of the calibration "
            "texts (student.calibration); look at the model (ted-ds doctor), or use precision bf16 or fp32"
        )
