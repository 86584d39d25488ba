"""Which engine trains: one of a pipeline, or one that has the whole module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ted_ds.runtime.cargo import Waybill
from ted_ds.runtime.pipeline import PipelineRunner, Travellers
from ted_ds.runtime.step_runner import EngineSettings, StepRunner
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner


def start_runner(
    module: nn.Module,
    settings: EngineSettings,
    *,
    world: World,
    watched: Mapping[str, nn.Module],
    travellers: Travellers,
    waybill: Waybill,
) -> StepRunner:
    """The engine for this world; ``travellers`` and ``waybill`` are a pipeline's, the rest is :class:`StepRunner`'s."""
    if world.num_stages > 1:
        return PipelineRunner(module, settings, world=world, watched=watched, travellers=travellers, waybill=waybill)
    return ZeroRunner(module, settings, world=world, watched=watched)
